"""The small files that describe data, of a workspace or a commit, behind one interface."""

from __future__ import annotations

from typing import Protocol

PIPELINE_FILE = "dvc.yaml"


class RepoFiles(Protocol):
    """The small files of one revision, or of the workspace."""

    @property
    def rev(self) -> str | None:
        """The commit, or None for the workspace."""

    def read(self, path: str) -> bytes:
        """Return a file's bytes; the path is posix, relative to the repository's root.

        Raises:
            FileNotFoundError: There is no such file.
        """

    def exists(self, path: str) -> bool:
        """Tell whether there is such a file."""

    def find(self) -> list[str]:
        """Return every `.dvc` file and dvc.yaml, sorted."""


def describes_outputs(name: str) -> bool:
    """Tell whether a file of that name describes outputs."""
    return name == PIPELINE_FILE or (name.endswith(".dvc") and name != ".dvc")
