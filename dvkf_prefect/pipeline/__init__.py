"""Pipelines of dvc.yaml: plan, run and report stages."""
