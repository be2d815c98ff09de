"""Stages on KFP's local runner on this machine.

The package may import compile and pod.
"""
