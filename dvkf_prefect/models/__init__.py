"""Model versions: registry and lineage."""
