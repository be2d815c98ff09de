"""The files of a workspace: look at them, store them in the cache, put them in place.

It may import the cache, and nothing else of `data`.
"""
