"""Adapters of model formats: each loads verified files with its library, and returns an estimator or a program.

A library is imported by its adapter only, as a model is loaded. The package may import `tensor_model`, errors and
`formats`.
"""
