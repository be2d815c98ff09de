"""Transfer of the run cache, which records the outputs of each run of a stage, to and from a remote.

Source of the layout: DVC 3.x, ``<cache>/runs/<K[:2]>/<K>/<V>`` and the same below a remote's root. An entry's name is
a digest of its content, so an existing entry is never transferred again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from dvkf_prefect import durability
from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.progress import NO_PROGRESS, Advance, Progress, counting
from dvkf_prefect.data.remotes.remote import Remote
from dvkf_prefect.errors import DiskFullError, DvkfError, ParseError, RemoteError
from dvkf_prefect.files import read_description, write_atomic
from dvkf_prefect.formats import documents
from dvkf_prefect.formats.dvclock import content_of
from dvkf_prefect.formats.outputs import Output

FOLDER = "runs"
_ENTRY = re.compile(r"runs/([0-9a-f]{2})/\1[0-9a-f]{62}/[0-9a-f]{64}")
_DIGEST = re.compile(r"[0-9a-f]{32}(\.dir)?")


@dataclass(slots=True)
class Runs:
    """Plan and result of a transfer of run cache entries.

    Attributes:
        keys: Entries to transfer, as paths below the root.
        files: Number of entries transferred.
        size: Bytes transferred.
        present: Number of entries that the destination already has.
        failures: Error of each entry that failed, by its path.
    """

    keys: list[str]
    files: int = 0
    size: int = 0
    present: int = 0
    failures: dict[str, str] = field(default_factory=dict)


def plan_runs(cache: Cache, remote: Remote, *, push: bool) -> Runs:
    """Find the entries that only one of cache and remote has.

    Args:
        cache: The cache.
        remote: The remote.
        push: True to upload to the remote, False to download from it.

    Raises:
        RemoteError: The remote cannot be used, or cannot list its entries.
    """
    here = set(_local(cache))
    if push and not here:
        return Runs([])
    there = {key for key in remote.storage.keys(FOLDER) if _ENTRY.fullmatch(key)}
    wanted, had = (here, there) if push else (there, here)
    return Runs(sorted(wanted - had), present=len(wanted & had))


def move_runs(
    runs: Runs,
    cache: Cache,
    remote: Remote,
    *,
    push: bool,
    progress: Progress = NO_PROGRESS,
) -> None:
    """Transfer the entries and add the results to ``runs``.

    Raises:
        RemoteError: The remote cannot be used at all.
        DiskFullError: The disk is full.
    """

    def send(key: str) -> int:
        data = read_description(cache.root / key)
        remote.storage.write(key, data)
        return len(data)

    def receive(key: str) -> int:
        data = remote.storage.read(key)
        if _outs(data, key) is None:
            raise ParseError(key, f"not an entry of the run cache. Remove it from {remote}.")
        path = cache.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data, durable=False)
        durability.note(cache.root, [str(path)])
        return len(data)

    if not runs.keys:
        return
    label = f"run cache {'to' if push else 'from'} {remote.name}"
    with counting(progress, label, len(runs.keys)) as advance:
        _each(send if push else receive, runs, remote.jobs, advance)
        durability.flush()


def _each(action: Callable[[str], int], runs: Runs, jobs: int, advance: Advance) -> None:
    def run(key: str) -> tuple[str, int, Exception | None]:
        try:
            return key, action(key), None
        except (DvkfError, OSError) as error:
            return key, 0, error

    from concurrent.futures import ThreadPoolExecutor  # takes a while to import

    with ThreadPoolExecutor(max(1, min(jobs, len(runs.keys))), thread_name_prefix="dvkf-runs") as pool:
        for key, size, error in pool.map(run, runs.keys):
            if isinstance(error, (RemoteError, DiskFullError)):
                pool.shutdown(cancel_futures=True)
                raise error
            if error is not None:
                runs.failures[key] = str(error)
                continue
            runs.files += 1
            runs.size += size
            advance(1, size)


def run_outputs(cache: Cache) -> list[Output]:
    """Return the outputs named in the cache's run cache; entries that cannot be read are skipped."""
    found: dict[tuple[str, str], Output] = {}
    for key in _local(cache):
        try:
            data = read_description(cache.root / key)
        except FileNotFoundError:
            continue  # another process removed it after the listing
        for item in _outs(data, key) or ():
            content = content_of(item)
            found.setdefault((content.digest, content.hash_name), Output(item["path"], content, source=key))
    return list(found.values())


def _local(cache: Cache) -> Iterator[str]:
    base = cache.root / FOLDER
    for folder, _, names in os.walk(base):
        start = os.path.relpath(folder, cache.root).replace(os.sep, "/")
        yield from (key for name in names if _ENTRY.fullmatch(key := f"{start}/{name}"))


def _outs(data: bytes, key: str) -> Iterable[dict[str, Any]] | None:
    """Return the outputs of an entry that have a digest; None if the data is not an entry."""
    try:
        entry: Any = documents.load(data, key)
    except ParseError:
        return None
    if not isinstance(entry, dict) or "cmd" not in entry:
        return None
    outs = entry.get("outs", [])
    if not isinstance(outs, list):
        return None
    return [
        out
        for out in outs
        if isinstance(out, dict)
        and isinstance(out.get("path"), str)
        and isinstance(out.get("md5"), str)
        and _DIGEST.fullmatch(out["md5"])
    ]
