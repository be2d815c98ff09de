"""Unchanged content of DVC 2.x keeps its digest: the md5 of the text without carriage returns, see `LEGACY`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dvkf_prefect import durability
from dvkf_prefect.errors import OutputError, OutputNotFoundError
from dvkf_prefect.formats.digest import digest_dos2unix
from dvkf_prefect.formats.objects import LEGACY, Content
from dvkf_prefect.formats.tree import Tree

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository
    from dvkf_prefect.data.workspace.workspace import Found


def unchanged(repo: Repository, path: str, digest: str | None, hash_name: str) -> Found | None:
    """Return the content of a path if DVC 2.x recorded it and it is unchanged; else None.

    Args:
        repo: The repository.
        path: Path relative to the root.
        digest: Recorded digest.
        hash_name: Way of hashing of that digest; only ``md5-dos2unix`` is compared.
    """
    if hash_name != LEGACY or not digest:
        return None
    found = repo.workspace.look(path, hash_name=LEGACY)
    return found if found.digest == digest else None


def keep(repo: Repository, path: str, found: Found, *, commit: bool = True) -> Content:
    """Store the content that `unchanged` returned under its old digest, unless the cache has it.

    Args:
        repo: The repository; the caller holds the lock.
        path: Path relative to the root.
        found: Content of the path.
        commit: Store the content; False to store nothing.

    Raises:
        OutputError: A file changed while it was read.
        OutputNotFoundError: A file no longer exists.
    """
    rows, cache = found.rows, repo.cache
    content = found.existing()
    if not commit or rows is None:
        return content
    import shutil  # slow to import

    places = {digest: place for place, digest, _ in rows.files()}
    for digest in cache.missing(places, LEGACY):
        place = repo.root / path / places[digest] if places[digest] else repo.root / path
        temporary = cache.temporary(digest)
        try:
            shutil.copyfile(place, temporary)
        except FileNotFoundError as error:
            raise OutputNotFoundError(
                f"{place} disappeared while it was read. Run the command again."
            ) from error
        if digest_dos2unix(str(temporary)) != digest:
            temporary.unlink()
            raise OutputError(f"{place} changed while it was read. Run the command again.")
        cache.adopt(temporary, digest, LEGACY)
    if content.is_dir:
        cache.add_tree(Tree(rows.relpaths, rows.digests), LEGACY)
    durability.flush()
    return content
