"""Transfer of objects between a cache and a remote: plan, move and verify.

It may import `repository` and the packages below it; no verb.
"""
