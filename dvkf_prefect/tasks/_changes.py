"""Changed files of directories that a stage depends on, compared with its last run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dvkf_prefect.cards import TreeChange
from dvkf_prefect.errors import DvkfError
from dvkf_prefect.formats.tree import is_tree
from dvkf_prefect.pipeline.plan.why import Reason
from dvkf_prefect.repo import Repo

# Maximum number of directories that are compared for one card.
_DIRECTORIES = 10


def changed_files(repo: Repo, reasons: Iterable[Reason], paths: Mapping[str, str]) -> dict[str, TreeChange]:
    """Compare the manifests of changed directories.

    Args:
        repo: The repository. A directory is left out unless both of its manifests are here.
        reasons: Reasons for which a stage runs.
        paths: Paths of its dependencies relative to the root, by name.

    Returns:
        Changes by the name of the dependency.
    """
    changes: dict[str, TreeChange] = {}
    for reason in reasons:
        if len(changes) == _DIRECTORIES:
            break
        if reason.kind != "dependency":
            continue
        old = _files(repo, reason.old)
        new = _files(repo, reason.new) or _in_workspace(repo, paths.get(reason.name, ""), reason.new)
        if old is None or new is None:
            continue
        changes[reason.name] = TreeChange(
            added=tuple(sorted(new.keys() - old.keys())),
            deleted=tuple(sorted(old.keys() - new.keys())),
            modified=tuple(sorted(path for path in old.keys() & new.keys() if old[path] != new[path])),
        )
    return changes


def _files(repo: Repo, digest: object) -> dict[str, str] | None:
    """Return the digests of a directory's files from its cached manifest, or None without one."""
    if not isinstance(digest, str) or not is_tree(digest):
        return None
    try:
        return dict(repo.cache.read_tree(digest).items())
    except (DvkfError, OSError):
        return None


def _in_workspace(repo: Repo, path: str, digest: object) -> dict[str, str] | None:
    """Return the digests of a directory's files from the workspace, or None if it differs from the digest."""
    if not path or not isinstance(digest, str) or not is_tree(digest):
        return None
    found = repo.workspace.look(path)
    if found.digest != digest or found.rows is None or not all(found.rows.digests):
        return None
    return dict(zip(found.rows.relpaths, found.rows.digests, strict=True))
