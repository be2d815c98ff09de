"""Compare the last commit, the `.dvc` files and the workspace, and find what cache and remote lack.

Source of the categories: DVC 3.x, dvc/repo/data.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.transfer.members import Members
from dvkf_prefect.data.verbs.diff import PathFilter, State, difference, folders_of, shown, state_of
from dvkf_prefect.files import read_description, write_atomic
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.formats.tree import SUFFIX
from dvkf_prefect.paths import is_within

if TYPE_CHECKING:
    from pathlib import Path

    from dvkf_prefect.data.git.command import Git
    from dvkf_prefect.data.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class Changes:
    """Differences between two states of the data; a directory's path ends with a slash.

    Attributes:
        added: Paths only in the newer state.
        deleted: Paths only in the older state.
        modified: Paths with different content.
        renamed: Old and new path of content that was only moved.
        unknown: Paths in directories without a readable manifest.
    """

    added: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    unknown: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any((self.added, self.deleted, self.modified, self.renamed, self.unknown))

    def as_dict(self) -> dict[str, list[Any]]:
        """Return the groups that are not empty, in the form of ``dvc data status --json``."""
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
    """Result of a status; truthy if any data is uncommitted, untracked or missing from cache or remote.

    Paths are relative to the repository's root and sorted.

    Attributes:
        not_in_cache: Recorded content that is missing from the cache.
        not_in_remote: Recorded content that is missing from its remote; empty unless requested.
        committed: Changes from the last git commit to the `.dvc` files.
        uncommitted: Changes from the `.dvc` files to the workspace.
        untracked: Files that neither git nor DVC tracks; empty unless requested.
        unchanged: Tracked paths without changes.
        git_empty: True if git has no commit yet.
        git_dirty: True if git reports changes.
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
        """Return the groups that are not empty, in the form of ``dvc data status --json``.

        Args:
            unchanged: Include the unchanged paths.
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


def _by_path(outputs: Sequence[Output]) -> list[Output]:
    """Return one output for each path: as in DVC, the last one with content."""
    ordered = sorted(outputs, key=lambda output: output.digest is not None)
    return list({output.path: output for output in ordered}.values())


def data_status(
    repo: Repository,
    targets: Sequence[str] = (),
    *,
    granular: bool = False,
    untracked: bool = False,
    not_in_remote: bool = False,
    remote: str | None = None,
    remote_refresh: bool = True,
    head: str = "HEAD",
) -> DataStatus:
    """Implement `Repo.data_status`."""
    members = Members(repo)
    wanted = PathFilter(targets)
    recorded = wanted.of(_by_path(repo.outputs(overlap="any")))
    repo.config.check_remotes(output.remote for output in recorded)
    present: list[tuple[Output, str]] = []
    for output in recorded:
        found = repo.workspace.look(output.path, hash_name=output.hash_name)
        if found.digest:
            present.append((output, found.digest))
            members.remember(found, output.hash_name)
    has_commit = bool(repo.git and repo.git.head())
    committed = wanted.of(_by_path(repo.outputs(rev=head, overlap="any"))) if has_commit else []
    if granular:
        members.learn([*recorded, *committed])
    index = state_of(members, ((o, o.digest) for o in recorded), wanted, granular=granular)
    workspace = state_of(members, present, wanted, granular=granular)
    uncommitted, same = _changes(index, workspace)
    staged = Changes()
    if repo.git:
        before = state_of(members, ((o, o.digest) for o in committed), wanted, granular=granular)
        staged, same_as_before = _changes(before, index)
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
        unchanged=tuple(sorted(shown(path, index.content[path]) for path in same)),
        git_empty=bool(repo.git) and not has_commit,
        git_dirty=git_dirty,
    )


def _changes(old: State, new: State) -> tuple[Changes, set[str]]:
    """Return the changes, and the paths with the same content on both sides."""
    found = difference(old, new)
    before, after = old.content, new.content
    # A deleted file that a folder replaced is shown with the folder's slash.
    folders = folders_of(after) if found.deleted else set()
    # For directories without a manifest, list the paths of the newer state and their folders.
    seen = {path for path in found.unknown if path in after}
    bases = tuple(f"{path}/" for path in (*old.unknown, *new.unknown))
    seen |= {folder for folder in folders_of(seen) if folder.startswith(bases)}
    return Changes(
        added=tuple(sorted(shown(path, after[path]) for path in found.added)),
        deleted=tuple(
            sorted(path + "/" if path in folders else shown(path, before[path]) for path in found.deleted)
        ),
        modified=tuple(sorted(shown(path, after[path]) for path in found.modified)),
        renamed=tuple(sorted((shown(a, before[a]), shown(b, after[b])) for a, b in found.moved)),
        unknown=tuple(sorted(shown(path, after.get(path, SUFFIX)) for path in seen)),
    ), found.same


def _absent(repo: Repository, index: State) -> tuple[str, ...]:
    missing = index.which(repo.cache.missing)
    if not missing:
        return ()
    return tuple(sorted(shown(path, digest) for path, digest in index.content.items() if digest in missing))


def _not_in_remote(
    repo: Repository,
    recorded: Sequence[Output],
    members: Members,
    wanted: PathFilter,
    *,
    granular: bool,
    remote: str | None,
    refresh: bool,
) -> tuple[str, ...]:
    """Return the paths whose content is missing from its remote; without a remote, all paths."""
    by_remote: dict[str | None, list[Output]] = {}
    for output in recorded:
        if output.pushed and not (output.origin and output.origin.repo):
            name = output.remote or remote or repo.config.default_remote()
            by_remote.setdefault(name, []).append(output)
    lost: list[str] = []
    for name, outputs in by_remote.items():
        side = state_of(members, ((o, o.digest) for o in outputs), wanted, granular=granular)
        missing = set(side.content.values())
        if name is not None:
            missing = _not_there(repo, name, side, refresh=refresh)
        lost += [shown(path, digest) for path, digest in side.content.items() if digest in missing]
    return tuple(sorted(lost))


def _not_there(repo: Repository, name: str, state: State, *, refresh: bool) -> set[str]:
    """Return the digests that are missing from a remote; without ``refresh``, by the result of the last query."""
    remote = repo.remote(name)
    memory = repo.tmp_dir / "remotes" / digest_bytes(remote.url.encode())
    known = _recall(memory)
    digests = set(state.content.values())
    if not refresh:
        return digests - known
    missing = state.which(remote.missing)
    found = (known | digests) - missing
    if found != known:
        with suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(memory, "\n".join(sorted(found)).encode(), durable=False)
    return missing


def _recall(memory: Path) -> set[str]:
    try:
        return set(read_description(memory).decode().split())
    except (OSError, ValueError):
        return set()


def _git_state(git: Git, prefix: str, targets: Sequence[str], *, untracked: bool) -> tuple[bool, list[str]]:
    """Return True if git reports changes, and the untracked files relative to the repository's root."""
    listed = git.run(
        "status", "--porcelain=v1", "-z", "--no-renames", f"--untracked-files={'all' if untracked else 'no'}"
    )
    rows = [row for row in listed.split("\0") if row]
    files = [row[3:] for row in rows if row.startswith("?? ")]
    files = [file.removeprefix(prefix) for file in files if file.startswith(prefix)]
    kept = [t.rstrip("/") for t in targets]
    if kept:
        files = [f for f in files if any(is_within(f, t) for t in kept)]
    return bool(rows), sorted(files)
