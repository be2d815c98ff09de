"""Data that comes from elsewhere: other repositories, folders and urls.

It may import transfer and what that may; no verb.
"""
