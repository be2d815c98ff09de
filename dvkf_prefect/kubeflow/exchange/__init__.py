"""Runs on a remote, written by the dispatcher and read by pods: sources, objects, results.

The package may import nothing else of `kubeflow`.
"""
