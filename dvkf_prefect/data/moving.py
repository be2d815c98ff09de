"""The objects of a remote: which of them are there, and how they come to it and from it, each one verified."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

from dvkf_prefect.data import manifest_rows
from dvkf_prefect.data.digest import digest_file
from dvkf_prefect.data.remotes.base import Storage
from dvkf_prefect.data.remotes.folder import FolderStorage
from dvkf_prefect.data.store import MD5, Cache, object_key
from dvkf_prefect.data.tree import SUFFIX
from dvkf_prefect.errors import (
    CorruptObjectError,
    DiskFullError,
    DvkfError,
    MissingObjectError,
    ObjectError,
    RemoteError,
    RemoteUnreachableError,
)
from dvkf_prefect.files import raise_disk_full

Direction = Literal["push", "fetch"]

# Up to this many objects each is asked for by its name, whatever else could be done.
_ASK_EACH = 64
# What listing a page costs, in questions for one object; and how many keys a service puts on a page.
_LISTING = 4
# How many times the keys that the first page promises are listed.
_SURPLUS = 4
_PAGE = 1_000
# Questions that one thread asks in a row.
_IN_A_ROW = 32
# Up to this many bytes an object is sent from memory.
_SMALL = 1 << 20
# When so many objects failed, no more are tried.
MOST_FAILED = 100_000


class Progress(Protocol):
    """Is told how a transfer goes, from several threads."""

    def start(self, label: str, files: int, size: int) -> None:
        """The plan: how many files and bytes there are to move; 0 where it is not known."""

    def advance(self, files: int, size: int) -> None:
        """So many more files and bytes are done."""

    def finish(self) -> None:
        """Nothing more will come."""


class Remote:
    """A remote of a repository: a storage whose blobs are named by digest.

    Args:
        name: Its name in the configuration.
        storage: Where the blobs are.
        jobs: How many transfers at once; None for what suits the storage.
    """

    def __init__(self, name: str, storage: Storage, *, jobs: int | None = None) -> None:
        self.name = name
        self.storage = storage
        self.url = storage.url
        self.jobs = jobs or storage.jobs

    def __repr__(self) -> str:
        return f"Remote({self.name!r}, {self.url!r})"

    def __str__(self) -> str:
        return f"remote '{self.name}' ({self.url})"

    def missing(self, digests: Iterable[str], hash_name: str = MD5, *, jobs: int | None = None) -> set[str]:
        """Return those of ``digests`` that are not on the remote.

        A few are asked for one by one. Of many, whatever takes the fewest requests: each one, a listing of the folders
        that they would be in, or a listing of everything; a remote of millions is not listed for a hundred.

        Raises:
            RemoteError: The remote cannot be used.
        """
        absent = set(digests)
        for there in self._find(sorted(absent), hash_name, jobs or self.jobs, exact=False):
            absent.difference_update(there)
        return absent

    def sweep(self) -> None:
        """Remove what transfers to a folder left whose process is gone."""
        if isinstance(self.storage, FolderStorage):
            self.storage.sweep()

    @property
    def is_folder(self) -> bool:
        """Whether its objects are files of this machine, of which sizes cost little."""
        return isinstance(self.storage, FolderStorage)

    def sizes(
        self, digests: Iterable[str], hash_name: str = MD5, *, jobs: int | None = None
    ) -> dict[str, int]:
        """Return the bytes of those of ``digests`` that are on the remote; looked for as `missing` does.

        Raises:
            RemoteError: The remote cannot be used.
        """
        wanted = set(digests)
        return {
            digest: size
            for there in self._find(sorted(wanted), hash_name, jobs or self.jobs, exact=True)
            for digest, size in there.items()
            if digest in wanted
        }

    # -- which way to look -------------------------------------------------------------------------------------------

    def _find(
        self, wanted: Sequence[str], hash_name: str, jobs: int, *, exact: bool
    ) -> Iterator[dict[str, int]]:
        """Yield what is there, in pieces, with sizes when ``exact``; there may be more in it than is wanted.

        Args:
            wanted: Digests in order, none twice.
            hash_name: ``md5`` or ``md5-dos2unix``.
            jobs: How many requests at once.
            exact: Whether sizes are wanted.
        """
        if len(wanted) <= _ASK_EACH:
            yield from self._ask(wanted, hash_name, jobs)
            return
        listed = False
        try:
            for piece in self._list(wanted, hash_name, jobs, exact=exact):
                listed = True
                yield piece
        except RemoteUnreachableError:
            raise
        except RemoteError:
            # Web servers cannot list, and some credentials may not.
            listed = False
        if not listed:
            yield from self._ask(wanted, hash_name, jobs)

    def _ask(self, wanted: Sequence[str], hash_name: str, jobs: int) -> Iterator[dict[str, int]]:
        """Ask for each by its name."""

        def ask(start: int) -> dict[str, int]:
            known: dict[str, int] = {}
            for digest in wanted[start : start + step]:
                size = self.storage.size(object_key(digest, hash_name))
                if size is not None:
                    known[digest] = size
            return known

        step = 1 if len(wanted) <= _ASK_EACH else _IN_A_ROW
        starts = range(0, len(wanted), step)
        if jobs == 1 or len(starts) < 2:
            yield from map(ask, starts)
            return
        from concurrent.futures import ThreadPoolExecutor  # takes a while to import

        with ThreadPoolExecutor(min(jobs, len(starts)), thread_name_prefix="dvkf-ask") as pool:
            yield from pool.map(ask, starts)

    def _list(
        self, wanted: Sequence[str], hash_name: str, jobs: int, *, exact: bool
    ) -> Iterator[dict[str, int]]:
        """Yield what listings show; nothing at all where asking for each is cheaper."""
        folders = _folders(wanted)
        base = "files/md5" if hash_name == MD5 else ""
        listed = 1.0  # pages of one folder
        pages = 0.0
        among = set(wanted)
        if base and self._by_pages():
            # The first page shows how many there are: keys come in order, and digests are spread evenly.
            keys = self._keys(base, exact=exact)
            first = list(islice(keys, _PAGE))
            everything = len(first) / _share(first) / _PAGE
            if len(first) < _PAGE or everything * _LISTING <= min(len(wanted), len(folders) * _LISTING):
                yield dict(first)
                # A listing that goes on for ever is left for questions.
                yield self._among(among, keys, everything)
                return
            listed = pages = max(1.0, everything / 256)
            if len(folders) * listed * _LISTING >= len(wanted):
                return
        elif len(folders) * _LISTING >= len(wanted):
            return
        else:
            # As much of one folder as it would cost to ask for what may be in it.
            each = len(wanted) / len(folders)
            per_question = _PAGE // _LISTING if self.storage.local_path(object_key(wanted[0])) is None else 8
            limit = int(max(1.0, each) * per_question) + _PAGE // 8
            sample = dict(islice(self._folder(folders[0], hash_name, exact=exact), limit))
            if len(sample) == limit:
                return
            yield sample
            folders = folders[1:]

        def look(folder: str) -> dict[str, int]:
            return self._among(among, self._folder(folder, hash_name, exact=exact), pages)

        if jobs == 1 or len(folders) < 2:
            yield from map(look, folders)
            return
        from concurrent.futures import ThreadPoolExecutor  # takes a while to import

        with ThreadPoolExecutor(min(jobs, len(folders)), thread_name_prefix="dvkf-list") as pool:
            yield from pool.map(look, folders)

    def _among(
        self, wanted: AbstractSet[str], listed: Iterable[tuple[str, int]], pages: float
    ) -> dict[str, int]:
        """Return what is wanted of a listing; so it takes no more memory than that, whatever the remote holds.

        Args:
            wanted: Digests.
            listed: The listing.
            pages: How many pages it is expected to have; 0 where that is not known.

        Raises:
            RemoteError: It goes on and on.
        """
        found: dict[str, int] = {}
        most = (pages * _SURPLUS + 100) * _PAGE if pages else math.inf
        for number, (digest, size) in enumerate(listed):
            if digest in wanted:
                found[digest] = size
            if number > most:
                raise RemoteError(f"{self} shows more than {number} objects, many more than it can have")
        return found

    def _by_pages(self) -> bool:
        """Tell whether a listing can be left after its first page: an object store's, not a filesystem's."""
        if self.storage.local_path("files") is not None:
            return False
        from dvkf_prefect.data.remotes.objects import ObjectStorage

        return isinstance(self.storage, ObjectStorage)

    def _keys(self, base: str, *, exact: bool) -> Iterator[tuple[str, int]]:
        """Yield digest and bytes of all objects below ``files/md5``; without ``exact`` the bytes are 0."""
        cut = len(base) + 1
        if exact:
            return ((key[cut : cut + 2] + key[cut + 3 :], size) for key, size in self.storage.list(base))
        return ((key[cut : cut + 2] + key[cut + 3 :], 0) for key in self.storage.keys(base))

    def _folder(self, folder: str, hash_name: str, *, exact: bool) -> Iterator[tuple[str, int]]:
        """Yield digest and bytes of the objects whose digests begin with two digits."""
        base = f"files/md5/{folder}" if hash_name == MD5 else folder
        cut = len(base) + 1
        if exact:
            return ((folder + key[cut:], size) for key, size in self.storage.list(base))
        return ((folder + key[cut:], 0) for key in self.storage.keys(base))


def _folders(wanted: Sequence[str]) -> list[str]:
    """Return the first two digits of digests that are in order, none twice."""
    found: list[str] = []
    place = 0
    while place < len(wanted):
        found.append(wanted[place][:2])
        place = bisect_left(wanted, wanted[place][:2] + "g", place)
    return found


def _share(first: Sequence[tuple[str, int]]) -> float:
    """Return which share of all digests lies before the last of these, as far as it can be told; at least a little."""
    try:
        return max(int(first[-1][0][:8], 16), 1) / 0xFFFFFFFF
    except (IndexError, ValueError):
        return 1.0


# -- moving ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """How many bytes objects may have, as far as it is recorded.

    Attributes:
        exact: Of some, by digest.
        most: Of any other; None where it is not known.
    """

    exact: Mapping[str, int] = field(default_factory=dict)
    most: int | None = None

    def of(self, digest: str) -> int | None:
        """Return the most bytes that an object may have; None where it is not known."""
        if digest.endswith(SUFFIX):
            return manifest_rows.file_limit()
        return self.exact.get(digest, self.most)


NO_LIMITS = Limits()


@dataclass(slots=True)
class Moved:
    """What came of moving objects.

    Attributes:
        files: How many arrived.
        size: Their bytes.
        failed: Why the others did not, by digest.
    """

    files: int = 0
    size: int = 0
    failed: dict[str, DvkfError] = field(default_factory=dict)

    @property
    def is_hopeless(self) -> bool:
        """Whether so many failed that no more are tried; to tell of one takes a kilobyte of memory."""
        return len(self.failed) >= MOST_FAILED


def move(
    direction: Direction,
    digests: Sequence[str],
    hash_name: str,
    cache: Cache,
    remote: Remote,
    *,
    limits: Limits = NO_LIMITS,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Moved:
    """Move objects between a cache and a remote, each verified on the way. All that moves, moves here.

    Args:
        direction: ``push`` or ``fetch``.
        digests: Which, in order, so that neighbours share a folder.
        hash_name: ``md5`` or ``md5-dos2unix``.
        cache: The cache.
        remote: The remote.
        limits: How large what is fetched may be.
        jobs: How many at once; None for what suits the remote.
        progress: Told of each that is done.

    Raises:
        RemoteError: The remote cannot be used at all; what arrived stays.
        DiskFullError: There is no room; what arrived stays.
    """
    if not digests:
        return Moved()
    if isinstance(remote.storage, FolderStorage):
        return _beside(
            direction, list(digests), hash_name, cache, remote, remote.storage, limits, jobs, progress
        )
    if direction == "push":
        return _each(
            digests, lambda d: _send(cache, remote.storage, d, hash_name), jobs or remote.jobs, progress
        )
    partials = cache.partials()
    return _each(
        digests,
        lambda d: _receive(cache, remote, d, hash_name, partials, limits.of(d)),
        jobs or remote.jobs,
        progress,
    )


def _beside(
    direction: Direction,
    digests: list[str],
    hash_name: str,
    cache: Cache,
    remote: Remote,
    storage: FolderStorage,
    limits: Limits,
    jobs: int | None,
    progress: Progress | None,
) -> Moved:
    """Move objects to or from a folder of this machine, in several processes."""
    moved = Moved()
    first = object_key(digests[0], hash_name)
    storage.size(first)  # says so when it is the folder itself that is gone
    folder = storage.local_path(first).parent.parent
    results: Iterator[tuple[str, int | ObjectError]]
    if direction == "push":
        storage.make_folders(f"{folder}/{prefix}" for prefix in _folders(digests))
        results = cache.copy_to(folder, digests, hash_name, temporary=storage.temporary(), workers=jobs)
    else:
        most = [limits.of(digest) for digest in digests]
        results = cache.copy_from(folder, digests, hash_name, limits=most, workers=jobs)
    try:
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
                moved.failed[digest] = CorruptObjectError(_damaged(digest, remote, str(result)))
            if progress:
                progress.advance(1, result if isinstance(result, int) else 0)
            if moved.is_hopeless:
                break
    except DvkfError:
        raise
    except OSError as error:
        raise storage.fault(error, f"{direction} objects") from error
    return moved


def _is_over(storage: FolderStorage, key: str) -> bool:
    """Tell whether a manifest has more bytes than are read of one."""
    return (storage.size(key) or 0) > manifest_rows.file_limit()


def _each(
    digests: Sequence[str], action: Callable[[str], int], jobs: int, progress: Progress | None
) -> Moved:
    """Run ``action``, which returns bytes, on each digest, a few at once.

    An error that concerns the remote or the disk as a whole stops the rest and is raised.
    """
    moved = Moved()
    rest = iter(digests)
    lock = threading.Lock()
    fatal: list[BaseException] = []

    def work() -> None:
        while not (fatal or moved.is_hopeless):
            with lock:
                digest = next(rest, None)
            if digest is None:
                return
            try:
                size = action(digest)
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
            if progress:
                progress.advance(1, size)

    workers = max(1, min(jobs, len(digests)))
    from concurrent.futures import ThreadPoolExecutor  # takes a while to import

    with ThreadPoolExecutor(workers, thread_name_prefix="dvkf-transfer") as pool:
        running = [pool.submit(work) for _ in range(workers)]
        try:
            for future in running:
                future.result()
        except BaseException as error:
            # An interruption of this thread ends the others after the object they are at.
            fatal.append(error)
            raise
    if fatal:
        raise fatal[0]
    return moved


def _send(cache: Cache, storage: Storage, digest: str, hash_name: str) -> int:
    """Send one object, after making sure that it is what its name says."""
    key = object_key(digest, hash_name)
    path = cache.path(digest, hash_name)
    try:
        size = path.stat().st_size
        if size <= _SMALL:
            storage.write(key, cache.read_bytes(digest, hash_name))
            return size
        if hash_name == MD5 and digest_file(path) != digest.removesuffix(SUFFIX):
            raise CorruptObjectError(
                f"{path} does not hash to its name; nothing was sent. `dvkf fetch` or add it again."
            )
        storage.upload(key, path)
    except DvkfError:
        raise
    except FileNotFoundError:
        raise MissingObjectError(f"{digest} left the cache ({cache.root}) meanwhile; push again") from None
    except OSError as error:
        raise ObjectError(f"{path} cannot be read ({error.strerror or error}); nothing was sent") from error
    return size


def _receive(
    cache: Cache, remote: Remote, digest: str, hash_name: str, partials: dict[str, Path], limit: int | None
) -> int:
    """Receive one object; what arrived of a large one before an interruption is kept for the next run."""
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
        # What this process left of an attempt before is not what was hashed above.
        with open(temporary, "ab" if left is not None else "wb", buffering=0) as stream:
            for chunk in storage.stream(key, start=start, limit=limit):
                md5.update(chunk)
                _write_all(stream.fileno(), chunk)
            size = stream.tell()
    except MissingObjectError:
        temporary.unlink(missing_ok=True)
        raise MissingObjectError(not_there(digest, remote)) from None
    except CorruptObjectError:
        temporary.unlink(missing_ok=True)
        if start:
            return _receive(cache, remote, digest, hash_name, {}, limit)
        if digest.endswith(SUFFIX):
            raise manifest_rows.too_large(f"{remote}: {digest}") from None
        raise CorruptObjectError(_damaged(digest, remote, f"it has more than {limit} bytes")) from None
    except OSError as error:
        raise_disk_full(error, temporary)
        raise
    found = md5.hexdigest()
    if hash_name == MD5 and found != digest.removesuffix(SUFFIX):
        temporary.unlink(missing_ok=True)
        if start:
            return _receive(cache, remote, digest, hash_name, {}, limit)
        raise CorruptObjectError(_damaged(digest, remote, f"its bytes hash to {found}"))
    cache.adopt(temporary, digest, hash_name)
    return size


def not_there(digest: str, remote: Remote) -> str:
    """Say that a remote does not have an object, and what to do."""
    return f"{digest} is not on the remote '{remote.name}'; push it from where it is"


def _damaged(digest: str, remote: Remote, how: str) -> str:
    return (
        f"{digest} is damaged on the remote '{remote.name}' ({how}); it was not taken in. Remove it there and push it "
        "from where it is"
    )


def _write_all(descriptor: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]
