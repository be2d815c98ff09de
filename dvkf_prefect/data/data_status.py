"""What changed between the last commit, the `.dvc` files and the workspace, and what cache and remote lack.

Source of the categories: DVC 3.x, dvc/repo/data.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.digest import digest_bytes, write_atomic
from dvkf_prefect.data.members import Members
from dvkf_prefect.data.outputs import Output, matching
from dvkf_prefect.data.store import LEGACY, MD5
from dvkf_prefect.data.tree import is_tree

if TYPE_CHECKING:
    from pathlib import Path

    from dvkf_prefect.data.git import Git
    from dvkf_prefect.data.repo import Repo

# Stands before the digest of content in DVC 2.x's way of hashing, which never equals one in the other.
_LEGACY = LEGACY + ":"


@dataclass(frozen=True, slots=True)
class Changes:
    """How one state of the data differs from an older one; a directory has a slash at the end.

    Attributes:
        added: Paths only in the newer one.
        deleted: Paths only in the older one.
        modified: Paths with other content.
        renamed: Old and new path of content that only moved.
        unknown: Paths of a directory whose recorded files nobody knows.
    """

    added: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    unknown: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any((self.added, self.deleted, self.modified, self.renamed, self.unknown))

    def as_dict(self) -> dict[str, list[Any]]:
        """Return it as ``dvc data status --json`` has it."""
        groups: dict[str, list[Any]] = {
            "modified": list(self.modified),
            "added": list(self.added),
            "deleted": list(self.deleted),
            "renamed": [{"old": old, "new": new} for old, new in self.renamed],
            "unknown": list(self.unknown),
        }
        return {name: paths for name, paths in groups.items() if paths}


@dataclass(frozen=True, slots=True)
class DataStatus:
    """The state of the data; true when anything is not as it was committed and stored.

    Paths are relative to the repository's root and sorted.

    Attributes:
        not_in_cache: Recorded content that the cache lacks.
        not_in_remote: Recorded content that its remote lacks; empty unless it was asked for.
        committed: From the last git commit to the `.dvc` files.
        uncommitted: From the `.dvc` files to the workspace.
        untracked: Files that neither git nor anybody tracks; empty unless asked for.
        unchanged: Everything else.
        git_empty: Whether git has no commit yet.
        git_dirty: Whether git sees changes.
    """

    not_in_cache: tuple[str, ...] = ()
    not_in_remote: tuple[str, ...] = ()
    committed: Changes = field(default_factory=Changes)
    uncommitted: Changes = field(default_factory=Changes)
    untracked: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    git_empty: bool = False
    git_dirty: bool = False

    def __bool__(self) -> bool:
        return any((self.not_in_cache, self.not_in_remote, self.committed, self.uncommitted, self.untracked))

    def as_dict(self, *, unchanged: bool = True) -> dict[str, Any]:
        """Return it as ``dvc data status --json`` prints it: without what is empty.

        Args:
            unchanged: With what did not change.
        """
        groups: dict[str, Any] = {
            "not_in_cache": list(self.not_in_cache),
            "not_in_remote": list(self.not_in_remote),
            "committed": self.committed.as_dict(),
            "uncommitted": self.uncommitted.as_dict(),
            "untracked": list(self.untracked),
            "unchanged": list(self.unchanged) if unchanged else [],
        }
        return {name: group for name, group in groups.items() if group}


@dataclass(slots=True)
class _Side:
    """One state of the data.

    Attributes:
        content: The digest at each path, without a slash for directories.
        unknown: Directories whose files are asked for but not known.
    """

    content: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def data_status(
    repo: Repo,
    targets: Sequence[str] = (),
    *,
    granular: bool = False,
    untracked: bool = False,
    not_in_remote: bool = False,
    remote: str | None = None,
    remote_refresh: bool = True,
    head: str = "HEAD",
) -> DataStatus:
    """Do `Repo.data_status`."""
    members = Members(repo)
    wanted = _Wanted(targets)
    recorded = wanted.of(repo.outputs())
    present: list[tuple[Output, str]] = []
    for output in recorded:
        found = repo.workspace.look(output.path, hash_name=output.hash_name)
        if found.digest:
            present.append((output, found.digest))
            members.tell(found, output.hash_name)
    has_commit = bool(repo.git and repo.git.head())
    committed = wanted.of(repo.outputs(rev=head)) if has_commit else []
    if granular:
        members.learn([*recorded, *committed])
    index = _side(members, ((o, o.digest) for o in recorded), wanted, granular=granular)
    workspace = _side(members, present, wanted, granular=granular)
    uncommitted, same = _compare(index, workspace)
    staged = Changes()
    if repo.git:
        before = _side(members, ((o, o.digest) for o in committed), wanted, granular=granular)
        staged, same_as_before = _compare(before, index)
        same &= same_as_before
    git_dirty, others = (
        _git_state(repo.git, repo.git_prefix, targets, untracked=untracked) if repo.git else (False, [])
    )
    return DataStatus(
        not_in_cache=_absent(repo, index),
        not_in_remote=_not_in_remote(
            repo, recorded, members, wanted, granular=granular, remote=remote, refresh=remote_refresh
        )
        if not_in_remote
        else (),
        committed=staged,
        uncommitted=uncommitted,
        untracked=tuple(others),
        unchanged=tuple(sorted(_shown(path, index.content[path]) for path in same)),
        git_empty=bool(repo.git) and not has_commit,
        git_dirty=git_dirty,
    )


class _Wanted:
    """The paths that are asked about: targets, and what lies in them; everything without targets."""

    def __init__(self, targets: Sequence[str]) -> None:
        self._targets = [target.rstrip("/") for target in targets]
        self._all = not targets or "" in self._targets

    def of(self, tracked: Iterable[Output]) -> list[Output]:
        """Return the outputs that are, hold or lie in a target, or that a target names by its `.dvc` file or stage."""
        cached = [output for output in tracked if output.cached]
        if self._all:
            return cached
        for target in self._targets:
            if not any(output.path == target for output in cached):
                self._targets += [o.path for o in matching(cached, target) if o.path not in self._targets]
        return [
            o for o in cached if self.has(o.path) or any(t.startswith(o.path + "/") for t in self._targets)
        ]

    def has(self, path: str) -> bool:
        """Tell whether a path is asked about."""
        return self._all or any(path == target or path.startswith(target + "/") for target in self._targets)

    def only(self, paths: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
        """Pass those pairs on whose path is asked about."""
        return paths if self._all else ((path, digest) for path, digest in paths if self.has(path))


def _side(
    members: Members, state: Iterable[tuple[Output, str | None]], wanted: _Wanted, *, granular: bool
) -> _Side:
    side = _Side()
    for output, digest in state:
        if digest is None:
            continue
        mark = _LEGACY if output.hash_name == LEGACY else ""
        if wanted.has(output.path):
            side.content[output.path] = mark + digest
        if not granular or not is_tree(digest):
            continue
        tree = members.known(digest, output.hash_name)
        if tree is None:
            side.unknown.append(output.path)
        else:
            base = output.path + "/"
            side.content.update(wanted.only((base + path, mark + found) for path, found in tree.items()))
    return side


def _compare(old: _Side, new: _Side) -> tuple[Changes, set[str]]:
    """Return what changed, and the paths of both sides whose content is the same."""
    before, after = old.content, new.content
    unknown: set[str] = set()
    for folder in (*old.unknown, *new.unknown):
        if before.get(folder) == after.get(folder):
            continue
        inside = folder + "/"
        unknown.update(path for path in (*before, *after) if path.startswith(inside))
    same = {path for path, digest in before.items() if after.get(path) == digest} - unknown
    modified = (before.keys() & after.keys()) - same - unknown
    added = sorted(after.keys() - before.keys() - unknown, key=_key)
    deleted = sorted(before.keys() - after.keys() - unknown, key=_key)
    moved = pair_renames([(p, before[p]) for p in deleted], [(p, after[p]) for p in added])
    gone = {deleted[i] for i, _ in moved}
    come = {added[j] for _, j in moved}
    folders = _folders(after) if len(deleted) > len(moved) else set()
    seen = {path for path in unknown if path in after}
    seen |= {f for f in _folders(seen) if any(f.startswith(u + "/") for u in (*old.unknown, *new.unknown))}
    changes = Changes(
        added=tuple(sorted(_shown(path, after[path]) for path in added if path not in come)),
        deleted=tuple(
            sorted(
                path + "/" if path in folders else _shown(path, before[path])
                for path in deleted
                if path not in gone
            )
        ),
        modified=tuple(sorted(_shown(path, after[path]) for path in modified)),
        renamed=tuple(
            sorted(
                (_shown(deleted[i], before[deleted[i]]), _shown(added[j], after[added[j]])) for i, j in moved
            )
        ),
        unknown=tuple(sorted(_shown(path, after.get(path, ".dir")) for path in seen)),
    )
    return changes, same


def pair_renames(
    deleted: Sequence[tuple[str, str]], added: Sequence[tuple[str, str]]
) -> list[tuple[int, int]]:
    """Match what vanished with what came by content, first with first.

    Args:
        deleted: Path and digest of each, sorted by the parts of the path as DVC sorts them.
        added: The same of the others.

    Returns:
        The positions in both, of each pair.
    """
    waiting: dict[str, list[int]] = {}
    for i in range(len(deleted) - 1, -1, -1):
        waiting.setdefault(deleted[i][1], []).append(i)
    return [(queue.pop(), j) for j, (_, digest) in enumerate(added) if (queue := waiting.get(digest))]


def _key(path: str) -> list[str]:
    return path.split("/")


def _folders(paths: Iterable[str]) -> set[str]:
    """Return every folder that one of the paths lies in."""
    found: set[str] = set()
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


def _shown(path: str, digest: str) -> str:
    return path + "/" if digest.endswith(".dir") else path


def _by_hash(digests: Iterable[str]) -> dict[str, set[str]]:
    """Return digests without their marks, by the way they were hashed."""
    groups: dict[str, set[str]] = {MD5: set(), LEGACY: set()}
    for digest in digests:
        groups[LEGACY if digest.startswith(_LEGACY) else MD5].add(digest.removeprefix(_LEGACY))
    return groups


def _marked(groups: Mapping[str, Iterable[str]]) -> set[str]:
    return {(_LEGACY if name == LEGACY else "") + digest for name, some in groups.items() for digest in some}


def _absent(repo: Repo, index: _Side) -> tuple[str, ...]:
    groups = _by_hash(index.content.values())
    missing = _marked({name: repo.cache.missing(some, name) for name, some in groups.items() if some})
    if not missing:
        return ()
    return tuple(sorted(_shown(path, digest) for path, digest in index.content.items() if digest in missing))


def _not_in_remote(
    repo: Repo,
    recorded: Sequence[Output],
    members: Members,
    wanted: _Wanted,
    *,
    granular: bool,
    remote: str | None,
    refresh: bool,
) -> tuple[str, ...]:
    """Return what is not on its remote; without any remote nothing is."""
    by_remote: dict[str | None, list[Output]] = {}
    for output in recorded:
        if output.pushed and not (output.origin and output.origin.repo):
            name = output.remote or remote or repo.config.default_remote()
            by_remote.setdefault(name, []).append(output)
    lost: list[str] = []
    for name, outputs in by_remote.items():
        side = _side(members, ((o, o.digest) for o in outputs), wanted, granular=granular)
        missing = set(side.content.values())
        if name is not None:
            missing = _not_there(repo, name, missing, refresh=refresh)
        lost += [_shown(path, digest) for path, digest in side.content.items() if digest in missing]
    return tuple(sorted(lost))


def _not_there(repo: Repo, name: str, digests: set[str], *, refresh: bool) -> set[str]:
    """Return those digests that are not on a remote; without ``refresh`` by what was found there the last time."""
    remote = repo.remote(name)
    memory = repo.tmp_dir / "remotes" / digest_bytes(remote.url.encode())
    known = _recall(memory)
    if not refresh:
        return digests - known
    missing = _marked({key: remote.missing(some, key) for key, some in _by_hash(digests).items() if some})
    found = (known | digests) - missing
    if found != known:
        with suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(memory, "\n".join(sorted(found)).encode())
    return missing


def _recall(memory: Path) -> set[str]:
    try:
        return set(memory.read_text().split())
    except (OSError, ValueError):
        return set()


def _git_state(git: Git, prefix: str, targets: Sequence[str], *, untracked: bool) -> tuple[bool, list[str]]:
    """Return whether git sees changes, and the files that nobody tracks, relative to the repository's root."""
    listed = git.run(
        "status", "--porcelain=v1", "-z", "--no-renames", f"--untracked-files={'all' if untracked else 'no'}"
    )
    rows = [row for row in listed.split("\0") if row]
    files = [row[3:] for row in rows if row.startswith("?? ")]
    files = [file.removeprefix(prefix) for file in files if file.startswith(prefix)]
    kept = [t.rstrip("/") for t in targets]
    if kept:
        files = [f for f in files if any(f == t or f.startswith(t + "/") or not t for t in kept)]
    return bool(rows), sorted(files)
