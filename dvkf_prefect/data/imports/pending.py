"""Fetched content of imports whose `.dvc` files do not record it.

The content's digest is kept in ``imports.json`` of the repository's `tmp_dir`; a pull checks it out from there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.imports import pending
from dvkf_prefect.data.progress import counting
from dvkf_prefect.data.workspace.workspace import Found
from dvkf_prefect.errors import OutputChangedError
from dvkf_prefect.files import read_description, write_atomic
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.formats.outputs import Origin, Output

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository


def is_complete(cache: Cache, output: Output) -> bool:
    """Return True if a cache has all of an output's recorded content."""
    digest = output.digest
    if digest is None or not cache.exists(digest, output.hash_name):
        return False
    return not output.is_dir or not cache.missing(
        cache.read_tree(digest, output.hash_name).digests, output.hash_name
    )


def put(repo: Repository, output: Output, found: Found) -> None:
    """Check out an output's recorded content, with progress."""
    with counting(repo.progress, f"checkout {output.path}", output.nfiles or 1, output.size or 0) as work:
        repo.workspace.put(output, found, work=work)


def _memory_file(repo: Repository) -> Path:
    return repo.tmp_dir / "imports.json"


def _remembered(repo: Repository) -> dict[str, Any]:
    try:
        known = json.loads(read_description(_memory_file(repo)))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _mark(origin: Origin) -> str:
    """Return a digest of an import's source; it changes whenever the expected content changes."""
    versions = [(file.relpath, file.etag, file.version_id) for file in origin.versions]
    values = [origin.path, origin.repo, origin.checksum, versions]
    return digest_bytes(json.dumps(values, sort_keys=True, default=str).encode())


def remember(repo: Repository, output: Output, origin: Origin, content: Content) -> None:
    """Store the digest of content that was fetched for an import without a recorded digest."""
    entry = {"of": _mark(origin), "digest": content.digest, "size": content.size, "nfiles": content.nfiles}
    repo.tmp_dir.mkdir(parents=True, exist_ok=True)
    known = {**_remembered(repo), output.source: entry}
    write_atomic(_memory_file(repo), json.dumps(known, sort_keys=True).encode(), durable=False)


def known_content(repo: Repository, output: Output) -> Output:
    """Return the output with its fetched content, if its `.dvc` file records none."""
    if output.digest is not None or output.origin is None:
        return output
    entry = _remembered(repo).get(output.source)
    if not entry or entry.get("of") != _mark(output.origin):
        return output
    return replace(output, content=Content(entry["digest"], entry["size"], entry["nfiles"]))


def place_imports(repo: Repository, outputs: Sequence[Output], *, force: bool = False) -> list[str]:
    """Check out the fetched content of imports whose `.dvc` files record none.

    The caller holds the lock.

    Args:
        repo: The repository.
        outputs: Outputs to check out; those with recorded content are skipped.
        force: Overwrite files whose content is stored nowhere else.

    Returns:
        The paths that were checked out; a directory ends with a slash.

    Raises:
        OutputChangedError: Files would be lost; nothing was changed.
    """
    work: list[tuple[Output, Found]] = []
    for output in outputs:
        known = known_content(repo, output) if output.digest is None and output.cached else output
        if known is output or not pending.is_complete(repo.cache, known):
            continue
        found = repo.workspace.look(known.path)
        if found.digest != known.digest:
            work.append((known, found))
    if not force and (
        lost := [path for known, found in work for path in repo.workspace.lost_by(known, found)]
    ):
        raise OutputChangedError(lost)
    for known, found in work:
        put(repo, known, found)
    return [known.path + ("/" if known.is_dir else "") for known, _ in work]
