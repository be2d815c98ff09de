"""Dispatch of stages to Kubeflow, on a cluster or on this machine."""
