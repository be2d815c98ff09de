"""Reports of pipelines: metrics, plots, the graph as a drawing.

It may import plan, and nothing else of `pipeline`.
"""
