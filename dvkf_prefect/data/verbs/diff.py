"""Compare two versions of the data file by file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.transfer.members import Members
from dvkf_prefect.errors import OutputNotFoundError
from dvkf_prefect.formats.objects import LEGACY, MD5
from dvkf_prefect.formats.outputs import Output, matching, output_meant
from dvkf_prefect.formats.tree import SUFFIX, is_tree
from dvkf_prefect.paths import is_within, overlaps

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository

# Prefix of digests in DVC 2.x's way of hashing, so that they never equal an md5 of the bytes.
_LEGACY = LEGACY + ":"


@dataclass(frozen=True, slots=True)
class DiffEntry:
    """One path that differs.

    Attributes:
        path: Posix path relative to the root; a directory ends with a slash.
        old_digest: Digest in the older version, None for an added path.
        new_digest: Digest in the newer version, None for a deleted path.
        old_path: Former path, if the content was only moved.
        old_size: Former size in bytes, None if unknown.
        new_size: New size in bytes, None if unknown.
    """

    path: str
    old_digest: str | None = None
    new_digest: str | None = None
    old_path: str | None = None
    old_size: int | None = None
    new_size: int | None = None


@dataclass(frozen=True, slots=True)
class Diff:
    """The difference between two versions; falsy if empty.

    Attributes:
        a: Older revision, as the user named it.
        b: Newer revision; None for the workspace.
        added: Paths only in ``b``.
        deleted: Paths only in ``a``.
        modified: Paths with different content.
        renamed: Paths whose content was only moved.
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
        """Return the difference in the form of ``dvc diff --json``; ``{}`` if nothing differs."""
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
        # As in DVC: a comparison of two revisions does not check the cache.
        if self.b is None:
            rows["not in cache"] = [row(e.path, e.old_digest) for e in self.not_in_cache]
        return rows


@dataclass(slots=True)
class State:
    """Snapshot of the data at one revision, or in the workspace.

    Attributes:
        content: Digest at each path, with a prefix if DVC 2.x recorded it. Directory paths have no slash.
        unknown: Directories whose files are wanted, but whose manifest cannot be read.
    """

    content: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def which(self, pick: Callable[[set[str], str], set[str]]) -> set[str]:
        """Return the digests that ``pick`` selects; it is called once for each way of hashing, without prefixes."""
        digests = set(self.content.values())
        legacy = {digest for digest in digests if digest.startswith(_LEGACY)}
        picked = pick(digests - legacy, MD5) if digests - legacy else set()
        if legacy:
            picked = picked | {_LEGACY + digest for digest in pick(set(map(unmarked, legacy)), LEGACY)}
        return picked


def unmarked(digest: str) -> str:
    """Return a digest without the prefix of DVC 2.x."""
    return digest.removeprefix(_LEGACY)


class PathFilter:
    """Filter for targets and the paths inside them; without targets every path passes.

    Args:
        targets: Paths relative to the root; also `.dvc` files and stages, for the outputs they describe.
    """

    def __init__(self, targets: Sequence[str]) -> None:
        self.targets = [target.rstrip("/") for target in targets]
        self._all = not targets or "" in self.targets
        self._found: set[str] = set()

    def of(self, tracked: Iterable[Output]) -> list[Output]:
        """Return the cached outputs that equal a target, contain one or lie inside one."""
        cached = [output for output in tracked if output.cached]
        if self._all:
            return cached
        for target in list(self.targets):
            for output in matching(cached, target):
                self._found.add(target)
                if output.path not in self.targets:
                    self.targets.append(output.path)
        return [output for output in cached if self._concerns(output.path)]

    def _concerns(self, path: str) -> bool:
        held = {t for t in self.targets if overlaps(path, t)}
        self._found |= held
        return bool(held)

    def lost(self) -> list[str]:
        """Return the targets that no output so far equals, contains or lies inside."""
        return [] if self._all else [target for target in self.targets if target not in self._found]

    def has(self, path: str) -> bool:
        """Return True if a path passes the filter."""
        return self._all or any(is_within(path, target) for target in self.targets)


def state_of(
    members: Members,
    outputs: Iterable[tuple[Output, str | None]],
    selection: PathFilter,
    *,
    granular: bool = True,
) -> State:
    """Return the digest at each path of outputs.

    Args:
        members: Manifests of directories; call its `learn` first.
        outputs: Each output and its digest; None if it does not exist.
        selection: Filter for paths.
        granular: Include the files of directories.
    """
    state = State()
    for output, digest in outputs:
        if digest is None:
            continue
        mark = _LEGACY if output.hash_name == LEGACY else ""
        whole = selection.has(output.path)
        if whole:
            state.content[output.path] = mark + digest
        if not granular or not is_tree(digest):
            continue
        tree = members.known(digest, output.hash_name)
        if tree is None:
            state.unknown.append(output.path)
            continue
        paths = [f"{output.path}/{path}" for path in tree.relpaths]
        digests = [mark + member for member in tree.digests] if mark else tree.digests
        pairs = zip(paths, digests, strict=True)
        state.content.update(pairs if whole else ((p, d) for p, d in pairs if selection.has(p)))
    return state


@dataclass(frozen=True, slots=True)
class Difference:
    """Paths that differ between two states; directory paths have no slash.

    Attributes:
        same: Paths in both states with the same content.
        modified: Paths in both states with different content.
        added: Paths only in the newer state.
        deleted: Paths only in the older state.
        moved: Old and new path of content that was only moved; excluded from ``added`` and ``deleted``.
        unknown: Paths that cannot be compared, because their directory's manifest cannot be read.
    """

    same: set[str]
    modified: set[str]
    added: list[str]
    deleted: list[str]
    moved: list[tuple[str, str]]
    unknown: set[str]


def difference(old: State, new: State) -> Difference:
    """Compare two states path by path."""
    before, after = old.content, new.content
    unknown: set[str] = set()
    for folder in (*old.unknown, *new.unknown):
        if before.get(folder) != after.get(folder):
            inside = folder + "/"
            unknown.update(path for path in (*before, *after) if path.startswith(inside))
    same = {path for path, digest in before.items() if after.get(path) == digest} - unknown
    modified = (before.keys() & after.keys()) - same - unknown
    added = sorted(after.keys() - before.keys() - unknown, key=_parts)
    deleted = sorted(before.keys() - after.keys() - unknown, key=_parts)
    # A deleted path and an added path with the same content are a move; they pair up in DVC's order.
    waiting: dict[str, list[str]] = {}
    if added:
        for path in reversed(deleted):
            waiting.setdefault(before[path], []).append(path)
    moved = [(queue.pop(), path) for path in added if (queue := waiting.get(after[path]))]
    if moved:
        gone, come = {path for path, _ in moved}, {path for _, path in moved}
        deleted = [path for path in deleted if path not in gone]
        added = [path for path in added if path not in come]
    return Difference(same, modified, added, deleted, moved, unknown)


def _parts(path: str) -> list[str]:
    return path.split("/")


def folders_of(paths: Iterable[str]) -> set[str]:
    """Return all parent folders of the paths."""
    found: set[str] = set()
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


def shown(path: str, digest: str) -> str:
    """Return a path for display: a directory ends with a slash."""
    return path + "/" if digest.endswith(SUFFIX) else path


def diff_versions(
    repo: Repository, a: str = "HEAD", b: str | None = None, targets: Sequence[str] = ()
) -> Diff:
    """Implement `Repo.diff`.

    Raises:
        GitError: A revision does not exist.
        OutputNotFoundError: A target is in neither version.
    """
    if repo.git and repo.git.head() is None:
        return Diff(a, b)
    selection = PathFilter(targets)
    older = selection.of(repo.outputs(rev=a))
    newer = selection.of(repo.outputs() if b is None else repo.outputs(rev=b))
    if lost := selection.lost():
        hint = output_meant(repo.outputs() if b is None else repo.outputs(rev=b), lost[0])
        raise OutputNotFoundError(
            f"{', '.join(lost)}: not an output at {a} nor at {b or 'the workspace'}.{hint}"
        )
    members = Members(repo)
    left = [(output, output.digest) for output in older]
    right = [(output, output.digest) for output in newer]
    if b is None:
        right = []
        for output in newer:
            found = repo.workspace.look(output.path, hash_name=output.hash_name)
            members.remember(found, output.hash_name)
            right.append((output, found.digest))
    else:
        # Outputs with the same digest on both sides cannot differ inside, so skip them. A comparison with the
        # workspace keeps them, since their content may be missing from the cache.
        recorded = {(o.path, o.hash_name, d) for o, d in left} & {(o.path, o.hash_name, d) for o, d in right}
        left = [(o, d) for o, d in left if (o.path, o.hash_name, d) not in recorded]
        right = [(o, d) for o, d in right if (o.path, o.hash_name, d) not in recorded]
    members.learn([output for output, _ in left] + ([] if b is None else [output for output, _ in right]))
    old, new = state_of(members, left, selection), state_of(members, right, selection)

    folder = str(repo.cache.path("0" * 32).parent.parent)

    def size_of(digest: str) -> int | None:
        if is_tree(digest):
            return None
        # Plain string formatting: for many objects, `cache.path` would cost more than the stat.
        with suppress(OSError):
            return os.stat(f"{folder}/{digest[:2]}/{digest[2:]}").st_size
        with suppress(OSError):
            return repo.cache.path(digest).stat().st_size
        return None

    return _diff(a, b, old, new, size_of, repo.cache.missing if b is None else None)


def _diff(
    a: str,
    b: str | None,
    old: State,
    new: State,
    size_of: Callable[[str], int | None],
    missing: Callable[[set[str], str], set[str]] | None,
) -> Diff:
    found = difference(old, new)
    before: Mapping[str, str] = old.content
    after: Mapping[str, str] = new.content
    # A file that a folder replaced, or a folder that a file replaced, is not reported itself: as in DVC, only
    # the folder's files are.
    folders_before = folders_of(before) if found.added else set()
    folders_after = folders_of(after) if found.deleted else set()

    def entry(path: str, was: str | None, now: str | None, came_from: str | None = None) -> DiffEntry:
        was, now = was and unmarked(was), now and unmarked(now)
        return DiffEntry(
            path, was, now, came_from, size_of(was) if was else None, size_of(now) if now else None
        )

    lost = old.which(missing) if missing else set()
    return Diff(
        a,
        b,
        added=_sorted(
            entry(shown(p, after[p]), None, after[p]) for p in found.added if p not in folders_before
        ),
        deleted=_sorted(
            entry(shown(p, before[p]), before[p], None) for p in found.deleted if p not in folders_after
        ),
        modified=_sorted(entry(shown(p, before[p]), before[p], after[p]) for p in found.modified),
        renamed=_sorted(
            entry(shown(to, after[to]), before[was], after[to], shown(was, before[was]))
            for was, to in found.moved
        ),
        not_in_cache=_sorted(DiffEntry(shown(p, d), unmarked(d)) for p, d in before.items() if d in lost),
    )


def _sorted(entries: Iterable[DiffEntry]) -> tuple[DiffEntry, ...]:
    return tuple(sorted(entries, key=lambda entry: entry.old_path or entry.path))
