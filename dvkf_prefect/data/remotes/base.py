"""What every remote can do: named blobs under one root, whatever the service behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path


class Storage(ABC):
    """Blobs under one root. Keys are posix paths relative to it, such as ``files/md5/aa/bbb``.

    Every method is blocking and may be called from several threads at once. A failure is one of ours:
    `MissingObjectError` for a key that is not there, `RemoteUnreachableError` and `RemoteDeniedError` for the
    service as a whole (naming the remote, its url and what was tried), `DiskFullError` for a full local disk.

    Attributes:
        name: The remote's name in the configuration, or its url where it has none.
        url: The root, without credentials.
        jobs: How many transfers at once suit this service.
    """

    name: str
    url: str
    jobs: int

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Bytes of the blob, or None when there is none."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """The whole blob; for small ones."""

    @abstractmethod
    def stream(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        """The blob from byte ``start`` on, in chunks of a few hundred KiB to a few MiB."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Store a small blob; it appears whole or not at all."""

    @abstractmethod
    def upload(self, key: str, source: Path) -> None:
        """Store a file as a blob; it appears whole or not at all."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Every ``(key, bytes)`` under the folder ``prefix``, in no given order; none when there is no such folder."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Remove blobs; those that are not there are passed over."""

    def local_path(self, key: str) -> Path | None:
        """Where the blob lies on this machine's disk, or None for a service."""
        return None
