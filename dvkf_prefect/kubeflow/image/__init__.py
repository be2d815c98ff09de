"""Container images of stages: what they need, how they are built, and checks of an image as its pods run.

The package may import compile.
"""
