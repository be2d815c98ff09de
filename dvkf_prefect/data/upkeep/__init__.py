"""Maintenance of caches and remotes: garbage collection, verification, migration and health checks.

It may import `transfer` and the packages below it; no verb.
"""
