"""Child and server processes, and their ends.

It knows nothing of data, and may import nothing but helpers.
"""
