"""Stages as task runs in the Prefect UI.

It may import pipelines, cards and blocks.
"""
