"""Remotes that keep versions themselves (``version_aware``, ``worktree``), read by the versions a `.dvc` file lists.

Source of the format: on such a remote DVC stores each file at ``<url>/<path>`` under its own name, and records the
service's ``version_id`` of it under ``cloud:`` in the `.dvc` file.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.cache.streams import receive_stream
from dvkf_prefect.data.remotes.url_files import open_files
from dvkf_prefect.data.transfer.transfer import Progress, Transfer
from dvkf_prefect.errors import DvkfError, ObjectError, TransferError
from dvkf_prefect.formats.outputs import FileVersion, Output
from dvkf_prefect.formats.tree import Tree

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository


def fetch_versions(
    repo: Repository,
    outputs: Sequence[Output],
    remote: str | None,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
    cache: Cache | None = None,
) -> Transfer:
    """Bring outputs from a remote that keeps versions into the cache, each file verified by its md5.

    Args:
        repo: The repository that records them.
        outputs: The outputs.
        remote: The remote; None for the default one.
        jobs: How many transfers at once.
        progress: Told of files and bytes.
        cache: Where to; None for the repository's own cache.

    Raises:
        TransferError: Some files have no version there, are gone or damaged; all others arrived.
        RemoteError: The remote cannot be used at all.
    """
    cache = cache or repo.cache
    name, options = repo.config.remote(remote)
    url = options.pop("url")
    for option in ("version_aware", "worktree"):
        options.pop(option, None)
    jobs = jobs or int(options.pop("jobs", 16))
    files = open_files(url, options, name, versioned=True)
    failures: dict[str, str] = {}
    wanted: dict[str, tuple[str, FileVersion]] = {}
    present = 0
    for output in outputs:
        if output.digest is None or not output.cached:
            continue
        if not output.versions and cache.exists(output.digest, output.hash_name):
            # It was never there, and need not be.
            present += 1
            continue
        if not output.versions:
            failures[output.path] = (
                f"no version of it is recorded for remote '{name}'; `dvc push -r {name}` makes one"
            )
            continue
        absent = cache.missing((file.digest or "" for file in output.versions), output.hash_name)
        present += len(output.versions) - len(absent)
        for file in output.versions:
            path = posixpath.join(output.path, file.relpath) if file.relpath else output.path
            if file.digest not in absent:
                continue
            if file.version_id is None or file.remote not in (None, name):
                failures[path] = (
                    f"no version of it is recorded for remote '{name}'; `dvc push -r {name}` makes one"
                )
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
        if progress:
            progress.advance(1, size)

    if progress and wanted:
        progress.start(f"fetch from {name}", len(wanted), sum(file.size or 0 for _, file in wanted.values()))
    with ThreadPoolExecutor(max(1, min(jobs, len(wanted)))) as pool:
        running = [pool.submit(receive, path, file) for path, file in wanted.values()]
        try:
            for future in running:
                future.result()
        except (DvkfError, KeyboardInterrupt):
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    if progress:
        progress.finish()
    for output in outputs:
        if not (output.versions and output.is_dir and output.cached):
            continue
        tree = tree_of(output)
        # A manifest whose files are not all there would say that they are.
        if tree.digest == output.digest and not cache.missing(tree.digests, output.hash_name):
            cache.add_bytes(tree.to_bytes(), tree=True)
    if failures:
        raise TransferError(f"remote '{name}' ({files.url})", failures)
    return Transfer(name, len(moved), sum(moved), present)


def tree_of(output: Output) -> Tree:
    """Return the manifest of a directory whose `.dvc` file lists its files."""
    return Tree.from_pairs((file.relpath, file.digest or "") for file in output.versions)
