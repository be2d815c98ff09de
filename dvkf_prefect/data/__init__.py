"""Versioned data of a DVC repository: all operations of `dvkf` on it.

The packages, from the top: tables; repo; verbs and views; imports and upkeep; transfer; repository; workspace; remotes;
cache; git. Each may import those below it.
"""
