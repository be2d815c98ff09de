"""Implementation of the command line's verbs, such as `dvkf add`, `push` and `checkout`: one module each.

A verb may import all packages below this one, and other verbs.
"""
