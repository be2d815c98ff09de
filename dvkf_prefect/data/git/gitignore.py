"""The `.gitignore` beside each output, which keeps data out of git."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dvkf_prefect.data.git import process as git_process
from dvkf_prefect.data.git.command import FOREIGN, Git, environment
from dvkf_prefect.errors import GitError, OutputError
from dvkf_prefect.files import read_description, write_atomic

# Bytes of paths asked about at once: less than a pipe holds, so that neither side waits for the other.
_ASKED = 32_768


class GitIgnored:
    """Paths that git's ignore files leave out, whether git tracks them or not; each path is asked about once.

    Args:
        root: The repository's root.
        git: The work tree it lies in; None for none, which leaves out nothing.

    Source of the choice: DVC 3.x, ``collect_files`` in dvc/repo/index.py.
    """

    def __init__(self, root: Path, git: Git | None) -> None:
        self._root = root
        self._git = git
        self._known: dict[str, bool] = {}
        self._process: git_process.Server | None = None

    @contextmanager
    def asking(self) -> Iterator[Callable[[Sequence[str]], set[str]]]:
        """Give a function that returns which of some paths are left out; one git process answers all calls.

        The paths are relative to the root, those of folders with a slash at the end.
        """
        try:
            yield self._left_out
        finally:
            self._close()

    def forget(self) -> None:
        """Ask again: ignore files may have changed."""
        self._known.clear()

    def check(self, path: str) -> None:
        """Refuse a `.dvc` file that would not be found again.

        Raises:
            OutputError: Git leaves it out.
        """
        with self.asking() as left_out:
            if left_out([path]):
                raise OutputError(
                    f"bad DVC file name '{path}' is git-ignored. Name another place, or change the .gitignore file."
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
        """Return for each path whether it is left out; of a git that does not answer, none is."""
        process = self._process = self._process or self._start()
        if process is None:
            return [False] * len(paths)
        try:
            process.ask(b"".join(b"./%s\0" % os.fsencode(path) for path in paths))
        except BrokenPipeError:
            return [False] * len(paths)
        # For each path: the ignore file, the line, the pattern, the path.
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
    """Return the line that ignores just ``name`` beside the file, as DVC writes it."""
    escaped = "".join("\\" + c if c in "\\*?[]!#" else c for c in name)
    return "/" + (escaped[:-1] + "\\ " if escaped.endswith(" ") else escaped)


def ignore(path: Path) -> bool:
    """Keep a path out of git; return whether its `.gitignore` changed.

    As DVC, a path that other patterns keep out already is left to them.

    Raises:
        DiskFullError: There is no room.
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
    """Take back what `ignore` wrote; return whether the `.gitignore` changed. One that says nothing else is removed.

    Raises:
        DiskFullError: There is no room.
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
