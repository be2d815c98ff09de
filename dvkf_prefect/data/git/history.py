"""Tracked outputs of many commits, read from git's objects by one process.

`Repo.outputs` asks git for the files of one revision. Over a whole history, that would take a process for each file of
each commit. Here each distinct file is read once, and an unchanged commit costs one lookup of its tree.

Source of the formats: git's tree objects and ``git cat-file --batch``.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.git import process as git_process
from dvkf_prefect.data.git.command import FOREIGN, environment
from dvkf_prefect.errors import DvkfError, GitError, GitTimeoutError, ParseError, reason
from dvkf_prefect.formats import documents
from dvkf_prefect.formats.files import PIPELINE_FILE, RepoFiles, describes_outputs
from dvkf_prefect.formats.objects import LEGACY, MD5, Content
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.formats.tracked import read_outputs

if TYPE_CHECKING:
    from types import TracebackType

    from dvkf_prefect.data.git.command import Git

# Number of folders with all entries cached; of other folders, only files that describe outputs are.
_FOLDERS_KEPT = 4096
_DIGEST = re.compile(r"[0-9a-f]{32}(\.dir)?")


@dataclass(frozen=True, slots=True)
class Described:
    """Tracked outputs of one file, in one commit or in the workspace.

    Attributes:
        rev: The first commit with this version; None for the workspace.
        path: Path of the `.dvc` file or dvc.yaml.
        outputs: Outputs described by the file.
        error: Reason that the file could not be read; then there are no outputs.
        lock_error: Error in its dvc.lock, with outputs read regardless.
    """

    rev: str | None
    path: str
    outputs: tuple[Output, ...] = ()
    error: DvkfError | None = None
    lock_error: ParseError | None = None

    @property
    def place(self) -> str:
        """User-facing location of the file."""
        return f"{self.path} of commit {self.rev[:7]}" if self.rev else self.path


class History:
    """Reader of the outputs in commits; a ``with`` block bounds its git process.

    Args:
        git: The work tree.
        prefix: The repository's root relative to the work tree's top, with a trailing slash; "" for the top.
    """

    def __init__(self, git: Git, prefix: str = "") -> None:
        self._git = git
        self._prefix = prefix
        self._objects: _Objects | None = None
        self._described: dict[str, tuple[tuple[str, str], ...]] = {}
        self._known: dict[tuple[str, str, str], list[dict[str, str | None]]] = {}

    def __enter__(self) -> History:
        self._objects = _Objects(self._git)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._objects:
            self._objects.close()
        self._objects = None

    def walk(self, commits: Iterable[str]) -> Iterator[Described]:
        """Yield the outputs in the files of commits; each version of a file once, for any number of commits.

        Args:
            commits: Full ids, in any order. A second call skips the versions that the first call yielded.
        """
        for commit in commits:
            try:
                top = self._top(commit)
                described = self.describing(top) if top else ()
            except GitTimeoutError:
                raise
            except GitError as error:
                yield Described(commit, self._prefix or ".", error=error)
                continue
            if top is None:
                continue
            files = _CommitFiles(self, commit, top)
            for path, blob in described:
                key = (path, blob, files.blob(lock_of(path)) or "")
                seen = self._known.setdefault(key, [])
                if any(all(files.blob(p) == b for p, b in asked.items()) for asked in seen):
                    continue
                files.asked = {}
                found = describe(files, path)
                seen.append(files.asked)
                yield found

    @property
    def objects(self) -> _Objects:
        """The running git process."""
        if self._objects is None:
            raise GitError("the history can only be read inside a `with` block")
        return self._objects

    def _top(self, commit: str) -> str | None:
        """Return the tree of the repository's root in a commit; None if the commit has no such folder."""
        head = self.objects.read(commit, "commit")
        tree: str | None = head[len(b"tree ") : head.index(b"\n")].decode()
        for name in self._prefix.rstrip("/").split("/") if self._prefix else ():
            tree = self.objects.folder(tree)[1].get(name) if tree else None
        return tree

    def describing(self, tree: str) -> tuple[tuple[str, str], ...]:
        """Return ``(path, blob)`` of every file in a tree that describes outputs, sorted by path."""
        found = self._described.get(tree)
        if found is None:
            files, folders = self.objects.folder(tree)
            rows = [(name, blob) for name, blob in files.items() if describes_outputs(name)]
            for name, inner in folders.items():
                if name != ".dvc" and not self._is_repository(inner):
                    rows += [(f"{name}/{path}", blob) for path, blob in self.describing(inner)]
            found = self._described[tree] = tuple(sorted(rows))
        return found

    def _is_repository(self, tree: str) -> bool:
        """Return True if a folder is a nested repository."""
        settings = self.objects.folder(tree)[1].get(".dvc")
        return settings is not None and "config" in self.objects.folder(settings)[0]


def outputs_of(git: Git, commit: str, prefix: str = "") -> list[Output]:
    """Return the outputs of a commit, read by one git process for any number of files.

    Args:
        git: The work tree.
        commit: Full id of the commit.
        prefix: The repository's root relative to the work tree's top, with a trailing slash; "" for the top.

    Raises:
        GitError: There is no such commit.
        ParseError: A file violates its format.
    """
    found: list[Output] = []
    with History(git, prefix) as history:
        for described in history.walk([commit]):
            if error := described.error or described.lock_error:
                raise error
            found += described.outputs
    return found


class _CommitFiles:
    """The files of one commit, with a record of the files requested."""

    def __init__(self, history: History, rev: str, top: str) -> None:
        self.rev: str | None = rev
        self.asked: dict[str, str | None] = {}
        self._objects = history.objects
        self._describing = history.describing
        self._top = top

    def blob(self, path: str) -> str | None:
        """Return the blob of a path, or None."""
        tree: str | None = self._top
        *folders, name = path.split("/")
        for folder in folders:
            tree = self._objects.folder(tree)[1].get(folder) if tree else None
        return self._objects.folder(tree)[0].get(name) if tree else None

    def read(self, path: str) -> bytes:
        path = posixpath.normpath(path)
        blob = self.asked[path] = self.blob(path)
        if blob is None:
            raise FileNotFoundError(f"{path} at {(self.rev or '')[:7]}")
        return self._objects.read(blob, "blob")

    def exists(self, path: str) -> bool:
        path = posixpath.normpath(path)
        blob = self.asked[path] = self.blob(path)
        return blob is not None

    def find(self) -> list[str]:
        return [path for path, _ in self._describing(self._top)]


class _Objects:
    """Reader of git's objects through one process.

    Raises:
        GitError: Git is not installed, or ended.
    """

    def __init__(self, git: Git) -> None:
        self._git = git
        self._folders: OrderedDict[str, tuple[dict[str, str], dict[str, str]]] = OrderedDict()
        options = FOREIGN if git.foreign else ()
        self._process = git_process.start(
            ("cat-file", "--batch"), git.root, options=options, env=environment()
        )

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def read(self, name: str, kind: str) -> bytes:
        """Return an object's bytes.

        Raises:
            GitError: The object is missing, or of another kind.
        """
        try:
            self._process.ask(name.encode() + b"\n")
            head = self._process.read_line().split()
        except OSError:
            head = []
        if len(head) != 3 or not head[2].isdigit():
            raise GitError(
                f"{kind} {name} is not in {self._git.root}. If the clone is shallow, run "
                "`git fetch --unshallow`."
            )
        data = self._process.read(int(head[2]) + 1)[:-1]
        if head[1] != kind.encode():
            raise GitError(f"{name} in {self._git.root} is a {head[1].decode()}, not a {kind}")
        return data

    def folder(self, tree: str) -> tuple[dict[str, str], dict[str, str]]:
        """Return the files and the folders of a tree, each by name, without links and submodules."""
        found = self._folders.get(tree)
        if found is not None:
            self._folders.move_to_end(tree)
            return found
        data = self.read(tree, "tree")
        width = len(tree) // 2
        files: dict[str, str] = {}
        folders: dict[str, str] = {}
        start = 0
        while start < len(data):
            space = data.index(b" ", start)
            end = data.index(b"\0", space)
            mode = data[start:space]
            name = os.fsdecode(data[space + 1 : end])
            start = end + 1 + width
            if mode.startswith(b"100"):
                files[name] = data[end + 1 : start].hex()
            elif mode == b"40000":
                folders[name] = data[end + 1 : start].hex()
        found = self._folders[tree] = (files, folders)
        if len(self._folders) > _FOLDERS_KEPT:
            self._folders.popitem(last=False)
        return found


def lock_of(path: str) -> str:
    """Return the dvc.lock beside a dvc.yaml."""
    return path.removesuffix(".yaml") + ".lock"


def describe(files: RepoFiles, path: str) -> Described:
    """Return the outputs that one file describes, or the reason that it cannot be read."""
    try:
        return Described(files.rev, path, tuple(read_outputs(files, path)))
    except ParseError as error:
        # A dvc.yaml may hold unknown syntax; the outputs of its stages are recorded in dvc.lock.
        if posixpath.basename(path) == PIPELINE_FILE:
            with suppress(DvkfError, OSError):
                fault = error if error.file == lock_of(path) else None
                return Described(files.rev, path, tuple(_locked(files, path)), lock_error=fault)
        return Described(files.rev, path, error=error)
    except DvkfError as error:
        return Described(files.rev, path, error=error)
    except OSError as error:
        return Described(files.rev, path, error=ParseError(path, reason(error)))


def _locked(files: RepoFiles, path: str) -> Iterator[Output]:
    """Yield every output recorded in a dvc.lock."""
    lock = lock_of(path)
    if not files.exists(lock):
        return
    document: Any = documents.load(files.read(lock), lock)
    if not isinstance(document, dict):
        raise ParseError(lock, "a dvc.lock is a mapping")
    stages = document.get("stages", document) or {}
    for name, stage in stages.items():
        if not isinstance(stage, dict):
            continue
        for item in stage.get("outs") or []:
            digest = item.get("md5") if isinstance(item, dict) else None
            if isinstance(digest, str) and _DIGEST.fullmatch(digest) and isinstance(item.get("path"), str):
                hash_name = MD5 if item.get("hash") == MD5 else LEGACY
                place = posixpath.normpath(posixpath.join(posixpath.dirname(path), item["path"]))
                content = Content(digest, item.get("size"), hash_name=hash_name)
                yield Output(place, content, source=path, stage=str(name))
