"""Rows of a manifest, parsed in pieces to bound the memory: a text takes little more than its rows.

Parsed as a whole, 60 MB of ``{}`` took 3 GB.
"""

from __future__ import annotations

import json
import os
import re
import threading
import weakref
from collections.abc import Sequence
from sys import getsizeof
from typing import Any

from dvkf_prefect.errors import ParseError

VARIABLE = "DVKF_MANIFEST_MB"
# Room for about 400,000 files. Values derived from them may take six times as much.
DEFAULT = 64
# Bytes per parsed piece. The parsed JSON may take forty times as much.
_PIECE = 1 << 20
# Longest row in bytes: a path of 4,096 bytes, each of them escaped.
_ROW = 64 << 10
# Gap between two rows. A string cannot match: a quote would end it, and no word may follow that.
_BETWEEN = re.compile(rb'\}\s{0,8},\s{0,8}(?=\{\s{0,8}"\w+")')
# Bytes of a digest, and of both entries in the lists.
_FIXED = 81 + 16
_MEAN = "a manifest is a JSON list of md5 and relpath"


def limit() -> int:
    """Return the memory limit of all live manifests in bytes."""
    text = os.environ.get(VARIABLE, "").strip()
    return (int(text) if text.isdecimal() and len(text) < 8 else DEFAULT) << 20


def file_limit() -> int:
    """Return the size limit of a manifest in bytes; with short names, its rows take twice as much memory."""
    return limit() * 4 // 9


def read(data: bytes, name: str, *, limited: bool) -> tuple[list[str], list[str]]:
    """Return the paths and the digests of a manifest, in its order.

    Args:
        data: The manifest's bytes.
        name: Digest or location of the manifest, for messages.
        limited: Apply the memory limit.

    Raises:
        ParseError: It is not a manifest, or exceeds the memory limit.
    """
    relpaths: list[str] = []
    digests: list[str] = []
    if len(data) <= _PIECE:
        _add(data, name, relpaths, digests)
        return relpaths, digests
    if limited and len(data) > file_limit():
        raise too_large(name)
    start, end = data.find(b"["), data.rfind(b"]")
    if data[:start].strip() or data[end + 1 :].strip() or end < 0:
        raise ParseError(name, _MEAN)
    start += 1
    while start < end:
        if end - start <= _PIECE:
            piece, following = data[start:end], end
        elif found := _BETWEEN.search(data, start + _PIECE - _ROW, start + _PIECE):
            piece, following = data[start : found.start() + 1], found.end()
        else:
            raise ParseError(name, f"{_MEAN} (no row ends near byte {start + _PIECE})")
        _add(b"[%b]" % piece, name, relpaths, digests)
        start = following
        if limited and len(relpaths) * _FIXED > limit():
            raise too_large(name)
    return relpaths, digests


def _add(text: bytes, name: str, relpaths: list[str], digests: list[str]) -> None:
    try:
        entries: Any = json.loads(text)
        some = [entry["relpath"] for entry in entries]
        theirs = [entry["md5"] for entry in entries]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ParseError(name, f"{_MEAN} ({error})") from error
    for path, digest in zip(some, theirs, strict=True):
        if (
            not isinstance(path, str)
            or not isinstance(digest, str)
            or len(digest) != 32
            or not (digest.isalnum() and digest.isascii())
        ):
            raise ParseError(name, f"entry {path!r}: md5 and relpath must be a digest and a path")
    relpaths += some
    digests += theirs


def most_objects() -> int:
    """Return the maximum number of objects in one fetch, above that of a manifest, since they take less memory."""
    return limit() // 64


def too_large(name: str) -> ParseError:
    """Return the error for a manifest above the memory limit, alone or together with the other live ones."""
    most = limit() >> 20
    return ParseError(
        name,
        f"this manifest and those already in memory take more than {most} MB. If you trust it, allow more: "
        f"{more()}",
    )


def more() -> str:
    """Return a setting with ten times the limit."""
    return f"{VARIABLE}={max(limit() >> 20, 1) * 10}"


# -- memory of all live manifests --------------------------------------------------------------------------------------


class _Taken:
    """Counter of the memory of all live manifests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.size = 0

    def add(self, size: int) -> None:
        with self._lock:
            self.size += size


_TAKEN = _Taken()


def take(tree: object, relpaths: Sequence[str], name: str) -> None:
    """Count the memory of a manifest for its lifetime.

    Args:
        tree: The manifest.
        relpaths: Paths of the manifest, in order.
        name: Digest or location of the manifest, for messages.

    Raises:
        ParseError: All live manifests together exceed the limit.
    """
    most = limit()
    size = sum(map(getsizeof, relpaths)) + _FIXED * len(relpaths)
    if _TAKEN.size + size > most or _folders(relpaths, 2 * most) > 2 * most:
        raise too_large(name)
    _TAKEN.add(size)
    weakref.finalize(tree, _TAKEN.add, -size).atexit = False


def _folders(relpaths: Sequence[str], enough: int) -> int:
    """Return an upper bound of the characters in the names of all folders on the paths; a tight one above `enough`."""
    if not relpaths:
        return 0
    bound = sum(path.count("/") for path in relpaths) * (max(map(len, relpaths)) + 100)
    if bound <= enough:
        return bound
    total, before = 0, ""
    for path in relpaths:
        shared = next(
            (i for i, (one, other) in enumerate(zip(before, path, strict=False)) if one != other), 0
        )
        total += path.count("/", shared) * (len(path) + 100)
        before = path
        if total > enough:
            break
    return total
