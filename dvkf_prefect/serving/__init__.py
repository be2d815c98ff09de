"""Places that serve models: a local server, services of KServe, and their client.

The package may import only `processes`, `formats` and `kube`.
"""
