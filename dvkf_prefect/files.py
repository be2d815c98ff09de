"""Safe reads and writes of single files: regular files only, with a size limit, and atomic."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dvkf_prefect import durability
from dvkf_prefect.errors import DiskFullError, OutputError, ParseError

# Description files are small; DVC's largest dvc.lock files seen in public are below 20 MB.
DESCRIPTION_LIMIT = 64 << 20
# Manifests and stat caches have one row per file: room for ten million files.
MANIFEST_LIMIT = 2 << 30
# Suffix that marks the temporary files of a process, so that they never count as data.
TEMPORARY_SUFFIX = ".dvkf-tmp"


def read_description(path: str | Path, *, name: str | None = None, limit: int = DESCRIPTION_LIMIT) -> bytes:
    """Return the bytes of a description file (`.dvc`, dvc.yaml, params, config, locks).

    Anything but a regular file is refused: a fifo does not block, and a device is not read.

    Args:
        path: The file; links are followed.
        name: Name of the file in messages; the path by default.
        limit: Maximum size in bytes.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: It is a folder.
        ParseError: It is not a regular file, or larger than ``limit``.
        OSError: It cannot be read.
    """
    shown = str(path) if name is None else name
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        stream = open(descriptor, "rb", buffering=0)  # noqa: SIM115 (the error of a folder names the number)
    except IsADirectoryError:
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path)) from None
    with stream:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise ParseError(shown, "not a regular file. Replace it by a file.")
        if info.st_size > limit:
            raise ParseError(shown, f"{info.st_size} bytes, more than the limit of {limit}. Split the file.")
        pieces: list[bytes] = []
        left = limit + 1
        while left and (piece := stream.read(min(left, 1 << 20))):
            pieces.append(piece)
            left -= len(piece)
    if not left:
        raise ParseError(shown, f"more than the limit of {limit} bytes. Split the file.")
    return b"".join(pieces)


def temporary_beside(path: Path) -> Path:
    """Return a short random path in the folder of ``path``, for an incomplete file."""
    return path.with_name(temporary_name())


def temporary_name() -> str:
    """Return a short random file name that `is_temporary` recognises."""
    return f".{os.urandom(8).hex()}{TEMPORARY_SUFFIX}"


def is_temporary(name: str) -> bool:
    """Return True if a file name has the form of `temporary_name`."""
    return name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o666, durable: bool = True) -> None:
    """Write a file atomically: a kill or a power cut leaves either the old or the new content.

    Args:
        path: The file; its folder must exist.
        data: The bytes.
        mode: Permissions of a new file, before the umask; an existing file keeps its own.
        durable: Flush to disk first the objects that the file may reference, see `durability`, and then the file. Not
            needed for a cache file.

    Raises:
        DiskFullError: The disk is full; the old file is unchanged.
    """
    durable = durable and durability.is_on()
    temporary: Path | None = None
    try:
        if durable:
            durability.flush()
        with suppress(FileNotFoundError):
            mode = path.stat().st_mode & 0o777
        temporary, descriptor = _create_beside(path, mode)
        with open(descriptor, "wb", buffering=0) as stream:
            view = memoryview(data)
            while view:
                view = view[stream.write(view) :]
            if durable:
                os.fsync(descriptor)
            os.replace(temporary, path)
        if durable:
            durability.sync_path(path.parent)
    except BaseException as error:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
        if isinstance(error, OSError):
            raise_disk_full(error, path)
        raise


def _create_beside(path: Path, mode: int) -> tuple[Path, int]:
    """Open a new temporary file, locked to protect it from cleanup by other processes."""
    while True:
        temporary = temporary_beside(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(temporary, flags, mode)
        with suppress(OSError):  # not every file system supports locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)


def raise_disk_full(error: OSError, path: str | Path) -> None:
    """Raise `DiskFullError` in place of a system error for a full disk; return for any other error."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DiskFullError(
            f"No space left on the disk of {path}. Complete files are intact. Free some space and run it again."
        ) from error


# A file changed this close to its hash may change again within the same clock tick, with the same mtime. Linux sets
# times by the jiffy (at most 10 ms); some file systems by the second.
TICK_NS = 20_000_000

COARSE_TICK_NS = 2_000_000_000


def is_racy(mtime_ns: int, read_ns: int) -> bool:
    """Return True if a file with this mtime, read at this time, could change later without a new mtime."""
    tick = COARSE_TICK_NS if mtime_ns % 1_000_000_000 == 0 else TICK_NS
    return mtime_ns >= read_ns - tick


def age(path: str | Path, info: os.stat_result, read_ns: int | None = None) -> os.stat_result:
    """Backdate a new object's mtime so that any later write is detectable.

    Args:
        path: The object; its content is known.
        info: Current stat of the object.
        read_ns: Time before its content was read; now by default.

    Returns:
        The stat after the change.
    """
    if not is_racy(info.st_mtime_ns, time.time_ns() if read_ns is None else read_ns):
        return info
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns - COARSE_TICK_NS - 10**9))
    return os.stat(path)


def walk_files(root: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield ``(relpath, entry)`` for every file below ``root``, links to files included.

    Raises:
        OutputError: A link is broken or leads to a directory, an entry is not a regular file, or a name is not UTF-8.
    """
    stack = [("", str(root))]
    while stack:
        prefix, folder = stack.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_temporary(entry.name):
                    continue
                relpath = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    stack.append((relpath + "/", entry.path))
                    continue
                check_entry(entry)
                yield relpath, entry


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Return True if an entry is a folder, or a link to one."""
    with suppress(OSError):  # a link to itself
        return entry.is_dir()
    return False


def check_entry(entry: os.DirEntry[str]) -> None:
    """Refuse an entry that a manifest cannot hold.

    Raises:
        OutputError: The entry is a broken link or a link to a directory, not a regular file, or not named in UTF-8.
    """
    if not entry.name.isascii():
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            raise OutputError(
                f"{os.fsencode(entry.path)!r}: the name is not UTF-8. Rename the file."
            ) from None
    with suppress(OSError):  # a link to itself
        if entry.is_file():
            return
    if not entry.is_symlink():
        kind = "not a regular file. Remove it, or leave it out with .dvcignore."
    elif leads_to_folder(entry):
        kind = "a link to a directory. Replace it by the directory, or leave it out with .dvcignore."
    else:
        kind = "a broken link. Remove it, or leave it out with .dvcignore."
    raise OutputError(f"{entry.path}: {kind}")
