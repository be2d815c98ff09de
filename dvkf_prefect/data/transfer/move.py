"""Upload and download of objects between a cache and a remote; every object is verified."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.cache.workers import stepping, watched
from dvkf_prefect.data.progress import NAMED, NO_PROGRESS, Direction, Part, Progress, Steps
from dvkf_prefect.data.remotes.base import Storage
from dvkf_prefect.data.remotes.folder import FolderStorage
from dvkf_prefect.data.remotes.remote import Remote, damaged, not_there, prefixes_of
from dvkf_prefect.errors import (
    CorruptObjectError,
    DiskFullError,
    DvkfError,
    MissingObjectError,
    ObjectError,
    RemoteError,
)
from dvkf_prefect.files import raise_disk_full
from dvkf_prefect.formats import manifest_rows
from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.formats.objects import MD5, object_key
from dvkf_prefect.formats.tree import SUFFIX

# Objects of up to this many bytes are uploaded from memory.
_SMALL = 1 << 20
# After this many failed objects, no more are tried.
MOST_FAILED = 100_000
_NO_NAMES: Mapping[str, str] = {}
_NO_SIZES: Mapping[str, int] = {}


# -- moving ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper limits for the size of objects, from the recorded sizes.

    Attributes:
        exact: Size in bytes by digest, if recorded.
        most: Limit in bytes for all other objects; None if unknown.
    """

    exact: Mapping[str, int] = field(default_factory=dict)
    most: int | None = None

    def of(self, digest: str) -> int | None:
        """Return the largest size in bytes that an object may have; None if unknown."""
        if digest.endswith(SUFFIX):
            return manifest_rows.file_limit()
        return self.exact.get(digest, self.most)


NO_LIMITS = Limits()


@dataclass(slots=True)
class Moved:
    """Result of moving objects.

    Attributes:
        files: Number of objects that arrived.
        size: Bytes of those objects.
        failed: Error of each other object, by digest.
    """

    files: int = 0
    size: int = 0
    failed: dict[str, DvkfError] = field(default_factory=dict)

    @property
    def is_hopeless(self) -> bool:
        """True if so many objects failed that no more are tried; each failure takes a kilobyte of memory."""
        return len(self.failed) >= MOST_FAILED


def move(
    direction: Direction,
    digests: Sequence[str],
    hash_name: str,
    cache: Cache,
    remote: Remote,
    *,
    limits: Limits = NO_LIMITS,
    progress: Progress = NO_PROGRESS,
    names: Mapping[str, str] = _NO_NAMES,
) -> Moved:
    """Move objects between a cache and a remote, and verify each one; every transfer goes through here.

    Args:
        direction: ``push`` or ``fetch``.
        digests: Digests in sorted order, so that objects of one folder are adjacent.
        hash_name: ``md5`` or ``md5-dos2unix``.
        cache: The cache.
        remote: The remote.
        limits: Upper limits for the size of downloaded objects.
        progress: Called as objects complete, and while large ones are moved.
        names: Paths of objects by digest, for the progress.

    Raises:
        RemoteError: The remote cannot be used at all; objects that arrived are kept.
        DiskFullError: The disk is full; objects that arrived are kept.
    """
    if not digests:
        return Moved()
    if isinstance(remote.storage, FolderStorage):
        return _beside(
            direction, list(digests), hash_name, cache, remote, remote.storage, limits, progress, names
        )
    if direction == "push":
        return _each(
            digests, lambda d, s: _send(cache, remote.storage, d, hash_name, s), remote.jobs, progress, names
        )
    partials = cache.partials()
    return _each(
        digests,
        lambda d, s: _receive(cache, remote, d, hash_name, partials, limits.of(d), s),
        remote.jobs,
        progress,
        names,
        limits.exact,
    )


def _beside(
    direction: Direction,
    digests: list[str],
    hash_name: str,
    cache: Cache,
    remote: Remote,
    storage: FolderStorage,
    limits: Limits,
    progress: Progress,
    names: Mapping[str, str],
) -> Moved:
    """Move objects to or from a folder of this machine, in several processes."""
    moved = Moved()
    first = object_key(digests[0], hash_name)
    storage.size(first)  # raises if the folder itself is missing
    folder = storage.local_path(first).parent.parent
    results: Iterator[tuple[str, int | ObjectError]]
    if direction == "push":
        storage.make_folders(f"{folder}/{prefix}" for prefix in prefixes_of(digests))
        results = cache.copy_to(
            folder, digests, hash_name, temporary=storage.temporary(), workers=remote.bound
        )
    else:
        most = [limits.of(digest) for digest in digests]
        results = cache.copy_from(folder, digests, hash_name, limits=most, workers=remote.bound)
    sizes = map(limits.exact.get, digests)
    named = (names.get(digest, digest) for digest in digests)
    try:
        with stepping(progress.advance, digests, named, sizes) as steps:
            for digest, result in results:
                if isinstance(result, int):
                    moved.files += 1
                    moved.size += result
                elif direction == "push":
                    moved.failed[digest] = result
                elif isinstance(result, MissingObjectError):
                    moved.failed[digest] = MissingObjectError(not_there(digest, remote))
                elif digest.endswith(SUFFIX) and _is_over(storage, object_key(digest, hash_name)):
                    moved.failed[digest] = manifest_rows.too_large(f"{remote}: {digest}")
                else:
                    moved.failed[digest] = CorruptObjectError(damaged(digest, remote, str(result)))
                if isinstance(result, int):
                    steps.done(digest, result)
                else:
                    steps.done(digest, 0, files=0)
                if moved.is_hopeless:
                    break
    except DvkfError:
        raise
    except OSError as error:
        raise storage.fault(error, f"{direction} objects") from error
    return moved


def _is_over(storage: FolderStorage, key: str) -> bool:
    """Return True if a manifest is larger than the limit for reading one."""
    return (storage.size(key) or 0) > manifest_rows.file_limit()


def _each(
    digests: Sequence[str],
    action: Callable[[str, Steps], int],
    jobs: int,
    progress: Progress,
    names: Mapping[str, str],
    sizes: Mapping[str, int] = _NO_SIZES,
) -> Moved:
    """Call ``action`` for each digest in parallel; it returns the bytes moved, and may report them before.

    An error of the whole remote or disk stops the remaining work and is raised.
    """
    moved = Moved()
    rest = iter(digests)
    lock = threading.Lock()
    fatal: list[BaseException] = []
    parts = {d: Part(names.get(d, d), sizes.get(d, 0)) for d in digests} if len(digests) <= NAMED else {}

    def work() -> None:
        steps = Steps(progress.advance, parts)
        while not (fatal or moved.is_hopeless):
            with lock:
                digest = next(rest, None)
            if digest is None:
                return
            try:
                size = action(digest, steps)
            except (RemoteError, DiskFullError) as error:
                fatal.append(error)
                return
            except DvkfError as error:
                moved.failed[digest] = error
                size = 0
            except BaseException as error:
                fatal.append(error)
                raise
            else:
                with lock:
                    moved.files += 1
                    moved.size += size
            steps.done(digest, size, files=int(digest not in moved.failed))

    workers = max(1, min(jobs, len(digests)))
    from concurrent.futures import ThreadPoolExecutor  # takes a while to import

    with ThreadPoolExecutor(workers, thread_name_prefix="dvkf-transfer") as pool:
        running = [pool.submit(work) for _ in range(workers)]
        try:
            for future in running:
                future.result()
        except BaseException as error:
            # An interruption of this thread ends the others after their current object.
            fatal.append(error)
            raise
    if fatal:
        raise fatal[0]
    return moved


def _send(cache: Cache, storage: Storage, digest: str, hash_name: str, steps: Steps) -> int:
    """Upload one object after verifying it against its digest."""
    key = object_key(digest, hash_name)
    path = cache.path(digest, hash_name)
    try:
        size = path.stat().st_size
        if size <= _SMALL:
            storage.write(key, cache.read_bytes(digest, hash_name))
            return size
        if hash_name == MD5 and digest_file(path) != digest.removesuffix(SUFFIX):
            raise CorruptObjectError(
                f"{path} does not hash to its name; nothing was sent. Run `dvkf fetch`, or add it again."
            )
        with watched(steps.note, digest):
            storage.upload(key, path)
    except DvkfError:
        raise
    except FileNotFoundError:
        raise MissingObjectError(
            f"{digest} was removed from the cache ({cache.root}) during the push. Push again."
        ) from None
    except OSError as error:
        raise ObjectError(f"{path} cannot be read ({error.strerror or error}); nothing was sent") from error
    return size


def _receive(
    cache: Cache,
    remote: Remote,
    digest: str,
    hash_name: str,
    partials: dict[str, Path],
    limit: int | None,
    steps: Steps,
) -> int:
    """Download and verify one object; after an interruption, the partial file is kept for the next run."""
    storage = remote.storage
    key = object_key(digest, hash_name)
    temporary = cache.partial(digest)
    md5 = hashlib.md5(usedforsecurity=False)
    start = 0
    left = partials.pop(digest, None)
    if left is not None:
        os.replace(left, temporary)
        with open(temporary, "rb") as stream:
            while chunk := stream.read(1 << 20):
                md5.update(chunk)
                start += len(chunk)
    try:
        # Append only to the partial file hashed above; a file left by this process's last attempt is overwritten.
        with open(temporary, "ab" if left is not None else "wb", buffering=0) as stream:
            for chunk in storage.stream(key, start=start, limit=limit):
                md5.update(chunk)
                _write_all(stream.fileno(), chunk)
                steps.note(digest, len(chunk))
            size = stream.tell()
    except MissingObjectError:
        temporary.unlink(missing_ok=True)
        raise MissingObjectError(not_there(digest, remote)) from None
    except CorruptObjectError:
        temporary.unlink(missing_ok=True)
        if start:
            return _receive(cache, remote, digest, hash_name, {}, limit, steps)
        if digest.endswith(SUFFIX):
            raise manifest_rows.too_large(f"{remote}: {digest}") from None
        raise CorruptObjectError(damaged(digest, remote, f"it has more than {limit} bytes")) from None
    except OSError as error:
        raise_disk_full(error, temporary)
        raise
    found = md5.hexdigest()
    if hash_name == MD5 and found != digest.removesuffix(SUFFIX):
        temporary.unlink(missing_ok=True)
        if start:
            return _receive(cache, remote, digest, hash_name, {}, limit, steps)
        raise CorruptObjectError(damaged(digest, remote, f"its bytes hash to {found}"))
    cache.adopt(temporary, digest, hash_name)
    return size


def _write_all(descriptor: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]
