"""Shallow clones of git repositories in a folder of the worker, one for each URL and revision."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dvkf_prefect.errors import GitError, LockedError

# Where the origin stood when the clone was last brought up to date; what is beyond it was made here.
_FETCHED = "refs/dvkf/fetched"


def clone(url: str, rev: str | None, folder: Path, *, timeout: float) -> Path:
    """Clone a repository, or bring its clone up to date.

    Only the newest commit of the revision is fetched, and the tags with theirs, since registered models are tags.

    Args:
        url: The git URL.
        rev: A branch, tag or commit; None for the default branch.
        folder: Where clones are kept.
        timeout: Seconds git may take, and to wait for another process that is cloning the same.

    Returns:
        The clone's folder.

    Raises:
        GitError: Git failed, or the clone holds commits that are not at ``url``; they are kept.
        LockedError: Another process held the clone for all that time.
    """
    digest = hashlib.sha256(f"{url}\n{rev or ''}".encode()).hexdigest()[:12]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", url.rstrip("/").removesuffix(".git").rsplit("/", 1)[-1])[-40:]
    path = folder / f"{stem}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{path.name}.lock", timeout):
        if not (path / ".git").is_dir():
            run_git(path.parent, "init", "--quiet", str(path), timeout=timeout)
        git_config = path / ".git" / "config"
        if 'remote "origin"' not in git_config.read_text():
            run_git(path, "remote", "add", "origin", url, timeout=timeout)
        _update(path, rev, timeout)
    return path


def _update(path: Path, rev: str | None, timeout: float) -> None:
    run_git(
        path,
        "fetch",
        "--quiet",
        "--depth",
        "1",
        "origin",
        rev or "HEAD",
        "refs/tags/*:refs/tags/*",
        timeout=timeout,
    )
    # FETCH_HEAD lists the tags after what was asked for; its first line is the revision.
    fetched = run_git(path, "rev-parse", "FETCH_HEAD", timeout=timeout).split()[0]
    base = _resolve(path, _FETCHED, timeout)
    head = _resolve(path, "HEAD", timeout)
    if head and head not in (base, fetched):
        if fetched == base:
            return
        raise GitError(
            f"the clone at {path} holds commits that its origin does not have, and the origin has moved on: it is at "
            f"{head[:12]}, the origin at {fetched[:12]}. Rebase and push them, or delete the clone."
        )
    branch = _branch(path, rev, timeout)
    if branch:
        run_git(path, "checkout", "--quiet", "-B", branch, fetched, timeout=timeout)
    else:
        run_git(path, "checkout", "--quiet", "--detach", fetched, timeout=timeout)
    run_git(path, "update-ref", _FETCHED, fetched, timeout=timeout)


def _resolve(path: Path, ref: str, timeout: float) -> str | None:
    try:
        return run_git(path, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", timeout=timeout)
    except GitError:
        return None


def _branch(path: Path, rev: str | None, timeout: float) -> str | None:
    """Return the branch a revision is at the origin, or None where it is a tag or a commit."""
    if rev is None:
        listed = run_git(path, "ls-remote", "--symref", "origin", "HEAD", timeout=timeout)
        found = re.match(r"ref: refs/heads/(\S+)\tHEAD", listed)
        return found[1] if found else None
    name = rev.removeprefix("refs/heads/")
    return name if run_git(path, "ls-remote", "origin", f"refs/heads/{name}", timeout=timeout) else None


def push(path: Path, *, timeout: float) -> tuple[str, ...]:
    """Push the branch that is checked out, and all tags, to the origin.

    Args:
        path: The git work tree.
        timeout: Seconds git may take.

    Returns:
        What was pushed: the branch, and ``tags``; nothing where there is no origin.

    Raises:
        GitError: The origin refused, or no branch is checked out.
    """
    if "origin" not in run_git(path, "remote", timeout=timeout).split():
        return ()
    try:
        branch = run_git(path, "symbolic-ref", "--short", "HEAD", timeout=timeout)
    except GitError as error:
        raise GitError(
            f"no branch is checked out in {path}, so there is nowhere to push to; open a branch"
        ) from error
    run_git(path, "push", "--quiet", "origin", f"HEAD:refs/heads/{branch}", "--tags", timeout=timeout)
    head = run_git(path, "rev-parse", "HEAD", timeout=timeout)
    run_git(path, "update-ref", _FETCHED, head, timeout=timeout)
    return (branch, "tags")


def run_git(path: Path, *arguments: str, timeout: float) -> str:
    """Run git, which never asks for anything, and return what it prints.

    Raises:
        GitError: It failed, is not installed, or took too long.
    """
    try:
        done = subprocess.run(
            ["git", "-C", str(path), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C.UTF-8"},
            check=False,
        )
    except FileNotFoundError as error:
        raise GitError("the git command is not installed or not on PATH") from error
    except subprocess.TimeoutExpired as error:
        raise GitError(f"`git {arguments[0]}` in {path} did not end within {timeout:.0f} s") from error
    if done.returncode:
        raise GitError(
            f"`git {arguments[0]}` in {path}: {done.stderr.strip() or f'exit code {done.returncode}'}"
        )
    return done.stdout.strip()


@contextmanager
def _locked(path: Path, timeout: float) -> Iterator[None]:
    deadline = time.monotonic() + timeout
    pause = 0.05
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LockedError(f"another process is cloning into {path.with_suffix('')}") from None
                time.sleep(pause)
                pause = min(pause * 2, 1.0)
        yield
