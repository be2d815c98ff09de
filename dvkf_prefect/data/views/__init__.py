"""Any revision, read without a checkout: listings, verified file objects, the ``dvkf://`` filesystem.

It may import imports, transfer and what they may; no verb.
"""
