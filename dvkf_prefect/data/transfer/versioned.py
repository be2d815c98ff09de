"""Fetch from remotes that keep versions (``version_aware``, ``worktree``), by the version ids in `.dvc` files.

Source of the format: DVC 3.x. Such a remote stores each file at ``<url>/<path>`` under its own name. The `.dvc` file
records the service's ``version_id`` of each file under ``cloud:``.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.cache.streams import receive_stream
from dvkf_prefect.data.progress import counting
from dvkf_prefect.data.remotes.url_files import open_files
from dvkf_prefect.data.transfer.transfer import Transfer
from dvkf_prefect.errors import DvkfError, ObjectError, TransferError
from dvkf_prefect.formats.outputs import FileVersion, Output

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository


def fetch_versions(
    repo: Repository,
    outputs: Sequence[Output],
    remote: str | None,
    *,
    cache: Cache | None = None,
) -> Transfer:
    """Download outputs from a remote that keeps versions into the cache; each file is verified by its md5.

    Args:
        repo: Repository that records the outputs.
        outputs: Outputs to fetch.
        remote: Name of the remote; None for the default one.
        cache: Destination; None for the repository's cache.

    Raises:
        TransferError: Some files have no recorded version, are missing or damaged; all others arrived.
        RemoteError: The remote cannot be used at all.
    """
    cache = cache or repo.cache
    name, options = repo.config.remote(remote)
    url = options.pop("url")
    for option in ("version_aware", "worktree"):
        options.pop(option, None)
    jobs = repo.jobs or int(options.pop("jobs", 16))
    files = open_files(url, options, name, versioned=True)
    failures: dict[str, str] = {}
    wanted: dict[str, tuple[str, FileVersion]] = {}
    present = 0
    for output in outputs:
        if output.digest is None or not output.cached:
            continue
        if not output.versions and cache.exists(output.digest, output.hash_name):
            # It was never uploaded, and need not be: the cache has it.
            present += 1
            continue
        if not output.versions:
            failures[output.path] = f"no version is recorded for remote '{name}'. Run `dvc push -r {name}`."
            continue
        absent = cache.missing((file.digest or "" for file in output.versions), output.hash_name)
        present += len(output.versions) - len(absent)
        for file in output.versions:
            path = posixpath.join(output.path, file.relpath) if file.relpath else output.path
            if file.digest not in absent:
                continue
            if file.version_id is None or file.remote not in (None, name):
                failures[path] = f"no version is recorded for remote '{name}'. Run `dvc push -r {name}`."
            else:
                wanted.setdefault(file.digest or "", (path, file))
    moved: list[int] = []

    def receive(path: str, file: FileVersion) -> None:
        try:
            _, size = receive_stream(cache, files.read_version(path, file.version_id), digest=file.digest)
        except ObjectError as error:
            failures[path] = str(error)
            return
        moved.append(size)
        repo.progress.advance(1, size)

    expected = sum(file.size or 0 for _, file in wanted.values())
    with (
        counting(repo.progress, f"fetch from {name}", len(wanted), expected) if wanted else nullcontext(),
        ThreadPoolExecutor(max(1, min(jobs, len(wanted)))) as pool,
    ):
        running = [pool.submit(receive, path, file) for path, file in wanted.values()]
        try:
            for future in running:
                future.result()
        except (DvkfError, KeyboardInterrupt):
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    for output in outputs:
        tree = output.listed_tree()
        if tree is None or not output.cached:
            continue
        # A manifest stands for all of its files, so store it only if the cache has them.
        if tree.digest == output.digest and not cache.missing(tree.digests, output.hash_name):
            cache.add_tree(tree)
    if failures:
        raise TransferError(f"remote '{name}' ({files.url})", failures)
    return Transfer(name, len(moved), sum(moved), present)
