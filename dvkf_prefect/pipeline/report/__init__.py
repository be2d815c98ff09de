"""Reports on pipelines: metrics, plots, the graph as a drawing.

The package may import plan, and nothing else of `pipeline`.
"""
