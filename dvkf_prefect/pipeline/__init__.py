"""dvc.yaml: what to run, whether, and why."""
