"""File formats of DVC, parsed from bytes to values and serialized back.

This package knows no repository, network or git. It may import helper modules only.
"""
