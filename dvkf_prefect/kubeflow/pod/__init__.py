"""Process of a stage in a pod, or in a task of the local runner.

The package may import compile, exchange and trainer, and `kube`.
"""
