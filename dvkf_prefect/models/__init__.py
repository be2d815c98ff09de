"""Versions of models: registry and lineage."""
