"""Tables of any revision as pandas frames; the only package of `data` that imports pandas.

It may import all of `data`.
"""
