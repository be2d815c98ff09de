"""Entries in `.gitignore` files that keep outputs out of git, and queries for ignored paths."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dvkf_prefect.data.git import process as git_process
from dvkf_prefect.data.git.command import FOREIGN, Git, environment
from dvkf_prefect.errors import GitError, OutputError
from dvkf_prefect.files import read_description, write_atomic

# Bytes of paths per query: less than the capacity of a pipe, so that neither side blocks.
_ASKED = 32_768


class GitIgnored:
    """Cached lookup of paths that git's ignore files exclude, tracked or not.

    Args:
        root: The repository's root.
        git: The work tree of the repository; None ignores nothing.

    Source of the selection: DVC 3.x, ``collect_files`` in dvc/repo/index.py.
    """

    def __init__(self, root: Path, git: Git | None) -> None:
        self._root = root
        self._git = git
        self._known: dict[str, bool] = {}
        self._process: git_process.Server | None = None

    @contextmanager
    def asking(self) -> Iterator[Callable[[Sequence[str]], set[str]]]:
        """Yield a function that returns the ignored ones of some paths; one git process answers all calls.

        The paths are relative to the root; a trailing slash marks a folder.
        """
        try:
            yield self._left_out
        finally:
            self._close()

    def forget(self) -> None:
        """Clear the cached results, since ignore files may have changed."""
        self._known.clear()

    def check(self, path: str) -> None:
        """Refuse a path for a `.dvc` file that git ignores, since later lookups would skip the file.

        Raises:
            OutputError: Git ignores it.
        """
        with self.asking() as left_out:
            if left_out([path]):
                raise OutputError(
                    f"bad DVC file name '{path}' is git-ignored. Choose another path, or change the "
                    ".gitignore file."
                )

    def _left_out(self, paths: Sequence[str]) -> set[str]:
        if self._git is None:
            return set()
        asked = [path for path in paths if path not in self._known]
        while asked:
            size = count = 0
            for path in asked:
                size += len(os.fsencode(path)) + 3
                if count and size > _ASKED:
                    break
                count += 1
            self._known.update(zip(asked, self._ask(asked[:count]), strict=False))
            asked = asked[count:]
        return {path for path in paths if self._known[path]}

    def _ask(self, paths: list[str]) -> list[bool]:
        """Return for each path True if it is ignored; False if git does not answer."""
        process = self._process = self._process or self._start()
        if process is None:
            return [False] * len(paths)
        try:
            process.ask(b"".join(b"./%s\0" % os.fsencode(path) for path in paths))
        except BrokenPipeError:
            return [False] * len(paths)
        # Fields of each answer: the ignore file, the line, the pattern, the path.
        fields: list[bytes] = []
        rest = b""
        while len(fields) < 4 * len(paths):
            data = process.read_some()
            if not data:
                return [False] * len(paths)
            *whole, rest = (rest + data).split(b"\0")
            fields += whole
        return [bool(pattern) and not pattern.startswith(b"!") for pattern in fields[2::4]]

    def _start(self) -> git_process.Server | None:
        options = FOREIGN if self._git and self._git.foreign else ()
        ask = ("check-ignore", "-z", "-v", "-n", "--stdin", "--no-index")
        try:
            return git_process.start(ask, self._root, options=options, env=environment())
        except GitError:
            return None

    def _close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()


def pattern_for(name: str) -> str:
    """Return the line that ignores only ``name``, in the form of DVC."""
    escaped = "".join("\\" + c if c in "\\*?[]!#" else c for c in name)
    return "/" + (escaped[:-1] + "\\ " if escaped.endswith(" ") else escaped)


def ignore(path: Path) -> bool:
    """Add a path to its `.gitignore`; return True if the file changed.

    As in DVC, a path that another pattern ignores already gets no entry.

    Raises:
        DiskFullError: The disk is full.
    """
    file = path.parent / ".gitignore"
    line = os.fsencode(pattern_for(path.name))
    data = _read(file)
    if line in data.splitlines() or Git(path.parent).is_ignored(f"./{path.name}"):
        return False
    if data and not data.endswith(b"\n"):
        data += b"\n"
    write_atomic(file, data + line + b"\n")
    return True


def unignore(path: Path) -> bool:
    """Remove the entry of `ignore`; return True if the file changed. An empty `.gitignore` is removed.

    Raises:
        DiskFullError: The disk is full.
    """
    file = path.parent / ".gitignore"
    line = os.fsencode(pattern_for(path.name))
    data = _read(file)
    lines = data.splitlines(keepends=True)
    kept = [other for other in lines if other.strip() not in (line, line.strip())]
    if not data or len(kept) == len(lines):
        return False
    if kept:
        write_atomic(file, b"".join(kept))
    else:
        file.unlink()
    return True


def _read(file: Path) -> bytes:
    try:
        return read_description(file)
    except FileNotFoundError:
        return b""
