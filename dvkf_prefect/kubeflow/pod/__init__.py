"""The process of a stage in a pod, or in a task of the local runner.

It may import exchange.
"""
