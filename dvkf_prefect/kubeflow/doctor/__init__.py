"""Checks of a cluster and of the settings for it: connection, login, API, namespace, rights, remote, images.

The package may import cluster and compile, and `kube`. Each module does one part; nothing is written anywhere.
"""
