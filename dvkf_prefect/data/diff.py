"""What changed between two versions of the data, file by file."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.outputs import Output, matching
from dvkf_prefect.data.tree import is_tree
from dvkf_prefect.errors import MissingObjectError, OutputNotFoundError

if TYPE_CHECKING:
    from dvkf_prefect.data.repo import Repo


@dataclass(frozen=True, slots=True)
class DiffEntry:
    """One path that differs.

    Attributes:
        path: Posix, relative to the root; a directory has a slash at the end.
        old_digest: What it was, None for a new one.
        new_digest: What it is, None for one that is gone.
        old_path: Where it was, when only its place changed.
        old_size: Bytes it had, where known.
        new_size: Bytes it has, where known.
    """

    path: str
    old_digest: str | None = None
    new_digest: str | None = None
    old_path: str | None = None
    old_size: int | None = None
    new_size: int | None = None


@dataclass(frozen=True, slots=True)
class Diff:
    """The difference between two versions; empty is false.

    Attributes:
        a: The older side, as it was asked for.
        b: The newer side; None for the workspace.
        added: Paths only in ``b``.
        deleted: Paths only in ``a``.
        modified: Paths with other content.
        renamed: Content that only moved.
        not_in_cache: Paths of ``a`` whose content is not in the cache.
    """

    a: str
    b: str | None
    added: tuple[DiffEntry, ...] = ()
    deleted: tuple[DiffEntry, ...] = ()
    modified: tuple[DiffEntry, ...] = ()
    renamed: tuple[DiffEntry, ...] = ()
    not_in_cache: tuple[DiffEntry, ...] = ()

    def __bool__(self) -> bool:
        return any((self.added, self.deleted, self.modified, self.renamed, self.not_in_cache))

    def as_dict(self, *, hashes: bool = False) -> dict[str, list[dict[str, Any]]]:
        """Return it as ``dvc diff --json`` prints it; ``{}`` when nothing differs."""
        if not self:
            return {}

        def row(path: Any, digest: Any) -> dict[str, Any]:
            return {"path": path, "hash": digest} if hashes else {"path": path}

        rows = {
            "added": [row(e.path, e.new_digest) for e in self.added],
            "deleted": [row(e.path, e.old_digest) for e in self.deleted],
            "modified": [row(e.path, {"old": e.old_digest, "new": e.new_digest}) for e in self.modified],
            "renamed": [row({"old": e.old_path, "new": e.path}, e.new_digest) for e in self.renamed],
        }
        # Of two revisions DVC does not ask what the cache holds.
        if self.b is None:
            rows["not in cache"] = [row(e.path, e.old_digest) for e in self.not_in_cache]
        return rows


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison of one output.

    Attributes:
        digest: The output's digest.
        files: For a directory, its files' digests by path below it; None when its manifest is not to be had.
    """

    digest: str
    files: Mapping[str, str] | None = None


def compare(
    a: str,
    b: str | None,
    old: Mapping[str, Side],
    new: Mapping[str, Side],
    *,
    size_of: Callable[[str], int | None] = lambda digest: None,
    is_missing: Callable[[set[str]], set[str]] | None = None,
) -> Diff:
    """Compare two sets of outputs by path.

    Args:
        a: Name of the older side.
        b: Name of the newer side, None for the workspace.
        old: The outputs of the older side.
        new: The outputs of the newer side.
        size_of: Gives the bytes of an object, or None where they are not known.
        is_missing: Picks the digests that are not in the cache; when given, the older side's are listed.
    """
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    for path in sorted(old.keys() | new.keys()):
        left, right = old.get(path), new.get(path)
        if left and right and left.digest == right.digest and is_missing is None:
            continue
        before.update(_entries(path, left))
        after.update(_entries(path, right))
    added = [
        DiffEntry(p, None, after[p], None, None, size_of(after[p]))
        for p in sorted(after.keys() - before.keys())
    ]
    deleted = [
        DiffEntry(p, before[p], None, None, size_of(before[p])) for p in sorted(before.keys() - after.keys())
    ]
    modified = [
        DiffEntry(p, before[p], after[p], None, size_of(before[p]), size_of(after[p]))
        for p in sorted(before.keys() & after.keys())
        if before[p] != after[p]
    ]
    added, deleted, renamed = _pair_renames(added, deleted)
    missing = is_missing(set(before.values())) if is_missing else set()
    lost = [DiffEntry(path, digest) for path, digest in sorted(before.items()) if digest in missing]
    return Diff(a, b, tuple(added), tuple(deleted), tuple(modified), tuple(renamed), tuple(lost))


def _entries(path: str, side: Side | None) -> dict[str, str]:
    if side is None:
        return {}
    if not side.digest.endswith(".dir"):
        return {path: side.digest}
    return {path + "/": side.digest, **{posixpath.join(path, p): d for p, d in (side.files or {}).items()}}


def _pair_renames(
    added: list[DiffEntry], deleted: list[DiffEntry]
) -> tuple[list[DiffEntry], list[DiffEntry], list[DiffEntry]]:
    """Match what vanished with what came by content, first with first."""
    by_digest: dict[str | None, list[DiffEntry]] = {}
    for entry in deleted:
        by_digest.setdefault(entry.old_digest, []).append(entry)
    renamed: list[DiffEntry] = []
    rest: list[DiffEntry] = []
    for entry in added:
        matches = by_digest.get(entry.new_digest)
        if not matches:
            rest.append(entry)
            continue
        was = matches.pop(0)
        renamed.append(
            DiffEntry(entry.path, was.old_digest, entry.new_digest, was.path, was.old_size, entry.new_size)
        )
    gone = {entry.old_path for entry in renamed}
    return rest, [entry for entry in deleted if entry.path not in gone], renamed


def diff_versions(repo: Repo, a: str, b: str | None, targets: Sequence[str]) -> Diff:
    """Do `Repo.diff`."""
    if repo.git and repo.git.head() is None:
        return Diff(a, b)
    old = _side(repo, _outputs_at(repo, targets, a), look=False)
    new = _side(repo, _outputs_at(repo, targets, b), look=b is None)
    if targets and not old and not new:
        raise OutputNotFoundError(f"{', '.join(targets)}: not an output at {a} nor at {b or 'the workspace'}")

    def size_of(digest: str) -> int | None:
        try:
            return None if is_tree(digest) else repo.cache.path(digest).stat().st_size
        except OSError:
            return None

    return compare(a, b, old, new, size_of=size_of, is_missing=repo.cache.missing if b is None else None)


def _outputs_at(repo: Repo, targets: Sequence[str], rev: str | None) -> list[Output]:
    found = repo.outputs(rev=rev)
    return [o for target in targets for o in matching(found, target)] if targets else found


def _side(repo: Repo, tracked: Sequence[Output], *, look: bool) -> dict[str, Side]:
    side: dict[str, Side] = {}
    for output in tracked:
        digest = output.digest
        files: dict[str, str] | None = None
        if look:
            found = repo.workspace.look(output.path, hash_name=output.hash_name)
            digest = found.digest
            if found.rows and found.nfiles is not None:
                files = dict(zip(found.rows.relpaths, found.rows.digests, strict=True))
        elif digest and is_tree(digest):
            with suppress(MissingObjectError):
                files = dict(repo.cache.read_tree(digest, output.hash_name).items())
        if digest:
            side[output.path] = Side(digest, files)
    return side
