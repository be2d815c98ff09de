"""Notes on tags, shared by the clones of a repository.

Notes are a branch of their own, `refs/notes/dvkf`, which neither ``git clone`` nor ``git push`` takes along. Here they
are fetched and merged by ``cat_sort_uniq``, which keeps the lines of both sides. Source: ``git help notes``.
"""

from __future__ import annotations

import time
from pathlib import Path

from dvkf_prefect.data.git.command import Git, run_git
from dvkf_prefect.errors import GitError, GitTimeoutError

REF = "refs/notes/dvkf"
# The origin's notes, as last fetched. Git merges notes only from refs below `refs/notes`.
_ORIGIN = "refs/notes/dvkf-origin"
_TIMEOUT = 600.0
# Attempts at a push while other clones push theirs.
_ATTEMPTS = 20
_BEHIND = ("non-fast-forward", "fetch first", "failed to update ref", "cannot lock ref", "failed to lock")


def has_origin(path: Path, *, timeout: float) -> bool:
    """Return True if a work tree has a remote ``origin``."""
    return "origin" in run_git(path, "remote", timeout=timeout).split()


def fetch_notes(path: Path, *, timeout: float, theirs: str | None = None) -> bool:
    """Fetch the origin's notes, and merge them into those of a clone.

    Args:
        path: The git work tree, with a remote ``origin``.
        timeout: Timeout of each git command in seconds.
        theirs: The origin's notes if they are known, by their commit. Nothing is fetched if they were merged before.

    Returns:
        True if the origin has notes.

    Raises:
        GitError: Git failed.
    """
    if theirs is None:
        theirs = run_git(path, "ls-remote", "--", "origin", REF, timeout=timeout).partition("\t")[0]
    if not theirs:
        return False
    if theirs == _commit(path, REF, timeout) or _contains(path, theirs, timeout):
        return True
    # Without --depth: a merge needs the commit that both sides have.
    run_git(
        path,
        "fetch",
        "--quiet",
        "--no-tags",
        "--end-of-options",
        "origin",
        f"+{REF}:{_ORIGIN}",
        timeout=timeout,
    )
    git = Git(path, foreign=True)
    git.run(
        "notes", f"--ref={REF}", "merge", "--quiet", "--strategy=cat_sort_uniq", _ORIGIN, env=_author(git)
    )
    return True


def push_notes(path: Path, *, timeout: float) -> bool:
    """Push the notes of a clone to its origin; merge first what other clones pushed.

    Args:
        path: The git work tree, with a remote ``origin``.
        timeout: Timeout of each git command in seconds.

    Returns:
        True if there are notes; then the origin has them.

    Raises:
        GitError: The origin refused them, or other clones pushed before each attempt.
    """
    for attempt in range(_ATTEMPTS):
        fetch_notes(path, timeout=timeout)
        if _commit(path, REF, timeout) is None:
            return False
        try:
            run_git(path, "push", "--quiet", "origin", f"{REF}:{REF}", timeout=timeout, hooks=True)
            return True
        except GitTimeoutError:
            raise
        except GitError as error:
            if not any(said in str(error) for said in _BEHIND) or attempt == _ATTEMPTS - 1:
                raise
        from random import random  # slow to import

        # Random pauses keep several pushing clones apart.
        time.sleep(0.05 * (attempt + 1) * (0.5 + random()))  # noqa: S311
    return False


def push_registry(path: Path, *, timeout: float = _TIMEOUT) -> tuple[str, ...]:
    """Push the tags and the notes on them to the origin, without a branch.

    Args:
        path: The git work tree.
        timeout: Timeout of each git command in seconds.

    Returns:
        ``tags``, and ``notes`` if there are any.

    Raises:
        GitError: There is no origin, or it refused.
    """
    _need_origin(path, timeout)
    run_git(path, "push", "--quiet", "origin", "--tags", timeout=timeout, hooks=True)
    return ("tags", "notes") if push_notes(path, timeout=timeout) else ("tags",)


def fetch_registry(path: Path, *, timeout: float = _TIMEOUT) -> tuple[str, ...]:
    """Fetch the origin's tags and the notes on them; the notes are merged.

    Args:
        path: The git work tree.
        timeout: Timeout of each git command in seconds.

    Returns:
        ``tags``, and ``notes`` if the origin has any.

    Raises:
        GitError: There is no origin, or it has another tag of the same name.
    """
    _need_origin(path, timeout)
    run_git(
        path, "fetch", "--quiet", "--end-of-options", "origin", "refs/tags/*:refs/tags/*", timeout=timeout
    )
    return ("tags", "notes") if fetch_notes(path, timeout=timeout) else ("tags",)


def _need_origin(path: Path, timeout: float) -> None:
    if not has_origin(path, timeout=timeout):
        raise GitError(f"{path} has no remote 'origin'. Add it: git remote add origin URL.")


def _commit(path: Path, ref: str, timeout: float) -> str | None:
    try:
        return run_git(path, "rev-parse", "--verify", "--quiet", ref, timeout=timeout)
    except GitTimeoutError:
        raise
    except GitError:
        return None


def _contains(path: Path, commit: str, timeout: float) -> bool:
    """Return True if the notes of a clone contain a commit of the origin's."""
    try:
        run_git(path, "merge-base", "--is-ancestor", commit, REF, timeout=timeout)
        return True
    except GitTimeoutError:
        raise
    except GitError:
        return False


def _author(git: Git) -> dict[str, str]:
    """Return an author for a merge where git has none, such as on a worker."""
    try:
        git.identity()
        return {}
    except GitTimeoutError:
        raise
    except GitError:
        roles = ("AUTHOR", "COMMITTER")
        return {f"GIT_{role}_NAME": "dvkf" for role in roles} | {
            f"GIT_{role}_EMAIL": "dvkf@localhost" for role in roles
        }
