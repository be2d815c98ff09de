"""Object names: the digest of content, and the key it has in a cache or a remote."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dvkf_prefect.errors import UnsafePathError
from dvkf_prefect.formats.tree import SUFFIX, is_tree

MD5 = "md5"

LEGACY = "md5-dos2unix"

_HEX = frozenset("0123456789abcdef")

# Digest of empty content, the only one with an empty object.
_EMPTY = "d41d8cd98f00b204e9800998ecf8427e"


def object_key(digest: str, hash_name: str = MD5) -> str:
    """Return the path of an object relative to the root of a cache or a remote.

    Raises:
        UnsafePathError: ``digest`` is not a digest.
    """
    name = digest[: -len(SUFFIX)] if digest.endswith(SUFFIX) else digest
    if len(name) != 32 or not _HEX.issuperset(name):
        raise UnsafePathError(f"{digest!r} is not an md5 digest")
    place = f"{digest[:2]}/{digest[2:]}"
    return place if hash_name == LEGACY else f"files/md5/{place}"


def is_plausible(digest: str, size: int, expected: int | None = None) -> bool:
    """Return True if an object's size fits its name; a power cut may leave empty objects.

    Args:
        digest: Name of the object.
        size: Actual size in bytes.
        expected: Expected size in bytes, None if unknown.
    """
    if expected is not None:
        return size == expected
    return size > 0 or digest == _EMPTY


@dataclass(frozen=True, slots=True)
class Content:
    """Content of a file or a directory: its identity and its amount, independent of any place.

    Attributes:
        digest: md5 in hex, with ``.dir`` for a directory.
        size: Size in bytes; for a directory, the sum over its files. None if unknown.
        nfiles: Number of files of a directory, None for a file or if unknown.
        isexec: True if the content is one executable file.
        hash_name: ``md5``, or ``md5-dos2unix`` of DVC 2.x.
    """

    digest: str
    size: int | None = None
    nfiles: int | None = None
    isexec: bool = False
    hash_name: str = MD5

    @property
    def is_dir(self) -> bool:
        """True if the content is a directory."""
        return is_tree(self.digest)


PREFIX = re.compile(r"[0-9a-f]{2}")

REST = re.compile(r"[0-9a-f]{30}(?:\.dir)?")

KEY = re.compile(r"(?:files/md5/)?[0-9a-f]{2}/[0-9a-f]{30}(?:\.dir)?")

LAYOUTS = ("files/md5/", "")


def identity(key: str) -> tuple[str, str]:
    """Return the digest and the hash name of an object's key; the reverse of `object_key`.

    Example:
        >>> identity("files/md5/d4/1d8cd98f00b204e9800998ecf8427e")
        ('d41d8cd98f00b204e9800998ecf8427e', 'md5')
    """
    place = key.removeprefix("files/md5/")
    return place[:2] + place[3:], LEGACY if place == key else MD5


def keys_of(digests: Iterable[str], hash_name: str) -> Iterator[str]:
    """Yield the keys of digests of one hash name."""
    start = "" if hash_name == LEGACY else "files/md5/"
    return (f"{start}{digest[:2]}/{digest[2:]}" for digest in digests)
