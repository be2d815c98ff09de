"""`.dvcignore`: gitignore's syntax, in any folder of the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NAME = ".dvcignore"
# What DVC always leaves out.
_ALWAYS = frozenset({".git", ".hg", ".dvc"})


class Ignore:
    """What the repository's ignore files leave out; each file is read when its folder is first asked about.

    Args:
        root: The repository's root.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._specs: dict[str, Any] = {}

    def _spec(self, folder: str) -> Any:
        """Return the patterns of one folder's own ignore file, or None."""
        if folder not in self._specs:
            spec = None
            try:
                lines = (self._root / folder / NAME).read_text().splitlines()
            except (FileNotFoundError, NotADirectoryError):
                lines = []
            if any(line.strip() and not line.startswith("#") for line in lines):
                from pathspec import GitIgnoreSpec

                spec = GitIgnoreSpec.from_lines(lines)
            self._specs[folder] = spec
        return self._specs[folder]

    def quiet_below(self, path: str) -> bool:
        """Tell whether no ignore file above ``path`` can leave out anything in it."""
        parts = path.split("/")
        return all(self._spec("/".join(parts[:depth])) is None for depth in range(len(parts) + 1))

    def matches(self, path: str) -> bool:
        """Tell whether a path is left out.

        Args:
            path: Posix, relative to the root; with a slash at the end for a folder.
        """
        is_folder = path.endswith("/")
        parts = path.rstrip("/").split("/")
        if not _ALWAYS.isdisjoint(parts):
            return True
        ignored = False
        # A deeper file overrides one above it; what lies in an ignored folder cannot come back.
        for end in range(1, len(parts) + 1):
            inner = end < len(parts) or is_folder
            for depth in range(end):
                spec = self._spec("/".join(parts[:depth]))
                if spec is None:
                    continue
                verdict = spec.check_file("/".join(parts[depth:end]) + ("/" if inner else "")).include
                if verdict is not None:
                    ignored = verdict
            if ignored and end < len(parts):
                return True
        return ignored
