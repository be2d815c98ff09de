"""One module a verb of the command line: what `dvkf add`, `push` or `checkout` do.

A verb may import all rooms below it, and other verbs.
"""
