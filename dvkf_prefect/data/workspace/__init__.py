"""Files of a workspace: inspection, storage in the cache, and checkout.

It may import the cache, and nothing else of `data`.
"""
