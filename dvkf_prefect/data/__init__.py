"""Versions of data: outputs, their digests, the cache and remotes."""
