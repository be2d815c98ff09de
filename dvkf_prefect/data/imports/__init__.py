"""Import of data from other repositories, folders and urls.

It may import `transfer` and the packages below it; no verb.
"""
