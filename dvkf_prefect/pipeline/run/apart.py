"""Runs with other values of parameters, apart from the workspace.

A run starts from the last commit, in a git work tree of its own below ``.dvc/tmp/dvkf-overrides`` of the repository, on
a branch of its own. The first commit on the branch has the values, so the commit of the results has them too. The files
of the user's checkout do not change. The cache is the repository's own.

The branch is named by the commit and the overrides. So an interrupted run is continued by an equal one: its stages are
in the run cache. The work tree is removed at the end; that of a killed run is removed by the next run. In DVC,
``dvc exp run --temp --set-param`` works alike.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvkf_prefect.data.git.command import FOREIGN, Git, run_git
from dvkf_prefect.data.repository.cache_users import adopt_identity
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.repository.turns import turn
from dvkf_prefect.data.verbs.checkout import checkout
from dvkf_prefect.errors import ConfigError, GitError
from dvkf_prefect.files import write_atomic
from dvkf_prefect.formats.overrides import Override, apply_overrides, parse_overrides
from dvkf_prefect.paths import file_meant
from dvkf_prefect.pipeline.run.documents import changed_documents, need_git, prefix_of

_FOLDER = "dvkf-overrides"
_TIMEOUT = 600.0


@dataclass(frozen=True, slots=True)
class Apart:
    """A repository in a work tree of its own.

    Attributes:
        root: Root of the DVC repository in the work tree.
        branch: Branch of its commits; "" for a rehearsal.
    """

    root: Path
    branch: str


@contextmanager
def apart(
    repo: Repository,
    overrides: Sequence[str],
    *,
    rehearsal: bool = False,
    timeout: float = _TIMEOUT,
    on_wait: Callable[[str], None] = lambda message: None,
) -> Iterator[Apart]:
    """Have a work tree in which parameters have other values.

    Args:
        repo: The repository.
        overrides: Values in the grammar of ``dvc exp run --set-param``, see `parse_overrides`.
        rehearsal: Leave neither a branch nor a commit.
        timeout: Seconds to wait for an equal run.
        on_wait: Called once with a message if an equal run is in progress.

    Raises:
        ConfigError: An override is wrong.
        GitError: There is no git or no commit, or git refused.
        LockedError: An equal run lasted for the whole time.
    """
    wanted = parse_overrides(overrides)
    git = need_git(repo)
    base = git.head()
    if base is None:
        raise GitError(
            f"{git.root} has no commit. Commit the pipeline first: a run with overrides starts from it."
        )
    prefix = prefix_of(repo)
    texts = sorted(each.text for each in wanted)
    key = hashlib.sha256("\0".join((base, prefix, *texts)).encode()).hexdigest()[:12]
    folder = repo.dvc_dir / "tmp" / _FOLDER
    place = folder / key
    with turn(_lock_of(place), holder="a run with overrides", timeout=timeout, on_wait=on_wait):
        _remove_ended(git, place)
        made = Apart(place / prefix, "" if rehearsal else f"set/{key}")
        try:
            _check_out(git, place, base, made.branch)
            _set(Git(place), made.root, base, wanted, commit=not rehearsal)
            _share(repo, Repository.open(made.root))
            checkout(Repository.open(made.root), allow_missing=True)
            yield made
        finally:
            _remove(git, place)


def commit_apart(repo: Repository, message: str) -> str | None:
    """Commit what a run changed: dvc.lock, `.dvc` files, ignore files and metrics.

    Args:
        repo: The repository in the work tree.
        message: Message of the commit.

    Returns:
        The new commit; None if nothing changed.

    Raises:
        GitError: Git refused, for example because user.name is not set.
    """
    git = need_git(repo)
    paths = changed_documents(repo)
    if not paths:
        return None
    git.run("add", "--all", "--", *(f":(top,literal){path}" for path in paths))
    run_git(git.root, "commit", "--quiet", "--message", message, timeout=_TIMEOUT, hooks=True)
    return git.head()


def _check_out(git: Git, place: Path, base: str, branch: str) -> None:
    if not branch:
        arguments = ["--detach", str(place), base]
    elif git.run("for-each-ref", f"refs/heads/{branch}"):
        arguments = [str(place), branch]
    else:
        arguments = ["-b", branch, str(place), base]
    # No hook: that of `dvc install` would check out the data.
    run_git(git.root, "worktree", "add", "--quiet", *arguments, timeout=_TIMEOUT)


def _set(git: Git, root: Path, base: str, overrides: Sequence[Override], *, commit: bool) -> None:
    """Write the values, and commit them. A branch with commits has them already."""
    if git.head() != base:
        return
    for file in dict.fromkeys(each.file for each in overrides):
        path = root / file
        if not path.resolve().is_relative_to(root.resolve()) or not path.is_file():
            raise ConfigError(
                f"override: the last commit has no file '{file}'. Commit it, or name another one."
                f"{file_meant(root, file)}"
            )
        mine = [each for each in overrides if each.file == file]
        write_atomic(path, apply_overrides(path.read_bytes(), file, mine), mode=path.stat().st_mode & 0o777)
        git.run("add", "--", str(path))
    if commit and git.run("status", "--porcelain", "--untracked-files=no"):
        text = "Set " + ", ".join(each.text for each in overrides)
        run_git(git.root, "commit", "--quiet", "--no-verify", "--message", text, timeout=_TIMEOUT)


def _share(repo: Repository, inner: Repository) -> None:
    """Give the work tree the cache, and the settings that are in no commit. Paths keep their meaning."""
    levels = [repo.config.read(level) for level in ("repo", "local")]
    with inner.config.edit("local") as sections:
        for values in levels:
            for section, options in values.items():
                into: dict[str, Any] = sections.setdefault(section, {})
                for name, value in options.items():
                    into[name] = {**into.get(name, {}), **value} if isinstance(value, dict) else value
        sections.setdefault("cache", {})["dir"] = str(repo.cache.root)
        # All changes are committed, so nobody is asked to stage them.
        sections.setdefault("core", {})["autostage"] = "true"
    adopt_identity(inner, repo)


def _lock_of(place: Path) -> Path:
    """Return the lock of a work tree, one of 256: a lock that may be in use is never removed."""
    return place.with_name(f"{place.name[:2]}.lock")


def _remove_ended(git: Git, own: Path) -> None:
    """Remove the work trees of ended runs, that of an equal one among them."""
    for place in sorted(path for path in own.parent.iterdir() if path.is_dir()):
        if _lock_of(place) == _lock_of(own):
            _remove(git, place)  # its lock is held here
            continue
        with suppress(OSError):
            descriptor = os.open(_lock_of(place), os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(git, place)
            finally:
                os.close(descriptor)


def _remove(git: Git, place: Path) -> None:
    if place.exists():
        shutil.rmtree(place, ignore_errors=True)
    with suppress(GitError):
        git.run(*FOREIGN, "worktree", "prune")
