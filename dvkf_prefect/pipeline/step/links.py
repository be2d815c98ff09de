"""Data that a stage reads in a folder of its own: linked from the cache as ``cache.type`` allows, rather than copied.

A link of blocks is the stage's own. A hard link or a symbolic link leads to the object itself, which is read-only, but
not for root, nor for whoever makes it writable. So objects are looked at when the commands have ended: one that
was written to is taken out of the cache, and put back from the workspace where that has it.
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
        workspace: The repository's root.
        config: The settings of its cache.
        root: The folder that stands for the repository's root.

    Attributes:
        damaged: The digests of objects that were written to, see `mend`.
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
        """Place a file or directory that the cache has.

        Args:
            digest: Its digest.
            path: Where to, relative to the root; its parent folder is there.
            isexec: Whether a single file may be executed.

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
        """Remember what the objects look like, once all is placed."""
        if self._links.shares:
            self._links.settle()
            self._looks = {digest: _look(self._cache.path(digest)) for digest in self._placed.values()}

    def digest_of(self, path: str) -> str | None:
        """Return the digest of what was placed at a path as a link to an object, or None."""
        return self._placed.get(path)

    def mend(self) -> tuple[str, ...]:
        """Take objects that were written to out of the cache, and put them back from the workspace where they are good.

        Returns:
            The paths whose content is nowhere else on this machine.
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
