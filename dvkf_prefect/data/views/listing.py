"""Listing of one revision, or of the workspace: the files that DVC tracks and those that git tracks.

A listing reads git's objects and manifests only; it does not need the data.
"""

from __future__ import annotations

import os
import posixpath
import stat
import threading
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

from dvkf_prefect.data.git.history import outputs_of
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import GitError, MissingObjectError, OutputNotFoundError, UnsafePathError
from dvkf_prefect.files import is_temporary
from dvkf_prefect.formats.dvcignore import NAME as IGNORE_FILE
from dvkf_prefect.formats.files import describes_outputs
from dvkf_prefect.formats.objects import MD5
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.formats.tree import Tree

_LINK = "120000"
_PROGRAM = "100755"
# Largest number of links to follow, as in Linux.
_LINKS = 40
_HIDDEN = (".git", ".hg", ".dvc")
# Bytes of git's files to read into memory at once.
_BATCH = 64 << 20

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or a directory.

    Attributes:
        path: Posix path relative to the repository's root; empty for the root.
        is_dir: True for a directory.
        size: Size in bytes, None if it must be looked up; for a tracked directory, the total.
        digest: md5 in hex, with ``.dir`` for a directory. None for a file that DVC does not track. None also for a file
            in the workspace, because its content may have changed.
        output: Output that it is or lies in, None without one.
        isexec: True for an executable file.
        blob: Git's id of the content; None if git does not track it.
        place: Path on disk, if it is in the workspace; None otherwise.
        is_link: True for a link to a directory.
    """

    path: str
    is_dir: bool = False
    size: int | None = None
    digest: str | None = None
    output: Output | None = None
    isexec: bool = False
    blob: str | None = None
    place: str | None = None
    is_link: bool = False

    @property
    def hash_name(self) -> str:
        """``md5``, or ``md5-dos2unix`` for an output of DVC 2.x."""
        return self.output.hash_name if self.output else MD5


class _Paths:
    """Sorted paths; the paths below a folder are found by binary search."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def span(self, folder: str) -> tuple[int, int]:
        """Return the first row of the paths below a folder, and the row after the last."""
        if not folder:
            return 0, len(self.paths)
        # "0" is the character after "/".
        return bisect_left(self.paths, folder + "/"), bisect_left(self.paths, folder + "0")

    def has_below(self, folder: str) -> bool:
        """Return True if there are paths below a folder."""
        start, end = self.span(folder)
        return end > start

    def level(self, folder: str) -> Iterator[tuple[str, int | None]]:
        """Yield name and row of each direct child of a folder; the row of a subfolder is None."""
        row, end = self.span(folder)
        skip = len(folder) + 1 if folder else 0
        while row < end:
            path = self.paths[row]
            name, deeper, _ = path[skip:].partition("/")
            yield name, None if deeper else row
            row = bisect_left(self.paths, f"{path[:skip]}{name}0", row, end) if deeper else row + 1

    def row(self, path: str) -> int | None:
        """Return the row of a path; None if it is not in the list."""
        found = bisect_left(self.paths, path)
        return found if found < len(self.paths) and self.paths[found] == path else None


@dataclass(frozen=True, slots=True)
class _GitFiles:
    """Files of a commit.

    Attributes:
        paths: Paths of the files.
        blobs: Mode, object id and size in bytes of each file.
        links: Target of each link.
        projects: Folders of nested DVC repositories.
    """

    paths: _Paths
    blobs: list[tuple[str, str, int | None]]
    links: dict[str, str]
    projects: tuple[str, ...] = ()

    def is_above(self, path: str) -> bool:
        """Return True if a folder contains a nested DVC repository."""
        return any(project.startswith(path + "/") for project in self.projects)


class Listing(ABC):
    """Files of one revision of a repository, or of its workspace; thread-safe.

    A revision never changes, so its files and manifests are read once. In the workspace, files are read each time, but
    tracked outputs are read once; create a new listing after adding outputs.

    Args:
        repo: The repository.
        commit: The commit; None for the workspace.
        label: Revision as the user named it, for messages.
    """

    def __init__(self, repo: Repository, commit: str | None = None, *, label: str | None = None) -> None:
        self.repo = repo
        self.commit = commit
        rev = "the workspace" if commit is None else commit[:10]
        if label and commit and not commit.startswith(label):
            rev = f"{label} ({rev})"
        self.name = f"{rev} of {getattr(repo, 'url', None) or repo.root}"
        self._lock = threading.RLock()
        self._trees: dict[Key, Tree] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @abstractmethod
    def _read_tree(self, output: Output) -> Tree:
        """Return the manifest of a directory, from the cache or a remote.

        Raises:
            MissingObjectError: Neither has it.
        """

    def project_at(self, path: str) -> str:
        """Return the innermost nested repository on a path; empty if there is none.

        Files of nested repositories are not part of this listing.
        """
        known = self._git.projects
        folder = path
        while folder:
            if folder in known or (self.commit is None and self.repo.ignore.is_repo(folder)):
                return folder
            folder = posixpath.dirname(folder)
        return ""

    def entry(self, path: str) -> Entry:
        """Return the entry at a path.

        Raises:
            OutputNotFoundError: The path does not exist.
            MissingObjectError: The manifest of the directory around it is neither in the cache nor on the remote.
        """
        real = self._real(path)
        if real is not None:
            found = self._on_disk(real) if self.commit is None else self._in_git(real)
            entry = _merged(found, self._recorded(real, found))
            if entry is not None:
                return entry if real == path else replace(entry, path=path)
        raise OutputNotFoundError(f"'{path}' is not in {self.name}")

    def children(self, path: str) -> dict[str, Entry]:
        """Return the direct children of a directory by name; for a file, itself under an empty name.

        Raises:
            OutputNotFoundError: The path does not exist.
            MissingObjectError: The manifest is neither in the cache nor on the remote.
        """
        top = self.entry(path)
        if not top.is_dir:
            return {"": top}
        real = self._real(path) or ""
        found = self._level_on_disk(real) if self.commit is None else self._level_in_git(real)
        try:
            recorded = self._recorded_level(real)
        except MissingObjectError:
            # The files on disk can be listed without the manifest.
            if top.place is None:
                raise
            recorded = {}
        for name, entry in recorded.items():
            merged = _merged(found.get(name), entry)
            if merged is not None:
                found[name] = merged
        if real != path:
            found = {name: replace(entry, path=f"{path}/{name}") for name, entry in found.items()}
        return dict(sorted(found.items()))

    def find(
        self, path: str = "", *, depth: int | None = None, folders: bool = False, describing: bool = False
    ) -> Iterator[Entry]:
        """Yield every file below a directory; a file yields itself. Links to directories are not followed.

        Args:
            path: The directory.
            depth: Number of levels; None for all.
            folders: Yield directories too, each before its content.
            describing: Yield DVC files and ignore files too.

        Raises:
            OutputNotFoundError: The path does not exist.
            MissingObjectError: A manifest is neither in the cache nor on the remote.
        """
        for name, entry in self.children(path).items():
            if not entry.is_dir:
                if describing or not is_describing(name):
                    yield entry
                continue
            if folders:
                yield entry
            if depth != 1 and not entry.is_link:
                below = depth - 1 if depth else None
                yield from self.find(entry.path, depth=below, folders=folders, describing=describing)

    def names(self, path: str) -> list[str] | None:
        """Return the paths of all files of a tracked directory in a revision, or below a path in one.

        This fast path creates no entries, for directories with a million files. It returns None if `find` is needed.
        """
        output, inner = self._around(path)
        if self.commit is None or output is None or not output.is_dir or self._git.paths.has_below(path):
            return None
        if self._real(path) != path:
            return None
        tree = self._tree(output)
        start, end = _Paths(tree.relpaths).span(inner)
        if start == end and inner:
            return None
        return [f"{output.path}/{relpath}" for relpath in tree.relpaths[start:end] if _is_shown(relpath)]

    @cached_property
    def modified(self) -> float | None:
        """Time of the commit, in seconds since 1970; None for the workspace."""
        if self.commit is None or self.repo.git is None:
            return None
        return float(self.repo.git.run("show", "-s", "--format=%ct", self.commit))

    # -- git ---------------------------------------------------------------------------------------------------------

    @property
    def _git(self) -> _GitFiles:
        with self._lock:
            return self._read_git

    @cached_property
    def _read_git(self) -> _GitFiles:
        git, prefix = self.repo.git, self.repo.git_prefix
        if git is None or self.commit is None:
            return _GitFiles(_Paths([]), [], {})
        arguments = ("ls-tree", "-r", "-l", "-z", "--full-tree", self.commit)
        listed = git.run_bytes(*arguments, *(("--", prefix) if prefix else ()))
        found: list[tuple[str, tuple[str, str, int | None]]] = []
        projects: set[str] = set()
        for line in listed.split(b"\0"):
            head, _, name = line.partition(b"\t")
            if not head:
                continue
            mode, kind, blob, size = head.decode().split()
            path = os.fsdecode(name)[len(prefix) :]
            if "/.dvc/" in path:
                projects.add(path.rpartition("/.dvc/")[0])
            if kind == "blob" and path.partition("/")[0] not in _HIDDEN:
                found.append((path, (mode, blob, int(size) if size.isdigit() else None)))
        if projects:
            inner = tuple(f"{project}/" for project in projects)
            found = [row for row in found if not row[0].startswith(inner)]
        found.sort(key=lambda row: row[0])
        links = [Entry(path, blob=blob) for path, (mode, blob, _) in found if mode == _LINK]
        texts = {entry.path: os.fsdecode(data) for entry, data in self._blobs(links)}
        targets = {
            path: posixpath.normpath(posixpath.join(posixpath.dirname(path), text))
            for path, text in texts.items()
        }
        paths = _Paths([row[0] for row in found])
        return _GitFiles(paths, [row[1] for row in found], targets, tuple(sorted(projects)))

    def _real(self, path: str) -> str | None:
        """Resolve the links of a commit in a path; return None if they lead outside the repository."""
        links = self._git.links
        if not links:
            return path
        for _ in range(_LINKS):
            parts = path.split("/")
            heads = ("/".join(parts[:count]) for count in range(1, len(parts) + 1))
            link = next((head for head in heads if head in links), None)
            if link is None:
                return path
            path = posixpath.normpath(links[link] + path[len(link) :])
            if path.startswith(("/", "../")) or path == "..":
                return None
            path = "" if path == "." else path
        return None

    def _in_git(self, path: str) -> Entry | None:
        row = self._git.paths.row(path)
        if row is not None:
            mode, blob, size = self._git.blobs[row]
            return Entry(path, size=size, blob=blob, isexec=mode == _PROGRAM)
        below = not path or self._git.paths.has_below(path) or self._git.is_above(path)
        return Entry(path, is_dir=True) if below else None

    def _level_in_git(self, path: str) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        start = f"{path}/" if path else ""
        for project in self._git.projects:
            name, slash, _ = project[len(start) :].partition("/")
            if slash and project.startswith(start):
                found[name] = Entry(start + name, is_dir=True)
        for name, row in self._git.paths.level(path):
            below = f"{path}/{name}" if path else name
            if row is None:
                found[name] = Entry(below, is_dir=True)
                continue
            mode, blob, size = self._git.blobs[row]
            if mode != _LINK:
                found[name] = Entry(below, size=size, blob=blob, isexec=mode == _PROGRAM)
                continue
            with suppress(OutputNotFoundError, MissingObjectError):
                there = self.entry(below)
                found[name] = replace(there, is_link=there.is_dir)
        return found

    def _blobs(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes]]:
        """Yield the content of git's files, many of them from one process.

        Raises:
            GitError: Git does not have an object.
        """
        git = self.repo.git
        group: list[Entry] = []
        size = 0
        for number, entry in enumerate(entries if git else (), 1):
            group.append(entry)
            size += entry.size or 0
            if git is None or (size < _BATCH and number < len(entries)):
                continue
            asked = "".join(f"{member.blob}\n" for member in group).encode()
            data = git.run_bytes("cat-file", "--batch", stdin=asked)
            start = 0
            for member in group:
                end = data.index(b"\n", start)
                head = data[start:end].split()
                if len(head) != 3:
                    raise GitError(
                        f"'{member.path}' of {self.name}: git does not have its object {member.blob}"
                    )
                start = end + int(head[2]) + 2
                yield member, data[end + 1 : start - 1]
            group, size = [], 0

    # -- the workspace -----------------------------------------------------------------------------------------------

    def _on_disk(self, path: str) -> Entry | None:
        if not path:
            return Entry("", is_dir=True, place=str(self.repo.root))
        full = f"{self.repo.root}/{path}"
        try:
            info = os.stat(full)
        except (FileNotFoundError, NotADirectoryError):
            return None
        is_dir = stat.S_ISDIR(info.st_mode)
        if path.partition("/")[0] in _HIDDEN or self.repo.ignore.matches(path + "/" if is_dir else path):
            return None
        return _disk_entry(path, full, info)

    def _level_on_disk(self, path: str) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        try:
            scan = os.scandir(f"{self.repo.root}/{path}" if path else self.repo.root)
        except (FileNotFoundError, NotADirectoryError):
            return found
        quiet = bool(path) and self.repo.ignore.quiet_below(path)
        with scan:
            for item in scan:
                below = f"{path}/{item.name}" if path else item.name
                # A dangling link, or a file that was removed in the meantime.
                with suppress(FileNotFoundError):
                    info = item.stat()
                    is_dir = stat.S_ISDIR(info.st_mode)
                    hidden = (not path and item.name in _HIDDEN) or is_temporary(item.name)
                    looked_at = is_dir or not quiet  # a folder may be a nested repository
                    if hidden or (looked_at and self.repo.ignore.matches(below + "/" if is_dir else below)):
                        continue
                    entry = _disk_entry(below, item.path, info, is_link=is_dir and item.is_symlink())
                    if entry is not None:
                        found[item.name] = entry
        return found

    def _is_blocked(self, path: str) -> bool:
        """Return True if one of a path's parent folders is a file in the workspace."""
        folder = posixpath.dirname(path)
        while folder:
            place = f"{self.repo.root}/{folder}"
            if os.path.lexists(place):
                return not os.path.isdir(place)
            folder = posixpath.dirname(folder)
        return False

    # -- tracked data ------------------------------------------------------------------------------------------------

    @property
    def _outputs(self) -> tuple[_Paths, dict[str, Output]]:
        with self._lock:
            return self._read_outputs

    @cached_property
    def _read_outputs(self) -> tuple[_Paths, dict[str, Output]]:
        found: list[Output] = []
        if self.commit is None:
            found = self.repo.outputs(overlap="any")
        elif self.repo.git is not None:
            found = outputs_of(self.repo.git, self.commit, self.repo.git_prefix)
        known = {output.path: output for output in found if output.cached and output.digest}
        return _Paths(sorted(known)), known

    def _around(self, path: str) -> tuple[Output | None, str]:
        """Return the output at or around a path, and the path inside it."""
        _, known = self._outputs
        folder = path
        while folder:
            if folder in known:
                return known[folder], path[len(folder) + 1 :]
            folder = posixpath.dirname(folder)
        return None, ""

    def _recorded(self, path: str, found: Entry | None) -> Entry | None:
        """Return the recorded entry of a path; ``found`` is the entry in git or on disk."""
        output, inner = self._around(path)
        if output is None:
            below = bool(path) and self._outputs[0].has_below(path)
            return Entry(path, is_dir=True) if below else None
        if found is not None and found.place and inner:
            return Entry(path, found.is_dir, output=output)
        if self.commit is None and self._is_blocked(path):
            return None
        if not inner:
            return _output_entry(output)
        if not output.is_dir:
            return None
        tree = self._tree(output)
        rows = _Paths(tree.relpaths)
        row = rows.row(inner)
        if row is not None:
            return Entry(path, digest=tree.digests[row], output=output)
        return Entry(path, is_dir=True, output=output) if rows.has_below(inner) else None

    def _recorded_level(self, path: str) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        output, inner = self._around(path)
        if output is None:
            paths, known = self._outputs
            for name, row in paths.level(path):
                below = f"{path}/{name}" if path else name
                found[name] = Entry(below, is_dir=True) if row is None else _output_entry(known[below])
        elif output.is_dir:
            tree = self._tree(output)
            for name, row in _Paths(tree.relpaths).level(inner):
                digest = None if row is None else tree.digests[row]
                found[name] = Entry(f"{path}/{name}", row is None, None, digest, output)
        return found

    def _tree(self, output: Output) -> Tree:
        """Return a directory's manifest; it is read on the first call.

        Raises:
            MissingObjectError: The manifest is neither in the cache nor on the remote.
        """
        key = (output.hash_name, output.digest or "")
        with self._lock:
            if key not in self._trees:
                self._trees[key] = self._read_tree(output)
            return self._trees[key]


def is_describing(name: str) -> bool:
    """Return True for the name of a DVC file or an ignore file, which is not data."""
    return describes_outputs(name) or name == IGNORE_FILE


def plain_path(path: str) -> str:
    """Return a normalized path without a leading or trailing slash and without ``..``.

    Raises:
        UnsafePathError: The path leads outside the repository.
    """
    plain = posixpath.normpath(path.strip("/") or ".")
    if plain == ".." or plain.startswith("../"):
        raise UnsafePathError(f"'{path}' is not a path inside the repository")
    return "" if plain == "." else plain


def _is_shown(path: str) -> bool:
    return not path.endswith((".dvc", "dvc.yaml", IGNORE_FILE)) or not is_describing(path.rpartition("/")[2])


def _output_entry(output: Output) -> Entry:
    return Entry(output.path, output.is_dir, output.size, output.digest, output, output.isexec)


def _merged(found: Entry | None, recorded: Entry | None) -> Entry | None:
    """Return the entry found in git or on disk, with the recorded fields if both are of the same kind."""
    if found is None:
        return recorded
    if recorded is None or recorded.is_dir != found.is_dir:
        return found
    # A file in the workspace may have changed since it was recorded, so it has no digest.
    return replace(found, output=recorded.output, digest=None if found.place else recorded.digest)


def _disk_entry(path: str, full: str, info: os.stat_result, *, is_link: bool = False) -> Entry | None:
    if stat.S_ISDIR(info.st_mode):
        return Entry(path, is_dir=True, place=full, is_link=is_link)
    if not stat.S_ISREG(info.st_mode):
        return None
    return Entry(path, size=info.st_size, isexec=bool(info.st_mode & 0o111), place=full)
