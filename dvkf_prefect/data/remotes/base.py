"""What every remote can do: named blobs under one root, whatever the service behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

from dvkf_prefect.errors import UnsafePathError


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

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, url={self.url!r})"

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Bytes of the blob, or None when there is none."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """The whole blob; for small ones."""

    @abstractmethod
    def stream(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        """The blob from byte ``start`` on, in chunks of a few hundred KiB to a few MiB; nothing past its end."""

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
