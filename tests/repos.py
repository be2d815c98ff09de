"""Repositories to try things in: one way to make them, and short ways to change them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from dvkf_prefect.repo import Repo

Content = Mapping[str, "str | bytes"]


def git(folder: str | os.PathLike[str], *arguments: str) -> str:
    """Run git in a folder and return what it printed."""
    done = subprocess.run(
        ["git", "-c", "core.quotepath=off", *arguments], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, f"git {arguments}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def write(folder: Path, files: Content) -> None:
    """Write files below a folder; one whose text starts with ``#!`` can be executed."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(data)
        if data.startswith(b"#!"):
            path.chmod(0o755)


def make_repo(
    root: Path,
    files: Content | None = None,
    *,
    remote: str | os.PathLike[str] | None = None,
    add: Sequence[str] = (),
    commit: str = "",
) -> Repo:
    """Make a repository of git and DVC, its folder too where there is none.

    Args:
        root: The folder.
        files: What it holds.
        remote: Folder or url of the default remote ``store``.
        add: Paths to track.
        commit: Message to commit everything with.
    """
    root.mkdir(parents=True, exist_ok=True)
    git(root, "init", "-q")
    repo = Repo.init(root)
    if remote is not None:
        url = os.fspath(remote)
        if "://" not in url:
            # As dvc stores it: the repository means the same remote, and has the same commits, in any folder.
            url = os.path.relpath(url, root / ".dvc")
        (root / ".dvc/config").write_text(
            f"[core]\n    remote = store\n['remote \"store\"']\n    url = {url}\n"
        )
        repo = Repo.open(root)
    write(root, files or {})
    if add:
        repo.add(list(add))
    if commit:
        commit_all(root, commit)
    return repo


def commit_all(root: Path, message: str = "Change") -> None:
    """Commit everything; also nothing."""
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--allow-empty", "--message", message)


class Project:
    """A repository in a folder, with short ways to write to it and to read it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def repo(self) -> Repo:
        """The repository, opened anew."""
        return Repo.open(self.root)

    def git(self, *arguments: str) -> str:
        return git(self.root, *arguments)

    def write(self, name: str, text: str) -> None:
        write(self.root, {name: text})

    def read(self, name: str) -> str:
        return (self.root / name).read_text()

    def replace(self, name: str, old: str, new: str) -> None:
        """Replace text in a file that has it."""
        text = self.read(name)
        assert old in text, f"{name} has no {old!r}"
        self.write(name, text.replace(old, new))

    def commit(self, message: str = "Change") -> None:
        commit_all(self.root, message)

    def copy_to(self, name: str) -> Path:
        """Copy everything to a folder beside it."""
        return shutil.copytree(self.root, self.root.parent / name, symlinks=True)
