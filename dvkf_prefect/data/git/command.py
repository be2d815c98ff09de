"""Git command: the operations that a data repository needs."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from dvkf_prefect.data.git import process as git_process
from dvkf_prefect.errors import GitError, GitTimeoutError
from dvkf_prefect.text import did_you_mean
from dvkf_prefect.urls import public_url, without_secrets

_TIMEOUT = 120.0
# Seconds to wait for a lock of another git process, held briefly for a commit.
_LOCK_WAIT = 60.0
# Attempts at a commit while another program removes its files from the index.
_ATTEMPTS = 20
_LOCKED = r"(?s)Unable to create '([^']*\.lock)': File exists|cannot lock ref .* is at [0-9a-f]+ but expected"
# Transports allowed for a url from a file: no remote helpers, which run commands (`ext::`, `fd::`).
_PROTOCOLS = ("file", "git", "http", "https", "ssh")
_HELPER = r"([A-Za-z0-9][A-Za-z0-9+.-]*)::"
_SCHEME = r"(?s)([A-Za-z0-9][A-Za-z0-9+.-]*)://(?:[^/@]*@)?(.?)"
_SCP_OPTION = r"(?:[^/:@]*@)?-[^/]*:"
_CONTROL = r"[\0-\x1f\x7f]"
# Settings for repositories of others: no hooks, no monitor, no submodules.
FOREIGN = (
    "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false",
    "-c", "submodule.recurse=false", "-c", "fetch.recurseSubmodules=false",
)  # fmt: skip


# Arguments of `git for-each-ref` that list the names of branches and tags.
NAMES = ("--format=%(refname:short)", "refs/heads", "refs/remotes", "refs/tags")


def unknown_revision(rev: str, place: str, names: str) -> GitError:
    """Return the error for a revision that a repository does not have, with a hint at a branch or tag.

    Args:
        rev: The revision.
        place: User-facing name of the repository.
        names: Its branches and tags, one a line.
    """
    step = did_you_mean(rev, names.split()) or " Name a branch, a tag or a commit."
    return GitError(f"unknown git revision '{rev}' in {place}.{step}")


def check_revision(rev: object) -> str:
    """Return a revision that git cannot read as an option.

    Raises:
        GitError: It is empty, an option, or holds control characters.
    """
    if not isinstance(rev, str) or not rev or rev.startswith("-") or re.search(_CONTROL, rev):
        raise GitError(f"not a git revision: {rev!r}. Use a branch, a tag or a commit.")
    return rev


def check_url(url: str) -> str:
    """Return a git url or a path, after checking that it cannot make git run a command.

    Raises:
        GitError: It is an option, or names a forbidden transport.
    """
    scheme = re.match(_SCHEME, url)
    if (
        not url
        or url.startswith("-")
        or re.search(_CONTROL, url)
        or re.match(_SCP_OPTION, url)
        or (scheme and scheme[2] == "-")
    ):
        raise GitError(f"not a git url: {public_url(url)!r}. Use https://, ssh:// or a folder.")
    found = re.match(_HELPER, url) or scheme
    if found and found[1].lower() not in allowed_protocols():
        raise GitError(
            f"git transport '{found[1]}' is not allowed: {public_url(url)!r}. Use https://, ssh:// or a folder, or "
            "name the transport in GIT_ALLOW_PROTOCOL."
        )
    return url


def allowed_protocols() -> tuple[str, ...]:
    """Return the transports that git may use: those of ``GIT_ALLOW_PROTOCOL`` if set."""
    given = os.environ.get("GIT_ALLOW_PROTOCOL")
    return tuple(given.lower().split(":")) if given else _PROTOCOLS


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a git process: no prompts, and only allowed transports."""
    return {
        **os.environ,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": ":".join(allowed_protocols()),
        "LC_ALL": "C.UTF-8",
        **(more or {}),
    }


def run_git(
    path: Path, *arguments: str, timeout: float, hooks: bool = False, settings: Sequence[str] = ()
) -> str:
    """Run git without prompts, and return its output.

    Args:
        path: The work tree.
        *arguments: The command and its arguments.
        timeout: Timeout in seconds.
        hooks: Allow the user's own hooks.
        settings: Options of git itself.

    Raises:
        GitError: Git failed, or is not installed.
        GitTimeoutError: The timeout expired.
    """
    options = (*(() if hooks else FOREIGN), *settings)
    done = git_process.run(arguments, path, options=options, timeout=timeout, env=environment())
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        said = without_secrets(said) or f"exit code {done.returncode}"
        raise GitError(f"`git {arguments[0]}` in {path}: {said}")
    return done.stdout.decode(errors="replace").strip()


class Git:
    """A git work tree.

    Args:
        root: Top folder of the work tree.
        foreign: True for a repository of another owner: its configuration must not run anything.
    """

    def __init__(self, root: Path, *, foreign: bool = False) -> None:
        self.root = root
        self.foreign = foreign

    def __repr__(self) -> str:
        return f"Git({str(self.root)!r})"

    @classmethod
    def find(cls, path: Path) -> Git | None:
        """Return the work tree that contains ``path``, or None."""
        for folder in (path, *path.parents):
            if (folder / ".git").exists():
                return cls(folder)
        return None

    def prefix(self, folder: Path) -> str:
        """Return a folder's path relative to the work tree's top, with a slash; "" for the top itself."""
        inside = folder.resolve().relative_to(self.root.resolve()).as_posix()
        return "" if inside == "." else f"{inside}/"

    def run(self, *args: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None) -> str:
        """Run one git command and return its output, without the last newline.

        Raises:
            GitError: It failed, or git is not installed.
        """
        return self.run_bytes(*args, stdin=stdin, env=env).decode(errors="surrogateescape").removesuffix("\n")

    def run_bytes(
        self, *args: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None
    ) -> bytes:
        """Run one git command and return its output unchanged.

        If another process holds a lock that git needs, wait for its release.

        Raises:
            GitError: The command failed, git is not installed, or a lock outlasted the wait.
            GitTimeoutError: The timeout expired.
            ParseError: Git waits for a file that is not a regular one.
        """
        if args[0] == "add":
            with self._turn():
                return self._run_waiting(args, stdin, env)
        return self._run_waiting(args, stdin, env)

    def _run_waiting(
        self, args: Sequence[str], stdin: bytes | None = None, env: Mapping[str, str] | None = None
    ) -> bytes:
        deadline = time.monotonic() + _LOCK_WAIT
        pause = 0.02
        while True:
            done = git_process.run(
                args,
                self.root,
                options=FOREIGN if self.foreign else (),
                stdin=stdin,
                timeout=_TIMEOUT,
                env=environment(env),
            )
            if not done.returncode:
                return done.stdout
            said = without_secrets(done.stderr.decode(errors="replace").strip())
            locked = re.search(_LOCKED, said)
            if not locked:
                break
            if time.monotonic() > deadline:
                raise GitError(
                    f"`git {args[0]}` in {self.root} waited {_LOCK_WAIT:.0f} s for another git process: "
                    f"{locked[1] or 'a branch'} is locked. If no git process runs, remove that file."
                )
            from random import random  # slow to import

            # Random pauses keep several waiting processes apart.
            time.sleep(pause * (0.5 + random()))  # noqa: S311
            pause = min(pause * 1.5, 1.0)
        raise GitError(f"`git {' '.join(args[:2])}` in {self.root}: {said or f'exit code {done.returncode}'}")

    def head(self) -> str | None:
        """Return the current commit, or None before the first one."""
        try:
            return self.run("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        except GitTimeoutError:
            raise
        except GitError:
            return None

    def resolve(self, rev: str) -> str:
        """Return the commit of a revision.

        Raises:
            GitError: There is no such revision.
        """
        check_revision(rev)
        try:
            return self.run("rev-parse", "--verify", "--quiet", "--end-of-options", rev + "^{commit}")
        except GitTimeoutError:
            raise
        except GitError:
            if rev == "HEAD":
                raise GitError(f"{self.root} has no commit yet. Make one with `git commit`.") from None
            raise unknown_revision(rev, str(self.root), self.run("for-each-ref", *NAMES)) from None

    def show(self, rev: str, path: str) -> bytes:
        """Return the content of a file in a revision.

        Args:
            rev: The revision.
            path: Posix, relative to the work tree's top.

        Raises:
            GitError: The revision has no such file.
        """
        return self.run_bytes("cat-file", "blob", "--end-of-options", f"{check_revision(rev)}:{path}")

    def ls_tree(self, rev: str) -> list[str]:
        """Return the paths of all files in a revision, relative to the work tree's top."""
        listed = self.run_bytes(
            "ls-tree", "-r", "-z", "--name-only", "--full-tree", "--end-of-options", check_revision(rev)
        )
        return [os.fsdecode(path) for path in listed.split(b"\0") if path]

    def tracked(self, paths: Sequence[str]) -> list[str]:
        """Return the tracked files at or below ``paths``, relative to the work tree's top."""
        if not paths:
            return []
        listed = self.run_bytes("ls-files", "-z", "--full-name", "--", *(f":(top,literal){p}" for p in paths))
        return [os.fsdecode(path) for path in listed.split(b"\0") if path]

    def stage(self, paths: Sequence[str]) -> None:
        """Add files to the index, and remove deleted ones from it; skip ignored files, as DVC does.

        Args:
            paths: Absolute paths.

        Raises:
            GitError: Git refused.
        """
        text = b"".join(os.fsencode(path) + b"\0" for path in dict.fromkeys(paths))
        ignored: set[str] = set()
        try:
            found = self.run_bytes("check-ignore", "-z", "--stdin", "--no-index", stdin=text)
            ignored = set(os.fsdecode(found).split("\0"))
        except GitTimeoutError:
            raise
        except GitError:
            pass  # git's exit code for "none of them"
        wanted = [
            path
            for path in dict.fromkeys(paths)
            if path not in ignored and (os.path.lexists(path) or self._tracks(path))
        ]
        if wanted:
            self.run("add", "--", *wanted, env={"GIT_LITERAL_PATHSPECS": "1"})

    def _tracks(self, path: str) -> bool:
        return bool(self.run("ls-files", "-z", "--", path, env={"GIT_LITERAL_PATHSPECS": "1"}))

    def changed(self, specs: Sequence[str] = ()) -> list[str]:
        """Return files that differ from the last commit: modified, deleted, added or untracked; no ignored ones.

        Args:
            specs: Git's pathspecs; all files if empty.

        Returns:
            Sorted paths, relative to the work tree's top.
        """
        where = ("--", *(specs or (":(top)",)))
        found = self.run_bytes(
            "ls-files",
            "-z",
            "--full-name",
            "--modified",
            "--deleted",
            "--others",
            "--exclude-standard",
            *where,
        )
        if self.head() is not None:
            found += self.run_bytes("diff", "--cached", "--name-only", "-z", *where)
        else:
            found += self.run_bytes("ls-files", "-z", "--full-name", "--cached", *where)
        return sorted({os.fsdecode(path) for path in found.split(b"\0") if path})

    def identity(self) -> str:
        """Return the name and address that a commit would have.

        Raises:
            GitError: Git knows none.
        """
        return self.run("var", "GIT_COMMITTER_IDENT").rpartition(">")[0] + ">"

    def is_ignored(self, path: str) -> bool:
        """Return True if git's ignore files exclude ``path``."""
        try:
            self.run("check-ignore", "--quiet", "--no-index", "--", path)
        except GitTimeoutError:
            raise
        except GitError:
            return False
        return True

    def commit(self, paths: Sequence[str], message: str) -> str | None:
        """Commit only ``paths``; return the new commit, or None if none of them changed.

        Raises:
            GitError: Git refused, for example for lack of an identity.
        """
        # Git's variable for literal paths would reach the user's hooks.
        specs = [f":(literal){path}" for path in paths]
        for left in reversed(range(_ATTEMPTS)):
            try:
                with self._turn():
                    self._run_waiting(("add", "--", *specs))
                    if not self._run_waiting(("diff", "--cached", "--name-only", "--", *specs)):
                        return None
                    self._run_waiting(
                        ("commit", "--quiet", "--file", "-", "--", *specs), stdin=message.encode()
                    )
                    return self.head()
            except GitError as error:
                # Another program's commit reads the index before it locks it, and may drop the files just added.
                if not left or "did not match any file(s) known to git" not in str(error):
                    raise
        return None

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Keep other dvkf processes from changing the index during the block.

        Raises:
            GitError: One of them took too long.
        """
        folder = self.root / ".git"
        if not folder.is_dir():
            folder = self.root / self._run_waiting(("rev-parse", "--git-dir")).decode().rstrip("\n")
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor = os.open(folder / "dvkf-index.lock", flags, 0o666)
        except OSError:
            yield  # a folder without write access; git reports it
            return
        try:
            deadline = time.monotonic() + _LOCK_WAIT
            while not _is_taken(descriptor):
                if time.monotonic() > deadline:
                    raise GitError(
                        f"another dvkf process has been committing in {self.root} for {_LOCK_WAIT:.0f} s. Try again."
                    )
                time.sleep(0.02)
            yield
        finally:
            os.close(descriptor)


def _is_taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # locks do not work here; git's own remain
    return True


def revisions_of(
    git: Git, *, all_branches: bool = False, all_tags: bool = False, all_commits: bool = False
) -> list[str]:
    """Return the commits of many revisions, with one git process.

    Args:
        git: The work tree.
        all_branches: Include the tip of every local branch.
        all_tags: Include the commit of every tag; tags of other objects are skipped.
        all_commits: Include every ancestor of branches, tags, remote branches and HEAD. Git's internal refs (stashes)
            and those of other tools (DVC's experiments) are excluded.

    Returns:
        Unique full commit ids; for all commits, the newest first. Empty without any of the above.

    Raises:
        GitError: Git refused.

    Source of the selection: DVC 3.x, dvc/scm.py and scmrepo's ``list_all_commits``.
    """
    if all_commits:
        return git.run("rev-list", "--ignore-missing", "HEAD", "--branches", "--tags", "--remotes").split()
    chosen = [f"--{name}" for name, wanted in (("branches", all_branches), ("tags", all_tags)) if wanted]
    return git.run("rev-list", "--no-walk=unsorted", *chosen).split() if chosen else []


def comes_with_git(path: Path) -> bool:
    """Return True if git tracks a cache's file, or if a link inside the cache leads to it."""
    folder = Path(os.path.realpath(path.parent.parent))
    if os.path.realpath(path) != str(folder / path.parent.name / path.name):
        return True
    git = Git.find(folder)
    if git is None:
        return False
    return bool(git.tracked([os.path.relpath(os.path.realpath(path), os.path.realpath(git.root))]))
