"""`repro`: stages brought their inputs, run in order, and recorded.

It may import plan and step.
"""
