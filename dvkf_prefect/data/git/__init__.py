"""The git command, the objects of many commits, kept clones, and `.gitignore`.

It may import `formats`, and nothing else of `data`.
"""
