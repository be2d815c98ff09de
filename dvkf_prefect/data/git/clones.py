"""Clones of git repositories: kept work trees, one per URL and revision, and clones for reading one revision."""

from __future__ import annotations

import fcntl
import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dvkf_prefect.data.git.command import NAMES, check_revision, check_url, run_git, unknown_revision
from dvkf_prefect.data.git.notes import REF as NOTES
from dvkf_prefect.data.git.notes import fetch_notes, has_origin, push_notes
from dvkf_prefect.errors import GitError, LockedError
from dvkf_prefect.urls import public_url

# Commit of the origin at the last update of the clone; later commits were made in the clone.
_FETCHED = "refs/dvkf/fetched"
_FILTERS = r"^filter\..*\.(smudge|clean|process|required)$"


def clone(url: str, rev: str | None, folder: Path, *, timeout: float) -> Path:
    """Clone a repository, or update its existing clone.

    Only the newest commit of the revision is fetched, and the commits of all tags, since registered models are tags.
    The notes on them are fetched whole, and merged into the clone's.

    Args:
        url: The git URL.
        rev: A branch, tag or commit; None for the default branch.
        folder: Parent folder of the clones.
        timeout: Timeout in seconds of each git command, and of the wait for another process on the same clone.

    Returns:
        The clone's folder.

    Raises:
        GitError: Git failed, or the clone holds commits that are not at ``url``; the commits are kept.
        LockedError: Another process held the clone beyond the timeout.
    """
    check_url(url)
    if rev is not None:
        _check_refspec(rev)
    path = clone_path(url, rev, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{path.name}.lock", timeout):
        if not (path / ".git").is_dir():
            run_git(path.parent, "init", "--quiet", "--template=", "--", str(path), timeout=timeout)
        git_config = path / ".git" / "config"
        if 'remote "origin"' not in git_config.read_text():
            run_git(path, "remote", "add", "--", "origin", url, timeout=timeout)
        _update(path, rev, timeout)
    return path


def clone_path(url: str, rev: str | None, folder: Path) -> Path:
    """Return the folder of a clone, which may not exist; the arguments are those of `clone`."""
    digest = hashlib.sha256(f"{url}\n{rev or ''}".encode()).hexdigest()[:12]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", url.rstrip("/").removesuffix(".git").rsplit("/", 1)[-1])[-40:]
    return folder / f"{stem}-{digest}"


def _update(path: Path, rev: str | None, timeout: float) -> None:
    run_git(
        path,
        "fetch",
        "--quiet",
        "--depth",
        "1",
        "--end-of-options",
        "origin",
        rev or "HEAD",
        "refs/tags/*:refs/tags/*",
        timeout=timeout,
    )
    # FETCH_HEAD lists the requested revision first, then the tags.
    fetched = run_git(path, "rev-parse", "FETCH_HEAD", timeout=timeout).split()[0]
    base = _resolve(path, _FETCHED, timeout)
    head = _resolve(path, "HEAD", timeout)
    if head and head not in (base, fetched):
        if fetched == base:
            return
        raise GitError(
            f"the clone at {path} and its origin have diverged: the clone is at {head[:12]}, the origin at "
            f"{fetched[:12]}. Rebase and push the clone's commits, or delete the clone."
        )
    branch, notes = _branch(path, rev, timeout)
    if branch:
        run_git(path, "checkout", "--quiet", "-B", branch, fetched, timeout=timeout)
    else:
        run_git(path, "checkout", "--quiet", "--detach", fetched, timeout=timeout)
    run_git(path, "update-ref", _FETCHED, fetched, timeout=timeout)
    if notes:
        fetch_notes(path, timeout=timeout, theirs=notes)


def _resolve(path: Path, ref: str, timeout: float) -> str | None:
    try:
        return run_git(
            path, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}", timeout=timeout
        )
    except GitError:
        return None


def _branch(path: Path, rev: str | None, timeout: float) -> tuple[str | None, str]:
    """Return the origin's branch for a revision, None for a tag or a commit, and the commit of the origin's notes."""
    name = "" if rev is None else rev.removeprefix("refs/heads/")
    asked = f"refs/heads/{name}" if name else "HEAD"
    listed = run_git(path, "ls-remote", "--symref", "--", "origin", asked, NOTES, timeout=timeout)
    notes = re.search(rf"^(\w+)\t{NOTES}$", listed, re.MULTILINE)
    if name:
        found = re.search(rf"^\w+\t({re.escape(asked)})$", listed, re.MULTILINE)
    else:
        found = re.search(r"^ref: (refs/heads/\S+)\tHEAD$", listed, re.MULTILINE)
    return found[1].removeprefix("refs/heads/") if found else None, notes[1] if notes else ""


def push(path: Path, *, timeout: float) -> tuple[str, ...]:
    """Push the current branch, all tags and the notes on them to the origin.

    Args:
        path: The git work tree.
        timeout: Timeout of each git command in seconds.

    Returns:
        The pushed branch, ``tags``, and ``notes`` if there are any; empty if there is no origin.

    Raises:
        GitError: The origin refused, or no branch is checked out.
    """
    if not has_origin(path, timeout=timeout):
        return ()
    try:
        branch = run_git(path, "symbolic-ref", "--short", "HEAD", timeout=timeout)
    except GitError as error:
        raise GitError(
            f"no branch is checked out in {path}, so nothing can be pushed. Create a branch."
        ) from error
    run_git(
        path, "push", "--quiet", "origin", f"HEAD:refs/heads/{branch}", "--tags", timeout=timeout, hooks=True
    )
    head = run_git(path, "rev-parse", "HEAD", timeout=timeout)
    run_git(path, "update-ref", _FETCHED, head, timeout=timeout)
    return (branch, "tags", "notes") if push_notes(path, timeout=timeout) else (branch, "tags")


def snapshot(url: str, rev: str | None, path: Path, *, timeout: float) -> str:
    """Clone the files of one revision into a new folder, for reading.

    From a remote repository, only the newest commit of a branch or tag is fetched. Any other name, such as a shortened
    commit, fetches the whole history.

    Args:
        url: The git URL, or a local repository's folder, whose objects are then shared.
        rev: A branch, tag or commit; None for the default branch, or for the current commit of a local folder.
        path: The folder to create.
        timeout: Timeout of each git command in seconds.

    Returns:
        The commit.

    Raises:
        GitError: Git failed, or there is no such revision.
    """
    check_url(url)
    if rev is not None:
        check_revision(rev)
    parent = path.parent
    folder = Path(url.removeprefix("file://"))
    if folder.is_dir():
        commit = _find(folder, rev or "HEAD", timeout, url)
        run_git(
            parent,
            "clone",
            "--quiet",
            "--shared",
            "--template=",
            "--no-checkout",
            "--",
            str(folder),
            str(path),
            timeout=timeout,
        )
        # A commit outside all branches is found through the shared objects.
        _checkout_plain(path, commit, timeout)
        return commit
    run_git(parent, "init", "--quiet", "--template=", "--", str(path), timeout=timeout)
    run_git(path, "remote", "add", "--", "origin", url, timeout=timeout)
    try:
        # Syntax that only `rev-parse` understands would be a refspec here.
        asked = _check_refspec(rev) if rev else "HEAD"
        run_git(
            path, "fetch", "--quiet", "--depth", "1", "--end-of-options", "origin", asked, timeout=timeout
        )
        commit = run_git(path, "rev-parse", "FETCH_HEAD^{commit}", timeout=timeout)
    except GitError:
        if rev is None:
            raise
        heads = ("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
        run_git(path, "fetch", "--quiet", "--end-of-options", "origin", *heads, timeout=timeout)
        commit = _find(path, rev, timeout, url)
    _checkout_plain(path, commit, timeout)
    return commit


def _checkout_plain(path: Path, commit: str, timeout: float) -> None:
    """Check out a commit of another repository, byte for byte as `dvc` reads it.

    Its attributes could select filters and conversions in the user's settings, so all of them are disabled. Git LFS is
    the exception, since its files are not in the commit itself.
    """
    attributes = path / ".git" / "info" / "attributes"
    attributes.parent.mkdir(exist_ok=True)
    attributes.write_text("* -text -ident -working-tree-encoding\n")
    options: list[str] = []
    with suppress(GitError):  # no filter is configured
        listed = run_git(path, "config", "--null", "--name-only", "--get-regexp", _FILTERS, timeout=timeout)
        for name in filter(None, listed.split("\0")):
            if not name.startswith("filter.lfs."):
                options += ["-c", f"{name}={'false' if name.endswith('.required') else ''}"]
    run_git(path, "checkout", "--quiet", "--detach", commit, timeout=timeout, settings=options)


def tip(url: str, rev: str | None, *, timeout: float) -> str | None:
    """Return the commit of a branch or tag, without cloning.

    Args:
        url: The git URL, or a local repository's folder.
        rev: A branch or tag; None for the default branch.
        timeout: Timeout of each git command in seconds.

    Returns:
        The commit; None if the name is neither a branch nor a tag.

    Raises:
        GitError: Git failed.
    """
    check_url(url)
    if rev is not None:
        check_revision(rev)
    folder = Path(url.removeprefix("file://"))
    if folder.is_dir():
        return _find(folder, rev or "HEAD", timeout, url)
    names = ["HEAD"] if rev is None else [f"refs/heads/{rev}", f"refs/tags/{rev}", f"refs/tags/{rev}^{{}}"]
    listed = run_git(Path.cwd(), "ls-remote", "--", url, *names, timeout=timeout)
    found = {name: commit for commit, _, name in (line.partition("\t") for line in listed.splitlines())}
    # An annotated tag is listed first by its own object, then by its commit.
    return next((found[name] for name in reversed(names) if name in found), None)


def _find(path: Path, rev: str, timeout: float, url: str) -> str:
    for name in (rev, f"origin/{rev}"):
        if commit := _resolve(path, name, timeout):
            return commit
    names = run_git(path, "for-each-ref", *NAMES, timeout=timeout).replace("origin/", "")
    raise unknown_revision(rev, public_url(url), names)


def _check_refspec(rev: str) -> str:
    """Return a revision that ``git fetch`` reads as a single name.

    Raises:
        GitError: It is not a name: git would read a refspec, or cannot look it up remotely.
    """
    check_revision(rev)
    if rev[0] in "+^" or any(letter in rev for letter in ":*?[\\^~ ") or "@{" in rev:
        raise GitError(f"not a name of a revision: '{rev}'. Use a branch, a tag or a commit.")
    return rev


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
