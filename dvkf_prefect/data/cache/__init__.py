"""The local store of objects, and the processes that copy and hash them.

It may import `formats` and git, and nothing else of `data`.
"""
