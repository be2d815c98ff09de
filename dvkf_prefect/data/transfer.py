"""Objects between the cache and a remote: planned first, then moved, bounded, resumable, each one verified."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dvkf_prefect.data.digest import digest_file, raise_disk_full
from dvkf_prefect.data.outputs import Output
from dvkf_prefect.data.remotes.base import Storage
from dvkf_prefect.data.store import MD5, Cache, object_key
from dvkf_prefect.data.tree import SUFFIX, Tree, is_tree
from dvkf_prefect.errors import (
    CorruptObjectError,
    DiskFullError,
    DvkfError,
    MissingObjectError,
    ObjectError,
    ParseError,
    RemoteError,
    TransferError,
)

# Below this many unknown objects each is asked for by name; above it the remote is listed.
_ASK_EACH = 64
# Up to this many bytes an object is sent from memory.
_SMALL = 1 << 20
_NOT_THERE = "{} is not on the remote; push it from where it is"


class Progress(Protocol):
    """Is told how a transfer goes, from several threads."""

    def start(self, label: str, files: int, size: int) -> None:
        """The plan: how many files and bytes there are to move."""

    def advance(self, files: int, size: int) -> None:
        """So many more files and bytes are done."""

    def finish(self) -> None:
        """Nothing more will come."""


class Move(Protocol):
    """`push` or `fetch`."""

    def __call__(
        self,
        outputs: Sequence[Output],
        cache: Cache,
        remote: Remote,
        *,
        jobs: int | None = None,
        progress: Progress | None = None,
    ) -> Transfer:
        """Move the outputs' objects between the cache and the remote."""


class Remote:
    """A remote of a repository: a storage whose blobs are named by digest.

    Args:
        name: Its name in the configuration.
        storage: Where the blobs are.
        jobs: How many transfers at once; None for what suits the storage.
    """

    def __init__(self, name: str, storage: Storage, *, jobs: int | None = None) -> None:
        self.name = name
        self.storage = storage
        self.url = storage.url
        self.jobs = jobs or storage.jobs

    def __repr__(self) -> str:
        return f"Remote({self.name!r}, {self.url!r})"

    def __str__(self) -> str:
        return f"remote '{self.name}' ({self.url})"

    def missing(self, digests: Iterable[str], hash_name: str = MD5, *, jobs: int | None = None) -> set[str]:
        """Return those of ``digests`` that are not on the remote."""
        wanted = sorted(set(digests))
        if len(wanted) <= _ASK_EACH:
            with ThreadPoolExecutor(min(jobs or self.jobs, len(wanted) or 1)) as pool:
                sizes = pool.map(lambda digest: self.storage.size(object_key(digest, hash_name)), wanted)
                return {digest for digest, size in zip(wanted, sizes, strict=True) if size is None}
        prefix = "files/md5" if hash_name == MD5 else ""
        skip = len(prefix) + 1 if prefix else 0
        there = {key[skip : skip + 2] + key[skip + 3 :] for key, _ in self.storage.list(prefix)}
        return {digest for digest in wanted if digest not in there}


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a transfer did.

    Attributes:
        remote: The remote's name.
        files: Objects moved, manifests included.
        size: Bytes moved.
        present: Objects that were there already.
    """

    remote: str
    files: int = 0
    size: int = 0
    present: int = 0

    def __add__(self, other: Transfer) -> Transfer:
        names = self.remote if self.remote == other.remote else f"{self.remote},{other.remote}"
        return Transfer(names, self.files + other.files, self.size + other.size, self.present + other.present)


@dataclass(slots=True)
class _Plan:
    """Objects of one hash kind to move: the file of an output each belongs to, and the manifests that come last."""

    hash_name: str
    files: dict[str, str] = field(default_factory=dict)
    trees: dict[str, str] = field(default_factory=dict)
    members: dict[str, Tree] = field(default_factory=dict)


def push(
    outputs: Sequence[Output],
    cache: Cache,
    remote: Remote,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Transfer:
    """Bring outputs to a remote: files first, each manifest after all of its files.

    A manifest that is on the remote vouches for its files, as it does for DVC.

    Raises:
        TransferError: Some objects failed; all others arrived, and no manifest whose files did not.
        RemoteError: The remote cannot be used at all.
    """
    total = Transfer(remote.name)
    for plan in _plans(outputs):
        trees_missing = remote.missing(plan.trees, plan.hash_name, jobs=jobs)
        failures: dict[str, str] = {}
        candidates = dict(plan.files)
        for digest in sorted(trees_missing):
            try:
                tree = cache.read_tree(digest, plan.hash_name)
            except (ObjectError, ParseError) as error:
                failures[plan.trees[digest]] = str(error)
                continue
            plan.members[digest] = tree
            for relpath, member in tree.items():
                candidates.setdefault(member, f"{plan.trees[digest]}/{relpath}")
        missing = remote.missing(candidates, plan.hash_name, jobs=jobs) if candidates else set()
        absent = cache.missing(missing, plan.hash_name)
        failures.update(
            {
                candidates[d]: f"{d} is neither in the cache nor on the remote; `dvkf add` it again"
                for d in absent
            }
        )
        order = sorted(missing - absent)
        sizes = {digest: cache.path(digest, plan.hash_name).stat().st_size for digest in order}
        if progress and (order or plan.members):
            progress.start(f"push to {remote.name}", len(order) + len(plan.members), sum(sizes.values()))

        def send(digest: str, plan: _Plan = plan) -> int:
            return _upload(cache, remote.storage, digest, plan.hash_name)

        moved, failed = _move(order, send, jobs or remote.jobs, progress)
        failures.update({candidates[digest]: message for digest, message in failed.items()})
        lost = set(failed) | absent
        whole = [d for d, tree in plan.members.items() if lost.isdisjoint(tree.digests)]
        moved_trees, failed = _move(whole, send, jobs or remote.jobs, progress)
        failures.update({plan.trees[digest]: message for digest, message in failed.items()})
        if progress:
            progress.finish()
        done = len(moved) + len(moved_trees)
        present = len(candidates) + len(plan.trees) - len(order) - len(trees_missing) - len(absent)
        total += Transfer(remote.name, done, sum(moved.values()) + sum(moved_trees.values()), present)
        if failures:
            raise TransferError(str(remote), failures)
    return total


def fetch(
    outputs: Sequence[Output],
    cache: Cache,
    remote: Remote,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Transfer:
    """Bring outputs from a remote into the cache; every object is verified before it enters.

    Raises:
        TransferError: Some objects are missing on the remote or damaged; all others arrived.
        RemoteError: The remote cannot be used at all.
    """
    total = Transfer(remote.name)
    partials = cache.partials()
    for plan in _plans(outputs):
        failures: dict[str, str] = {}

        def receive(digest: str, plan: _Plan = plan) -> int:
            return _download(cache, remote.storage, digest, plan.hash_name, partials)

        trees_missing = cache.missing(plan.trees, plan.hash_name)
        moved_trees, failed = _move(sorted(trees_missing), receive, jobs or remote.jobs, None)
        failures.update({plan.trees[digest]: message for digest, message in failed.items()})
        candidates = dict(plan.files)
        for digest, path in plan.trees.items():
            if digest in failed:
                continue
            try:
                tree = cache.read_tree(digest, plan.hash_name)
            except (ObjectError, ParseError) as error:
                failures[path] = str(error)
                continue
            for relpath, member in tree.items():
                candidates.setdefault(member, f"{path}/{relpath}")
        order = sorted(cache.missing(candidates, plan.hash_name))
        if progress and order:
            progress.start(f"fetch from {remote.name}", len(order), 0)
        moved, failed = _move(order, receive, jobs or remote.jobs, progress)
        failures.update({candidates[digest]: message for digest, message in failed.items()})
        if progress:
            progress.finish()
        present = len(candidates) + len(plan.trees) - len(order) - len(trees_missing)
        size = sum(moved.values()) + sum(moved_trees.values())
        total += Transfer(remote.name, len(moved) + len(moved_trees), size, present)
        if failures:
            raise TransferError(str(remote), failures)
    return total


def _plans(outputs: Sequence[Output]) -> list[_Plan]:
    plans: dict[str, _Plan] = {}
    for output in outputs:
        if not output.digest or not output.cached:
            continue
        plan = plans.setdefault(output.hash_name, _Plan(output.hash_name))
        (plan.trees if is_tree(output.digest) else plan.files).setdefault(output.digest, output.path)
    return list(plans.values())


def _move(
    order: list[str], action: Callable[[str], int], jobs: int, progress: Progress | None
) -> tuple[dict[str, int], Mapping[str, str]]:
    """Run ``action`` on each digest, a few at once.

    Returns the bytes of those that went well and the messages of those that did not. An error that concerns the remote
    or the disk as a whole stops the rest and is raised.
    """
    moved: dict[str, int] = {}
    failed: dict[str, str] = {}
    if not order:
        return moved, failed
    rest = iter(order)
    lock = threading.Lock()
    fatal: list[BaseException] = []

    def work() -> None:
        while not fatal:
            with lock:
                digest = next(rest, None)
            if digest is None:
                return
            try:
                size = action(digest)
            except (RemoteError, DiskFullError) as error:
                fatal.append(error)
                return
            except DvkfError as error:
                failed[digest] = str(error)
                size = 0
            except BaseException as error:
                fatal.append(error)
                raise
            else:
                moved[digest] = size
            if progress:
                progress.advance(1, size)

    workers = max(1, min(jobs, len(order)))
    with ThreadPoolExecutor(workers, thread_name_prefix="dvkf-transfer") as pool:
        running = [pool.submit(work) for _ in range(workers)]
        try:
            for future in running:
                future.result()
        except BaseException as error:
            # An interruption of this thread ends the others after the object they are at.
            fatal.append(error)
            raise
    if fatal:
        raise fatal[0]
    return moved, failed


def _upload(cache: Cache, storage: Storage, digest: str, hash_name: str) -> int:
    """Send one object, after making sure that it is what its name says."""
    key = object_key(digest, hash_name)
    path = cache.path(digest, hash_name)
    size = path.stat().st_size
    if size <= _SMALL:
        storage.write(key, cache.read_bytes(digest, hash_name))
        return size
    if hash_name == MD5 and digest_file(path) != digest.removesuffix(SUFFIX):
        raise CorruptObjectError(
            f"{path} does not hash to its name; nothing was sent. `dvkf fetch` or add it again."
        )
    storage.upload(key, path)
    return size


def _download(cache: Cache, storage: Storage, digest: str, hash_name: str, partials: dict[str, Path]) -> int:
    """Receive one object; what arrived of a large one before an interruption is kept for the next run."""
    key = object_key(digest, hash_name)
    place = storage.local_path(key)
    if place is not None:
        try:
            return cache.copy_in(place, digest, hash_name)
        except FileNotFoundError:
            storage.size(key)  # says so when it is the folder itself that is gone
            raise MissingObjectError(_NOT_THERE.format(digest)) from None
        except CorruptObjectError as error:
            raise CorruptObjectError(f"{digest} is damaged on the remote ({error})") from None
    temporary = cache.partial(digest)
    md5 = hashlib.md5(usedforsecurity=False)
    start = 0
    left = partials.pop(digest, None)
    if left is not None:
        os.replace(left, temporary)
        with open(temporary, "rb") as stream:
            while chunk := stream.read(1 << 20):
                md5.update(chunk)
                start += len(chunk)
    try:
        with open(temporary, "ab", buffering=0) as stream:
            for chunk in storage.stream(key, start=start):
                md5.update(chunk)
                _write_all(stream.fileno(), chunk)
            size = stream.tell()
    except MissingObjectError:
        temporary.unlink(missing_ok=True)
        raise MissingObjectError(_NOT_THERE.format(digest)) from None
    except OSError as error:
        raise_disk_full(error, temporary)
        raise
    found = md5.hexdigest()
    if hash_name == MD5 and found != digest.removesuffix(SUFFIX):
        temporary.unlink(missing_ok=True)
        if start:
            return _download(cache, storage, digest, hash_name, {})
        raise CorruptObjectError(
            f"{digest} is damaged on the remote (its bytes hash to {found}); it was not taken in"
        )
    cache.adopt(temporary, digest, hash_name)
    return size


def _write_all(descriptor: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]


def cloud_status(
    outputs: Sequence[Output], cache: Cache, remote: Remote, *, jobs: int | None = None
) -> dict[str, str]:
    """Compare the cache with a remote.

    Returns:
        For each path that is not on both: ``new`` (only in the cache), ``deleted`` (only on the remote) or ``missing``
        (on neither).

    Raises:
        RemoteError: The remote cannot be used.
    """
    states: dict[str, str] = {}
    for plan in _plans([output for output in outputs if output.pushed]):
        wanted = {**plan.trees, **plan.files}
        unknown = remote.missing(plan.trees, plan.hash_name, jobs=jobs)
        for digest in unknown:
            with suppress(ObjectError):
                for relpath, member in cache.read_tree(digest, plan.hash_name).items():
                    wanted.setdefault(member, f"{plan.trees[digest]}/{relpath}")
        rest = {digest: path for digest, path in wanted.items() if digest not in plan.trees}
        away = unknown | (remote.missing(rest, plan.hash_name, jobs=jobs) if rest else set())
        absent = cache.missing(wanted, plan.hash_name)
        for digest in away | absent:
            if digest in away and digest in absent:
                states[wanted[digest]] = "missing"
            else:
                states[wanted[digest]] = "new" if digest in away else "deleted"
    return dict(sorted(states.items()))
