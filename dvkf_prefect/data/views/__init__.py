"""Read access to any revision without a checkout: listings, verified file objects, the ``dvkf://`` filesystem.

It may import `imports`, `transfer` and the packages below them; no verb.
"""
