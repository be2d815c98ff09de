"""What every remote can do: named blobs under one root, whatever the service behind it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

from dvkf_prefect.data.remotes.errors import Place
from dvkf_prefect.errors import CorruptObjectError, UnsafePathError
from dvkf_prefect.formats import manifest_rows

WINDOW = 60.0
"""Seconds of waiting after which the rate of a download is looked at."""
SLOWEST = 1024
"""Bytes a second that a download must bring."""
SLOWEST_UPLOAD = 4096
"""Bytes a second that an upload must take, beside `WINDOW`."""


class Storage(ABC):
    """Blobs under one root. Keys are posix paths relative to it, such as ``files/md5/aa/bbb``.

    Every method is blocking and may be called from several threads at once. A failure is one of ours:
    `MissingObjectError` for a key that is not there, `RemoteUnreachableError` and `RemoteDeniedError` for the
    service as a whole (naming the remote, its url and what was tried), `DiskFullError` for a full disk,
    `RemoteError` for any other answer of the service (no such bucket, listing not offered),
    `UnsafePathError` for a key that would leave the root. A local file that cannot be read is Python's own
    `OSError`.

    Attributes:
        name: The remote's name in the configuration, or its url where it has none.
        url: The root, without credentials.
        jobs: How many transfers at once suit this service.
    """

    name: str
    url: str
    jobs: int
    _place: Place

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, url={self.url!r})"

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Bytes of the blob, or None when there is none."""

    def read(self, key: str, *, limit: int | None = None) -> bytes:
        """The whole blob; for small ones.

        Args:
            key: The blob.
            limit: The most bytes it may have; None for what a manifest may have.

        Raises:
            CorruptObjectError: It has more.
            ParseError: It has more than a manifest may have.
        """
        if limit is not None:
            return b"".join(steady(self._stream(key, 0), self._place, key, limit=limit))
        try:
            return self.read(key, limit=manifest_rows.file_limit())
        except CorruptObjectError:
            raise manifest_rows.too_large(f"{self._place}: '{key}'") from None

    def stream(self, key: str, *, start: int = 0, limit: int | None = None) -> Iterator[bytes]:
        """The blob from byte ``start`` on, in chunks of at most a few MiB; nothing past its end.

        Args:
            key: The blob.
            start: Where to begin, in bytes.
            limit: The most bytes that the whole blob may have; None where that is not known.

        Raises:
            CorruptObjectError: It has more than ``limit`` bytes; those before were yielded.
            RemoteUnreachableError: Less than 1 KiB/s comes for a minute.
        """
        return steady(self._stream(key, start), self._place, key, start=start, limit=limit)

    @abstractmethod
    def _stream(self, key: str, start: int) -> Iterator[bytes]:
        """Yield the blob from a byte on, each piece as soon as it is there."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Store a small blob; it appears whole or not at all."""

    @abstractmethod
    def upload(self, key: str, source: Path) -> None:
        """Store a file as a blob; it appears whole or not at all."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Every ``(key, bytes)`` under the folder ``prefix``, in no given order; none when there is no such folder."""

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Every key under the folder ``prefix``, in no given order; no sizes are asked for where each costs a call."""
        return (key for key, _ in self.list(prefix))

    def dated(self, prefix: str = "") -> Iterator[tuple[str, int, float | None]]:
        """Every ``(key, bytes, last change)`` under a folder; in seconds since 1970, None where it is not told."""
        return ((key, size, None) for key, size in self.list(prefix))

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Remove blobs; those that are not there are passed over."""

    def local_path(self, key: str) -> Path | None:
        """Where the blob lies on this machine's disk, or None for a service."""
        return None


def steady(
    chunks: Iterator[bytes], place: Place, key: str, *, start: int = 0, limit: int | None = None
) -> Iterator[bytes]:
    """Yield the chunks of a blob, as long as they are no more than expected and come at a bearable rate.

    Args:
        chunks: The blob's bytes.
        place: How messages call the remote.
        key: The blob.
        start: The byte that they begin at.
        limit: The most bytes that the whole blob may have.

    Raises:
        CorruptObjectError: There are more bytes.
        RemoteUnreachableError: They come too slowly.
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
                    f"{place}: '{key}' has more than the {limit} bytes expected; reading it was ended. "
                    "Push it again from where it is."
                )
            if waited >= WINDOW:
                if lately < waited * SLOWEST:
                    raise place.unreachable(
                        f"read '{key}'",
                        f"{lately} bytes came in {waited:.0f} s, less than {SLOWEST} a second",
                    )
                waited, lately = 0.0, 0
            yield chunk
    finally:
        close = getattr(chunks, "close", None)
        if close:
            close()


def check_key(key: str) -> str:
    """Return the key, or raise `UnsafePathError` when it is not a plain path below the root.

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
