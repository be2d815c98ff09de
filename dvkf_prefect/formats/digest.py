"""Digests: DVC's md5 of a file's bytes, and the memory that spares hashing an unchanged file again."""

from __future__ import annotations

import hashlib
from pathlib import Path

# Bytes read at once. DVC 2.x judged pieces of this size, so it is part of that format.
_CHUNK = 1 << 20
_TEXT = bytes(range(32, 127)) + b"\n\r\t\f\b"


def digest_bytes(data: bytes) -> str:
    """Return the md5 of ``data`` in hex."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def digest_file(path: str | Path) -> str:
    """Return the md5 of a file's bytes in hex.

    Raises:
        OSError: The file cannot be read.
    """
    md5 = hashlib.md5(usedforsecurity=False)
    with open(path, "rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK):
            md5.update(chunk)
    return md5.hexdigest()


def unix_text(chunk: bytes) -> bytes:
    """Return what DVC 2.x hashes of a piece of a file: of text, with its line ends turned into Unix ones.

    Source: dvc-data, hashfile/hash.py and istextfile.py: each piece of 1 MiB is judged by its own first 512 bytes; text
    has no NUL and few odd characters.

    Args:
        chunk: Up to 1 MiB, from a place that is a multiple of that.
    """
    block = chunk[:512]
    is_text = b"\0" not in block and len(block.translate(None, _TEXT)) <= 0.3 * len(block)
    return chunk.replace(b"\r\n", b"\n") if is_text else chunk


def digest_dos2unix(path: str | Path) -> str:
    """Return DVC 2.x's digest of a file, in hex.

    Raises:
        OSError: The file cannot be read.
    """
    md5 = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            md5.update(unix_text(chunk))
    return md5.hexdigest()
