"""Turn a folder of images, one folder a class, into one table: python prepare.py IMAGES TABLE."""

import sys
from pathlib import Path

import numpy as np


def read_pgm(path: Path) -> np.ndarray:
    """Read a binary PGM image as one row of grey values between 0 and 1."""
    magic, width, height, white, pixels = path.read_bytes().split(maxsplit=4)
    if magic != b"P5" or len(pixels) != int(width) * int(height):
        raise SystemExit(f"{path} is not a binary PGM image")
    return np.frombuffer(pixels, dtype=np.uint8) / int(white)


folder, table = map(Path, sys.argv[1:])
files = sorted(folder.glob("*/*.pgm"))
table.parent.mkdir(parents=True, exist_ok=True)
np.savez(
    table,
    x=np.stack([read_pgm(file) for file in files]),
    y=np.array([int(file.parent.name) for file in files]),
    names=np.array([f"{file.parent.name}/{file.name}" for file in files]),
)
print(f"{len(files)} images of {folder} -> {table}")
