"""Bulk copying with hashing; also runs as a worker process, see `workers`.

It imports almost nothing, so that a worker starts in a few milliseconds. Requests and answers are marshalled values,
each preceded by its length in four bytes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import marshal
import os
import stat
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:  # like typing's, which takes longer to import than all the rest
    from collections.abc import Callable, Sequence
    from typing import Any

CHUNK = 1 << 20
# Files up to this many bytes are read whole.
_WHOLE = 4 << 20
# From this many bytes on, a verified state is recorded, since hashing again costs more.
NOTED = 64 << 10
# From this many bytes on, one thread writes a file while another hashes it, piece by piece.
LARGE = 16 << 20
PIECE = 8 << 20
# Errors of copy_file_range for file systems that it cannot copy between.
_NOT_BETWEEN_THESE = frozenset((errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM))
# linux/fs.h, _IOW(0x94, 9, int): share another file's blocks.
_FICLONE = 0x40049409
_counter = 0


class Watch(threading.local):
    """Receiver of the bytes of large files while this thread copies or hashes them.

    Attributes:
        note: Called with the key of the file and the bytes since the last call; None if unused.
        key: Key of the current file: its path when it is stored or hashed, its digest when it is transferred, its new
            relative path when it is placed.
    """

    note: Callable[[str, int], None] | None = None
    key = ""


watch = Watch()
# Process ids repeat in containers that share a disk.
_token = os.urandom(6).hex()

# ("error", errno, file), ("corrupt", 0, actual digest) or ("large", bytes, "")
Failure = tuple[str, int, str]
# bytes, mtime ns, ctime ns, inode, True if the owner may execute it
Stat = tuple[int, int, int, int, bool]
# bytes, mtime ns, ctime ns, inode
Look = tuple[int, int, int, int]


def _failure(error: OSError) -> Failure:
    return "error", error.errno or 0, os.fsdecode(error.filename or "")


def _temporary(folder: str) -> str:
    global _counter
    _counter += 1
    return f"{folder}{_token}-{os.getpid()}-{_counter}"


def open_regular(path: str) -> int:
    """Open a regular file for reading; refuse any other kind, without blocking on a fifo."""
    source = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(source).st_mode):
        os.close(source)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return source


def _read(path: str, size: int) -> tuple[bytes, int]:
    """Return the bytes of a small file, or a descriptor of a large one, by its expected size."""
    source = open_regular(path)
    if size > _WHOLE:
        return b"", source
    try:
        data = _read_all(source, size)
    finally:
        os.close(source)
    return data, -1


def _read_all(source: int, size: int) -> bytes:
    """Return the rest of an open file; a single read may return less than the whole."""
    data = os.read(source, size + 1)
    if len(data) != size:
        parts = [data]
        while part := os.read(source, CHUNK):
            parts.append(part)
        data = b"".join(parts)
    return data


def _check_size(source: int, copied: int) -> None:
    """Refuse an incomplete copy: the file shrank or grew, or the kernel stopped early."""
    if os.fstat(source).st_size != copied:
        raise OSError(errno.ESTALE, "it changed while it was read")


def _write(descriptor: int, data: bytes) -> None:
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


def _discard(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return


def pump(source: int, target: int) -> str:
    """Copy one open file to another; return the md5 of the copied bytes."""
    md5 = hashlib.md5(usedforsecurity=False)
    if os.fstat(source).st_size >= LARGE:
        return _pump_large(source, target)
    copied = 0
    note = watch.note
    while chunk := os.read(source, CHUNK):
        md5.update(chunk)
        _write(target, chunk)
        copied += len(chunk)
        if note is not None:
            note(watch.key, len(chunk))
    _check_size(source, copied)
    return md5.hexdigest()


def _pump_large(source: int, target: int) -> str:
    """Copy in the kernel in another thread, and hash the bytes written so far in this one."""
    md5 = hashlib.md5(usedforsecurity=False)
    news = threading.Condition()
    written = 0
    failed: list[BaseException] = []
    done = False

    def copy() -> None:
        nonlocal written, done
        try:
            while (count := _copy_some(source, target, PIECE)) and not failed:
                with news:
                    written += count
                    news.notify()
        except BaseException as error:  # noqa: BLE001 - raised by the thread that hashes
            failed.append(error)
        with news:
            done = True
            news.notify()

    copier = threading.Thread(target=copy, name="dvkf-copy")
    copier.start()
    buffer = memoryview(bytearray(CHUNK))
    hashed = 0
    note = watch.note
    try:
        while True:
            with news:
                while not done and written == hashed:
                    news.wait()
                there = written
            if there == hashed:
                break
            while hashed < there:
                count = os.preadv(target, [buffer[: there - hashed]], hashed)
                if not count:
                    raise OSError(errno.EIO, "it was truncated while it was written")
                md5.update(buffer[:count])
                hashed += count
                if note is not None:
                    note(watch.key, count)
    except BaseException as error:
        failed.append(error)
        raise
    finally:
        copier.join()
    if failed:
        raise failed[0]
    _check_size(source, hashed)
    return md5.hexdigest()


def _copy_some(source: int, target: int, size: int) -> int:
    """Copy up to ``size`` bytes in the kernel from the current offsets; return the number copied."""
    try:
        return os.copy_file_range(source, target, size)
    except OSError as error:
        if error.errno not in _NOT_BETWEEN_THESE:
            raise
    return os.sendfile(target, source, None, size)


def clone(
    root: str,
    base: str,
    verify: bool,
    mode: int,
    digests: Sequence[str],
    relpaths: Sequence[str],
    looks: Sequence[Look | None],
) -> list[Stat | Failure]:
    """Create files that share the blocks of a cache's objects; see `place`."""
    results: list[Stat | Failure] = []
    for digest, relpath, known in zip(digests, relpaths, looks, strict=True):
        source = f"{root}/{digest[:2]}/{digest[2:]}"
        watch.key = relpath
        try:
            found = ""
            if verify and appearance(os.stat(source)) != known:
                found = _digest_one(source)
            if found and found != digest[:32]:
                results.append(("corrupt", 0, found))
            else:
                results.append(clone_one(source, base + relpath, mode))
        except OSError as error:
            results.append(_failure(error))
    return results


def clone_one(source: str, target: str, mode: int) -> Stat:
    """Create a file that shares another file's blocks.

    Raises:
        OSError: The file system does not support it.
    """
    reading = open_regular(source)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            fcntl.ioctl(writing, _FICLONE, reading)
            return _stat(os.fstat(writing))
        except OSError:
            _discard(target)
            raise
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def look(path: str) -> Stat:
    """Return the current stat of a file."""
    return _stat(os.stat(path))


def _stat(info: os.stat_result) -> Stat:
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, bool(info.st_mode & 0o100)


def _move_in(temporary: str, target: str) -> None:
    try:
        os.rename(temporary, target)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.rename(temporary, target)


def store(
    root: str, temporary: str, share: bool, files: Sequence[str], sizes: Sequence[int]
) -> list[str | Failure]:
    """Store files in a cache under the digests of their content.

    Args:
        root: The folder of the cache that holds ``aa/bbb…``.
        temporary: Folder for incomplete files, with a trailing slash, on the same file system.
        share: Share the files' blocks instead of copying, if the file system supports it.
        files: The files.
        sizes: Expected sizes in bytes.

    Returns:
        For each file its digest, or the failure.
    """
    results: list[str | Failure] = []
    held: dict[str, bytes] = {}
    weight = 0
    places: dict[str, list[int]] = {}

    def flush() -> None:
        # Sorted by digest: neighbours share a folder, and its blocks are cached.
        for digest in sorted(held):
            try:
                _store_bytes(root, temporary, digest, held[digest], files[places[digest][0]])
            except OSError as error:
                for place in places[digest]:
                    results[place] = _failure(error)
        held.clear()
        places.clear()

    for path, size in zip(files, sizes, strict=True):
        try:
            data, source = _read(path, _WHOLE + 1 if share else size)
            if source >= 0:
                watch.key = path
                try:
                    digest = _store_stream(root, temporary, source, share)
                    _check_size(source, size)
                    results.append(digest)
                finally:
                    os.close(source)
                continue
        except OSError as error:
            results.append(_failure(error))
            continue
        if len(data) != size:
            results.append(("error", errno.ESTALE, path))
            continue
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        held[digest] = data
        places.setdefault(digest, []).append(len(results))
        results.append(digest)
        weight += len(data)
        if weight > 32 << 20:
            flush()
            weight = 0
    flush()
    return results


def _is_stored(target: str, size: int, path: str) -> bool:
    """Return True if an object exists that cannot have changed since, or that is the very file just read."""
    try:
        info = os.stat(target)
        if info.st_size != size or info.st_mode & 0o222:
            return False
        return info.st_nlink == 1 or os.path.samestat(info, os.stat(path))
    except FileNotFoundError:
        return False


def _store_bytes(root: str, temporary: str, digest: str, data: bytes, file: str) -> None:
    target = f"{root}/{digest[:2]}/{digest[2:]}"
    if _is_stored(target, len(data), file):
        return
    path = _temporary(temporary)
    writing = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    try:
        try:
            _write(writing, data)
        finally:
            os.close(writing)
        _move_in(path, target)
    except BaseException:
        _discard(path)
        raise


def _store_stream(root: str, temporary: str, source: int, share: bool) -> str:
    path = _temporary(temporary)
    writing = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    try:
        try:
            # Hash the object, not the source: the source may change meanwhile.
            digest = _hash(writing) if share and _shares_blocks(source, writing) else pump(source, writing)
        finally:
            os.close(writing)
        _move_in(path, f"{root}/{digest[:2]}/{digest[2:]}")
    except BaseException:
        _discard(path)
        raise
    return digest


def _shares_blocks(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _hash(source: int) -> str:
    md5 = hashlib.md5(usedforsecurity=False)
    note = watch.note
    while chunk := os.read(source, CHUNK):
        md5.update(chunk)
        if note is not None and len(chunk) == CHUNK:
            note(watch.key, CHUNK)
    return md5.hexdigest()


def digest(files: Sequence[str]) -> list[str | Failure]:
    """Return the md5 of files; the failure for a file that cannot be read."""
    results: list[str | Failure] = []
    for path in files:
        watch.key = path
        try:
            results.append(_digest_one(path))
        except OSError as error:
            results.append(_failure(error))
    return results


def _digest_one(path: str) -> str:
    source = open_regular(path)
    try:
        return _hash(source)
    finally:
        os.close(source)


def appearance(info: os.stat_result) -> Look:
    """Return the stat values that identify an object's state; an object is valid while they are as at its last hash."""
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino


def transfer(
    source: str,
    target: str,
    temporary: str,
    verify: bool,
    mode: int,
    digests: Sequence[str],
    looks: Sequence[Look | None],
    limits: Sequence[int | None],
) -> list[int | Failure]:
    """Copy objects from one store's folder to another's.

    Args:
        source: The folder that holds ``aa/bbb…``.
        target: The folder to copy to.
        temporary: Folder for incomplete files, with a trailing slash, on the target's file system. One folder serves
            all objects, since file systems keep the files created in one folder together.
        verify: True if object names are the md5 of the bytes.
        mode: Permissions of new files.
        digests: Digests to copy, with or without ``.dir``.
        looks: Stat values of each object at its last hash; None to hash it.
        limits: Maximum size of each object in bytes, None if unknown.

    Returns:
        For each object its size in bytes, or the failure: ``corrupt`` if the content does not match the name.
    """
    results: list[int | Failure] = []
    for digest, known, limit in zip(digests, looks, limits, strict=True):
        place = f"{digest[:2]}/{digest[2:]}"
        watch.key = digest
        try:
            results.append(
                _transfer_one(
                    f"{source}/{place}", f"{target}/{place}", temporary, verify, mode, digest, known, limit
                )
            )
        except OSError as error:
            results.append(_failure(error))
    return results


def _transfer_one(
    source: str,
    target: str,
    folder: str,
    verify: bool,
    mode: int,
    digest: str,
    known: Look | None,
    limit: int | None,
) -> int | Failure:
    path = _temporary(folder)
    copied = place_one(source, path, verify, mode, digest, known, limit)
    if isinstance(copied[0], str):
        return copied
    try:
        _move_in(path, target)
    except BaseException:
        _discard(path)
        raise
    return copied[0]


def _copy_range(source: int, target: int) -> str:
    """Copy in the kernel, without hashing."""
    copied = 0
    note = watch.note
    while count := _copy_some(source, target, 1 << 30 if note is None else LARGE):
        copied += count
        if note is not None:
            note(watch.key, count)
    _check_size(source, copied)
    return ""


def place(
    root: str,
    base: str,
    verify: bool,
    mode: int,
    digests: Sequence[str],
    relpaths: Sequence[str],
    looks: Sequence[Look | None],
) -> list[Stat | Failure]:
    """Copy objects out of a cache to new files, in existing folders.

    Args:
        root: The folder of the cache that holds ``aa/bbb…``.
        base: Prefix of each path, with its slash.
        verify: True if object names are the md5 of the bytes.
        mode: Permissions of new files, before the umask.
        digests: Digests to copy.
        relpaths: Path of each new file, relative to ``base``.
        looks: Stat values of each object at its last hash; None to hash it.

    Returns:
        For each new file its stat, or the failure.
    """
    results: list[Stat | Failure] = []
    for digest, relpath, known in zip(digests, relpaths, looks, strict=True):
        watch.key = relpath
        try:
            results.append(
                place_one(f"{root}/{digest[:2]}/{digest[2:]}", base + relpath, verify, mode, digest, known)
            )
        except OSError as error:
            results.append(_failure(error))
    return results


def place_one(
    source: str,
    target: str,
    verify: bool,
    mode: int,
    digest: str,
    known: Look | None,
    limit: int | None = None,
) -> Stat | Failure:
    """Copy one object to a new file, unless it exceeds its size limit.

    Raises:
        OSError: The object cannot be read, or the file cannot be written; the partial file is removed.
    """
    reading = open_regular(source)
    try:
        info = os.fstat(reading)
        size = info.st_size
        if limit is not None and size > limit:
            return "large", size, ""
        verify = verify and appearance(info) != known
        whole = size <= (_WHOLE if verify else NOTED)
        data = _read_all(reading, size) if whole else b""
        if whole and len(data) != size:
            _check_size(reading, len(data))
        if whole and verify:
            found = hashlib.md5(data, usedforsecurity=False).hexdigest()
            if found != digest[:32]:
                return "corrupt", 0, found
        writing = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            if whole:
                _write(writing, data)
            else:
                found = pump(reading, writing) if verify else _copy_range(reading, writing)
                if verify and found != digest[:32]:
                    _discard(target)
                    return "corrupt", 0, found
            return _stat(os.fstat(writing))
        except BaseException:
            _discard(target)
            raise
        finally:
            os.close(writing)
    finally:
        os.close(reading)


WORK: dict[str, Callable[..., list[Any]]] = {
    "clone": clone,
    "digest": digest,
    "place": place,
    "store": store,
    "transfer": transfer,
}


def serve() -> None:
    """Answer requests from standard input until it ends."""
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(4):
        name, fixed, columns = marshal.loads(source.read(int.from_bytes(head, "little")))  # noqa: S302 - the other end is the process that started this one
        answer = marshal.dumps(WORK[name](*fixed, *columns))
        target.write(len(answer).to_bytes(4, "little"))
        target.write(answer)
        target.flush()


if __name__ == "__main__":
    serve()
