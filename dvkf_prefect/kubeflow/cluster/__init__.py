"""Stages on a Kubeflow Pipelines server: submit, watch, collect.

The package may import compile, exchange, pod and trainer, and `kube`.
"""
