"""Decisions, without running anything: graph, signatures, reasons, the run cache.

It may import nothing else of `pipeline`.
"""
