"""Versions of models: git tags in GTO's grammar, their content and lineage; may import the engine, not Kubeflow."""
