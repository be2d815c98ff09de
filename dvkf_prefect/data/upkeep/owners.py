"""Ownership of a remote's objects: find objects that none of the named repositories knows.

Objects on a remote carry no owner. An object is known if one of the named repositories

1. tracks it in the workspace, or in a commit of any branch, tag, stash or reflog; the files of a directory count by
   its manifest, read from a cache or the remote;
2. has it in its own cache, inside its `.dvc` folder (a cache elsewhere may belong to others too);
3. names it in the run cache of such a cache;
4. recorded it for removal in an earlier collection that was interrupted.

Content that a repository only imported (``dvc import``) belongs to the other repository; rules 2 and 3 do not apply to
it. An unknown object was pushed from a repository, or a clone of one, that was not named. Equal content is stored
once, so that repository may use any other object too, and none can be proven unused. A repository that only uses
known objects cannot be detected; pass it with ``projects``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dvkf_prefect.data.git.history import Described, History
from dvkf_prefect.data.repository.cache_users import is_own
from dvkf_prefect.data.transfer.manifests import Manifest, Manifests, distinct
from dvkf_prefect.data.upkeep.inventory import FolderInventory
from dvkf_prefect.errors import GitError
from dvkf_prefect.files import MANIFEST_LIMIT, read_description, write_atomic
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.formats.objects import LEGACY, MD5, identity, keys_of
from dvkf_prefect.formats.tree import Tree, is_tree

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository
    from dvkf_prefect.formats.outputs import Output

_MD5_LINE = re.compile(rb"^\s*(?:- )?md5: ['\"]?([0-9a-f]{32}(?:\.dir)?)['\"]?\s*$", re.MULTILINE)


@dataclass(slots=True)
class NamedRepo:
    """A named repository, and the outputs read from it.

    Attributes:
        repo: The repository.
        history: Open git history; None without git.
        described: DVC files read so far.
    """

    repo: Repository
    history: History | None
    described: list[Described] = field(default_factory=list)

    def read_all(self) -> None:
        """Read the outputs of every commit that git has, including the reflog; unreadable files are skipped."""
        if self.history is None or self.repo.git is None:
            return
        heads = [head] if (head := self.repo.git.head()) else []
        try:
            listed = self.repo.git.run("rev-list", "--all", "--reflog", *heads)
        except GitError:  # a reflog may name deleted commits
            listed = self.repo.git.run("rev-list", "--all", *heads)
        self.described.extend(self.history.walk(listed.split()))

    def manifests(self, described: Iterable[Described]) -> Iterator[Manifest]:
        """Yield the manifests that DVC files name."""
        for item in described:
            for output in item.outputs:
                if output.digest and output.cached and is_tree(output.digest):
                    yield Manifest(
                        output.digest,
                        output.hash_name,
                        output.path,
                        self.repo,
                        output.remote,
                        is_import(output),
                    )


def is_import(output: Output) -> bool:
    """Return True if an output's content belongs to another repository (``dvc import``)."""
    return bool(output.origin and output.origin.repo)


def named_keys(output: Output) -> set[str]:
    """Return the keys that an output's record names, without the files of its manifest."""
    digests = {output.digest, *(file.digest for file in output.versions)} - {None}
    return set(keys_of((digest for digest in digests if digest), output.hash_name))


def unknown(
    candidates: Iterable[str], named_repos: list[NamedRepo], manifests: Manifests, noted: set[str]
) -> set[str]:
    """Return the keys that no named repository knows, see above.

    Args:
        candidates: Keys of objects.
        named_repos: Named repositories; their complete history is read.
        manifests: Reader of manifests.
        noted: Keys recorded by an interrupted collection.
    """
    left = set(candidates) - noted
    ours: set[str] = set()
    foreign: set[str] = set()
    for each in named_repos:
        if not left:
            return left
        each.read_all()
        for item in each.described:
            for output in item.outputs:
                (foreign if is_import(output) else ours).update(named_keys(output))
    left -= ours
    # Read manifests only while unknown keys are left.
    every_import = True
    named = [manifest for each in named_repos for manifest in each.manifests(each.described)] if left else []
    imported = distinct(manifest for manifest in named if manifest.imported)
    if imported:
        for manifest, tree in manifests.read(imported):
            if isinstance(tree, Tree):
                foreign.update(keys_of(tree.digests, manifest.hash_name))
            else:
                every_import = False
    own = [Path(each.repo.cache.root) for each in named_repos if is_own(each.repo)] if every_import else []
    cached: set[str] = set()
    for root in own:
        if left:
            cached |= FolderInventory(root).keys() | set(run_keys(root))
    left -= cached - foreign
    if left:
        repo = named_repos[0].repo
        for digest, hash_name in map(identity, cached - foreign):
            if is_tree(digest):
                named.append(Manifest(digest, hash_name, digest, repo))
        for manifest, tree in manifests.read(distinct(m for m in named if not m.imported)):
            if isinstance(tree, Tree):
                left.difference_update(keys_of(tree.digests, manifest.hash_name))
            if not left:
                break
    return left


def run_keys(root: Path) -> Iterator[str]:
    """Yield the keys of all dependencies and outputs in a cache's run cache."""
    for folder, _, names in os.walk(root / "runs"):
        for name in names:
            with suppress(OSError):
                data = read_description(Path(folder, name))
                digests = [found.decode() for found in _MD5_LINE.findall(data)]
                for hash_name in (MD5, LEGACY):
                    yield from keys_of(digests, hash_name)


class Notes:
    """File with the keys that a collection is about to remove from a remote, kept until it has finished.

    A manifest is removed before its files, because the next push would take its files to be there. If the process ends
    in between, only this file identifies the remaining files as known.

    Args:
        repo: The repository that runs the collection.
        url: Name and url of the remote.
    """

    def __init__(self, repo: Repository, url: str) -> None:
        self._path = repo.tmp_dir / f"gc-{digest_bytes(url.encode())}"

    def read(self) -> set[str]:
        """Return the recorded keys."""
        try:
            return set(read_description(self._path, limit=MANIFEST_LIMIT).decode().split())
        except FileNotFoundError:
            return set()

    def write(self, keys: Iterable[str]) -> None:
        """Replace the recorded keys; without keys, delete the file."""
        text = "\n".join(sorted(keys))
        if text:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, text.encode())
        else:
            self._path.unlink(missing_ok=True)
