"""Export of pipelines that run without a dispatcher.

The package may import cluster, pod, compile and exchange.
"""
