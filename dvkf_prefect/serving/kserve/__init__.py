"""Services of KServe: applied, watched until they serve, and changed by canaries.

The package may import `kube` and the client of model servers, not the local server. Facts about KServe are of its
versions 0.15 to 0.21.
"""
