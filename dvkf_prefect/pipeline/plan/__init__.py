"""Decisions without running anything: graph, signatures, reasons, the run cache.

The package may import nothing else of `pipeline`.
"""
