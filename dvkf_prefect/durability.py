"""Flush of objects to disk before any file references them, so that a power cut leaves no reference without content.

A function that stores objects notes them here. A function that writes a reference calls `flush` first, once for all
noted objects.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

# The values 0, false, no and off disable all flushes: faster on slow disks, but a power cut may lose content.
VARIABLE = "DVKF_DURABLE"
# Up to this many files are flushed one by one; for more, the whole file system is.
EACH = 8
# Objects younger than this many seconds may not be on disk: the process that stored them may have been killed before
# its flush. Kernels write everything back within a minute.
YOUNG = 600
# After this many files, a background flush starts while more are stored; the final flush waits for the rest.
AHEAD = 4096
# Errors of file systems that cannot flush a folder, or anything.
_CANNOT = frozenset(
    (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR)
)
_lock = threading.Lock()
# Files stored since the last flush, by store folder; None for too many to list.
_noted: dict[str, list[str] | None] = {}
_ahead = threading.Thread()
_stored = 0
_failures: list[OSError] = []


def is_on() -> bool:
    """Return True if objects are flushed to disk before they are referenced."""
    return os.environ.get(VARIABLE, "").strip().lower() not in ("0", "false", "no", "off")


def note(root: str | Path, paths: list[str]) -> None:
    """Record stored files for the next `flush`.

    Args:
        root: Folder of the store, on the files' file system.
        paths: Absolute paths of the files.
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
    """Start a background flush of a folder's disk if enough files were stored.

    Args:
        root: Folder of the store.
        count: Number of files just stored in it.
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
        # The system reports it only once.
        _failures.append(error)


def flush() -> None:
    """Flush all noted files to disk; after a failure they stay noted.

    Raises:
        OSError: A disk failed to write them.
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
    import ctypes  # slow to import

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
    """Flush one file, or the entries of one folder, to disk; a missing or unsupported path is ignored.

    Raises:
        OSError: The disk failed to write it.
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
