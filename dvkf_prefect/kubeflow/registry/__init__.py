"""Kubeflow Model Registry: a thin client, and the mirror of git's model versions; may import cluster/ for the login."""
