"""Ownership of temporary folders and files, and the removal of abandoned ones.

The owner is the process that holds an ``flock`` on the file, or on the folder's `OWNER` file. The kernel releases the
lock when the process ends, for any reason. A process id would not do: containers that share a disk reuse the same ids.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dvkf_prefect.files import is_temporary

OWNER = "owner"
# Age in seconds after which the owner counts as gone, if locks do not work.
ABANDONED = 24 * 3600
_HEX = frozenset("0123456789abcdef")
_LENGTH = 16
_held: dict[int, str] = {}


def held() -> tuple[int, ...]:
    """Return the descriptors of this process's locks, for worker processes to inherit."""
    return tuple(_held)


def share_with_helpers(descriptor: int) -> None:
    """Let worker processes started from now on inherit a lock, so that it lasts until the last of them ends."""
    _held[descriptor] = ""


def unshare(descriptor: int) -> None:
    """Undo `share_with_helpers`, before closing the descriptor."""
    _held.pop(descriptor, None)


class OwnedFolder:
    """A new temporary folder, owned by this process until `release` or until the process ends.

    Args:
        parent: Parent folder, created if needed.
        prefix: Prefix of its name; the rest is random.

    Raises:
        OSError: It cannot be created.

    Example:
        >>> import tempfile
        >>> with OwnedFolder(Path(tempfile.mkdtemp())) as folder:
        ...     _ = (folder.path / "part").write_bytes(b"data")
        >>> folder.path.exists()
        False
    """

    def __init__(self, parent: str | Path, prefix: str = "") -> None:
        self.path, self._descriptor = _make(os.fspath(parent), prefix)
        self._end = weakref.finalize(self, _release, str(self.path), self._descriptor, os.getpid(), keep=True)

    def __repr__(self) -> str:
        return f"OwnedFolder({str(self.path)!r})"

    def __enter__(self) -> OwnedFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self, *, keep: bool = False) -> None:
        """Release the folder, and remove it.

        Args:
            keep: Keep its content for a later `claim`, by this process or another.
        """
        if self._end.detach():
            _release(str(self.path), self._descriptor, os.getpid(), keep=keep)


def claim(parent: str | Path, prefix: str = "") -> Iterator[Path]:
    """Yield abandoned folders, each locked for the caller and removed afterwards.

    Args:
        parent: Parent folder; it need not exist.
        prefix: Prefix of their names.
    """
    for entry in _entries(parent):
        if not _is_ours(entry.name, prefix) or not entry.is_dir(follow_symlinks=False):
            continue
        if entry.path in _held.values():
            continue
        descriptor = _lock_left(entry.path)
        if descriptor is None:
            continue
        try:
            yield Path(entry.path)
            _remove(entry.path)
        finally:
            os.close(descriptor)


def sweep(parent: str | Path, prefix: str = "") -> None:
    """Remove abandoned folders.

    Args:
        parent: Parent folder; it need not exist.
        prefix: Prefix of their names.
    """
    for _ in claim(parent, prefix):
        pass


def sweep_old(parent: str | Path, age: float) -> None:
    """Remove old folders without a lock, whatever their names.

    Args:
        parent: Parent folder with folders of dvkf only; it need not exist.
        age: Minimum age of the last change, in seconds.
    """
    oldest = time.time() - age
    for entry in _entries(parent):
        with suppress(OSError):
            if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < oldest:
                discard(entry.path)


def sweep_files(folder: str | Path) -> None:
    """Remove unlocked files named by `files.temporary_beside`; the caller holds the lock of their writers."""
    if os.path.realpath(folder) != os.path.abspath(folder):
        return  # reached through a link: the files may belong to others
    for entry in _entries(folder):
        if is_temporary(entry.name):
            discard(entry.path)


def discard(path: str) -> None:
    """Remove one temporary file or folder, unless it is locked."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        # A link, or a file that this user may not read: its name still marks it as ours.
        if error.errno != errno.ENOENT:
            with suppress(OSError):
                os.unlink(path)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except IsADirectoryError:
        _discard_folder(path)
    except BlockingIOError:
        return
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EISDIR) and os.path.isdir(path):
            _discard_folder(path)
        elif _is_old(path):
            with suppress(OSError):
                os.unlink(path)
    finally:
        os.close(descriptor)


def _discard_folder(path: str) -> None:
    if not os.path.exists(f"{path}/{OWNER}"):
        _remove(path)
    elif (descriptor := _lock_left(path)) is not None:
        _remove(path)
        os.close(descriptor)


def _entries(parent: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(parent) as entries:
            return list(entries)
    except OSError:
        return []


def _is_ours(name: str, prefix: str) -> bool:
    rest = name[len(prefix) :]
    return name.startswith(prefix) and len(rest) == _LENGTH and _HEX.issuperset(rest)


def _make(parent: str, prefix: str) -> tuple[Path, int]:
    os.makedirs(parent, exist_ok=True)
    while True:
        path = f"{parent}/{prefix}{os.urandom(_LENGTH // 2).hex()}"
        os.mkdir(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(f"{path}/{OWNER}", flags, 0o666)
        except FileNotFoundError:
            continue  # removed by a sweep between the two calls
        except BaseException:
            with suppress(OSError):
                os.rmdir(path)
            raise
        with suppress(OSError):
            # A sweep may hold it briefly and then remove the folder; or locks do not work here.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_file(descriptor, f"{path}/{OWNER}"):
            _held[descriptor] = path
            return Path(path), descriptor
        os.close(descriptor)


def _is_file(descriptor: int, path: str) -> bool:
    """Return True if a path still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _lock_left(folder: str) -> int | None:
    """Lock an abandoned folder and return the descriptor; None if it is in use."""
    path = f"{folder}/{OWNER}"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_file(descriptor, path):
            return descriptor
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES) and all(
            _is_old(entry.path) for entry in _entries(folder)
        ):
            return descriptor
    os.close(descriptor)
    return None


def _is_old(path: str) -> bool:
    with suppress(OSError):
        return time.time() - os.lstat(path).st_mtime > ABANDONED
    return False


def _remove(folder: str) -> None:
    """Remove a folder with its content; the lock file goes last, so that no other process claims a partial folder."""
    for entry in _entries(folder):
        if entry.name == OWNER:
            continue
        if entry.is_dir(follow_symlinks=False):
            import shutil  # slow to import

            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            with suppress(OSError):
                os.unlink(entry.path)
    with suppress(OSError):
        os.unlink(f"{folder}/{OWNER}")
    with suppress(OSError):
        os.rmdir(folder)


def _release(path: str, descriptor: int, pid: int, *, keep: bool) -> None:
    if pid != os.getpid():
        return  # a forked copy of the owner: the folder stays with the owner
    if not keep or all(entry.name == OWNER for entry in _entries(path)):
        _remove(path)
    _held.pop(descriptor, None)
    with suppress(OSError):
        os.close(descriptor)
