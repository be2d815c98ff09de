"""Prefect tasks, blocks and flows for DVC data versions, on Kubeflow or on one machine."""

__version__ = "0.1.0"
