"""Nodes of a distributed training by Kubeflow Trainer: planned by the dispatcher, started and watched by a stage's pod.

The package may import compile and exchange, and `kube`.
"""
