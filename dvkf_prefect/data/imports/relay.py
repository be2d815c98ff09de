"""Upload of data from a url to a remote, without storing it in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.imports.sources import Source
from dvkf_prefect.data.progress import counting
from dvkf_prefect.data.transfer import remote_users
from dvkf_prefect.data.transfer.transfer import push as push_objects
from dvkf_prefect.formats.objects import Content, object_key
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.scratch import scratch_folder

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository

# Limits of one batch on its way through this machine's disk: bytes and number of files.
_BATCH_SIZE = 256 << 20

_BATCH_FILES = 1000


def send(repo: Repository, found: Source, remote: str | None) -> Content:
    """Upload a source's files to a remote in batches, through a temporary cache on this machine's disk."""
    place = repo.remote(remote)
    remote_users.mark(repo, place)
    digests = [""] * len(found.relpaths)
    total = 0
    repo.tmp_dir.mkdir(parents=True, exist_ok=True)
    expected = sum(size or 0 for size in found.sizes)
    with counting(repo.progress, f"import to {place.name}", len(digests), expected) as advance:
        for rows in _batches(found):
            with scratch_folder("to-remote-", repo.tmp_dir) as folder:
                cache = Cache(folder)
                taken = list(found.take(cache, rows, jobs=repo.jobs, advance=advance))
                outputs = [Output(found.relpaths[row] or found.url, Content(d)) for row, d, _ in taken]
                push_objects(outputs, cache, place)
            for row, digest, size in taken:
                digests[row] = digest
                total += size
        with scratch_folder("to-remote-", repo.tmp_dir) as folder:
            cache = Cache(folder)
            content = found.stored(cache, digests, total)
            if found.is_dir:
                place.storage.write(object_key(content.digest), cache.read_bytes(content.digest))
    return content


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
