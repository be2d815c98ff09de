"""Plan of a push or a fetch: the set of objects to transfer.

Planning reads manifests only. File names are resolved only for messages, so that a million files cost no more than
their digests.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.progress import Direction
from dvkf_prefect.data.remotes.remote import Remote, not_there
from dvkf_prefect.data.transfer.manifests import read_manifest
from dvkf_prefect.data.transfer.move import Limits, move
from dvkf_prefect.errors import (
    DvkfError,
    MissingObjectError,
    ObjectError,
    OutputNotFoundError,
    ParseError,
    UnsafePathError,
)
from dvkf_prefect.formats import manifest_rows
from dvkf_prefect.formats.objects import LEGACY, Content, is_plausible, object_key
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.paths import is_within

# The total size is estimated from at most about this many objects.
_SAMPLE = 5_000
# On a remote that is a folder, the files of directories with up to this many files are compared by size.
_NEAR = 100_000
# Selected parts of outputs: for the path of an output, the paths inside it.
Parts = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Root:
    """An output that objects belong to.

    Attributes:
        path: Path of the output.
        content: Recorded content.
        inside: Selected paths, relative to the output; empty for all of it.
        optional: True if a missing object is no failure.
    """

    path: str
    content: Content
    inside: tuple[str, ...] = ()
    optional: bool = False

    def wants(self, relpath: str) -> bool:
        """Return True if a file of the output is selected."""
        return not self.inside or any(is_within(relpath, part) for part in self.inside)


@dataclass(slots=True)
class HashGroup:
    """The objects of one way of hashing.

    Attributes:
        hash_name: ``md5`` or ``md5-dos2unix``.
        files: Outputs that are files, by digest.
        trees: Outputs that are directories, by the digest of their manifest.
        digests: Files to transfer, sorted.
        manifests: Manifests to transfer, sorted. A push uploads them after the files; a fetch has read them already.
        absent: Files that cannot be transferred, because the source does not have them.
        away: For a push, all objects that are missing from the remote.
        opened: Manifests whose files were checked.
        looked_for: Number of files that were checked.
    """

    hash_name: str
    files: dict[str, Root] = field(default_factory=dict)
    trees: dict[str, Root] = field(default_factory=dict)
    digests: list[str] = field(default_factory=list)
    manifests: list[str] = field(default_factory=list)
    absent: set[str] = field(default_factory=set)
    away: set[str] = field(default_factory=set)
    opened: list[str] = field(default_factory=list)
    looked_for: int = 0

    def limits(self) -> Limits:
        """Return size limits for downloads: no file of a directory is larger than the whole directory."""
        exact = {
            digest: root.content.size for digest, root in self.files.items() if root.content.size is not None
        }
        sizes = [root.content.size for root in self.trees.values()]
        known = [size for size in sizes if size is not None]
        return Limits(exact, max(known, default=0) if len(known) == len(sizes) and sizes else None)


@dataclass(frozen=True, slots=True)
class Share:
    """Share of one output in a plan.

    Attributes:
        path: Path of the output; the first one if several have the same content.
        files: Number of objects to transfer, without the manifest.
        size: Bytes to transfer; for a fetch, an estimate from the `.dvc` file.
    """

    path: str
    files: int
    size: int


@dataclass(slots=True)
class Plan:
    """Objects that a push or a fetch would transfer; `str` returns a readable summary.

    Attributes:
        direction: ``push`` or ``fetch``.
        cache: The cache.
        remote: The remote.
        groups: Objects to transfer, one group for each way of hashing.
        present: Number of objects that the destination already has.
        failures: Reason why a file cannot be transferred, by its path.
        missing: Paths in ``failures`` whose object is missing at the source.
        brought: Number and bytes of the manifests that were fetched to make the plan.
    """

    direction: Direction
    cache: Cache
    remote: Remote
    groups: list[HashGroup]
    present: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    brought: tuple[int, int] = (0, 0)
    _sizes: dict[str, int] | None = None
    _trees: dict[str, Tree] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(group.digests or group.manifests for group in self.groups)

    @property
    def files(self) -> int:
        """Number of objects to transfer, including manifests."""
        return sum(len(group.digests) + len(group.manifests) for group in self.groups)

    def expected(self) -> int:
        """Return a quick estimate of the bytes to transfer, for a progress bar; 0 if unknown."""
        total = 0
        for group in self.groups:
            if self.direction == "push":
                some = group.digests[:: len(group.digests) // _SAMPLE + 1]
                size = sum(_size_of(self.cache, digest, group.hash_name) for digest in some)
                total += size * len(group.digests) // max(len(some), 1)
            elif self._sizes is not None:
                total += sum(self._sizes.get(digest, 0) for digest in group.digests)
            elif group.digests:
                recorded = sum(
                    root.content.size or 0 for root in (*group.files.values(), *group.trees.values())
                )
                total += recorded * len(group.digests) // group.looked_for
        return total

    def __str__(self) -> str:
        way = "to" if self.direction == "push" else "from"
        shares = self.shares()
        size = sum(share.size for share in shares)
        place = f"{self.cache.root} → {self.remote}" if way == "to" else f"{self.remote} → {self.cache.root}"
        lines = [
            f"{self.direction} {way} {self.remote.name}: {self.files:,} object(s), {size:,} bytes ({place})"
        ]
        lines += [f"  {share.path}: {share.files:,} file(s), {share.size:,} bytes" for share in shares]
        if self.present:
            lines.append(f"  {self.present:,} object(s) exist already")
        names = sorted(self.failures)
        if names:
            lines.append(f"  {len(names):,} file(s) cannot be transferred:")
            lines += [f"    {name}: {self.failures[name]}" for name in names[:20]]
        if len(names) > 20:
            lines.append(f"    and {len(names) - 20:,} more")
        return "\n".join(lines)

    def shares(self) -> list[Share]:
        """Return the share of each output, sorted by path, without outputs that have nothing to transfer."""
        found: dict[str, list[int]] = {}
        for group in self.groups:
            todo = set(group.digests)
            for digest, root in group.files.items():
                if digest in todo:
                    todo.discard(digest)
                    self._count(found, root, group, [digest], 1)
            for digest in sorted(group.opened, key=lambda tree: group.trees[tree].path):
                mine = todo.intersection(self.tree(digest, group.hash_name).digests) if todo else ()
                todo.difference_update(mine)
                if mine or digest in group.manifests:
                    root = group.trees[digest]
                    self._count(found, root, group, mine, root.content.nfiles or len(mine))
            # Add manifests that are uploaded although the remote has all of their files.
            for digest in group.manifests:
                found.setdefault(group.trees[digest].path, [0, 0])
        return [Share(path, files, size) for path, (files, size) in sorted(found.items())]

    def _count(
        self, found: dict[str, list[int]], root: Root, group: HashGroup, digests: Iterable[str], nfiles: int
    ) -> None:
        files = size = 0
        for digest in digests:
            files += 1
            if self.direction == "push":
                size += _size_of(self.cache, digest, group.hash_name)
            elif self._sizes is not None:
                size += self._sizes.get(digest, 0)
        if self.direction == "fetch" and self._sizes is None:
            size = (root.content.size or 0) * files // max(nfiles, 1)
        counts = found.setdefault(root.path, [0, 0])
        counts[0] += files
        counts[1] += size

    def tree(self, digest: str, hash_name: str) -> Tree:
        """Return a manifest that was read for the plan."""
        return self._trees.get(digest) or self.cache.read_tree(digest, hash_name)

    def fail(self, group: HashGroup, failed: Mapping[str, DvkfError | str]) -> None:
        """Record the reasons why objects cannot be transferred, by file; a plain string means the object is missing."""
        for digest, (root, name) in self.names(group, failed).items():
            reason = failed[digest]
            missing = isinstance(reason, (str, MissingObjectError))
            if root.optional and missing:
                continue
            self.failures[name] = str(reason)
            if missing:
                self.missing.add(name)

    def names(self, group: HashGroup, digests: Iterable[str]) -> dict[str, tuple[Root, str]]:
        """Return the output and the file path of each digest."""
        wanted = set(digests)
        found: dict[str, tuple[Root, str]] = {}
        for known in (group.files, group.trees):
            for digest in wanted.intersection(known):
                found[digest] = (known[digest], known[digest].path)
        wanted.difference_update(found)
        # Attribute an object that several directories contain to a required one before an optional one.
        for opened in sorted(group.opened, key=lambda tree: group.trees[tree].optional):
            if not wanted:
                break
            root = group.trees[opened]
            for relpath, digest in self.tree(opened, group.hash_name).items():
                if digest in wanted and root.wants(relpath):
                    found[digest] = (root, f"{root.path}/{relpath}")
                    wanted.discard(digest)
        return found


def _groups(outputs: Sequence[Output], parts: Parts | None, optional: Sequence[Output]) -> list[HashGroup]:
    groups: dict[str, HashGroup] = {}
    for some, lenient in ((outputs, False), (optional, True)):
        for output in some:
            content = output.content
            if content is None or not output.cached:
                continue
            group = groups.setdefault(output.hash_name, HashGroup(output.hash_name))
            inside = tuple(parts.get(output.path, ())) if parts else ()
            root = Root(output.path, content, inside, lenient)
            if not content.is_dir:
                group.files.setdefault(content.digest, root)
                continue
            other = group.trees.get(content.digest)
            # Two outputs with the same content: select the union of their parts.
            if other and lenient:
                continue
            if other and other.inside:
                inside = (*other.inside, *inside) if inside else ()
                root = Root(other.path, content, inside, other.optional)
            if other is None or other.inside:
                group.trees[content.digest] = root
    return list(groups.values())


class _Parts:
    """Selector of parts of directories; it records which parts exist in at least one version of a directory."""

    def __init__(self) -> None:
        self._met: dict[tuple[str, str], bool] = {}

    def choose(self, root: Root, tree: Tree) -> list[str]:
        """Return the digests of a directory's selected files."""
        if not root.inside:
            return tree.digests
        chosen: list[str] = []
        for part in root.inside:
            found = tree.subtree(part).digests
            self._met[root.path, part] = bool(found) or self._met.get((root.path, part), False)
            chosen += found
        return chosen

    def check(self) -> None:
        """Check that every part exists in a directory.

        Raises:
            OutputNotFoundError: A part does not exist.
        """
        for (path, part), met in self._met.items():
            if not met:
                raise OutputNotFoundError(f"'{path}/{part}': not recorded in '{path}'")


def plan_push(
    outputs: Sequence[Output],
    cache: Cache,
    remote: Remote,
    *,
    parts: Parts | None = None,
    optional: Sequence[Output] = (),
    deep: bool = False,
) -> Plan:
    """Plan a push.

    If a manifest is on the remote, its files are assumed to be there too, as in DVC. A manifest is uploaded once all of
    its files are on the remote. A push of a part of a directory uploads it too, if the remote has the other files.

    Args:
        outputs: Outputs to push.
        cache: Source of the objects.
        remote: Destination.
        parts: Selected paths inside an output, by the path of the output; all of it otherwise.
        optional: Further outputs to push, as far as they are in the cache.
        deep: Check the files of manifests that are on the remote too, and upload the missing ones.

    Raises:
        RemoteError: The remote cannot be used.
    """
    plan = Plan("push", cache, remote, _groups(outputs, parts, optional))
    found = _Parts()
    for group in plan.groups:
        away = _away(plan, [*group.trees, *group.files], group.hash_name)
        members = _cut_short(plan, group, away) if not deep else set()
        selected = set(members)
        partial: set[str] = set()
        unread: dict[str, DvkfError | str] = {}
        for digest in sorted(group.trees):
            root = group.trees[digest]
            if digest not in away and not deep:
                if root.inside and cache.exists(digest, group.hash_name):
                    found.choose(root, cache.read_tree(digest, group.hash_name))
                continue
            try:
                tree = _tree_of(plan, group, digest, on_remote=digest not in away)
            except DvkfError as error:
                unread[digest] = error
                continue
            group.opened.append(digest)
            members.update(tree.digests)
            if root.inside:
                partial.add(digest)
            selected.update(found.choose(root, tree))
        plan.fail(group, unread)
        unsent = _away(plan, members.difference(group.files), group.hash_name) if members else set()
        group.looked_for = len(members | group.files.keys())
        unsent.update(away.intersection(group.files))
        selected.update(group.files)
        todo = unsent & selected if partial else unsent
        # Check for existence only: objects are hashed during the upload.
        group.absent = cache.missing(todo, group.hash_name, look=False)
        plan.fail(
            group,
            {
                digest: f"{digest} is neither in the cache nor on the remote '{remote.name}'. Run `dvkf add` "
                "again, or `dvkf push` in a clone that has it."
                for digest in group.absent
            },
        )
        group.digests = sorted(todo - group.absent)
        group.manifests = [digest for digest in group.opened if digest in away]
        left = unsent - todo
        if left:
            group.manifests = [
                digest
                for digest in group.manifests
                if digest not in partial or left.isdisjoint(plan.tree(digest, group.hash_name).digests)
            ]
        group.away = away | unsent
        plan.present += group.looked_for + len(group.trees) - len(group.away)
    found.check()
    return plan


def _cut_short(plan: Plan, group: HashGroup, away: set[str]) -> set[str]:
    """Find files on a remote folder whose size differs from the cache's, although their manifest is there.

    A power cut or a full disk may have truncated files that the manifest stands for. In a folder, sizes are cheap to
    read.
    """
    if not plan.remote.is_folder:
        return set()
    near = [
        digest
        for digest, root in sorted(group.trees.items())
        if digest not in away
        and (root.content.nfiles or 0) <= _NEAR
        and plan.cache.exists(digest, group.hash_name)
    ]
    members: dict[str, list[str]] = {}
    for digest in near:
        with suppress(DvkfError):
            members[digest] = plan.tree(digest, group.hash_name).digests
    wanted = {digest for digests in members.values() for digest in digests}
    there = plan.remote.sizes(wanted, group.hash_name, expected=True)
    wrong = _damaged(plan.cache, there, group.hash_name)
    if wrong:
        group.opened += [digest for digest in near if not wrong.isdisjoint(members.get(digest, ()))]
    return wrong


def _away(plan: Plan, digests: Iterable[str], hash_name: str) -> set[str]:
    """Return the digests missing from the remote; for a folder, also those with a size other than the cache's."""
    wanted = set(digests)
    if not plan.remote.is_folder:
        return plan.remote.missing(wanted, hash_name)
    there = plan.remote.sizes(wanted, hash_name)
    return (wanted - there.keys()) | _damaged(plan.cache, there, hash_name)


def _damaged(cache: Cache, there: Mapping[str, int], hash_name: str) -> set[str]:
    """Return the digests whose size on a remote is not the cache's, or implausible if the cache lacks them.

    Args:
        cache: The cache.
        there: Sizes on the remote in bytes, by digest.
        hash_name: ``md5`` or ``md5-dos2unix``.
    """
    # One stat an object, on a path made here: a push with nothing to send spends most of its time in this loop.
    stat, near = os.stat, f"{cache.root}/{'' if hash_name == LEGACY else 'files/md5/'}"
    damaged = set()
    for digest, size in there.items():
        try:
            if stat(f"{near}{digest[:2]}/{digest[2:]}").st_size == size and size:
                continue
        except OSError:
            pass
        if not is_plausible(digest, size, _size_of(cache, digest, hash_name) or None):
            damaged.add(digest)
    return damaged


def _tree_of(plan: Plan, group: HashGroup, digest: str, *, on_remote: bool) -> Tree:
    """Return a manifest from the cache, else from the remote; the remote's is kept in the plan."""
    try:
        return plan.cache.read_tree(digest, group.hash_name)
    except MissingObjectError:
        if not on_remote:
            raise MissingObjectError(
                f"the manifest {digest} is neither in the cache nor on the remote '{plan.remote.name}'. Run "
                "`dvkf add` for the directory again, or `dvkf push` in a clone that has it."
            ) from None
    tree = plan._trees[digest] = read_manifest(digest, group.hash_name, remotes=[plan.remote])
    return tree


def plan_fetch(
    outputs: Sequence[Output],
    cache: Cache,
    remote: Remote,
    *,
    parts: Parts | None = None,
    check: bool = False,
) -> Plan:
    """Plan a fetch; manifests that are missing from the cache are downloaded first.

    Args:
        outputs: Outputs to fetch.
        cache: Destination.
        remote: Source of the objects.
        parts: Selected paths inside an output, by the path of the output; all of it otherwise.
        check: Query the remote for the size of each object to find missing ones; the cache is not changed.

    Raises:
        ObjectError: There are too many objects to fetch at once.
        OutputNotFoundError: A selected path does not exist in its output.
        RemoteError: The remote cannot be used.
    """
    # Outputs with push: false may be on the remote from earlier; fetch them if so, without failing.
    kept_off = [output for output in outputs if not output.pushed]
    pushed = [output for output in outputs if output.pushed]
    plan = Plan("fetch", cache, remote, _groups(pushed, parts, kept_off))
    found = _Parts()
    for group in plan.groups:
        failed = _bring_manifests(plan, group, keep=not check)
        wanted: set[str] = set(group.files)
        looked = 0
        for digest in sorted(group.trees):
            if digest in failed:
                continue
            root = group.trees[digest]
            try:
                tree = plan.tree(digest, group.hash_name)
            except (ObjectError, ParseError, UnsafePathError) as error:
                failed[digest] = error
                continue
            group.opened.append(digest)
            wanted.update(found.choose(root, tree))
            if len(wanted) > looked + manifest_rows.most_objects():
                looked = len(wanted)
                _check_number(cache.missing(wanted, group.hash_name, look=False))
        sizes = {
            digest: root.content.size for digest, root in group.files.items() if root.content.size is not None
        }
        absent = cache.missing(wanted, group.hash_name, sizes=sizes)
        group.looked_for = len(wanted)
        plan.present += len(wanted) - len(absent)
        plan.fail(group, failed)
        if check:
            known = remote.sizes(absent, group.hash_name)
            plan._sizes = {**(plan._sizes or {}), **known}
            group.absent = absent.difference(known)
            plan.fail(group, {digest: not_there(digest, remote) for digest in group.absent})
            absent &= known.keys()
        group.digests = sorted(absent)
    found.check()
    return plan


def _check_number(absent: Collection[str]) -> None:
    """Refuse to fetch more objects at once than the memory limit allows.

    Raises:
        ObjectError: There are more objects.
    """
    if len(absent) > manifest_rows.most_objects():
        raise ObjectError(
            f"at least {len(absent):,} objects would be fetched; the limit is "
            f"{manifest_rows.most_objects():,} at once. Fetch fewer outputs at a time, or allow more: "
            f"{manifest_rows.more()}"
        )


def _bring_manifests(plan: Plan, group: HashGroup, *, keep: bool) -> dict[str, DvkfError | str]:
    """Read the manifests that are missing from the cache from the remote; return the errors by digest."""
    absent = sorted(plan.cache.missing(group.trees, group.hash_name))
    plan.present += len(group.trees) - len(absent)
    if keep:
        moved = move("fetch", absent, group.hash_name, plan.cache, plan.remote)
        plan.brought = (plan.brought[0] + moved.files, plan.brought[1] + moved.size)
        return dict(moved.failed)
    failed: dict[str, DvkfError | str] = {}
    for digest in absent:
        try:
            plan._trees[digest] = read_manifest(digest, group.hash_name, remotes=[plan.remote])
        except MissingObjectError:
            failed[digest] = not_there(digest, plan.remote)
        except (ObjectError, ParseError, UnsafePathError) as error:
            failed[digest] = error
    return failed


def _size_of(cache: Cache, digest: str, hash_name: str) -> int:
    with suppress(OSError):
        return os.stat(f"{cache.root}/{object_key(digest, hash_name)}").st_size
    # A cache may read objects from more than one folder.
    with suppress(OSError):
        return cache.path(digest, hash_name).stat().st_size
    return 0
