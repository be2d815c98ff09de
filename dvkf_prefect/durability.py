"""Bringing content to the disk before anything names it, so that a power cut leaves no name without its content.

Whoever stores objects notes them here. Whoever writes a file that names them flushes first: once for all of them.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

# Set to 0, false, no or off, it turns all of this off: faster on slow disks, and content may be lost by a power cut.
VARIABLE = "DVKF_DURABLE"
# Up to so many files each is brought to the disk by itself; of more, all that its file system holds.
EACH = 8
# What a store holds since less than so many seconds may not be on its disk: who stored it may have been killed before
# it flushed. Kernels write all back within a minute.
YOUNG = 600
# After so many files their disk begins to take them, while more are stored; the flush at the end waits for the rest.
AHEAD = 4096
# What file systems answer that cannot flush a folder, or at all.
_CANNOT = frozenset(
    (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR)
)
_lock = threading.Lock()
# For each folder that holds objects, those that were stored since the last flush; None for too many to tell.
_noted: dict[str, list[str] | None] = {}
_ahead = threading.Thread()
_stored = 0
_failures: list[OSError] = []


def is_on() -> bool:
    """Return whether content is brought to the disk before it is named."""
    return os.environ.get(VARIABLE, "").strip().lower() not in ("0", "false", "no", "off")


def note(root: str | Path, paths: list[str]) -> None:
    """Remember files that were stored, for the next `flush`.

    Args:
        root: The folder of the store that holds them, on their file system.
        paths: The files, absolute.
    """
    if not paths or not is_on():
        return
    with _lock:
        known = _noted.setdefault(os.fspath(root), [])
        if known is None:
            return
        known += paths
        if len(known) > EACH:
            _noted[os.fspath(root)] = None


def begin(root: str | Path, count: int) -> None:
    """Let the disk of a folder begin to take what it holds when enough was stored, without waiting for it.

    Args:
        root: The folder.
        count: Files that were stored in it now.
    """
    global _ahead, _stored
    if not is_on():
        return
    with _lock:
        _stored += count
        if _stored < AHEAD or _ahead.is_alive():
            return
        _stored = 0
        _ahead = threading.Thread(target=_begin, args=(os.fspath(root),), name="dvkf-disk", daemon=True)
        _ahead.start()


def _begin(root: str) -> None:
    try:
        _flush_one(root, None, set())
    except OSError as error:
        # The system tells of it once only.
        _failures.append(error)


def flush() -> None:
    """Bring all files that were noted to their disks; those noted stay noted when it fails.

    Raises:
        OSError: A disk did not take them.
    """
    if not _noted:
        return
    global _stored
    with _lock:
        _stored = 0
        if _ahead.is_alive():
            _ahead.join()
        if _failures:
            raise _failures.pop()
        done: set[int] = set()
        while _noted:
            root, paths = next(iter(_noted.items()))
            _flush_one(root, paths, done)
            del _noted[root]


def _flush_one(root: str, paths: list[str] | None, done: set[int]) -> None:
    if paths is not None:
        for path in paths:
            sync_path(path)
        for folder in {os.path.dirname(path) for path in paths}:
            sync_path(folder)
        return
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _CANNOT:
            return  # the store itself was removed
        raise
    try:
        device = os.fstat(descriptor).st_dev
        if device not in done:
            _sync_file_system(descriptor)
            done.add(device)
    finally:
        os.close(descriptor)


def _sync_file_system(descriptor: int) -> None:
    import ctypes  # takes a while to import

    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        os.sync()
    elif syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        if number in (errno.ENOSYS, errno.EINVAL):
            os.sync()
        else:
            raise OSError(number, os.strerror(number))


def sync_path(path: str | Path) -> None:
    """Bring one file, or the names in one folder, to the disk; what is gone or cannot be flushed is passed over.

    Raises:
        OSError: The disk did not take it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
