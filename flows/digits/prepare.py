"""Turn a folder of images, one folder a class, into one table: python prepare.py IMAGES TABLE."""

import re
import sys
from pathlib import Path

import numpy as np


def read_pgm(path: Path) -> np.ndarray:
    """Read a binary PGM image as one row of grey values between 0 and 1."""
    data = path.read_bytes()
    # One white-space character ends the header; the pixel behind it may look like another.
    header = re.match(rb"P5\s+(\d+)\s+(\d+)\s+(\d+)\s", data)
    if header is None or len(data) - header.end() != int(header[1]) * int(header[2]):
        raise SystemExit(f"{path} is not a binary PGM image")
    return np.frombuffer(data, dtype=np.uint8, offset=header.end()) / int(header[3])


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
