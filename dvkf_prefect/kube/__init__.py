"""Client of Kubernetes' API.

The package may import only errors.
"""
