"""A local model server and its client.

It may import processes and `formats`.
"""
