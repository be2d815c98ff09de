"""Small files of a repository (`.dvc`, dvc.yaml, dvc.lock, params), in the workspace or at a git revision."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath

from dvkf_prefect.data.git.command import Git
from dvkf_prefect.data.git.gitignore import GitIgnored
from dvkf_prefect.errors import GitError
from dvkf_prefect.files import is_temporary, read_description
from dvkf_prefect.formats.files import describes_outputs


class WorkspaceFiles:
    """Small files of the workspace, on disk.

    Args:
        root: Root of the repository.
        skip: Function that returns True for a folder to leave out, by its path relative to the root.
        outputs_of: Function that returns the output paths that a file describes; folders of outputs are not searched.
        git_ignored: Paths that git ignores; like DVC, the search skips them.
    """

    rev = None

    def __init__(
        self,
        root: Path,
        skip: Callable[[str], bool],
        outputs_of: Callable[[str], set[str]],
        git_ignored: GitIgnored,
    ) -> None:
        self._root = root
        self._skip = skip
        self._outputs_of = outputs_of
        self._git_ignored = git_ignored

    def read(self, path: str) -> bytes:
        """Return the content of a file."""
        return read_description(self._root / path, name=path)

    def exists(self, path: str) -> bool:
        """Return True if the file exists."""
        return (self._root / path).is_file()

    def find(self) -> list[str]:
        """Return all `.dvc` and dvc.yaml files, sorted; outputs and git-ignored folders are not searched."""
        found: list[str] = []
        data: set[str] = set()
        level = [""]
        # Level by level: an output is described beside or above it, so its file is read before its folder is reached.
        with self._git_ignored.asking() as git_ignored:
            while level:
                folders, here = self._scan(level, data)
                left_out = git_ignored([*here, *folders])
                for path in sorted(here):
                    if path in left_out:
                        continue
                    try:
                        data |= self._outputs_of(path)
                    except FileNotFoundError:
                        if os.path.lexists(self._root / path):
                            raise  # a dangling link, or a file that it needs is missing
                        continue  # another process removed it after the listing
                    found.append(path)
                level = [f for f in folders if f[:-1] not in data and f not in left_out]
        return sorted(found)

    def _scan(self, level: list[str], data: set[str]) -> tuple[list[str], list[str]]:
        """Return the subfolders of some folders, and the files in them that describe outputs."""
        folders: list[str] = []
        here: list[str] = []
        for prefix in level:
            if prefix.rstrip("/") in data:
                continue
            # A folder that another process removes in the meantime counts as empty.
            with suppress(FileNotFoundError), os.scandir(self._root / prefix) as entries:
                for entry in entries:
                    if entry.name[0] == "." and is_temporary(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(f"{prefix}{entry.name}/")
                    elif describes_outputs(entry.name):
                        here.append(prefix + entry.name)
        skip = self._skip
        return [f for f in folders if f[:-1] not in data and not skip(f)], [f for f in here if not skip(f)]


class RevisionFiles:
    """Small files of a commit.

    Args:
        git: The work tree.
        rev: The commit.
        prefix: Path of the repository's root in the work tree, with a trailing slash; "" for the top.
    """

    def __init__(self, git: Git, rev: str, prefix: str = "") -> None:
        self.rev = rev
        self._git = git
        self._prefix = prefix

    @cached_property
    def _paths(self) -> frozenset[str]:
        return frozenset(
            path[len(self._prefix) :] for path in self._git.ls_tree(self.rev) if path.startswith(self._prefix)
        )

    def read(self, path: str) -> bytes:
        """Return the content of a file."""
        try:
            return self._git.show(self.rev, self._prefix + path)
        except GitError as error:
            raise FileNotFoundError(f"{path} at {self.rev[:7]}") from error

    def exists(self, path: str) -> bool:
        """Return True if the file exists."""
        return path in self._paths

    def find(self) -> list[str]:
        """Return all `.dvc` and dvc.yaml files, sorted."""
        return sorted(
            path
            for path in self._paths
            if describes_outputs(PurePosixPath(path).name) and not path.startswith(".dvc/")
        )
