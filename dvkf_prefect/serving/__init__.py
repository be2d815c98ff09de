"""A local model server and its client.

The package may import only processes and `formats`.
"""
