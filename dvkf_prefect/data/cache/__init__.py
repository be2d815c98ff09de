"""Local object store, and the processes that copy and hash objects.

It may import `formats` and git, and nothing else of `data`.
"""
