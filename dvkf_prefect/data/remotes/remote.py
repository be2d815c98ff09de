"""A remote: objects by the digest of their content, asked for and stored over a `Storage`."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice

from dvkf_prefect.data.remotes import Backend, open_storage
from dvkf_prefect.data.remotes.base import Storage
from dvkf_prefect.data.remotes.errors import public_url
from dvkf_prefect.data.remotes.folder import FolderStorage
from dvkf_prefect.errors import RemoteError, RemoteUnreachableError
from dvkf_prefect.formats.config import keeps_versions
from dvkf_prefect.formats.objects import MD5, object_key

# Up to this many objects each is asked for by its name, whatever else could be done.
_ASK_EACH = 64
# What listing a page costs, in questions for one object; and how many keys a service puts on a page.
_LISTING = 4
# How many times the keys that the first page promises are listed.
_SURPLUS = 4
_PAGE = 1_000
# Questions that one thread asks in a row.
_IN_A_ROW = 32


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
        folders = folders_of(wanted)
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


def folders_of(wanted: Sequence[str]) -> list[str]:
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


def not_there(digest: str, remote: Remote) -> str:
    """Say that a remote does not have an object, and what to do."""
    return f"{digest} is not on the remote '{remote.name}'; push it from where it is"


def damaged(digest: str, remote: Remote, how: str) -> str:
    """Return the message of an object that is on a remote, damaged."""
    return (
        f"{digest} is damaged on the remote '{remote.name}' ({how}); it was not taken in. Remove it there and push it "
        "from where it is"
    )


def open_remote(name: str, options: Mapping[str, str], *, backend: Backend | None = None) -> Remote:
    """Open a remote.

    Args:
        name: Its name in the configuration.
        options: Its options, as `Config.remote` returns them.
        backend: The library to reach it with, see `open_storage`.

    Raises:
        ConfigError: Its options are wrong.
        RemoteError: It keeps versions itself; dvkf only fetches from such a remote.
    """
    left = dict(options)
    url = left.pop("url")
    jobs = left.pop("jobs", None)
    refuse_versioned(name, options, "use")
    return Remote(name, open_storage(url, left, name=name, backend=backend), jobs=int(jobs) if jobs else None)


def refuse_versioned(name: str, options: Mapping[str, str], what: str) -> None:
    """Refuse a remote that keeps versions itself, whose blobs are not named by digest.

    Args:
        name: The remote.
        options: Its options.
        what: A verb, for the message.

    Raises:
        RemoteError: It is such a one.
    """
    if keeps_versions(options):
        raise RemoteError(
            f"cannot {what} remote '{name}' ({public_url(options['url'])}): it keeps versions itself "
            f"(version_aware or worktree), and dvkf only fetches from it. Push to it with `dvc push -r {name}`, or "
            "name another remote with -r."
        )
