"""Stages as task runs in the Prefect UI: options, logs, retries and persisted results.

Modules here may import the pipeline engine, Kubeflow, cards and blocks.
"""
