"""An open repository: its settings, locks, small files, and which outputs targets mean.

It may import the workspace, the cache, remotes and git; no verb.
"""
