"""Child and server processes: start, identify and end them.

The package knows nothing of data and may import only helpers.
"""
