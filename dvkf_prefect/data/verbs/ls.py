"""List a repository's files and their sizes, as ``dvc list`` and ``dvc du`` do.

The listing merges the files on disk with tracked data, including tracked data that is not checked out.

Source of the merge rules: DVC 3.x, dvc/fs/dvc.py and dvc/repo/ls.py.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from dvkf_prefect.data.transfer.members import Members
from dvkf_prefect.errors import MissingObjectError, OutputNotFoundError
from dvkf_prefect.files import is_temporary
from dvkf_prefect.formats.dvcignore import NAME as IGNORE_FILE
from dvkf_prefect.formats.files import describes_outputs
from dvkf_prefect.formats.outputs import Output, output_meant
from dvkf_prefect.formats.tree import is_tree
from dvkf_prefect.paths import file_meant

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository


class Listed(NamedTuple):
    """One file or folder.

    Attributes:
        path: Path relative to the listed folder.
        isdir: True for a folder.
        isout: True for tracked data.
        isexec: True for an executable file on disk.
        size: Size in bytes, None if unknown.
        digest: Recorded md5 of tracked data; None for other files, and for folders inside an output.
    """

    path: str
    isdir: bool = False
    isout: bool = False
    isexec: bool = False
    size: int | None = None
    digest: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the entry in the form of ``dvc list --json``."""
        return {
            "isout": self.isout,
            "isdir": self.isdir,
            "isexec": self.isexec,
            "size": self.size,
            "md5": self.digest,
            "path": self.path,
        }


@dataclass(frozen=True, slots=True)
class Node:
    """A file, or a folder with its content.

    Attributes:
        listed: The entry. Its path is its name; for the top node, the requested path.
        nodes: Content of a folder, sorted by name.
    """

    listed: Listed
    nodes: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Size of a path.

    Attributes:
        path: Path relative to the repository's root.
        size: Size in bytes; a file of unknown size counts as 0.
    """

    path: str
    size: int


def list_files(
    repo: Repository,
    path: str = "",
    *,
    recursive: bool = False,
    tracked_only: bool = False,
    depth: int | None = None,
) -> list[Listed]:
    """Return the content of a folder, or the one file at a path, sorted by path.

    Args:
        repo: The repository.
        path: Path relative to the root; empty for the root.
        recursive: List files of subfolders too. Folders themselves are only listed at the limit of ``depth``.
        tracked_only: List tracked data only.
        depth: Number of folder levels with ``recursive``; 0 for the path itself, None for all.

    Raises:
        OutputNotFoundError: The path does not exist.
        MissingObjectError: A directory is not in the workspace and its manifest cannot be read.

    Example:
        >>> list_files(Repo.open("path/to/repository"), "data", recursive=True)
    """
    browser = _Browser(repo, tracked_only=tracked_only)
    top = browser.info(path)
    if not top.isdir or (recursive and depth == 0):
        return [top._replace(path=os.path.basename(path) or ".")]
    found: list[Listed] = []
    # Each folder, its path relative to the top, and the number of levels left.
    folders: list[tuple[str, str, int | None]] = [(path, "", depth if recursive else 1)]
    while folders:
        place, prefix, levels = folders.pop()
        for listed in browser.children(place):
            below = prefix + listed.path
            if listed.isdir and (levels is None or levels > 1):
                folders.append((_join(place, listed.path), below + "/", levels and levels - 1))
            else:
                found.append(listed._replace(path=below) if prefix else listed)
    found.sort()
    return found


def file_tree(
    repo: Repository, path: str = "", *, tracked_only: bool = False, depth: int | None = None
) -> Node:
    """Return the tree of files and folders at a path.

    Args:
        repo: The repository.
        path: Path relative to the root; empty for the root.
        tracked_only: Include tracked data only.
        depth: Number of folder levels; None for all.

    Raises:
        OutputNotFoundError: The path does not exist.
        MissingObjectError: A directory is not in the workspace and its manifest cannot be read.
    """
    browser = _Browser(repo, tracked_only=tracked_only)

    def node(listed: Listed, place: str, levels: int | None) -> Node:
        if not listed.isdir or levels == 0:
            return Node(listed)
        below = None if levels is None else levels - 1
        children = sorted(browser.children(place))
        return Node(listed, tuple(node(child, _join(place, child.path), below) for child in children))

    return node(browser.info(path)._replace(path=path or "."), path, depth)


def disk_usage(repo: Repository, path: str = "", *, summarize: bool = False, depth: int = 1) -> list[Usage]:
    """Return the sizes of a folder's entries, and last that of the folder.

    Args:
        repo: The repository.
        path: Path relative to the root; empty for the root.
        summarize: Return the total only.
        depth: Number of folder levels with a row for each entry.

    Raises:
        OutputNotFoundError: The path does not exist.
        MissingObjectError: A directory is not in the workspace and its manifest cannot be read.
    """
    browser = _Browser(repo)
    rows: list[Usage] = []

    def measure(listed: Listed, place: str, level: int) -> int:
        size = listed.size or 0
        if listed.isdir:
            # An output that is not checked out has a recorded size. Files that only describe data are not counted.
            known = browser.recorded_size(place)
            if known is None or level < depth:
                size = sum(
                    measure(child, _join(place, child.path), level + 1)
                    for child in sorted(browser.children(place))
                    if not (describes_outputs(child.path) or child.path == IGNORE_FILE)
                )
            if known is not None:
                size = known
        elif listed.size is None and listed.digest:
            with suppress(OSError):
                size = repo.cache.path(listed.digest).stat().st_size
        if level <= depth:
            rows.append(Usage(place, size))
        return size

    top = browser.info(path)
    if summarize or not top.isdir:
        depth = 0
    measure(top, path, 0)
    return rows


class _Tracked(NamedTuple):
    """Tracked data at one path."""

    isdir: bool
    size: int | None = None
    digest: str | None = None
    isout: bool = False


class _Browser:
    """Folder-by-folder reader that merges the workspace with tracked data.

    Args:
        repo: The repository.
        tracked_only: Leave out files that are not tracked data.
    """

    def __init__(self, repo: Repository, *, tracked_only: bool = False) -> None:
        self._repo = repo
        self._root = str(repo.root)
        # At a revision the files are a clone's; there a link's size is the length of its text.
        self._is_clone = getattr(repo, "at", None) is not None
        self._tracked_only = tracked_only
        self._members = Members(repo)
        # Tracked data of each folder, by name; a directory's manifest is read when it is first entered.
        self._tracked: dict[str, dict[str, _Tracked]] = {"": {}}
        self._closed: dict[str, Output] = {}
        outputs = repo.outputs(overlap="any")
        repo.config.check_remotes(output.remote for output in outputs)
        for output in outputs:
            if output.cached:
                self._take(output)

    def _take(self, output: Output) -> None:
        folder, _, name = output.path.rpartition("/")
        self._make(folder, isout=False)
        # As in DVC: 0 for an output without a record, None for a record without a size.
        size = output.size if output.digest else output.size or 0
        self._tracked[folder][name] = _Tracked(output.is_dir, size, output.digest, True)
        if output.is_dir:
            self._closed[output.path] = output

    def _make(self, folder: str, *, isout: bool) -> None:
        """Register a folder and its parents."""
        missing = []
        while folder not in self._tracked:
            self._tracked[folder] = {}
            missing.append(folder)
            folder = folder.rpartition("/")[0]
        for folder in reversed(missing):
            above, _, name = folder.rpartition("/")
            self._tracked[above].setdefault(name, _Tracked(True, isout=isout))

    def _open(self, path: str) -> Output | None:
        """Read the manifest of the output at or around a path; return the output if its manifest cannot be read."""
        place = path
        while place and place not in self._closed:
            place = place.rpartition("/")[0]
        output = self._closed.get(place)
        if output is None:
            return None
        tree = self._members.of(output)
        if tree is None:
            return output
        del self._closed[place]
        self._tracked[place] = {}
        sizes = {file.relpath: file.size for file in output.versions}
        folder, inside = "", self._tracked[place]
        for relpath, digest in tree.items():
            parent, _, name = relpath.rpartition("/")
            if parent != folder:
                folder = parent
                where = f"{place}/{parent}" if parent else place
                self._make(where, isout=True)
                inside = self._tracked[where]
            inside[name] = _Tracked(False, sizes.get(relpath), digest, True)
        return None

    def _tracked_at(self, path: str) -> _Tracked | None:
        if not path:
            return _Tracked(True, 0)
        folder, _, name = path.rpartition("/")
        self._open(folder)
        return self._tracked.get(folder, {}).get(name)

    def _on_disk(self, path: str) -> os.stat_result | None:
        with suppress(FileNotFoundError, NotADirectoryError):
            return os.lstat(f"{self._root}/{path}")
        return None

    def recorded_size(self, path: str) -> int | None:
        """Return the recorded size in bytes of a directory that is not in the workspace; None for any other path."""
        tracked = self._tracked_at(path)
        if tracked is None or not is_tree(tracked.digest or "") or self._on_disk(path):
            return None
        return tracked.size

    def info(self, path: str) -> Listed:
        """Return the entry at a path.

        Raises:
            OutputNotFoundError: The path does not exist, on disk or as tracked data.
        """
        found = self._on_disk(path)
        if found and path and self._repo.ignore.matches(path + ("/" if stat.S_ISDIR(found.st_mode) else "")):
            found = None
        tracked = self._tracked_at(path)
        if tracked and not found and self._blocked(path):
            tracked = None
        name = os.path.basename(path)
        if found:
            return self._there(name, found, tracked)
        if tracked:
            return self._recorded(name, tracked)
        hint = output_meant(self._repo.outputs(), path) or file_meant(self._repo.root, path)
        raise OutputNotFoundError(
            f"{path or '.'}: no file or directory of that name in {self._repo.root}, tracked or untracked.{hint}"
        )

    def _blocked(self, path: str) -> bool:
        """Return True if one of a path's parent folders is a file on disk."""
        parent = path.rpartition("/")[0]
        while parent:
            found = self._on_disk(parent)
            if found:
                return not stat.S_ISDIR(found.st_mode)
            parent = parent.rpartition("/")[0]
        return False

    def _there(self, name: str, found: os.stat_result, tracked: _Tracked | None) -> Listed:
        isexec = stat.S_ISREG(found.st_mode) and bool(found.st_mode & 0o111)
        isout, digest = (tracked.isout, tracked.digest) if tracked else (False, None)
        return Listed(name, stat.S_ISDIR(found.st_mode), isout, isexec, found.st_size, digest)

    def _recorded(self, name: str, tracked: _Tracked) -> Listed:
        return Listed(name, tracked.isdir, tracked.isout, False, tracked.size, tracked.digest)

    def children(self, path: str) -> Iterator[Listed]:
        """Yield a folder's entries in arbitrary order; each entry's path is its name.

        Raises:
            MissingObjectError: The folder is not in the workspace and its manifest cannot be read.
            ParseError: The manifest cannot be read.
        """
        unknown = self._open(path)
        tracked = self._tracked.get(path, {})
        there = None if self._tracked_only else self._on_disk(path)
        at = self._tracked_at(path)
        if there and at and at.isdir != stat.S_ISDIR(there.st_mode):
            tracked = {}
        if unknown and there is None:
            if refusal := self._members.refusal(unknown):
                raise refusal
            raise MissingObjectError(
                f"the files of '{unknown.path}' are unknown: {unknown.digest} is neither in the cache nor on "
                "a remote. Run `dvkf push` in a clone that has it."
            )
        seen: set[str] = set()
        if there and stat.S_ISDIR(there.st_mode):
            for entry in self._entries(path):
                isdir = entry.is_dir(follow_symlinks=False)
                full = _join(path, entry.name)
                if self._repo.ignore.matches(full + "/" if isdir else full):
                    continue
                try:
                    info = self._stat(entry)
                except FileNotFoundError:
                    continue  # removed since it was listed
                seen.add(entry.name)
                yield self._there(entry.name, info, tracked.get(entry.name))
        for name, what in tracked.items():
            if name not in seen:
                yield self._recorded(name, what)

    def _entries(self, path: str) -> list[os.DirEntry[str]]:
        """List a folder of the workspace; a folder removed in the meantime is empty."""
        try:
            with os.scandir(f"{self._root}/{path}") as entries:
                return [entry for entry in entries if not is_temporary(entry.name)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _stat(self, entry: os.DirEntry[str]) -> os.stat_result:
        """Return a file's stat; for a link, its own stat with the size of its target."""
        info = entry.stat(follow_symlinks=False)
        if not stat.S_ISLNK(info.st_mode) or self._is_clone:
            return info
        try:
            size = os.stat(entry.path).st_size
        except OSError:
            size = 0
        return os.stat_result((*info[:6], size, *info[7:]))


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
