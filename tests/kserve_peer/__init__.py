"""The model server beside `kserve.ModelServer`: one table of requests, and kserve's recorded answers to them.

`kserve` pins versions that this package does not take, so it has an environment of its own. ``make kserve-answers``
makes it, sends the requests, and writes ``answers.json``.
"""
