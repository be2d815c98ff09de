"""Interface to the small files that describe data, in a workspace or a commit."""

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
        """Return True if the file exists."""

    def find(self) -> list[str]:
        """Return the paths of all `.dvc` files and dvc.yaml, sorted."""


def describes_outputs(name: str) -> bool:
    """Return True if a file with that name describes outputs."""
    return name == PIPELINE_FILE or (name.endswith(".dvc") and name != ".dvc")
