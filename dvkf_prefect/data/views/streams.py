"""File objects that verify objects while reading, and that read large remote objects piece by piece."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dvkf_prefect.errors import CorruptObjectError, RemoteUnreachableError
from dvkf_prefect.files import raise_disk_full
from dvkf_prefect.formats.objects import MD5

if TYPE_CHECKING:
    from dvkf_prefect.data.cache.cache import Cache
    from dvkf_prefect.data.remotes.base import Storage

_BLOCK = 1 << 20
# Up to this many unwanted blocks are read through instead of starting a new request.
_AHEAD = 4
_TRIES = 3

# Objects that this process has verified: (device, inode) -> (size, mtime in ns).
_right: dict[tuple[int, int], tuple[int, int]] = {}

_moving: set[object] = set()
_moved = threading.Condition()


def _forget_moves() -> None:
    """Reset the state in a forked process, which does not have the threads of the transfers."""
    global _moved
    _moving.clear()
    _moved = threading.Condition()


os.register_at_fork(after_in_child=_forget_moves)


@contextmanager
def in_flight(keys: Iterable[object]) -> Iterator[None]:
    """Hold keys exclusively among the threads of this process; a second thread with the same key waits."""
    wanted = set(keys)
    with _moved:
        _moved.wait_for(lambda: wanted.isdisjoint(_moving))
        _moving.update(wanted)
    try:
        yield
    finally:
        with _moved:
            _moving.difference_update(wanted)
            _moved.notify_all()


class Whole(io.BytesIO):
    """A file in memory."""

    @property
    def size(self) -> int:
        """Size of the file in bytes, an attribute of fsspec's files."""
        return self.getbuffer().nbytes


class Reader(io.BufferedReader):
    """A buffered file.

    Args:
        raw: The unbuffered file.
        size: Size of the file in bytes, an attribute of fsspec's files.
    """

    def __init__(self, raw: io.RawIOBase, size: int) -> None:
        super().__init__(raw, _BLOCK)
        self.size = size


class CheckedFile(io.RawIOBase):
    """An object of a cache that is hashed while it is read from start to end; reads after a seek are not verified.

    Args:
        file: The open file.
        digest: Expected digest.
        name: Name in messages.
        cache: Cache of the object; a damaged object is moved aside there.
    """

    def __init__(self, file: io.FileIO, digest: str, name: str, cache: Cache) -> None:
        self._file = file
        self._digest = digest
        self._name = name
        self._cache = cache
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._hashed = 0
        self._info = os.fstat(file.fileno())

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the read position."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the read position."""
        return self._file.tell()

    def fileno(self) -> int:
        """Return the file's descriptor."""
        return self._file.fileno()

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes; the last ones are returned only if the whole file matches its digest.

        Raises:
            CorruptObjectError: The file does not match its digest.
        """
        start = self._file.tell()
        count = self._file.readinto(buffer) or 0
        if start == self._hashed and count:
            self._md5.update(memoryview(buffer)[:count])
            self._hashed += count
            if self._hashed >= self._info.st_size:
                self._check()
        return count

    def _check(self) -> None:
        found = self._md5.hexdigest()
        if found == self._digest:
            info = self._info
            _right[info.st_dev, info.st_ino] = (info.st_size, info.st_mtime_ns)
            return
        aside = self._cache.set_aside(self._digest)
        raise CorruptObjectError(
            f"{self._name}: {self._cache.path(self._digest)} hashes to {found}, not to its name; it was "
            f"moved to {aside}. Run `dvkf fetch` for a good copy."
        )

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._file.close()
        super().close()


def open_checked(cache: Cache, digest: str, hash_name: str, name: str) -> BinaryIO:
    """Open an object of a cache in place.

    Args:
        cache: The cache.
        digest: Digest of the object.
        hash_name: ``md5`` or ``md5-dos2unix``; only ``md5`` is verified.
        name: Name in messages.

    Raises:
        FileNotFoundError: The cache does not have the object.
    """
    file = io.FileIO(cache.path(digest, hash_name), "rb")
    info = os.fstat(file.fileno())
    known = _right.get((info.st_dev, info.st_ino)) == (info.st_size, info.st_mtime_ns)
    if known or hash_name != MD5:
        return Reader(file, info.st_size)
    return Reader(CheckedFile(file, digest, name, cache), info.st_size)


class RemoteFile(io.RawIOBase):
    """A blob of a remote that is downloaded piece by piece, on demand.

    Downloaded pieces are stored in a temporary file of the cache, so that none is downloaded twice. The complete file
    is verified and becomes an object of the cache.

    Args:
        storage: Storage of the remote.
        key: Key of the blob.
        size: Size in bytes.
        digest: Expected digest.
        hash_name: ``md5`` or ``md5-dos2unix``; only ``md5`` is verified.
        cache: Cache for the object; None to keep nothing.
        name: Name in messages.
    """

    def __init__(
        self,
        storage: Storage,
        key: str,
        size: int,
        digest: str,
        hash_name: str,
        *,
        cache: Cache | None,
        name: str,
    ) -> None:
        self._storage = storage
        self._key = key
        self._size = size
        self._digest = digest
        self._hash_name = hash_name
        self._cache = cache
        self._name = name
        self._position = 0
        self._blocks = bytearray(-(-size // _BLOCK))
        self._left = len(self._blocks)
        self._stream: Iterator[bytes] | None = None
        self._arrived = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._hashed = 0
        self._lock = threading.Lock()
        self._spool: Path | None = None
        if cache is not None:
            self._spool = cache.temporary(digest)
            self._file = os.open(self._spool, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        else:
            # An unnamed file, which is deleted when it is closed.
            with tempfile.TemporaryFile(prefix="dvkf-") as file:
                self._file = os.dup(file.fileno())

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the read position without downloading anything."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"negative seek position {start + offset}")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Return the read position."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes, and download the missing ones.

        Raises:
            CorruptObjectError: The complete file does not match its digest.
            MissingObjectError: The blob is no longer on the remote.
            RemoteError: The remote cannot be used.
            DiskFullError: The disk is full.
        """
        view = memoryview(buffer).cast("B")
        if self._position >= self._size or not len(view):
            return 0
        with self._lock:
            block = self._position // _BLOCK
            if not self._blocks[block]:
                self._read_block(block)
            end = min((block + 1) * _BLOCK, self._position + len(view), self._size)
            count = os.preadv(self._file, [view[: end - self._position]], self._position)
        self._position += count
        return count

    def close(self) -> None:
        """Close the file; an incomplete download is deleted."""
        if self.closed:
            return
        super().close()
        self._end_stream()
        with suppress(AttributeError, OSError):
            os.close(self._file)
        self._forget()

    def _forget(self) -> None:
        if self._spool is not None:
            with suppress(OSError):
                os.unlink(self._spool)
            self._spool = None

    def _read_block(self, block: int) -> None:
        end = min((block + 1) * _BLOCK, self._size)
        for tried in range(_TRIES):
            try:
                self._read_to(block * _BLOCK, end)
                break
            except RemoteUnreachableError:
                # A broken connection: continue from the last byte received.
                self._end_stream()
                if tried == _TRIES - 1:
                    raise
        if not self._left:
            self._complete()

    def _read_to(self, start: int, end: int) -> None:
        if self._stream is None or not start - _AHEAD * _BLOCK <= self._arrived < end:
            self._end_stream()
            self._stream = self._storage.stream(self._key, start=start)
            self._arrived = start
        while self._arrived < end:
            chunk = next(self._stream, None)
            if chunk is None:
                self._end_stream()
                raise CorruptObjectError(
                    f"{self._name}: the blob {self._key} at {self._storage.url} ends at byte {self._arrived} of "
                    f"{self._size}"
                )
            self._take(chunk[: self._size - self._arrived])

    def _take(self, chunk: bytes) -> None:
        start = self._arrived
        try:
            view = memoryview(chunk)
            written = 0
            while written < len(view):
                written += os.pwrite(self._file, view[written:], start + written)
        except OSError as error:
            raise_disk_full(error, self._spool or tempfile.gettempdir())
            raise
        if start == self._hashed:
            self._md5.update(chunk)
            self._hashed += len(chunk)
        self._arrived = start + len(chunk)
        # A stream starts at a block boundary, so all blocks that it has passed are complete.
        first = start // _BLOCK
        last = len(self._blocks) if self._arrived == self._size else self._arrived // _BLOCK
        for block in range(first, last):
            self._left -= not self._blocks[block]
            self._blocks[block] = 1

    def _complete(self) -> None:
        self._end_stream()
        while self._hashed < self._size:
            data = os.pread(self._file, _BLOCK, self._hashed)
            self._md5.update(data)
            self._hashed += len(data)
        found = self._md5.hexdigest()
        if self._hash_name == MD5 and found != self._digest:
            # Discard all blocks, so that no damaged data is read again.
            self._blocks = bytearray(len(self._blocks))
            self._left, self._hashed = len(self._blocks), 0
            self._md5 = hashlib.md5(usedforsecurity=False)
            raise CorruptObjectError(
                f"{self._name}: {self._digest} is damaged on the remote '{self._storage.name}' "
                f"({self._storage.url}; its bytes hash to {found}); it was not stored"
            )
        if self._cache is not None and self._spool is not None:
            with in_flight([(self._hash_name, self._digest)]):
                self._cache.adopt(self._spool, self._digest, self._hash_name)
            self._spool = None

    def _end_stream(self) -> None:
        stream: Any = getattr(self, "_stream", None)
        self._stream = None
        if stream is not None and hasattr(stream, "close"):
            stream.close()


def open_remote_object(
    storage: Storage, key: str, size: int, digest: str, hash_name: str, *, cache: Cache | None, name: str
) -> BinaryIO:
    """Open a blob of a remote, see `RemoteFile`."""
    return Reader(RemoteFile(storage, key, size, digest, hash_name, cache=cache, name=name), size)
