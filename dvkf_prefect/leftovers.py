"""Temporary folders and files with an owner, and the removal of those whose owner is gone.

The owner is the process that holds an ``flock`` on the file or on the folder's `OWNER` file. The kernel ends that lock
with the process, however it ends. Process numbers say nothing: containers that share a disk number theirs alike.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dvkf_prefect.files import is_temporary

OWNER = "owner"
# Where locks do not work, this many seconds tell that the owner is gone.
ABANDONED = 24 * 3600
_HEX = frozenset("0123456789abcdef")
_LENGTH = 16
_held: dict[int, str] = {}


def held() -> tuple[int, ...]:
    """Return the descriptors of this process's locks, for helper processes that work in its folders to inherit."""
    return tuple(_held)


def share_with_helpers(descriptor: int) -> None:
    """Let helper processes started from now on hold a lock too, so that it ends with the last of them."""
    _held[descriptor] = ""


def unshare(descriptor: int) -> None:
    """Undo `share_with_helpers`, before the descriptor is closed."""
    _held.pop(descriptor, None)


class OwnedFolder:
    """A new folder for temporary files that belongs to this process until `release`, or until the process ends.

    Args:
        parent: Where it is made; made itself where needed.
        prefix: How its name begins; the rest is random.

    Raises:
        OSError: It cannot be made.

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
        """Give the folder up.

        Args:
            keep: Leave what is in it for `claim`, by this process or another.
        """
        if self._end.detach():
            _release(str(self.path), self._descriptor, os.getpid(), keep=keep)


def claim(parent: str | Path, prefix: str = "") -> Iterator[Path]:
    """Yield the folders of owners that are gone, each locked while the caller looks at it and removed afterwards.

    Args:
        parent: Where they are; it need not be there.
        prefix: How their names begin.
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
    """Remove the folders of owners that are gone.

    Args:
        parent: Where they are; it need not be there.
        prefix: How their names begin.
    """
    for _ in claim(parent, prefix):
        pass


def sweep_old(parent: str | Path, age: float) -> None:
    """Remove folders that nobody holds and nothing was made in for long, whatever their names.

    Args:
        parent: Where they are; it need not be there, and holds nothing but folders of ours.
        age: Seconds.
    """
    oldest = time.time() - age
    for entry in _entries(parent):
        with suppress(OSError):
            if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < oldest:
                discard(entry.path)


def sweep_files(folder: str | Path) -> None:
    """Remove what `files.temporary_beside` named and nobody holds; the caller holds the lock of whoever makes them."""
    if os.path.realpath(folder) != os.path.abspath(folder):
        return  # reached through a link: it may be anybody's
    for entry in _entries(folder):
        if is_temporary(entry.name):
            discard(entry.path)


def discard(path: str) -> None:
    """Remove one temporary file or folder, unless somebody holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        # A link, or what this user may not read: its name says that it is ours all the same.
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
        path = f"{parent}/{prefix}{secrets.token_hex(_LENGTH // 2)}"
        os.mkdir(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(f"{path}/{OWNER}", flags, 0o666)
        except FileNotFoundError:
            continue  # swept between the two calls
        except BaseException:
            with suppress(OSError):
                os.rmdir(path)
            raise
        with suppress(OSError):
            # Held by a sweep for a moment, which then removes the folder; or locks do not work here.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_file(descriptor, f"{path}/{OWNER}"):
            _held[descriptor] = path
            return Path(path), descriptor
        os.close(descriptor)


def _is_file(descriptor: int, path: str) -> bool:
    """Tell whether a path still names the file that is open."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _lock_left(folder: str) -> int | None:
    """Take the lock of a folder whose owner is gone; None for one in use."""
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
    """Remove a folder and what is in it, the lock file last so that nobody else takes a part of it for whole."""
    import shutil

    for entry in _entries(folder):
        if entry.name == OWNER:
            continue
        if entry.is_dir(follow_symlinks=False):
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
        return  # a copy of the owner, made by fork: the folder stays the owner's
    if not keep or all(entry.name == OWNER for entry in _entries(path)):
        _remove(path)
    _held.pop(descriptor, None)
    with suppress(OSError):
        os.close(descriptor)
