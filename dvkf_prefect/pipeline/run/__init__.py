"""`repro`: stages get their inputs, run in order, and are recorded.

The package may import plan and step.
"""
