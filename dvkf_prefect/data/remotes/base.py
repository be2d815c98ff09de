"""Interface of every remote: named blobs under one root, on any service."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

from dvkf_prefect.data.remotes.errors import Place
from dvkf_prefect.errors import CorruptObjectError, UnsafePathError
from dvkf_prefect.formats import manifest_rows

WINDOW = 60.0
"""Seconds of waiting between checks of a download's rate."""
SLOWEST = 1024
"""Minimum rate of a download in bytes per second."""
SLOWEST_UPLOAD = 4096
"""Minimum rate of an upload in bytes per second, on top of `WINDOW`."""


class Storage(ABC):
    """Blobs under one root. Keys are posix paths relative to it, such as ``files/md5/aa/bbb``.

    Every method blocks, and may be called from several threads at once. Failures are raised as:

    - `MissingObjectError`: the key does not exist.
    - `RemoteUnreachableError`, `RemoteDeniedError`: the service fails as a whole. The error names the remote, its url
      and the operation.
    - `DiskFullError`: the disk is full.
    - `UnsafePathError`: the key would leave the root.
    - `RemoteError`: any other answer of the service (no such bucket, listing not offered).
    - `OSError`: a local file cannot be read.

    Attributes:
        name: The remote's name in the configuration, or its url if it has none.
        url: The root, without credentials.
        jobs: Number of parallel transfers that suits this service.
    """

    name: str
    url: str
    jobs: int
    _place: Place

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, url={self.url!r})"

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Return the size of a blob in bytes, or None if it does not exist."""

    def read(self, key: str, *, limit: int | None = None) -> bytes:
        """Return a whole blob; for small ones.

        Args:
            key: Key of the blob.
            limit: Maximum size in bytes; None for the limit of a manifest.

        Raises:
            CorruptObjectError: The blob is larger than ``limit``.
            ParseError: The blob is larger than the limit of a manifest.
        """
        if limit is not None:
            return b"".join(steady(self._stream(key, 0), self._place, key, limit=limit))
        try:
            return self.read(key, limit=manifest_rows.file_limit())
        except CorruptObjectError:
            raise manifest_rows.too_large(f"{self._place}: '{key}'") from None

    def stream(self, key: str, *, start: int = 0, limit: int | None = None) -> Iterator[bytes]:
        """Return the blob's bytes from ``start`` on, in chunks of at most a few MiB; none past its end.

        Args:
            key: Key of the blob.
            start: First byte to read.
            limit: Maximum size of the whole blob in bytes; None if unknown.

        Raises:
            CorruptObjectError: It has more than ``limit`` bytes; the bytes before were yielded.
            RemoteUnreachableError: The rate stays below 1 KiB/s for a minute.
        """
        return steady(self._stream(key, start), self._place, key, start=start, limit=limit)

    @abstractmethod
    def _stream(self, key: str, start: int) -> Iterator[bytes]:
        """Yield the blob from a byte on, each piece as soon as it arrives."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Store a small blob atomically."""

    @abstractmethod
    def upload(self, key: str, source: Path) -> None:
        """Store a file as a blob, atomically."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Return every ``(key, bytes)`` under the folder ``prefix``, in any order; none if there is no such folder."""

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Return every key under the folder ``prefix``, in any order, without requests for sizes."""
        return (key for key, _ in self.list(prefix))

    def dated(self, prefix: str = "") -> Iterator[tuple[str, int, float | None]]:
        """Return every ``(key, bytes, last change)`` under a folder; times in seconds since 1970, None if unknown."""
        return ((key, size, None) for key, size in self.list(prefix))

    def starting(self, text: str) -> Iterator[tuple[str, int, str | None]]:
        """Return every ``(key, bytes, etag)`` whose key starts with a text, as object stores match prefixes.

        So ``v1`` matches ``v10/a`` too, and ``v1/`` does not. The etag is None unless the service lists it.
        """
        folder = text.rpartition("/")[0]
        return ((key, size, None) for key, size in self.list(folder) if key.startswith(text))

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Remove blobs; missing ones are ignored."""

    def drop_uploads(self, text: str) -> int:
        """Drop what uploads in parts left that began to keys that start with a text, and never ended.

        No listing shows such parts, but the service stores them. Uploads of this package that run now begin again.

        Returns:
            Number of dropped uploads; 0 if the service keeps none.
        """
        return 0

    def local_path(self, key: str) -> Path | None:
        """Return the blob's path on this machine's disk, or None for a service."""
        return None


def steady(
    chunks: Iterator[bytes], place: Place, key: str, *, start: int = 0, limit: int | None = None
) -> Iterator[bytes]:
    """Yield the chunks of a blob; fail on too many bytes or too low a rate.

    Args:
        chunks: The blob's bytes.
        place: Name of the remote in messages.
        key: Key of the blob.
        start: Offset of the first chunk in bytes.
        limit: Maximum size of the whole blob in bytes, None if unknown.

    Raises:
        CorruptObjectError: The blob has more than ``limit`` bytes.
        RemoteUnreachableError: The rate is below `SLOWEST`.
    """
    count, waited, lately = start, 0.0, 0
    try:
        while True:
            begun = time.monotonic()
            chunk = next(chunks, None)
            waited += time.monotonic() - begun
            if chunk is None:
                return
            count += len(chunk)
            lately += len(chunk)
            if limit is not None and count > limit:
                raise CorruptObjectError(
                    f"{place}: '{key}' has more than the {limit} bytes expected; the download was stopped. "
                    "Run `dvkf push` in a clone that has it."
                )
            if waited >= WINDOW:
                if lately < waited * SLOWEST:
                    raise place.unreachable(
                        f"read '{key}'",
                        f"{lately} bytes arrived in {waited:.0f} s, less than {SLOWEST} a second",
                    )
                waited, lately = 0.0, 0
            yield chunk
    finally:
        close = getattr(chunks, "close", None)
        if close:
            close()


def check_key(key: str) -> str:
    """Return the key, or raise `UnsafePathError` if it is not a plain path below the root.

    Example:
        >>> check_key("files/md5/aa/bbb")
        'files/md5/aa/bbb'
    """
    if (
        not key
        or key[0] == "/"
        or key[-1] == "/"
        or "//" in key
        or "/." in key
        or key[0] == "."
        or "\0" in key
    ):
        parts = key.split("/")
        if "\0" in key or any(part in ("", ".", "..") for part in parts):
            raise UnsafePathError(f"{key!r} is not a path below a remote's root")
    return key
