"""An open repository: its settings, locks and small files, and the resolution of targets to outputs.

It may import `workspace`, `cache`, `remotes` and `git`; no verb.
"""
