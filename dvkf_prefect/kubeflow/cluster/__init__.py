"""Stages on a Kubeflow Pipelines server: submitted, watched, collected.

It may import compile, exchange and pod.
"""
