"""Comparison of imports with the current content of their sources."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dvkf_prefect.data.cache.borrowed import BorrowedCache
from dvkf_prefect.data.git import clones
from dvkf_prefect.data.imports import fetch
from dvkf_prefect.data.imports.external import ExternalRepo, local_folder
from dvkf_prefect.data.imports.origins import TIMEOUT, aware, dependency, open_origin, url_dep
from dvkf_prefect.data.imports.sources import open_source
from dvkf_prefect.errors import DvkfError, OutputNotFoundError, RemoteError
from dvkf_prefect.formats.objects import MD5
from dvkf_prefect.formats.outputs import Origin, Output
from dvkf_prefect.scratch import scratch_folder

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository


def changed_sources(repo: Repository, outputs: Sequence[Output]) -> dict[str, dict[str, str]]:
    """Return the imports whose source has changed, querying each repository once.

    As in DVC, imports from repositories and by version are compared; other imports only if they are not frozen. A
    repository is cloned only if its branch has moved. An import whose path kept its content is up to date. If a service
    does not respond, its imports are reported as deleted.

    Args:
        repo: The repository.
        outputs: Outputs to compare.

    Returns:
        For the `.dvc` file of each changed import: a readable source, and ``update available``, ``modified`` or
        ``deleted``, in the form of DVC's "changed deps".

    Raises:
        GitError: A repository does not respond.
    """
    changed: dict[str, dict[str, str]] = {}
    asked: dict[tuple[str, str | None], list[tuple[Output, Origin]]] = {}
    for output in outputs:
        origin = output.origin
        if origin is None:
            continue
        if origin.repo is not None:
            if origin.repo.get("rev_lock"):
                asked.setdefault((origin.repo["url"], origin.repo.get("rev")), []).append((output, origin))
        elif origin.versioned or not origin.frozen:
            state = _source_state(repo, output, origin)
            if state:
                changed[output.source] = {str(origin): state}
    from concurrent.futures import ThreadPoolExecutor  # takes a while to import

    moved: dict[str, list[tuple[Output, Origin]]] = {}
    with ThreadPoolExecutor(max(1, min(8, len(asked)))) as pool:
        tips = pool.map(lambda key: _tip(repo.root, *key), asked)
        for group, tip in zip(asked.values(), tips, strict=True):
            for output, origin in group:
                values = origin.repo or {}
                if tip is not None and tip != values.get("rev_lock"):
                    key = json.dumps({**values, "rev_lock": tip}, sort_keys=True, default=str)
                    moved.setdefault(key, []).append((output, origin))
        for group, others in zip(
            moved.values(), pool.map(partial(_others, repo), moved.values()), strict=True
        ):
            for output, origin in group:
                if output.path in others:
                    changed[output.source] = {str(origin): "update available"}
    return dict(sorted(changed.items()))


def _others(repo: Repository, group: Sequence[tuple[Output, Origin]]) -> set[str]:
    """Return the paths of one repository's imports whose content has changed or cannot be read."""
    try:
        with open_origin(repo, group[0][1].repo or {}, None) as source:
            return {output.path for output, origin in group if not is_same(repo, output, origin, source)}
    except DvkfError:
        return {output.path for output, _ in group}


def is_same(repo: Repository, output: Output, origin: Origin, source: ExternalRepo) -> bool:
    """Return True if an import's path has the same content in an opened repository as at the import.

    If the recorded digest cannot be compared, the repository is opened at the import's commit too.
    """
    values = origin.repo or {}
    with scratch_folder("dvkf-look-") as folder:
        cache = BorrowedCache(folder, repo.cache.root)
        try:
            now = fetch.digest_of(source, origin.path, cache)
            if output.digest is not None and now[1] == MD5 == output.hash_name:
                return now[0] == output.digest
            with open_origin(repo, values, values.get("rev_lock")) as old:
                return now == fetch.digest_of(old, origin.path, cache)
        except DvkfError:
            return False


def _tip(root: Path, url: str, rev: str | None) -> str | None:
    folder = local_folder(url) or (local_folder(str(root / url)) if "://" not in url else None)
    return clones.tip(str(folder or url), rev, timeout=TIMEOUT)


def _source_state(repo: Repository, output: Output, origin: Origin) -> str | None:
    try:
        found = open_source(
            repo.config, origin.path, folder=repo.root / origin.folder, fs_config=aware(repo, origin)
        )
    except OutputNotFoundError:
        return "deleted"
    except RemoteError as error:  # as in DVC, any other failure counts as deleted
        import logging

        logging.getLogger(__name__).warning("cannot check '%s': %s", output.source, error)
        return "deleted"
    old = dependency(repo, output)
    if url_dep(origin.path, found.facts(), origin.fs_config) == {**old, "hash": MD5}:
        return None
    return "update available" if origin.versioned and not found.is_dir else "modified"
