"""Objects moved between a cache and a remote: planned, moved, verified.

It may import a repository and what that may; no verb.
"""
