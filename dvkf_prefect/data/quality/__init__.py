"""Quality of incoming tables: schemas, reports stored by content, and the way of files into a dataset.

It may import all of `data`. Only `schemas` imports pandera.
"""
