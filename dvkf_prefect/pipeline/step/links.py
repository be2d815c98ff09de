"""Linked data of a stage's work folder: placed from the cache by the link types of ``cache.type``, without a copy.

A reflink is independent of the object. A hard link or a symbolic link is the object itself. The object is read-only,
but root or a chmod can still write to it. So all linked objects are checked after the commands. A modified object is
removed from the cache, and restored from the workspace if that has a good copy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.workspace.links import Links
from dvkf_prefect.errors import ObjectError
from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.formats.tree import is_tree
from dvkf_prefect.paths import make_folders

_Look = tuple[int, int, int]


class StepLinks:
    """The linked data of one stage.

    Args:
        workspace: Root of the repository.
        config: Settings of its cache.
        root: Folder that serves as the repository's root.

    Attributes:
        damaged: Digests of objects that were modified, see `mend`.
    """

    def __init__(self, workspace: Path, config: Mapping[str, str], root: Path) -> None:
        repo = Repository(workspace, config={"cache": dict(config)})
        self._workspace = workspace
        self._root = root
        self._cache = repo.cache
        self._links: Links = repo.workspace.links_into(root)
        self._placed: dict[str, str] = {}
        self._looks: dict[str, _Look] = {}
        self.damaged: set[str] = set()

    def place(self, digest: str, path: str, *, isexec: bool = False) -> None:
        """Place a cached file or directory.

        Args:
            digest: Digest of the content.
            path: Destination, relative to the root; its parent folder exists.
            isexec: True if a single file is executable.

        Raises:
            ObjectError: An object is missing or damaged.
        """
        target = str(self._root / path)
        base, relpaths, digests = "", [target], [digest]
        if is_tree(digest):
            tree = self._cache.read_tree(digest)
            make_folders(target, tree.relpaths)
            base, relpaths, digests = f"{target}/", list(tree.relpaths), list(tree.digests)
        mode = 0o777 if isexec else 0o666
        for row, result in self._links.place(digests, base, relpaths, mode=mode):
            if isinstance(result, ObjectError):
                raise result
            if self._links.shares:
                self._placed[os.path.relpath(base + relpaths[row], self._root)] = digests[row]

    def settle(self) -> None:
        """Record the stat data of all placed objects, to detect later writes."""
        if self._links.shares:
            self._links.settle()
            self._looks = {digest: _look(self._cache.path(digest)) for digest in self._placed.values()}

    def digest_of(self, path: str) -> str | None:
        """Return the digest of the object linked at a path, or None."""
        return self._placed.get(path)

    def mend(self) -> tuple[str, ...]:
        """Remove modified objects from the cache, and restore them from good copies in the workspace.

        Returns:
            Paths of modified objects without a good copy on this machine.
        """
        lost: list[str] = []
        seen: set[str] = set()
        for path, digest in self._placed.items():
            before = self._looks.get(digest)
            if before is None or digest in seen:
                continue
            seen.add(digest)
            now = _look(self._cache.path(digest))
            if now == before or self._is_good(digest):
                continue
            self.damaged.add(digest)
            self._cache.set_aside(digest)
            if not self._put_back(digest):
                lost.append(path)
        return tuple(lost)

    def _is_good(self, digest: str) -> bool:
        try:
            return digest_file(self._cache.path(digest)) == digest
        except OSError:
            return False

    def _put_back(self, digest: str) -> bool:
        for path, placed in self._placed.items():
            if placed == digest:
                with suppress(OSError):
                    if digest_file(self._workspace / path) == digest:
                        return self._cache.add_file(self._workspace / path) == digest
        return False


def _look(path: Path) -> _Look:
    try:
        info = path.stat()
    except OSError:
        return (0, 0, 0)
    return info.st_mtime_ns, info.st_size, info.st_ino
