"""The files of DVC: bytes to values and back.

It knows no repository, no network and no git, and may import nothing but helpers.
"""
