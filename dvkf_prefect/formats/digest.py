"""MD5 digests of files and bytes, as DVC 3.x and DVC 2.x compute them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

# Bytes per read. DVC 2.x classified pieces of this size as text or binary, so the size is part of that format.
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


def digest_stream(chunks: Iterable[bytes]) -> str:
    """Return the md5 of a stream of bytes in hex."""
    md5 = hashlib.md5(usedforsecurity=False)
    for chunk in chunks:
        md5.update(chunk)
    return md5.hexdigest()


def unix_text(chunk: bytes) -> bytes:
    """Return the bytes that DVC 2.x hashes for a piece of a file: text with Unix line ends, all else unchanged.

    Source: dvc-data, hashfile/hash.py and istextfile.py. The first 512 bytes of each 1 MiB piece decide if it is text:
    text has no NUL and at most 30 % unusual characters.

    Args:
        chunk: Up to 1 MiB, from an offset that is a multiple of 1 MiB.
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
