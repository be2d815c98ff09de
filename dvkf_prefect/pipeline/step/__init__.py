"""One stage, run from a `StepSpec`, on this machine or in a pod.

The package may import nothing else of `pipeline`.
"""
