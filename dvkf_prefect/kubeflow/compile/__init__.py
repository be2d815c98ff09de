"""Compilation of stages to a KFP pipeline, with the settings of their pods.

The package may import nothing else of `kubeflow`.
"""
