"""One stage, run from a `StepSpec`, on this machine or in a pod.

It may import nothing else of `pipeline`.
"""
