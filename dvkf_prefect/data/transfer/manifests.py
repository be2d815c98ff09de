"""Read-only access to manifests: from caches first, then from remotes; nothing is stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dvkf_prefect.errors import CorruptObjectError, DvkfError, MissingObjectError, ParseError, RemoteError
from dvkf_prefect.files import MANIFEST_LIMIT, read_description
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.formats.objects import MD5, object_key
from dvkf_prefect.formats.tree import SUFFIX, Tree

if TYPE_CHECKING:
    from dvkf_prefect.data.cache.cache import Cache
    from dvkf_prefect.data.repository.repository import Repository
    from dvkf_prefect.data.transfer.transfer import Remote


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
    """Reader of manifests: from the caches of several repositories, else from their remotes.

    Args:
        repos: Repositories whose caches are searched.
        remote: Remote to try before the output's own remote and the default one.
        jobs: Number of parallel requests.
    """

    def __init__(
        self, repos: Sequence[Repository], *, remote: str | None = None, jobs: int | None = None
    ) -> None:
        self._caches = list({str(repo.cache.root): repo.cache for repo in repos}.values())
        self._remote = remote
        self._jobs = jobs
        self._opened: dict[tuple[str, str | None], Remote | DvkfError] = {}

    def read(self, wanted: Sequence[Manifest]) -> Iterator[tuple[Manifest, Tree | DvkfError]]:
        """Yield each manifest, or the error that prevented reading it, in arbitrary order.

        Manifests in a cache come first and one at a time, so that memory holds one of them.
        """
        away: list[tuple[Manifest, DvkfError]] = []
        for manifest in wanted:
            found = self._cached(manifest)
            if isinstance(found, Tree):
                yield manifest, found
            else:
                away.append((manifest, found))
        if not away:
            return
        # Open the remotes here, in one thread.
        places = [self._places(manifest) for manifest, _ in away]
        opened = [remote for group in places for remote in group if not isinstance(remote, DvkfError)]
        jobs = self._jobs or max((remote.jobs for remote in opened), default=1)
        with ThreadPoolExecutor(max(1, min(jobs, len(away)))) as pool:
            fetched = pool.map(_fetch, away, places)
            yield from zip([manifest for manifest, _ in away], fetched, strict=True)

    def _cached(self, manifest: Manifest) -> Tree | DvkfError:
        problem: DvkfError = MissingObjectError(f"{manifest.digest} is not in the cache")
        for cache in self._caches:
            try:
                return read_manifest(cache, manifest.digest, manifest.hash_name)
            except MissingObjectError:
                continue
            except DvkfError as error:
                problem = error
        return problem

    def _places(self, manifest: Manifest) -> list[Remote | DvkfError]:
        """Return the remotes that may have a manifest, or the error of one that cannot be opened."""
        places: dict[str, Remote | DvkfError] = {}
        for name in dict.fromkeys((self._remote, manifest.remote, None)):
            key = (str(manifest.repo.root), name)
            if key not in self._opened:
                try:
                    self._opened[key] = manifest.repo.remote(name)
                except DvkfError as error:
                    self._opened[key] = error
            place = self._opened[key]
            places.setdefault(str(place), place)
        return list(places.values())


def _fetch(item: tuple[Manifest, DvkfError], places: Sequence[Remote | DvkfError]) -> Tree | DvkfError:
    manifest, problem = item
    said = [str(problem)]
    for remote in places:
        if isinstance(remote, DvkfError):
            said.append(str(remote))
            continue
        try:
            data = remote.storage.read(object_key(manifest.digest, manifest.hash_name))
            return parse_manifest(data, manifest.digest, manifest.hash_name, str(remote))
        except MissingObjectError:
            said.append(f"not on {remote}")
        except RemoteError as error:
            problem = error
            said.append(str(error))
        except DvkfError as error:
            said.append(str(error))
            if isinstance(error, ParseError) and not isinstance(problem, RemoteError):
                problem = error
    # A manifest that exists but cannot be read is not missing.
    return problem if isinstance(problem, (RemoteError, ParseError)) else MissingObjectError(", ".join(said))


def read_manifest(cache: Cache, digest: str, hash_name: str = MD5) -> Tree:
    """Read a manifest from a cache; unlike `Cache.read_tree`, it does not move a damaged one aside.

    Raises:
        MissingObjectError: The cache does not have it.
        CorruptObjectError: Its bytes do not match its digest.
        ParseError: The object is not a manifest.
    """
    own = cache.is_own(digest, hash_name)
    try:
        data = read_description(cache.path(digest, hash_name), limit=MANIFEST_LIMIT)
    except FileNotFoundError:
        raise MissingObjectError(f"{digest} is not in the cache") from None
    return parse_manifest(data, digest, hash_name, "the cache", own=own)


def parse_manifest(data: bytes, digest: str, hash_name: str, place: str, *, own: bool = False) -> Tree:
    """Verify and parse the bytes of a manifest.

    Raises:
        CorruptObjectError: The bytes do not match the digest.
        ParseError: The bytes are not a manifest.
    """
    if hash_name == MD5 and digest_bytes(data) != digest.removesuffix(SUFFIX):
        raise CorruptObjectError(f"{digest} is damaged in {place}")
    return Tree.from_bytes(data, digest, own=own)
