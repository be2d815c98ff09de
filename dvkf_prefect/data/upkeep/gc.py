"""Garbage collection: remove unused objects from the cache and, on request, from a remote.

As in ``dvc gc``, all objects are kept that the workspace and the chosen commits track. They include the files of every
manifest. The same holds for the other named repositories. Imports from other repositories are also kept, and so are
objects named in `.dvc` files that git ignores; DVC removes both. The run cache (``runs/``) is never changed. As in
DVC, objects that only the run cache names are removed, unless ``run_cache`` keeps them. Files without an object's name
are kept.

In these cases DVC may lose data; this collection refuses instead, and removes nothing:

- The cache is outside the repository, or another repository left a mark in it (see `cache_users`). Name the other
  repositories, or pass ``assume_unshared`` if there are none.
- A used manifest is neither in a cache nor on a remote, so its files are unknown. DVC removes them after a question,
  or without one with ``-f``.
- Another project left a mark on the remote (see `remote_users`). Name a clone of it, or pass ``assume_unshared``.
- The remote has objects that none of the named repositories knows, so another user exists. DVC removes those objects.
  See `owners` for the meaning of "known"; ``assume_unshared`` skips the check.

A cache is collected while no other process works in it. Immediately before the removal, each place is listed again:
objects that changed in the meantime are kept, and so are the files of new manifests.

An object added or changed less than ``grace`` seconds before the start is kept: a running push or stage may need it.
If it is a manifest, its files are kept too, because a manifest on a remote stands for its files.

Stages that run on a cluster leave their sources and results below ``dvkf/`` of a remote. A collection there removes
everything older than the longest possible run (`RUN_AGE`), from any project. All of it can be recreated.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from dvkf_prefect.data.git.history import History
from dvkf_prefect.data.repository import cache_users
from dvkf_prefect.data.repository.described import left_out_described, workspace_described
from dvkf_prefect.data.transfer import remote_users
from dvkf_prefect.data.transfer.manifests import Manifest, Manifests, distinct
from dvkf_prefect.data.upkeep.inventory import FolderInventory, Inventory, inventory_of
from dvkf_prefect.data.upkeep.owners import NamedRepo, Notes, named_keys, run_keys, unknown
from dvkf_prefect.errors import (
    ConfigError,
    DvkfError,
    MissingObjectError,
    ObjectError,
    ParseError,
    RemoteError,
)
from dvkf_prefect.formats.objects import LEGACY, MD5, identity, keys_of
from dvkf_prefect.formats.tree import SUFFIX, Tree, is_tree

if TYPE_CHECKING:
    from dvkf_prefect.data.git.command import Git
    from dvkf_prefect.data.repository.repository import Repository
    from dvkf_prefect.data.transfer.transfer import Remote

GRACE = 3600.0
"""Minimum age in seconds before an object is removed from a cache or remote that others write to."""
RUN_AGE = 8 * 86_400.0
"""Minimum age in seconds of a cluster run's files before removal; a run is ended after seven days."""
_RUNS = "dvkf"
_SHOWN = 5
_BATCH = 1000
_JOBS = 4
_WAIT = 60.0


@dataclass(frozen=True, slots=True)
class GcScope:
    """Commits whose data is kept in addition to the workspace's; the options have DVC's names.

    Attributes:
        workspace: Keep the workspace only.
        all_branches: Keep the tips of all branches.
        all_tags: Keep all tags.
        all_commits: Keep all commits of branches, remote branches and tags.
        all_experiments: Keep all experiments that ``dvc exp`` saved.
        rev: Keep this revision.
        num: Number of commits to keep back from ``rev`` and from each branch, including the first.
        date: Keep all commits of this day (``yyyy-mm-dd``) and later.
    """

    workspace: bool = False
    all_branches: bool = False
    all_tags: bool = False
    all_commits: bool = False
    all_experiments: bool = False
    rev: str | None = None
    num: int | None = None
    date: str | None = None

    def check(self) -> None:
        """Check that the scope is not empty and its options are consistent.

        Raises:
            ConfigError: The scope is empty or contradictory.
        """
        commits = self.all_branches or self.all_tags or self.all_commits or self.all_experiments
        if not (self.workspace or commits or self.date or self.rev):
            raise ConfigError(
                "Either of `-w|--workspace`, `-a|--all-branches`, `-T|--all-tags` "
                "`--all-experiments`, `--all-commits`, `--date` or `--rev` needs to be set."
            )
        if self.num and not (self.rev or self.all_branches):
            raise ConfigError("`--num` can only be used alongside `--rev` or `--all-branches`")
        if self.date:
            self._midnight()

    def _midnight(self) -> float:
        try:
            return datetime.strptime(self.date or "", "%Y-%m-%d").timestamp()
        except ValueError:
            raise ConfigError(f"'{self.date}' is not a date. Write it as yyyy-mm-dd.") from None

    def commits(self, repo: Repository) -> list[str]:
        """Return the commits without duplicates.

        Raises:
            GitError: The revision does not exist.
            ConfigError: The scope includes commits, but the repository has no git.
        """
        wanted = (
            self.rev,
            self.all_branches,
            self.all_tags,
            self.all_commits,
            self.all_experiments,
            self.date,
        )
        if not any(wanted):
            return []
        git = repo.git
        if git is None:
            raise ConfigError(f"{repo.root} has no git history, so only -w/--workspace can be used")
        return list(dict.fromkeys(self._commits(git)))

    def _commits(self, git: Git) -> Iterator[str]:
        from dvkf_prefect.data.git.command import revisions_of

        back = str(self.num or 1)

        def last(rev: str) -> list[str]:
            return git.run("rev-list", "--first-parent", "-n", back, git.resolve(rev), "--").split()

        if self.rev and self.rev != "workspace":
            yield from last(self.rev)
        if self.all_commits:
            yield from revisions_of(git, all_commits=True)
        else:
            if self.all_branches:
                for rev in revisions_of(git, all_branches=True):
                    yield from last(rev)
            if self.all_tags:
                yield from map(git.resolve, revisions_of(git, all_tags=True))
            if self.date:
                since = self._midnight()
                heads = [head] if (head := git.head()) else []
                listed = git.run("rev-list", "--timestamp", "--branches", "--remotes", "--tags", *heads)
                for line in listed.splitlines():
                    seconds, _, commit = line.partition(" ")
                    if int(seconds) >= since:
                        yield commit
        if self.all_experiments:
            for ref in git.run("for-each-ref", "--format=%(refname)", "refs/exps/").splitlines():
                parts = ref.split("/")
                if len(parts) >= 5 and len(parts[2]) == 2 and len(parts[3]) == 38:
                    yield from git.run("rev-list", ref, f"^{parts[2]}{parts[3]}", "--").split()


@dataclass(frozen=True, slots=True)
class Removed:
    """Result of a collection, or of its dry run, in one place.

    Attributes:
        place: ``repo`` or ``legacy`` (DVC's names for the two layouts of the cache), or the remote's name; ``/dvkf`` is
            appended for the files of cluster runs.
        remote: True for a remote.
        objects: Number of objects removed.
        size: Bytes removed.
        kept: Number of objects kept.
        young: Number of unused objects kept because they are too new.
        names: Path or url of each object that would be removed, in a dry run.
    """

    place: str
    remote: bool
    objects: int
    size: int
    kept: int
    young: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GarbageCollection:
    """Result of a collection or its dry run; falsy if there was nothing to remove.

    Attributes:
        places: One entry for each layout of each place.
        dry: True for a dry run.
        skipped: With ``skip_failed``, the errors that made some data unknown; that data was not kept.
    """

    places: tuple[Removed, ...]
    dry: bool = False
    skipped: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.objects > 0

    @property
    def objects(self) -> int:
        """Number of objects removed."""
        return sum(place.objects for place in self.places)

    @property
    def size(self) -> int:
        """Bytes removed."""
        return sum(place.size for place in self.places)

    @property
    def kept(self) -> int:
        """Number of objects kept."""
        return sum(place.kept for place in self.places)

    @property
    def young(self) -> int:
        """Number of unused objects kept because they are too new."""
        return sum(place.young for place in self.places)


@dataclass(slots=True)
class _Used:
    """Keys of the used objects, by the remote that the output names."""

    keys: dict[str | None, set[str]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def add(self, remote: str | None, keys: Iterable[str]) -> None:
        self.keys.setdefault(remote, set()).update(keys)

    def all(self) -> set[str]:
        return set().union(*self.keys.values())


@dataclass(slots=True)
class _Place:
    """A cache or a remote, and the objects to remove from it."""

    name: str
    inventory: Inventory
    keys: set[str]
    grace: float
    remote: Remote | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    times: dict[str, float | None] = field(default_factory=dict)
    young: set[str] = field(default_factory=set)
    # True if all objects above are known to belong to the named repositories.
    proven: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GcOptions:
    """Options of a garbage collection.

    Attributes:
        cloud: Remove from the remote too.
        remote: Name of the remote; None for the default one and those that outputs name.
        projects: Other repositories whose data is kept too, with the same scope; any folder in each.
        dry_run: Return what would be removed without removing it.
        not_in_remote: Remove used objects too, if they are on the remote.
        skip_failed: Continue if a file or manifest cannot be read, instead of refusing; its data is not kept.
        run_cache: Keep the objects that the run cache names, too.
        grace: Keep objects that were added or changed within this many seconds. None for one hour in shared
            places and 0 in the repository's own cache.
        assume_unshared: Assume that no other repository uses the cache or the remote, despite any marks in it.
    """

    cloud: bool = False
    remote: str | None = None
    projects: Sequence[str | os.PathLike[str]] = ()
    dry_run: bool = False
    not_in_remote: bool = False
    skip_failed: bool = False
    run_cache: bool = False
    grace: float | None = None
    assume_unshared: bool = False


def collect_garbage(repo: Repository, scope: GcScope, options: GcOptions | None = None) -> GarbageCollection:
    """Implement `Repo.gc`.

    Raises:
        ConfigError: The scope is empty, or options contradict each other.
        MissingObjectError: A used manifest cannot be read, so its files are unknown; nothing was removed.
        ObjectError: Other repositories use the cache, or may use it; nothing was removed.
        ParseError: A file that tracks data cannot be read; nothing was removed.
        RemoteError: The remote cannot be used, or other repositories use it; nothing was removed.
    """
    options = options or GcOptions()
    cloud, remote, grace, dry_run = options.cloud, options.remote, options.grace, options.dry_run
    not_in_remote, assume_unshared = options.not_in_remote, options.assume_unshared
    scope.check()
    if cloud and not_in_remote:
        raise ConfigError("`--not-in-remote` and `--cloud` are mutually exclusive")
    with ExitStack() as stack:
        repos = _open(repo, options.projects)
        # Sorted, so that two collections that name each other's repositories do not deadlock.
        for each in sorted(repos, key=lambda each: each.root):
            stack.enter_context(each.lock())
        if not assume_unshared:
            cache_users.check(repo, repos)
        if not dry_run:
            stack.enter_context(cache_users.collecting(repo.cache.root, _WAIT))
        named_repos = []
        for each in repos:
            history = stack.enter_context(History(each.git, each.git_prefix)) if each.git else None
            named_repos.append(NamedRepo(each, history))
        started = _now()
        # List objects before reading the used ones, so that objects pushed in the meantime are not candidates.
        local = _Place(
            "cache", FolderInventory(repo.cache.root), set(), _grace(grace, cache_users.is_own(repo))
        )
        local.keys = local.inventory.keys()
        places = [local]
        if cloud:
            places.append(_remote_place(repo, remote, grace))
        manifests = Manifests(repos, remote=remote)
        used = _used(named_repos, scope, manifests, options.skip_failed)
        if options.run_cache:
            used.add(None, run_keys(repo.cache.root))
        if cloud and remote is None:
            names = {name.lower() for name in used.keys if name is not None} - {places[-1].name}
            places += [_remote_place(repo, name, grace) for name in sorted(names)]
        keep = used.all()
        if not_in_remote:
            keep -= _on_remotes(repo, remote, used, local)
        for place in places:
            _choose(place, keep, started, manifests, repo)
        for place in places:
            if place.remote and place.sizes and not assume_unshared:
                _check_owner(place, named_repos, manifests, Notes(repo, f"{place.name} {place.remote.url}"))
                remote_users.check(place.remote, repos)
        if not dry_run:
            repo.cache.sweep()
            for place in places:
                _look_again(place, manifests, repo)
                if place.remote and place.sizes and not assume_unshared:
                    remote_users.check(place.remote, repos)
                _remove(place, repo)
        removed = [row for place in places for row in _report(place, dry_run)]
        for place in places:
            if place.remote and (row := _runs(place.remote, started - max(RUN_AGE, place.grace), dry_run)):
                removed.append(row)
        return GarbageCollection(tuple(removed), dry_run, tuple(used.skipped))


def _now() -> float:
    return time.time()


def _grace(given: float | None, own: bool) -> float:
    """Return the minimum age for removal; the repository's own cache needs none, because its lock is held."""
    if given is not None:
        return given
    return -math.inf if own else GRACE


def _open(repo: Repository, projects: Sequence[str | os.PathLike[str]]) -> list[Repository]:
    from dvkf_prefect.data.repository.repository import Repository

    repos = {repo.root.resolve(): repo}
    for path in projects:
        other = Repository.open(path)
        repos.setdefault(other.root.resolve(), other)
    return list(repos.values())


def _remote_place(repo: Repository, name: str | None, grace: float | None) -> _Place:
    remote = repo.remote(name)
    inventory = inventory_of(remote.storage)
    return _Place(remote.name, inventory, inventory.keys(), _grace(grace, False), remote)


def _used(named_repos: Sequence[NamedRepo], scope: GcScope, manifests: Manifests, skip_failed: bool) -> _Used:
    """Read the keys of all objects that the scope keeps.

    Raises:
        ParseError: A file cannot be read.
        MissingObjectError: A used manifest cannot be read.
    """
    used = _Used()
    wanted: list[Manifest] = []
    extra: list[Manifest] = []
    spelled: set[tuple[str, str]] = set()
    problems: list[tuple[str, DvkfError]] = []
    for each in named_repos:
        described = workspace_described(each.repo)
        left_out = left_out_described(each.repo, described)
        if commits := scope.commits(each.repo):
            assert each.history
            described += each.history.walk(commits)
        each.described += described
        for item in described:
            if item.error:
                problems.append((f"{each.repo.root}: {item.place}", item.error))
            for output in item.outputs:
                if output.digest and output.cached:
                    used.add(output.remote, named_keys(output))
                    if output.versions:
                        # The `.dvc` file lists the files; the manifest itself may never have been stored.
                        spelled.add((output.digest, output.hash_name))
        wanted += each.manifests(described)
        each.described += left_out
        for item in left_out:
            used.add(None, {key for output in item.outputs if output.cached for key in named_keys(output)})
        extra += each.manifests(left_out)
    if problems and not skip_failed:
        place, problem = problems[0]
        raise ParseError(
            place,
            f"cannot be read ({problem}), so the data that it uses is unknown and nothing was removed. "
            "Repair it, or skip it with --skip-failed",
        ) from problem
    used.skipped += [f"Failed to collect '{place}', skipping: {problem}" for place, problem in problems]
    known = {(manifest.digest, manifest.hash_name) for manifest in wanted}
    lost: list[str] = []
    for manifest, tree in manifests.read(distinct([*sorted(wanted, key=lambda each: each.imported), *extra])):
        name = manifest.digest, manifest.hash_name
        if isinstance(tree, Tree):
            used.add(manifest.remote if name in known else None, keys_of(tree.digests, manifest.hash_name))
        elif name not in known and isinstance(tree, ObjectError):
            continue  # its files are unknown without it
        elif not manifest.imported and name not in spelled:
            lost.append(f"'{manifest.path}': {tree}")
    if lost and not skip_failed:
        shown = "\n".join(f"  {text}" for text in sorted(lost)[:_SHOWN])
        more = f"\n  and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        raise MissingObjectError(
            f"{len(lost)} directory manifest(s) in use cannot be read, so the files that they list are "
            f"unknown; nothing was removed:\n{shown}{more}\nRun `dvkf fetch`, or pass --skip-failed to "
            "remove their files."
        )
    used.skipped += [f"Not keeping the files of {text}" for text in sorted(lost)]
    return used


def _on_remotes(repo: Repository, name: str | None, used: _Used, local: _Place) -> set[str]:
    """Return the used keys that are in the cache and, with the same size, on their remote."""
    there: set[str] = set()
    for group, keys in used.keys.items():
        remote = repo.remote(name or group)
        here = {key: size for key, size, _ in local.inventory.measure(keys & local.keys)}
        inventory = inventory_of(remote.storage)
        listed = inventory.keys() & here.keys()
        there.update(key for key, size, _ in inventory.measure(listed) if size == here[key])
    return there


def _choose(place: _Place, keep: set[str], started: float, manifests: Manifests, repo: Repository) -> None:
    """Add unused objects that are old enough to `_Place.sizes`, and the newer ones to `_Place.young`."""
    newest = started - place.grace
    for key, size, changed in place.inventory.measure(place.keys - keep):
        # An object of unknown age is only removed without a minimum age.
        if changed > newest if changed is not None else place.grace > 0:
            place.young.add(key)
        else:
            place.sizes[key] = size
            place.times[key] = changed
    _spare(place, place.young, manifests, repo)


def _look_again(place: _Place, manifests: Manifests, repo: Repository) -> None:
    """Exclude objects that changed since they were chosen, and the files of manifests added since."""
    if not place.sizes:
        return
    there = place.inventory.keys()
    stays = {
        key: changed == place.times[key] for key, _, changed in place.inventory.measure(list(place.sizes))
    }
    for key in [key for key in place.sizes if not stays.get(key)]:
        del place.sizes[key]
        if key in there:
            place.young.add(key)
    came = there - place.keys
    place.keys |= came
    place.young |= came
    _spare(place, came, manifests, repo)


def _spare(place: _Place, young: Iterable[str], manifests: Manifests, repo: Repository) -> None:
    """Exclude the files of manifests that are kept."""
    trees = [
        Manifest(digest, hash_name, digest, repo, place.name if place.remote else None)
        for digest, hash_name in map(identity, young)
        if is_tree(digest)
    ]
    for manifest, tree in manifests.read(trees):
        if isinstance(tree, Tree):
            for key in keys_of(tree.digests, manifest.hash_name):
                if place.sizes.pop(key, None) is not None:
                    place.young.add(key)
        elif isinstance(tree, RemoteError):
            raise tree


def _check_owner(place: _Place, named_repos: list[NamedRepo], manifests: Manifests, notes: Notes) -> None:
    """Check that no other repository uses the remote.

    Raises:
        RemoteError: The remote has objects that none of the named repositories knows.
    """
    assert place.remote
    foreign = unknown({*place.sizes, *place.young}, named_repos, manifests, notes.read())
    place.proven = not foreign
    if place.proven:
        return
    users = remote_users.others(place.remote, [each.repo for each in named_repos])
    marked = f" (it has marks of: {remote_users.shown(users)})" if users else ""
    trees = sum(1 for key in foreign if key.endswith(SUFFIX))
    examples = ", ".join(identity(key)[0] for key in sorted(foreign, key=_manifests_first)[:3])
    examples += ", …" if len(foreign) > 3 else ""
    raise RemoteError(
        f"{place.remote} holds {len(foreign)} object(s), {trees} of them directory manifests, that neither "
        f"the history nor the cache of {'this repository' if len(named_repos) == 1 else 'these repositories'} knows "
        f"({examples}). Other projects store data on it{marked}, so no object can be proven unused; nothing "
        "was removed. Name the other repositories with -p, get missing commits with "
        "`git fetch --all --tags`, or, if no other project uses this remote, pass --assume-unshared."
    )


def _manifests_first(key: str) -> tuple[bool, str]:
    return not key.endswith(SUFFIX), key


def _remove(place: _Place, repo: Repository) -> None:
    """Remove the chosen objects: manifests first, because a manifest on a remote stands for its files."""
    if not place.sizes:
        return
    notes = Notes(repo, f"{place.name} {place.remote.url}") if place.remote else None
    noted = notes.read() if notes else set()
    if notes:
        notes.write({*place.sizes, *noted, *(place.young if place.proven else ())})
    order = sorted(place.sizes)
    with ThreadPoolExecutor(repo.jobs or _JOBS, thread_name_prefix="dvkf-gc") as pool:
        for trees in (True, False):
            keys = [key for key in order if key.endswith(SUFFIX) == trees]
            batches = [keys[start : start + _BATCH] for start in range(0, len(keys), _BATCH)]
            list(pool.map(place.inventory.delete, batches))
    if notes:
        # Record the young objects as known, because their manifests may be removed now.
        notes.write(place.young if place.proven else place.young & noted)


def _report(place: _Place, dry: bool) -> Iterator[Removed]:
    for hash_name, name in ((MD5, "repo"), (LEGACY, "legacy")):

        def mine(key: str, hash_name: str = hash_name) -> bool:
            return key.startswith("files/") == (hash_name == MD5)

        gone = sorted(filter(mine, place.sizes), key=_manifests_first)
        names = tuple(place.inventory.name(key) for key in gone) if dry else ()
        size = sum(place.sizes[key] for key in gone)
        young = sum(map(mine, place.young))
        kept = sum(map(mine, place.keys)) - len(gone)
        yield Removed(
            place.name if place.remote else name,
            place.remote is not None,
            len(gone),
            size,
            kept,
            young,
            names,
        )


def _runs(remote: Remote, newest: float, dry: bool) -> Removed | None:
    """Remove the files of old cluster runs; return None if there are no runs."""
    old: dict[str, int] = {}
    kept = 0
    for key, size, changed in remote.storage.dated(_RUNS):
        if changed is not None and changed <= newest:
            old[key] = size
        else:
            kept += 1
    if not (old or kept):
        return None
    if not dry:
        remote.storage.delete(sorted(old))
    names = tuple(sorted(old)) if dry else ()
    return Removed(f"{remote.name}/{_RUNS}", True, len(old), sum(old.values()), kept, names=names)
