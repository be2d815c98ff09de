"""Content by its digest: the names that a cache and a remote give to objects."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dvkf_prefect.errors import UnsafePathError
from dvkf_prefect.formats.tree import SUFFIX

MD5 = "md5"

LEGACY = "md5-dos2unix"

_HEX = frozenset("0123456789abcdef")

# The digest of nothing, the only one whose object has no bytes.
_EMPTY = "d41d8cd98f00b204e9800998ecf8427e"


def object_key(digest: str, hash_name: str = MD5) -> str:
    """Return where an object lies below the root of a cache or a remote.

    Raises:
        UnsafePathError: ``digest`` is not a digest.
    """
    name = digest[: -len(SUFFIX)] if digest.endswith(SUFFIX) else digest
    if len(name) != 32 or not _HEX.issuperset(name):
        raise UnsafePathError(f"{digest!r} is not an md5 digest")
    place = f"{digest[:2]}/{digest[2:]}"
    return place if hash_name == LEGACY else f"files/md5/{place}"


def is_plausible(digest: str, size: int, expected: int | None = None) -> bool:
    """Tell whether an object of so many bytes can be what its name says; a power cut leaves empty ones.

    Args:
        digest: Its name.
        size: Its bytes.
        expected: The bytes it must have, None where that is not known.
    """
    if expected is not None:
        return size == expected
    return size > 0 or digest == _EMPTY


@dataclass(frozen=True, slots=True)
class Stored:
    """Content that is in the cache now.

    Attributes:
        digest: md5 in hex, with ``.dir`` for a directory.
        size: Bytes; of a directory the sum.
        nfiles: Number of files of a directory, None for a file.
        isexec: Whether a single file may be executed.
    """

    digest: str
    size: int
    nfiles: int | None = None
    isexec: bool = False


PREFIX = re.compile(r"[0-9a-f]{2}")

REST = re.compile(r"[0-9a-f]{30}(?:\.dir)?")

KEY = re.compile(r"(?:files/md5/)?[0-9a-f]{2}/[0-9a-f]{30}(?:\.dir)?")

LAYOUTS = ("files/md5/", "")


def identity(key: str) -> tuple[str, str]:
    """Return the digest and the hash name of an object's key; the reverse of `store.object_key`.

    Example:
        >>> identity("files/md5/d4/1d8cd98f00b204e9800998ecf8427e")
        ('d41d8cd98f00b204e9800998ecf8427e', 'md5')
    """
    place = key.removeprefix("files/md5/")
    return place[:2] + place[3:], LEGACY if place == key else MD5


def keys_of(digests: Iterable[str], hash_name: str) -> Iterator[str]:
    """Yield the keys of digests of one kind."""
    start = "" if hash_name == LEGACY else "files/md5/"
    return (f"{start}{digest[:2]}/{digest[2:]}" for digest in digests)
