"""The git command, asked the few things a data repository needs of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from dvkf_prefect.errors import GitError

_TIMEOUT = 120.0


class Git:
    """A git work tree.

    Args:
        root: Its top folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def __repr__(self) -> str:
        return f"Git({str(self.root)!r})"

    @classmethod
    def find(cls, path: Path) -> Git | None:
        """Return the work tree that holds ``path``, or None."""
        for folder in (path, *path.parents):
            if (folder / ".git").exists():
                return cls(folder)
        return None

    def run(self, *args: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None) -> str:
        """Run one git command and return what it prints, without the last newline.

        Raises:
            GitError: It ended with an error, or is not installed.
        """
        return self.run_bytes(*args, stdin=stdin, env=env).decode(errors="surrogateescape").removesuffix("\n")

    def run_bytes(
        self, *args: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None
    ) -> bytes:
        """Run one git command and return its output as it is.

        Raises:
            GitError: It ended with an error, or is not installed.
        """
        try:
            done = subprocess.run(
                ["git", "-C", str(self.root), *args],
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                timeout=_TIMEOUT,
                env={**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C.UTF-8", **(env or {})},
                check=False,
            )
        except FileNotFoundError as error:
            raise GitError("the git command is not installed or not on PATH") from error
        except subprocess.TimeoutExpired as error:
            raise GitError(f"`git {args[0]}` in {self.root} gave no answer in {_TIMEOUT:.0f} s") from error
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
            raise GitError(f"`git {' '.join(args[:2])}` in {self.root}: {said}")
        return done.stdout

    def head(self) -> str | None:
        """Return the commit that is checked out, or None before the first one."""
        try:
            return self.run("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        except GitError:
            return None

    def resolve(self, rev: str) -> str:
        """Return the commit a revision means.

        Raises:
            GitError: There is no such revision.
        """
        try:
            return self.run("rev-parse", "--verify", "--quiet", "--end-of-options", rev + "^{commit}")
        except GitError:
            raise GitError(f"unknown git revision '{rev}' in {self.root}") from None

    def show(self, rev: str, path: str) -> bytes:
        """Return a file as it stands in a revision.

        Args:
            rev: The revision.
            path: Posix, relative to the work tree's top.

        Raises:
            GitError: The revision has no such file.
        """
        return self.run_bytes("cat-file", "blob", f"{rev}:{path}")

    def ls_tree(self, rev: str) -> list[str]:
        """Return the paths of every file in a revision, relative to the work tree's top."""
        listed = self.run_bytes("ls-tree", "-r", "-z", "--name-only", "--full-tree", rev)
        return [os.fsdecode(path) for path in listed.split(b"\0") if path]

    def tracked(self, paths: Sequence[str]) -> list[str]:
        """Return the files git tracks at or below ``paths``, relative to the work tree's top."""
        if not paths:
            return []
        listed = self.run_bytes("ls-files", "-z", "--full-name", "--", *(f":(top,literal){p}" for p in paths))
        return [os.fsdecode(path) for path in listed.split(b"\0") if path]

    def is_ignored(self, path: str) -> bool:
        """Tell whether git's ignore files leave ``path`` out."""
        try:
            self.run("check-ignore", "--quiet", "--no-index", "--", path)
        except GitError:
            return False
        return True

    def commit(self, paths: Sequence[str], message: str) -> str | None:
        """Commit just ``paths``; return the new commit, or None when none of them changed.

        Raises:
            GitError: Git refused, for want of an identity for instance.
        """
        self.run("add", "--", *paths)
        if not self.run("diff", "--cached", "--name-only", "--", *paths):
            return None
        self.run("commit", "--quiet", "--file", "-", "--", *paths, stdin=message.encode())
        return self.head()
