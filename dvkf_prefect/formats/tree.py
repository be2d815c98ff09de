"""Manifest of a tracked directory: the digest of each file by its path.

Source of the format: DVC's ``.dir`` objects, a JSON list of ``{"md5", "relpath"}`` sorted by ``relpath``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from json.encoder import encode_basestring_ascii

from dvkf_prefect.errors import UnsafePathError
from dvkf_prefect.formats import manifest_rows
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.paths import find_reserved

SUFFIX = ".dir"
# Number of paths to join for one check.
_AT_ONCE = 1_000


def is_tree(digest: str) -> bool:
    """Return True if a digest names a manifest rather than a file."""
    return digest.endswith(SUFFIX)


@dataclass(frozen=True)
class Tree:
    """Files of a directory, in two columns.

    Attributes:
        relpaths: Posix paths relative to the directory, in code-point order.
        digests: md5 of each file, in hex.

    Example:
        >>> Tree(["a"], ["60b725f10c9c85c70d97880dfe8191b3"]).to_bytes()
        b'[{"md5": "60b725f10c9c85c70d97880dfe8191b3", "relpath": "a"}]'
    """

    relpaths: list[str]
    digests: list[str]

    def __len__(self) -> int:
        return len(self.relpaths)

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[str, str]]) -> Tree:
        """Create a tree from ``(relpath, digest)`` in any order."""
        ordered = sorted(pairs)
        return cls([path for path, _ in ordered], [digest for _, digest in ordered])

    @classmethod
    def from_bytes(cls, data: bytes, name: str, *, own: bool = False) -> Tree:
        """Parse a manifest.

        Args:
            data: The manifest's bytes.
            name: Digest or location of the manifest, for messages.
            own: True for the user's own manifest, which may take any memory.

        Raises:
            ParseError: It is not a manifest, or exceeds the memory limit.
            UnsafePathError: A path in it would leave the directory.
        """
        relpaths, digests = manifest_rows.read(data, name, limited=not own)
        for start in range(0, len(relpaths), _AT_ONCE):
            _check_paths(relpaths[start : start + _AT_ONCE], name)
        tree = cls(relpaths, digests)
        if relpaths != sorted(relpaths):
            tree = cls.from_pairs(zip(relpaths, digests, strict=True))
        if not own:
            manifest_rows.take(tree, tree.relpaths, name)
        return tree

    def to_bytes(self) -> bytes:
        """Serialize the manifest as DVC does."""
        quote = encode_basestring_ascii
        rows = [
            f'{{"md5": "{digest}", "relpath": {quote(path)}}}'
            for path, digest in zip(self.relpaths, self.digests, strict=True)
        ]
        return f"[{', '.join(rows)}]".encode()

    @cached_property
    def digest(self) -> str:
        """Digest of the manifest, with ``.dir``."""
        return digest_bytes(self.to_bytes()) + SUFFIX

    def items(self) -> Iterable[tuple[str, str]]:
        """Yield ``(relpath, digest)`` in order."""
        return zip(self.relpaths, self.digests, strict=True)

    def subtree(self, path: str) -> Tree:
        """Return the files at or below a path, with paths relative to it; a file has the path ``""``.

        Example:
            >>> Tree(["a/x", "a/y"], ["60b725f10c9c85c70d97880dfe8191b3"] * 2).subtree("a").relpaths
            ['x', 'y']
        """
        inside = path + "/"
        rows = [(p[len(inside) :], d) for p, d in self.items() if p == path or p.startswith(inside)]
        return Tree([relpath for relpath, _ in rows], [digest for _, digest in rows])


def _check_paths(relpaths: list[str], name: str) -> None:
    """Refuse paths that a manifest must not contain; searching the joined text is faster than checking each path."""
    joined = "\0" + "\0".join(relpaths) + "\0"
    _check_text(joined, len(relpaths), name)
    if any(
        mark in joined
        for mark in ("/../", "\0../", "/..\0", "\0..\0", "\0/", "//", "/./", "\0./", "/\0", "\0\0")
    ):
        for path in relpaths:
            check_relpath(path, name)
    if (reserved := find_reserved(relpaths)) is not None:
        raise UnsafePathError(
            f"{name}: the path {reserved!r} lies in a folder of git or DVC; nothing was written"
        )


def _check_text(joined: str, count: int, name: str) -> None:
    """Refuse paths, joined by NULs, that cannot be file names."""
    if joined.count("\0") != count + (1 if count else 2):
        raise UnsafePathError(f"{name}: a path has a NUL character; nothing was written")
    try:
        os.fsencode(joined)
    except UnicodeEncodeError as error:
        raise UnsafePathError(
            f"{name}: the path {joined[max(error.start - 40, 0) : error.end].rpartition(chr(0))[2]!r} is not "
            "valid Unicode (a lone surrogate); nothing was written"
        ) from None


def check_relpath(path: str, name: str) -> None:
    """Refuse a path that would leave its directory.

    Raises:
        UnsafePathError: It is absolute, has ``..``, or is not normalized.
    """
    if (
        not path
        or path.startswith("/")
        or "\0" in path
        or any(part in ("", ".", "..") for part in path.split("/"))
    ):
        raise UnsafePathError(f"{name}: the path {path!r} would leave its directory; nothing was written")
