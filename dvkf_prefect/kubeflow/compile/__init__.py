"""Stages compiled to a pipeline of KFP, with the settings of their pods.

It may import nothing else of `kubeflow`.
"""
