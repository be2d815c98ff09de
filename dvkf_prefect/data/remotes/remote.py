"""Objects on a remote, looked up and stored by digest through a `Storage`."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice

from dvkf_prefect.data.remotes import Backend, open_storage
from dvkf_prefect.data.remotes.base import Storage
from dvkf_prefect.data.remotes.folder import FolderStorage
from dvkf_prefect.errors import RemoteError, RemoteUnreachableError
from dvkf_prefect.formats.config import keeps_versions
from dvkf_prefect.formats.objects import LEGACY, MD5, object_key
from dvkf_prefect.urls import public_url

# Up to this many objects, each is looked up by name, whatever the alternatives.
_ASK_EACH = 64
# Cost of listing a page, in lookups of one object.
_LISTING = 4
# Limit of a listing, as a multiple of the number of keys estimated from the first page.
_SURPLUS = 4
_PAGE = 1_000
# Lookups by one thread in a row.
_IN_A_ROW = 32


class Remote:
    """A remote of a repository: a storage whose blobs are named by digest.

    Args:
        name: Name in the configuration.
        storage: Storage of the blobs.
        jobs: Number of parallel transfers and requests; None for the storage's default.

    Attributes:
        jobs: Number of parallel transfers and requests.
        bound: The number that the user or the configuration set; None without one.
    """

    def __init__(self, name: str, storage: Storage, *, jobs: int | None = None) -> None:
        self.name = name
        self.storage = storage
        self.url = storage.url
        self.jobs = jobs or storage.jobs
        self.bound = jobs

    def __repr__(self) -> str:
        return f"Remote({self.name!r}, {self.url!r})"

    def __str__(self) -> str:
        return f"remote '{self.name}' ({self.url})"

    def missing(self, digests: Iterable[str], hash_name: str = MD5) -> set[str]:
        """Return the ``digests`` that are not on the remote.

        A few are looked up one by one. For many, the method with the fewest requests is chosen: a lookup of each, a
        listing of their folders, or a full listing. A remote of millions is not listed for a hundred objects.

        Raises:
            RemoteError: The remote cannot be used.
        """
        absent = set(digests)
        for there in self._find(sorted(absent), hash_name, exact=False):
            absent.difference_update(there)
        return absent

    def sweep(self) -> None:
        """Remove temporary files of ended transfers to a folder."""
        if isinstance(self.storage, FolderStorage):
            self.storage.sweep()

    @property
    def is_folder(self) -> bool:
        """True if its objects are files of this machine, with cheap access to their sizes."""
        return isinstance(self.storage, FolderStorage)

    def sizes(
        self, digests: Iterable[str], hash_name: str = MD5, *, expected: bool = False
    ) -> dict[str, int]:
        """Return the sizes in bytes of the ``digests`` on the remote, looked up as in `missing`.

        Args:
            digests: The digests.
            hash_name: ``md5`` or ``md5-dos2unix``.
            expected: They are of manifests, and most are there: a folder looks up each, faster than by a listing.

        Raises:
            RemoteError: The remote cannot be used.
        """
        wanted = set(digests)
        if expected and self.jobs == 1 and isinstance(self.storage, FolderStorage):
            # Not by `object_key`: a manifest's digests are checked, and to check again takes as long as the stat.
            start = "" if hash_name == LEGACY else "files/md5/"
            found = self.storage.sizes(f"{start}{digest[:2]}/{digest[2:]}" for digest in wanted)
            return {digest: size for digest, size in zip(wanted, found, strict=True) if size is not None}
        return {
            digest: size
            for there in self._find(sorted(wanted), hash_name, exact=True)
            for digest, size in there.items()
            if digest in wanted
        }

    # -- choice of the lookup ----------------------------------------------------------------------------------------

    def _find(self, wanted: Sequence[str], hash_name: str, *, exact: bool) -> Iterator[dict[str, int]]:
        """Yield existing objects in pieces, with sizes if ``exact``; a piece may hold more than ``wanted``.

        Args:
            wanted: Unique digests in order.
            hash_name: ``md5`` or ``md5-dos2unix``.
            exact: True to return sizes.
        """
        if len(wanted) <= _ASK_EACH:
            yield from self._ask(wanted, hash_name)
            return
        listed = False
        try:
            for piece in self._list(wanted, hash_name, exact=exact):
                listed = True
                yield piece
        except RemoteUnreachableError:
            raise
        except RemoteError:
            # Web servers cannot list, and some credentials do not permit it.
            listed = False
        if not listed:
            yield from self._ask(wanted, hash_name)

    def _ask(self, wanted: Sequence[str], hash_name: str) -> Iterator[dict[str, int]]:
        """Look up each object by name."""

        def ask(start: int) -> dict[str, int]:
            known: dict[str, int] = {}
            for digest in wanted[start : start + step]:
                size = self.storage.size(object_key(digest, hash_name))
                if size is not None:
                    known[digest] = size
            return known

        step = 1 if len(wanted) <= _ASK_EACH else _IN_A_ROW
        starts = range(0, len(wanted), step)
        if self.jobs == 1 or len(starts) < 2:
            yield from map(ask, starts)
            return
        from concurrent.futures import ThreadPoolExecutor  # slow to import

        with ThreadPoolExecutor(min(self.jobs, len(starts)), thread_name_prefix="dvkf-ask") as pool:
            yield from pool.map(ask, starts)

    def _list(self, wanted: Sequence[str], hash_name: str, *, exact: bool) -> Iterator[dict[str, int]]:
        """Yield objects from listings; nothing if a lookup of each is cheaper."""
        folders = prefixes_of(wanted)
        base = "files/md5" if hash_name == MD5 else ""
        listed = 1.0  # pages of one folder
        pages = 0.0
        among = set(wanted)
        if base and self._by_pages():
            # The first page allows an estimate: keys come in order, and digests are spread evenly.
            keys = self._keys(base, exact=exact)
            first = list(islice(keys, _PAGE))
            everything = len(first) / _share(first) / _PAGE
            if len(first) < _PAGE or everything * _LISTING <= min(len(wanted), len(folders) * _LISTING):
                yield dict(first)
                # An endless listing is replaced by lookups.
                yield self._among(among, keys, everything)
                return
            listed = pages = max(1.0, everything / 256)
            if len(folders) * listed * _LISTING >= len(wanted):
                return
        elif len(folders) * _LISTING >= len(wanted):
            return
        else:
            # Sample one folder, up to the cost of looking up its wanted objects.
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

        if self.jobs == 1 or len(folders) < 2:
            yield from map(look, folders)
            return
        from concurrent.futures import ThreadPoolExecutor  # slow to import

        with ThreadPoolExecutor(min(self.jobs, len(folders)), thread_name_prefix="dvkf-list") as pool:
            yield from pool.map(look, folders)

    def _among(
        self, wanted: AbstractSet[str], listed: Iterable[tuple[str, int]], pages: float
    ) -> dict[str, int]:
        """Return the wanted part of a listing, to bound the memory for any size of remote.

        Args:
            wanted: Digests to keep.
            listed: The listing.
            pages: Expected number of pages; 0 if unknown.

        Raises:
            RemoteError: The listing exceeds the expected number of pages by far.
        """
        found: dict[str, int] = {}
        most = (pages * _SURPLUS + 100) * _PAGE if pages else math.inf
        for number, (digest, size) in enumerate(listed):
            if digest in wanted:
                found[digest] = size
            if number > most:
                raise RemoteError(f"{self} lists more than {number} objects, many more than expected")
        return found

    def _by_pages(self) -> bool:
        """Return True if a listing can stop after its first page, as on an object store."""
        if self.storage.local_path("files") is not None:
            return False
        from dvkf_prefect.data.remotes.objects import ObjectStorage

        return isinstance(self.storage, ObjectStorage)

    def _keys(self, base: str, *, exact: bool) -> Iterator[tuple[str, int]]:
        """Yield digest and size of all objects below ``files/md5``; without ``exact`` the size is 0."""
        cut = len(base) + 1
        if exact:
            return ((key[cut : cut + 2] + key[cut + 3 :], size) for key, size in self.storage.list(base))
        return ((key[cut : cut + 2] + key[cut + 3 :], 0) for key in self.storage.keys(base))

    def _folder(self, folder: str, hash_name: str, *, exact: bool) -> Iterator[tuple[str, int]]:
        """Yield digest and size of the objects with a prefix of two digits."""
        base = f"files/md5/{folder}" if hash_name == MD5 else folder
        cut = len(base) + 1
        if exact:
            return ((folder + key[cut:], size) for key, size in self.storage.list(base))
        return ((folder + key[cut:], 0) for key in self.storage.keys(base))


def prefixes_of(wanted: Sequence[str]) -> list[str]:
    """Return the unique first two digits of sorted digests."""
    found: list[str] = []
    place = 0
    while place < len(wanted):
        found.append(wanted[place][:2])
        place = bisect_left(wanted, wanted[place][:2] + "g", place)
    return found


def _share(first: Sequence[tuple[str, int]]) -> float:
    """Return the estimated share of all digests up to the last of these, greater than 0."""
    try:
        return max(int(first[-1][0][:8], 16), 1) / 0xFFFFFFFF
    except (IndexError, ValueError):
        return 1.0


def not_there(digest: str, remote: Remote) -> str:
    """Return the message for a missing object on a remote, with the next step."""
    return f"{digest} is not on the remote '{remote.name}'. Run `dvkf push` in a clone that has it."


def damaged(digest: str, remote: Remote, how: str) -> str:
    """Return the message for a damaged object on a remote."""
    return (
        f"{digest} is damaged on the remote '{remote.name}' ({how}); it was not stored. Remove it from the "
        "remote, and run `dvkf push` in a clone that has it."
    )


def open_remote(
    name: str, options: Mapping[str, str], *, backend: Backend | None = None, jobs: int | None = None
) -> Remote:
    """Open a remote.

    Args:
        name: Name in the configuration.
        options: Options of the remote, as returned by `Config.remote`.
        backend: Library to use, see `open_storage`.
        jobs: Number of parallel transfers and requests; None for that of the options.

    Raises:
        ConfigError: The options are invalid.
        RemoteError: The remote keeps versions itself; dvkf only fetches from such a remote.
    """
    left = dict(options)
    url = left.pop("url")
    configured = left.pop("jobs", None)
    if keeps_versions(options):
        raise RemoteError(
            f"cannot use remote '{name}' ({public_url(url)}): it keeps versions itself (version_aware or worktree), "
            f"and dvkf only fetches from it. Push to it with `dvc push -r {name}`, or name another remote with -r."
        )
    storage = open_storage(url, left, name=name, backend=backend)
    return Remote(name, storage, jobs=jobs or (int(configured) if configured else None))
