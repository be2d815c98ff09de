"""Files that a program reads and git's last commit does not have, also those that git's own lists leave out.

Such are the targets of symbolic links, files of submodules, files that git ignores, and files with the flags
``assume-unchanged`` and ``skip-worktree``.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dvkf_prefect.data.git.command import Git
from dvkf_prefect.paths import is_within

IGNORED = "ignored by git"
"""Obstacle of a file that git ignores."""

_LINK, _SUBMODULE = "120000", "160000"
# Paths of one git process.
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Unsaved:
    """A file that differs from git's last commit.

    Attributes:
        path: Posix, relative to the work tree's top.
        place: The path asked for that it belongs to.
        obstacle: Reason why `git add` would not take it, such as ``ignored by git``; empty if it would.
    """

    path: str
    place: str
    obstacle: str = ""


def find_unsaved(git: Git, places: Iterable[str]) -> list[Unsaved]:
    """Return the files at or below some paths that differ from git's last commit, in the order of their paths.

    In folders, hidden files and compiled modules that git ignores are left out: editors, tools and Python write them.

    Args:
        git: The work tree.
        places: Files and folders, posix, relative to the work tree's top. Symbolic links are followed.

    Raises:
        GitError: Git refused.
    """
    leads = _Leads(git, dict.fromkeys(places))
    if not leads.places:
        return []
    index = _read_index(git, leads.folders())
    # A link that git has leads to files elsewhere.
    waiting = [path for path, entry in index.items() if entry.mode == _LINK]
    while waiting:
        more = leads.follow(waiting)
        added = _read_index(git, more) if more else {}
        waiting = [path for path, entry in added.items() if entry.mode == _LINK and path not in index]
        index.update(added)
    found: dict[tuple[str, str], Unsaved] = {}
    for path, obstacle in _unsaved(git, leads, index):
        for place in leads.of(path):
            found.setdefault((path, place), Unsaved(path, place, obstacle))
    return [found[key] for key in sorted(found)]


class _Leads:
    """Paths to look at, each with the paths asked for that it belongs to."""

    def __init__(self, git: Git, places: Iterable[str]) -> None:
        self._top = Path(os.path.realpath(git.root))
        self.places: dict[str, dict[str, None]] = {}
        # Links and other repositories above a path, for which git lists only one entry.
        self.above: dict[str, dict[str, None]] = {}
        self.repositories: dict[str, None] = {}
        for place in places:
            self._add(place, place)

    def _add(self, path: str, place: str) -> bool:
        known = self.places.setdefault(path, {})
        if place in known:
            return False
        known[place] = None
        if real := self._real(path):
            self._add(real, place)
        folder = path
        while folder:
            full = self._top / folder
            if full.is_symlink():
                self.above.setdefault(folder, {})[place] = None
            elif os.path.lexists(full / ".git"):
                self.above.setdefault(folder, {})[place] = None
                self.repositories[folder] = None
            folder = posixpath.dirname(folder)
        return True

    def _real(self, path: str) -> str:
        """Return the path without links; empty if it is the same, or outside of the work tree."""
        real = os.path.relpath(os.path.realpath(self._top / path), self._top)
        return "" if real == path or real.split("/")[0] == ".." else real

    def follow(self, links: Iterable[str]) -> list[str]:
        """Add the targets of links; return the new ones."""
        new = []
        for link in links:
            target = self._real(link)
            if target:
                added = [self._add(target, place) for place in self.of(link)]
                new += [target] if any(added) else []
        return new

    def folders(self) -> list[str]:
        return list(dict.fromkeys((*self.places, *self.above)))

    def of(self, path: str) -> list[str]:
        """Return the paths asked for that a file belongs to."""
        found = dict(self.above.get(path, {}))
        folder = path
        while folder:
            found.update(self.places.get(folder, {}))
            folder = posixpath.dirname(folder)
        return list({**found, **self.places.get("", {})})

    def below(self, path: str) -> list[str]:
        """Return the names that lead to a file from the folder that was asked for; none for a file asked for."""
        folder = path
        while folder and folder not in self.places:
            folder = posixpath.dirname(folder)
        return path[len(folder) :].strip("/").split("/")


class _Entry(NamedTuple):
    """Entry of git's index: its tag of `git ls-files -v`, mode and object."""

    tag: str
    mode: str
    blob: str


def _read_index(git: Git, paths: Iterable[str]) -> dict[str, _Entry]:
    """Return the index's entries at or below some paths."""
    listed = b"".join(_list(git, paths, "--stage", "-v", "--cached"))
    found = {}
    for row in filter(None, listed.split(b"\0")):
        head, _, name = row.partition(b"\t")
        found[os.fsdecode(name)] = _Entry(*head.decode().split()[:3])
    return found


def _list(git: Git, paths: Iterable[str], *options: str) -> Iterator[bytes]:
    specs = [f":(top,literal){path}" for path in paths]
    for start in range(0, len(specs), _BATCH):
        yield git.run_bytes("ls-files", "-z", "--full-name", *options, "--", *specs[start : start + _BATCH])


def _unsaved(git: Git, leads: _Leads, index: dict[str, _Entry]) -> Iterator[tuple[str, str]]:
    """Yield each file that differs, with the obstacle to adding it."""
    folders = leads.folders()
    for start in range(0, len(folders), _BATCH):
        for path in git.changed([f":(top,literal){each}" for each in folders[start : start + _BATCH]]):
            # Git lists another repository as a folder.
            yield path.removesuffix("/"), "in another git repository" if path.endswith("/") else ""
    for path, entry in index.items():
        if entry.mode == _SUBMODULE:
            yield from _in_submodule(git, leads, path)
        elif (entry.tag.islower() or entry.tag == "S") and _is_hidden(git, path, entry.blob):
            yield path, "hidden from git by assume-unchanged or skip-worktree"
    for path in leads.repositories:
        if path not in index or index[path].mode != _SUBMODULE:
            yield path, "in another git repository"
    unknown = [path for path in leads.places if path not in index and os.path.lexists(git.root / path)]
    for listed in _list(git, unknown, "--others", "--ignored", "--exclude-standard"):
        for name in filter(None, listed.split(b"\0")):
            path = os.fsdecode(name)
            if not any(map(_is_by_the_way, leads.below(path))):
                yield path, IGNORED


def _in_submodule(git: Git, leads: _Leads, path: str) -> Iterator[tuple[str, str]]:
    """Yield the files of a submodule that its own last commit does not have."""
    folder = git.root / path
    if not os.path.lexists(folder / ".git"):
        return
    for name in Git(folder, foreign=git.foreign).changed():
        inner = f"{path}/{name.removesuffix('/')}"
        if any(is_within(inner, place) or is_within(place, inner) for place in leads.places):
            yield inner, f"in the submodule {path}"


def _is_hidden(git: Git, path: str, blob: str) -> bool:
    """Return True if a file that git does not look at differs from the index; one that is absent does not."""
    if not os.path.lexists(git.root / path):
        return False
    if os.path.islink(git.root / path):
        target = os.fsencode(os.readlink(git.root / path))
        return blob != git.run("hash-object", "--stdin", stdin=target)
    return blob != git.run("hash-object", "--", path)


def _is_by_the_way(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__" or name.endswith((".pyc", ".egg-info"))
