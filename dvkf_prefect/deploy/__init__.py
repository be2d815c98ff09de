"""Deployments of a repository's flows: the files that make them, and checks of what they need on a Prefect server.

It imports the blocks, the façade and the layers below, and Prefect's client.
"""
