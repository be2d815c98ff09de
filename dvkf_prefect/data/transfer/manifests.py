"""Reader of manifests: from caches first, then from remotes; every manifest is verified."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dvkf_prefect.data.remotes.remote import Remote, damaged
from dvkf_prefect.errors import (
    CorruptObjectError,
    DvkfError,
    MissingObjectError,
    ParseError,
    RemoteError,
    UnsafePathError,
)
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.formats.objects import MD5, object_key
from dvkf_prefect.formats.tree import SUFFIX, Tree

if TYPE_CHECKING:
    from dvkf_prefect.data.cache.cache import Cache
    from dvkf_prefect.data.repository.repository import Repository


def read_manifest(
    digest: str,
    hash_name: str = MD5,
    *,
    caches: Sequence[Cache] = (),
    remotes: Iterable[Remote | DvkfError] = (),
    mend: bool = False,
) -> Tree:
    """Return a manifest from the first place that has it intact.

    A remote's manifest is subject to the memory limit of `dvkf_prefect.formats.manifest_rows`.

    Args:
        digest: Digest of the manifest, with ``.dir``.
        hash_name: ``md5`` or ``md5-dos2unix``.
        caches: Caches to read.
        remotes: Remotes to read if no cache has it; an error stands for a remote that cannot be opened. An iterator
            is not advanced before it is needed, see `opened`.
        mend: Move damaged manifests of the caches aside, and store a remote's manifest in the first cache. False
            changes nothing.

    Raises:
        MissingObjectError: It is in none of the places.
        CorruptObjectError: Every place that has it has a damaged one.
        ParseError: The object is not a manifest, or exceeds the memory limit.
        UnsafePathError: A path in it would leave its directory.
        RemoteError: A remote cannot be used, and no other place has it.
    """
    problems: list[DvkfError] = []
    for cache in caches:
        try:
            return cache.read_tree(digest, hash_name, aside=mend)
        except MissingObjectError:
            continue
        except DvkfError as error:
            problems.append(error)
    reasons = [str(error) for error in problems] or [f"{digest} is not in the cache"] * bool(caches)
    for remote in remotes:
        if isinstance(remote, DvkfError):
            reasons.append(str(remote))
            continue
        try:
            data = _read(remote, digest, hash_name)
            tree = Tree.from_bytes(data, digest)
        except MissingObjectError:
            reasons.append(f"not on {remote}" if reasons else f"{digest} is not on {remote}")
        except DvkfError as error:
            problems.append(error)
            reasons.append(str(error))
        else:
            if mend and caches:
                # Without a copy, the next read needs the remote again.
                with suppress(OSError):
                    caches[0].add_bytes(data, tree=True, hash_name=hash_name)
            return tree
    # A manifest that exists but cannot be read is not missing.
    for kind in (RemoteError, ParseError, UnsafePathError):
        for problem in problems:
            if isinstance(problem, kind):
                raise problem
    raise (CorruptObjectError if problems else MissingObjectError)(", ".join(reasons))


def _read(remote: Remote, digest: str, hash_name: str) -> bytes:
    # DVC 2.x hashes text with Unix line ends; a manifest has one line, so its md5 is the same.
    data = remote.storage.read(object_key(digest, hash_name))
    found = digest_bytes(data)
    if found != digest.removesuffix(SUFFIX):
        raise CorruptObjectError(damaged(digest, remote, f"its bytes hash to {found}"))
    return data


def opened(
    opener: Callable[[str | None], Remote], names: Iterable[str | None]
) -> Iterator[Remote | DvkfError]:
    """Yield the remotes of different places, each opened when it is needed, or the error of one that cannot be opened.

    Args:
        opener: Function that opens a remote by its name.
        names: Names of remotes; None for the default one.
    """
    seen: set[str] = set()
    for name in dict.fromkeys(names):
        remote: Remote | DvkfError
        try:
            remote = opener(name)
        except DvkfError as error:
            remote = error
        if str(remote) not in seen:
            seen.add(str(remote))
            yield remote


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest to read.

    Attributes:
        digest: Digest of the manifest, with ``.dir``.
        hash_name: ``md5`` or ``md5-dos2unix``.
        path: Path of its output, for messages.
        repo: Repository that records it.
        remote: Remote that the output names, None without one.
        imported: True if its content belongs to another repository.
    """

    digest: str
    hash_name: str
    path: str
    repo: Repository
    remote: str | None = None
    imported: bool = False


def distinct(manifests: Iterable[Manifest]) -> list[Manifest]:
    """Return the manifests without duplicates, the first of each digest."""
    first: dict[tuple[str, str], Manifest] = {}
    for manifest in manifests:
        first.setdefault((manifest.digest, manifest.hash_name), manifest)
    return list(first.values())


class Manifests:
    """Manifests of several repositories, read in parallel; no cache is changed.

    Args:
        repos: Repositories whose caches are searched.
        remote: Remote to try before the output's own remote and the default one.
    """

    def __init__(self, repos: Sequence[Repository], *, remote: str | None = None) -> None:
        self._caches = list({str(repo.cache.root): repo.cache for repo in repos}.values())
        self._remote = remote
        self._opened: dict[tuple[str, str | None], Remote | DvkfError] = {}

    def read(self, wanted: Sequence[Manifest]) -> Iterator[tuple[Manifest, Tree | DvkfError]]:
        """Yield each manifest, or the error that prevented reading it, in arbitrary order.

        Manifests in a cache come first and one at a time, so that memory holds one of them.
        """
        away: list[Manifest] = []
        for manifest in wanted:
            found = self._read(manifest, ())
            if isinstance(found, Tree):
                yield manifest, found
            else:
                away.append(manifest)
        if not away:
            return
        # Open the remotes here, in one thread.
        places = [self._places(manifest) for manifest in away]
        remotes = [remote for group in places for remote in group if not isinstance(remote, DvkfError)]
        from concurrent.futures import ThreadPoolExecutor  # slow to import

        jobs = max((remote.jobs for remote in remotes), default=1)
        with ThreadPoolExecutor(max(1, min(jobs, len(away)))) as pool:
            yield from zip(away, pool.map(self._read, away, places), strict=True)

    def _read(self, manifest: Manifest, remotes: Iterable[Remote | DvkfError]) -> Tree | DvkfError:
        try:
            return read_manifest(manifest.digest, manifest.hash_name, caches=self._caches, remotes=remotes)
        except DvkfError as error:
            return error

    def _places(self, manifest: Manifest) -> list[Remote | DvkfError]:
        """Return the remotes that may have a manifest."""

        def opener(name: str | None) -> Remote:
            key = (str(manifest.repo.root), name)
            if key not in self._opened:
                try:
                    self._opened[key] = manifest.repo.remote(name)
                except DvkfError as error:
                    self._opened[key] = error
            found = self._opened[key]
            if isinstance(found, DvkfError):
                raise found
            return found

        return list(opened(opener, (self._remote, manifest.remote, None)))
