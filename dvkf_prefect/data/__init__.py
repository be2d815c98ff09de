"""The data of a DVC repository: everything that `dvkf` does with versions of it.

The rooms, from the top: tables; repo; verbs and views; imports and upkeep; transfer; repository; workspace; remotes;
cache; git. Each may import those below it.
"""
