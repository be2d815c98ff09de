"""The rows of a manifest, read piece by piece, so that no text of it takes much more memory than its rows.

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
# Room for about 400,000 files. What the verbs work out of them takes up to six times as much.
DEFAULT = 64
# Parsed at once. The JSON of it may take forty times as much.
_PIECE = 1 << 20
# A row is not longer: a path of 4,096 bytes, each of them escaped.
_ROW = 64 << 10
# Between two rows; in a string a quote would end it, and no word may follow that.
_BETWEEN = re.compile(rb'\}\s{0,8},\s{0,8}(?=\{\s{0,8}"\w+")')
# A digest, and the places of both in the lists.
_FIXED = 81 + 16
_MEAN = "a manifest is a JSON list of md5 and relpath"


def limit() -> int:
    """Return how many bytes of memory the manifests at hand may take."""
    text = os.environ.get(VARIABLE, "").strip()
    return (int(text) if text.isdecimal() and len(text) < 8 else DEFAULT) << 20


def file_limit() -> int:
    """Return how many bytes a manifest may have: of short names, its rows take twice as much memory."""
    return limit() * 4 // 9


def read(data: bytes, name: str, *, limited: bool) -> tuple[list[str], list[str]]:
    """Return the paths and the digests of a manifest, in its order.

    Args:
        data: Its bytes.
        name: Its digest or place, for messages.
        limited: Refuse one that takes too much memory.

    Raises:
        ParseError: It is not a manifest, or takes too much memory.
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
    """Return how many objects may be fetched at once: more than are in one manifest, as they take less memory."""
    return limit() // 64


def too_large(name: str) -> ParseError:
    """Return the error for a manifest that would take too much memory, or does with the others at hand."""
    most = limit() >> 20
    return ParseError(
        name,
        f"this manifest, with the others at hand, takes more than {most} MB of memory. If it is yours, or you trust "
        f"it, allow more: {more()}",
    )


def more() -> str:
    """Return a setting that allows ten times as much."""
    return f"{VARIABLE}={max(limit() >> 20, 1) * 10}"


# -- what all manifests at hand take -----------------------------------------------------------------------------------


class _Taken:
    """Counts the memory of all manifests that live."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.size = 0

    def add(self, size: int) -> None:
        with self._lock:
            self.size += size


_TAKEN = _Taken()


def take(tree: object, relpaths: Sequence[str], name: str) -> None:
    """Count the memory of a manifest, for as long as it lives.

    Args:
        tree: It.
        relpaths: Its paths, in order.
        name: Its digest or place, for messages.

    Raises:
        ParseError: With the others it takes more than is allowed.
    """
    most = limit()
    size = sum(map(getsizeof, relpaths)) + _FIXED * len(relpaths)
    if _TAKEN.size + size > most or _folders(relpaths, 2 * most) > 2 * most:
        raise too_large(name)
    _TAKEN.add(size)
    weakref.finalize(tree, _TAKEN.add, -size).atexit = False


def _folders(relpaths: Sequence[str], enough: int) -> int:
    """Return a bound of how many characters the names of all folders on the paths have, a good one above `enough`."""
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
