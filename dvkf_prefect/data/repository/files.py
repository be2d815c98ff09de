"""A repository's small files (`.dvc`, dvc.yaml, dvc.lock, params) in the workspace or at a git revision."""

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
    """The files as they lie on disk.

    Args:
        root: The repository's root.
        skip: Told a folder's path relative to the root, says whether to stay out of it.
        outputs_of: Gives the output paths that a file describes, so that data folders are not walked.
        git_ignored: Paths that git leaves out; DVC finds nothing there.
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
        """Return a file's bytes."""
        return read_description(self._root / path, name=path)

    def exists(self, path: str) -> bool:
        """Tell whether there is such a file."""
        return (self._root / path).is_file()

    def find(self) -> list[str]:
        """Return every `.dvc` file and dvc.yaml, sorted; folders that are outputs or git-ignored are not entered."""
        found: list[str] = []
        data: set[str] = set()
        level = [""]
        # Level by level: an output is described beside it or above it, before its folder would be entered.
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
                            raise  # a link that leads nowhere, or what it needs is missing
                        continue  # another process removed it since it was listed
                    found.append(path)
                level = [f for f in folders if f[:-1] not in data and f not in left_out]
        return sorted(found)

    def _scan(self, level: list[str], data: set[str]) -> tuple[list[str], list[str]]:
        """Return the folders in some folders, and the files there that describe outputs."""
        folders: list[str] = []
        here: list[str] = []
        for prefix in level:
            if prefix.rstrip("/") in data:
                continue
            # Another process may remove a folder meanwhile; it then holds nothing.
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
    """The files as they stand in a commit.

    Args:
        git: The work tree.
        rev: The commit.
        prefix: The repository's root relative to the work tree's top, with a slash at the end; "" for the top.
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
        """Return a file's bytes."""
        try:
            return self._git.show(self.rev, self._prefix + path)
        except GitError as error:
            raise FileNotFoundError(f"{path} at {self.rev[:7]}") from error

    def exists(self, path: str) -> bool:
        """Tell whether there is such a file."""
        return path in self._paths

    def find(self) -> list[str]:
        """Return every `.dvc` file and dvc.yaml, sorted."""
        return sorted(
            path
            for path in self._paths
            if describes_outputs(PurePosixPath(path).name) and not path.startswith(".dvc/")
        )
