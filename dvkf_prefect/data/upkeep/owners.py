"""Which objects of a remote are known to be ours: what a prefix that others may share is decided by.

A remote's objects carry no owner. An object counts as known when one of the repositories that were told of

1. tracks it in a commit that git still has, in any branch, tag, stash or reflog, or in the workspace; files by the
   manifests that name them, read from a cache or the remote;
2. has it in a cache of its own, one in its own `.dvc` folder (a cache elsewhere may be others' too);
3. names it in the run cache of such a cache;
4. wrote down, in an earlier collection that did not come to its end, that it was about to be removed.

What a repository only imported from another (``dvc import``) is the other's, and 2 and 3 do not make it ours.
An object that is not known was put there by a repository, or a clone of one, that was not told of. Then nothing of that
remote can be proven unused: those who put it there may use any other object too, for equal content is stored once.
Whoever uses nothing there but what is known cannot be seen; only naming their repository keeps what they use.
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
class Told:
    """A repository whose objects are known.

    Attributes:
        repo: The repository.
        history: Its open history; None without git.
        described: What was read of it so far.
    """

    repo: Repository
    history: History | None
    described: list[Described] = field(default_factory=list)

    def read_all(self) -> None:
        """Read what every commit that git still has tracks, as far as it can be read."""
        if self.history is None or self.repo.git is None:
            return
        heads = [head] if (head := self.repo.git.head()) else []
        try:
            listed = self.repo.git.run("rev-list", "--all", "--reflog", *heads)
        except GitError:  # a reflog may name commits that are gone
            listed = self.repo.git.run("rev-list", "--all", *heads)
        self.described.extend(self.history.walk(listed.split()))

    def manifests(self, described: Iterable[Described]) -> Iterator[Manifest]:
        """Yield the manifests that described files name."""
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
    """Tell whether an output's content belongs to another repository (``dvc import``)."""
    return bool(output.origin and output.origin.repo)


def named_keys(output: Output) -> set[str]:
    """Return the keys that an output names itself, without those of its manifest."""
    digests = {output.digest, *(file.digest for file in output.versions)} - {None}
    return set(keys_of((digest for digest in digests if digest), output.hash_name))


def unknown(candidates: Iterable[str], told: list[Told], manifests: Manifests, noted: set[str]) -> set[str]:
    """Return those keys that no repository told of knows; see above.

    Args:
        candidates: Keys of objects.
        told: The repositories; all of their history is read.
        manifests: Where to read manifests.
        noted: What an earlier collection wrote down.
    """
    left = set(candidates) - noted
    ours: set[str] = set()
    foreign: set[str] = set()
    for each in told:
        if not left:
            return left
        each.read_all()
        for item in each.described:
            for output in item.outputs:
                (foreign if is_import(output) else ours).update(named_keys(output))
    left -= ours
    # Manifests are read only while there is something to explain.
    every_import = True
    named = [manifest for each in told for manifest in each.manifests(each.described)] if left else []
    imported = distinct(manifest for manifest in named if manifest.imported)
    if imported:
        for manifest, tree in manifests.read(imported):
            if isinstance(tree, Tree):
                foreign.update(keys_of(tree.digests, manifest.hash_name))
            else:
                every_import = False
    own = [Path(each.repo.cache.root) for each in told if is_own(each.repo)] if every_import else []
    cached: set[str] = set()
    for root in own:
        if left:
            cached |= FolderInventory(root).keys() | set(run_keys(root))
    left -= cached - foreign
    if left:
        repo = told[0].repo
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
    """Yield the keys that the run cache of a cache names, of dependencies and of outputs."""
    for folder, _, names in os.walk(root / "runs"):
        for name in names:
            with suppress(OSError):
                data = read_description(Path(folder, name))
                digests = [found.decode() for found in _MD5_LINE.findall(data)]
                for hash_name in (MD5, LEGACY):
                    yield from keys_of(digests, hash_name)


class Notes:
    """What a collection is about to remove from a remote, kept until it is done.

    A manifest goes before its files, for one without its files would vouch for them to the next push. When the process
    ends between the two, only this tells whose the files were.

    Args:
        repo: The repository that collects.
        url: The remote.
    """

    def __init__(self, repo: Repository, url: str) -> None:
        self._path = repo.tmp_dir / f"gc-{digest_bytes(url.encode())}"

    def read(self) -> set[str]:
        """Return what was written down."""
        try:
            return set(read_description(self._path, limit=MANIFEST_LIMIT).decode().split())
        except FileNotFoundError:
            return set()

    def write(self, keys: Iterable[str]) -> None:
        """Write down keys in place of what stood there; with none, forget."""
        text = "\n".join(sorted(keys))
        if text:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, text.encode())
        else:
            self._path.unlink(missing_ok=True)
