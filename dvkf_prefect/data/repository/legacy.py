"""Content of DVC 2.x that is unchanged keeps its name: the md5 of its text without carriage returns, see `LEGACY`."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from dvkf_prefect import durability
from dvkf_prefect.errors import OutputError, OutputNotFoundError
from dvkf_prefect.formats.digest import digest_dos2unix
from dvkf_prefect.formats.objects import LEGACY, Stored
from dvkf_prefect.formats.tree import Tree

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository
    from dvkf_prefect.data.workspace.workspace import Found


def unchanged(repo: Repository, path: str, digest: str | None, hash_name: str) -> Found | None:
    """Return what lies at a path if DVC 2.x recorded it and it did not change since; else None.

    Args:
        repo: The repository.
        path: The path, relative to the root.
        digest: The recorded digest.
        hash_name: How it was made; nothing but ``md5-dos2unix`` is looked at.
    """
    if hash_name != LEGACY or not digest:
        return None
    found = repo.workspace.look(path, hash_name=LEGACY)
    return found if found.digest == digest else None


def keep(repo: Repository, path: str, found: Found, *, commit: bool = True) -> Stored:
    """Store what `unchanged` returned under its old name, where the cache lacks it.

    Args:
        repo: The repository; locked by the caller.
        path: The path, relative to the root.
        found: What lies there.
        commit: False stores nothing.

    Raises:
        OutputError: A file changed meanwhile.
        OutputNotFoundError: A file is gone.
    """
    rows, cache = found.rows, repo.cache
    if not commit or rows is None:
        return found.stored()
    places = {digest: place for place, digest, _ in rows.files()}
    for digest in cache.missing(places, LEGACY):
        place = repo.root / path / places[digest] if places[digest] else repo.root / path
        temporary = cache.temporary(digest)
        try:
            shutil.copyfile(place, temporary)
        except FileNotFoundError as error:
            raise OutputNotFoundError(f"{place} is gone. Run this again.") from error
        if digest_dos2unix(str(temporary)) != digest:
            temporary.unlink()
            raise OutputError(f"{place} changed while it was read. Run this again.")
        cache.adopt(temporary, digest, LEGACY)
    if found.nfiles is not None and not cache.exists(found.digest or "", LEGACY):
        temporary = cache.temporary()
        temporary.write_bytes(Tree(rows.relpaths, rows.digests).to_bytes())
        cache.adopt(temporary, found.digest or "", LEGACY)
    durability.flush()
    return found.stored()
