"""Caches and remotes over the years: collection, verification, migration, health.

It may import transfer and what that may; no verb.
"""
