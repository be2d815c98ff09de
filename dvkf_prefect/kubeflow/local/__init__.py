"""Stages by KFP's local runner on this machine.

It may import compile and pod.
"""
