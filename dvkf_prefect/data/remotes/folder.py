"""Storage in a folder of this machine or of a mounted disk."""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from dvkf_prefect import durability
from dvkf_prefect.data.cache._copier import open_regular
from dvkf_prefect.data.remotes.base import Storage, check_key
from dvkf_prefect.data.remotes.errors import Place
from dvkf_prefect.errors import RemoteUnreachableError
from dvkf_prefect.leftovers import OwnedFolder, sweep

_CHUNK = 1 << 20
_TEMPORARY = ".dvkf-tmp-"
_TEMPORARY_FOLDER = ".dvkf-tmp"
# Age in seconds after which a temporary file counts as abandoned, on any machine.
_ABANDONED = 7 * 24 * 3600
# Errors of kernels and filesystems that cannot copy within themselves.
_CANNOT_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)
_CREDENTIALS = "this user's rights"


class FolderStorage(Storage):
    """Blobs as read-only files of one folder, in DVC's layout.

    A blob is written in a temporary folder of the root and renamed: a reader never sees a part.
    The folder itself is created on the first write. Its parent folder must exist: a missing parent means that the disk
    is not mounted.

    Args:
        root: The folder, absolute.
        place: Name of the remote in messages.
        jobs: Number of parallel transfers. One is the fastest on a local disk; a slow network share needs more.
        shared: True if the group may write too (DVC's ``shared = group``).

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp()) / "store"
        >>> storage = FolderStorage(root, Place("store", str(root)))
        >>> storage.write("files/md5/aa/b", b"data")
        >>> list(storage.list("files/md5"))
        [('files/md5/aa/b', 4)]
    """

    def __init__(self, root: Path, place: Place, *, jobs: int = 1, shared: bool = False) -> None:
        self.name = place.name
        self.url = place.url
        self.jobs = jobs
        self._place = place
        self._root = os.fspath(root)
        self._shared = shared
        self._own: OwnedFolder | None = None
        self._owning = threading.Lock()

    def local_path(self, key: str) -> Path:
        """Return the path of the blob's file, existing or not."""
        return Path(self._path(key))

    def size(self, key: str) -> int | None:
        """Return the size of a blob in bytes, or None if it does not exist."""
        try:
            status = os.stat(self._path(key))
        except (FileNotFoundError, NotADirectoryError):
            self._check_mounted(f"look up '{key}'")
            return None
        except OSError as error:
            raise self._error(error, f"look up '{key}'", key) from error
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def sizes(self, keys: Iterable[str]) -> Iterator[int | None]:
        """Yield `size` of each key, without a check of the key; faster than `list` if most of these blobs exist."""
        look, is_regular, start, some = os.stat, stat.S_ISREG, f"{self._root}/", False
        for key in keys:
            try:
                status = look(start + key)
            except (FileNotFoundError, NotADirectoryError):
                if not some:
                    self._check_mounted(f"look up '{key}'")
                yield None
                continue
            except OSError as error:
                raise self._error(error, f"look up '{key}'", key) from error
            some = True
            yield status.st_size if is_regular(status.st_mode) else None

    def _stream(self, key: str, start: int) -> Iterator[bytes]:
        """Yield the blob from a byte on, in chunks of 1 MiB."""
        tried = f"read '{key}'"
        try:
            file = open(open_regular(str(self._path(key))), "rb", buffering=0)  # noqa: SIM115 - closed below
        except (FileNotFoundError, NotADirectoryError) as error:
            self._check_mounted(tried)
            raise self._place.missing(key) from error
        except OSError as error:
            raise self._error(error, tried, key) from error
        with file:
            try:
                if start:
                    file.seek(start)
                while chunk := file.read(_CHUNK):
                    yield chunk
            except OSError as error:
                raise self._error(error, tried, key) from error

    def write(self, key: str, data: bytes) -> None:
        """Store a small blob."""
        tried = f"write '{key}'"
        target = self._path(key)
        temporary, descriptor = self._create(tried)
        try:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
            finally:
                os.close(descriptor)
            self._move_in(temporary, target, tried)
        except OSError as error:
            _discard(temporary)
            raise self._error(error, tried) from error
        except BaseException:
            _discard(temporary)
            raise

    def upload(self, key: str, source: Path) -> None:
        """Store a file as a blob; the kernel copies it if possible, or shares its blocks if the disk can."""
        tried = f"store '{key}'"
        target = self._path(key)
        # An unreadable source is the caller's error, not the remote's.
        file = open_regular(str(source))
        try:
            temporary, descriptor = self._create(tried)
            try:
                try:
                    _copy(file, descriptor)
                finally:
                    os.close(descriptor)
                self._move_in(temporary, target, tried)
            except OSError as error:
                _discard(temporary)
                raise self._error(error, tried) from error
            except BaseException:
                _discard(temporary)
                raise
        finally:
            os.close(file)

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield every ``(key, bytes)`` under the folder ``prefix``."""
        tried = f"list '{prefix.strip('/')}'"
        for start, entries in self._folders(prefix, tried):
            try:
                for entry in entries:
                    try:
                        yield start + entry.name, entry.stat().st_size
                    except FileNotFoundError:
                        # Removed by another process since it was listed.
                        continue
            except OSError as error:
                raise self._error(error, tried) from error

    def dated(self, prefix: str = "") -> Iterator[tuple[str, int, float | None]]:
        """Yield every ``(key, bytes, last change)`` under a folder."""
        for start, entries in self._folders(prefix, f"list '{prefix.strip('/')}'"):
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    yield start + entry.name, status.st_size, status.st_mtime

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Yield every key under the folder ``prefix``, without a stat of each blob."""
        for start, entries in self._folders(prefix, f"list '{prefix.strip('/')}'"):
            for entry in entries:
                yield start + entry.name

    def _folders(self, prefix: str, tried: str) -> Iterator[tuple[str, Sequence[os.DirEntry[str]]]]:
        """Yield the blobs of each folder under ``prefix`` with their key prefix, without a stat of each."""
        prefix = prefix.strip("/")
        folders = [(self._path(prefix) if prefix else self._root, f"{prefix}/" if prefix else "")]
        links: set[tuple[int, int]] = set()
        first = True
        while folders:
            folder, start = folders.pop()
            blobs = []
            try:
                with os.scandir(folder) as entries:
                    first = False
                    for entry in entries:
                        if entry.is_file():
                            if not entry.name.startswith(_TEMPORARY):
                                blobs.append(entry)
                        elif entry.is_dir() and entry.name != _TEMPORARY_FOLDER:
                            if entry.is_symlink():
                                status = entry.stat()
                                if (status.st_dev, status.st_ino) in links:
                                    continue
                                links.add((status.st_dev, status.st_ino))
                            folders.append((entry.path, f"{start}{entry.name}/"))
            except (FileNotFoundError, NotADirectoryError):
                # Removed by another process since it was listed, or missing.
                if first:
                    self._check_mounted(tried)
            except OSError as error:
                raise self._error(error, tried) from error
            if blobs:
                yield start, blobs

    def delete(self, keys: Iterable[str]) -> None:
        """Remove blobs; missing ones are ignored."""
        for key in keys:
            try:
                os.unlink(self._path(key))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise self._error(error, f"delete '{key}'") from error

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    def _create(self, tried: str) -> tuple[str, int]:
        """Open a new temporary file in this process's folder for them."""
        temporary = f"{self.temporary()}/{os.urandom(8).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            descriptor = os.open(temporary, flags, 0o444)
        except OSError as error:
            raise self._error(error, tried) from error
        os.fchmod(descriptor, 0o444)
        return temporary, descriptor

    def _move_in(self, temporary: str, target: str, tried: str) -> None:
        """Rename a complete file to its key, creating the folders if needed."""
        try:
            os.rename(temporary, target)
        except FileNotFoundError:
            self._make_folder(os.path.dirname(target), tried)
            os.rename(temporary, target)
        durability.note(self._root, [target])

    def temporary(self) -> Path:
        """Return this storage's folder for incomplete files, excluded from listings.

        Raises:
            RemoteError: It cannot be created.
        """
        with self._owning:
            if self._own is None or not os.path.isdir(self._own.path):
                parent = f"{self._root}/{_TEMPORARY_FOLDER}"
                self.make_folders([parent])
                try:
                    self._own = OwnedFolder(parent)
                except OSError as error:
                    raise self.fault(error, "make a temporary folder") from error
            return self._own.path

    def make_folders(self, folders: Iterable[str]) -> None:
        """Create folders below the root, for blobs written by other code."""
        for folder in folders:
            if not os.path.isdir(folder):
                try:
                    self._make_folder(folder, "make its folders")
                except OSError as error:
                    raise self.fault(error, "make its folders") from error

    def sweep(self) -> None:
        """Remove temporary files of ended processes, and those of older versions after a week."""
        parent = f"{self._root}/{_TEMPORARY_FOLDER}"
        sweep(parent)
        with suppress(OSError), os.scandir(parent) as entries:
            for entry in entries:
                if entry.is_file() and time.time() - entry.stat().st_mtime > _ABANDONED:
                    _discard(entry.path)

    def fault(self, error: OSError, tried: str) -> Exception:
        """Translate an operating system error for this remote."""
        return self._error(error, tried)

    def _make_folder(self, folder: str, tried: str) -> None:
        self._check_mounted(tried)
        mode = 0o2775 if self._shared else 0o777
        missing = []
        while not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for path in reversed(missing):
            try:
                os.mkdir(path, mode)
            except FileExistsError:
                continue
            if self._shared:
                os.chmod(path, mode)

    def _check_mounted(self, tried: str) -> None:
        """Refuse a root with a missing parent: its disk is not mounted, and the remote is not empty."""
        parent = os.path.dirname(self._root)
        if not os.path.isdir(self._root) and not os.path.isdir(parent):
            raise RemoteUnreachableError(
                f"{self._place}: tried to {tried}, but there is no folder {parent}. "
                f"Mount the disk it is on, or make the folder.{_host_hint(parent)}"
            )

    def _error(self, error: OSError, tried: str, key: str | None = None) -> Exception:
        return self._place.local(error, tried, key, _CREDENTIALS)


def _host_hint(folder: str) -> str:
    """Return advice if the first folder that is missing has the name of a host: its url may lack a scheme."""
    while not os.path.isdir(above := os.path.dirname(folder)):
        folder = above
    host, colon, _ = os.path.basename(folder).partition(":")
    if re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", host) and (colon or "." in host):
        return f" If '{host}' is a host, write its scheme in the url, such as ssh://{host}/."
    return ""


def _copy(source: int, target: int) -> None:
    """Copy a whole file between descriptors."""
    size = os.fstat(source).st_size
    copied = 0
    try:
        while copied < size:
            done = os.copy_file_range(source, target, size - copied)
            if not done:
                break
            copied += done
    except OSError as error:
        if copied or error.errno not in _CANNOT_COPY:
            raise
    # Copy the rest too: some filesystems report size 0, and a file may grow during the copy.
    while chunk := os.read(source, _CHUNK):
        view = memoryview(chunk)
        while view:
            view = view[os.write(target, view) :]


def _discard(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
