"""Upload of data from a url to a remote, without storing it in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.imports.sources import Source
from dvkf_prefect.data.transfer import remote_users
from dvkf_prefect.data.transfer.transfer import push as push_objects
from dvkf_prefect.formats.objects import Stored, object_key
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.scratch import scratch_folder

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository
    from dvkf_prefect.data.transfer.transfer import Progress

# Limits of one batch on its way through this machine's disk: bytes and number of files.
_BATCH_SIZE = 256 << 20

_BATCH_FILES = 1000


def send(
    repo: Repository, found: Source, remote: str | None, jobs: int | None, progress: Progress | None
) -> Stored:
    """Upload a source's files to a remote in batches, through a temporary cache on this machine's disk."""
    place = repo.remote(remote)
    remote_users.mark(repo, place)
    digests = [""] * len(found.relpaths)
    total = 0
    repo.tmp_dir.mkdir(parents=True, exist_ok=True)
    if progress:
        progress.start(f"import to {place.name}", len(digests), sum(size or 0 for size in found.sizes))
    for rows in _batches(found):
        with scratch_folder("to-remote-", repo.tmp_dir) as folder:
            cache = Cache(folder)
            taken = list(found.take(cache, rows, jobs=jobs, advance=progress.advance if progress else None))
            push_objects(
                [Output(found.relpaths[row] or found.url, d) for row, d, _ in taken], cache, place, jobs=jobs
            )
        for row, digest, size in taken:
            digests[row] = digest
            total += size
    with scratch_folder("to-remote-", repo.tmp_dir) as folder:
        cache = Cache(folder)
        stored = found.stored(cache, digests, total)
        if found.is_dir:
            place.storage.write(object_key(stored.digest), cache.read_bytes(stored.digest))
    if progress:
        progress.finish()
    return stored


def _batches(found: Source) -> Iterator[list[int]]:
    rows: list[int] = []
    size = 0
    for row, count in enumerate(found.sizes):
        rows.append(row)
        size += count or 0
        if size >= _BATCH_SIZE or len(rows) >= _BATCH_FILES:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows
