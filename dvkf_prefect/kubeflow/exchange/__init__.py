"""Runs on a remote, which the dispatcher writes and pods read: sources, objects, results.

It may import nothing else of `kubeflow`.
"""
