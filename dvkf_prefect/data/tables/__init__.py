"""Tables of any revision, as pandas frames. The only room that imports pandas.

It may import everything of `data`.
"""
