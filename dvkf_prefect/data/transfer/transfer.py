"""Execution of transfers between the cache and a remote: bounded, resumable, and verified object by object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dvkf_prefect import durability
from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.progress import NAMED, NO_PROGRESS, Progress
from dvkf_prefect.data.remotes.remote import Remote
from dvkf_prefect.data.transfer.move import MOST_FAILED, move
from dvkf_prefect.data.transfer.plan import Parts, Plan, plan_fetch, plan_push
from dvkf_prefect.errors import TransferError
from dvkf_prefect.formats.outputs import Output

__all__ = ["Progress", "Remote", "Transfer", "cloud_status", "execute", "fetch", "push"]


@dataclass(frozen=True, slots=True)
class Transfer:
    """Result of a transfer.

    Attributes:
        remote: Name of the remote.
        files: Number of objects transferred, including manifests.
        size: Bytes transferred.
        present: Number of objects that the destination already had.
        arrived: Digests of the outputs that are whole at the destination now and were not there before.
    """

    remote: str
    files: int = 0
    size: int = 0
    present: int = 0
    arrived: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    def __add__(self, other: Transfer) -> Transfer:
        names = self.remote if self.remote == other.remote else f"{self.remote},{other.remote}"
        return Transfer(
            names,
            self.files + other.files,
            self.size + other.size,
            self.present + other.present,
            self.arrived | other.arrived,
        )


def execute(plan: Plan, *, progress: Progress = NO_PROGRESS) -> Transfer:
    """Execute a plan, and add the failures to it.

    A push uploads files first, and each manifest after all of its files. A fetch has read the manifests already.

    Args:
        plan: The plan.
        progress: Called as files and bytes complete.

    Raises:
        RemoteError: The remote cannot be used at all; objects that arrived are kept.
        DiskFullError: The disk is full; objects that arrived are kept.
    """
    files, size = plan.brought
    arrived: set[str] = set()
    if plan:
        way = "to" if plan.direction == "push" else "from"
        progress.start(f"{plan.direction} {way} {plan.remote.name}", plan.files, plan.expected())
    few = plan.files <= NAMED and progress is not NO_PROGRESS
    try:
        for group in plan.groups:
            names = plan.names(group, group.digests) if few else {}
            moved = move(
                plan.direction,
                group.digests,
                group.hash_name,
                plan.cache,
                plan.remote,
                limits=group.limits(),
                progress=progress,
                names={digest: name for digest, (_, name) in names.items()},
            )
            files, size = files + moved.files, size + moved.size
            plan.fail(group, moved.failed)
            if moved.is_hopeless:
                plan.failures["all others"] = (
                    f"{MOST_FAILED:,} objects failed at {plan.remote}; the transfer was stopped"
                )
                continue
            arrived.update((group.files.keys() & group.digests) - moved.failed.keys())
            lost = group.absent.union(moved.failed)
            # A manifest on the remote stands for its files, so those must be durable first.
            durability.flush()
            whole = [
                digest
                for digest in group.manifests
                if not lost or lost.isdisjoint(plan.tree(digest, group.hash_name).digests)
            ]
            moved = move(plan.direction, whole, group.hash_name, plan.cache, plan.remote, progress=progress)
            files, size = files + moved.files, size + moved.size
            plan.fail(group, moved.failed)
            arrived.update(set(whole) - moved.failed.keys())
        durability.flush()
    finally:
        progress.finish()
    return Transfer(plan.remote.name, files, size, plan.present, frozenset(arrived))


def push(
    outputs: Sequence[Output],
    cache: Cache,
    remote: Remote,
    *,
    parts: Parts | None = None,
    deep: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Transfer:
    """Upload outputs to a remote: files first, each manifest after all of its files; see `plan_push`.

    Raises:
        TransferError: Some objects failed; all others arrived, except manifests with failed files.
        RemoteError: The remote cannot be used at all.
    """
    plan = plan_push(outputs, cache, remote, parts=parts, deep=deep)
    done = execute(plan, progress=progress)
    if plan.failures:
        raise TransferError(str(remote), plan.failures)
    return done


def fetch(
    outputs: Sequence[Output],
    cache: Cache,
    remote: Remote,
    *,
    parts: Parts | None = None,
    progress: Progress = NO_PROGRESS,
) -> Transfer:
    """Download outputs from a remote into the cache, verifying each object before it is stored; see `plan_fetch`.

    Raises:
        TransferError: Some objects are missing or damaged on the remote; all others arrived.
        RemoteError: The remote cannot be used at all.
    """
    plan = plan_fetch(outputs, cache, remote, parts=parts)
    done = execute(plan, progress=progress)
    if plan.failures:
        raise TransferError(str(remote), plan.failures)
    return done


def cloud_status(
    outputs: Sequence[Output],
    cache: Cache,
    remote: Remote,
    *,
    parts: Parts | None = None,
    deep: bool = False,
) -> dict[str, str]:
    """Compare the cache with a remote.

    Args:
        outputs: Outputs to check; those with ``push: false`` are skipped.
        cache: The cache.
        remote: The remote.
        parts: Selected paths inside an output, by the path of the output; all of it otherwise.
        deep: Check the files of manifests that are on the remote too.

    Returns:
        State of each path that is not in both: ``new`` (only in the cache), ``deleted`` (only on the remote) or
        ``missing`` (in neither).

    Raises:
        RemoteError: The remote cannot be used.
    """
    states: dict[str, str] = {}
    plan = plan_push([o for o in outputs if o.pushed], cache, remote, parts=parts, deep=deep)
    for group in plan.groups:
        wanted = {*group.files, *group.trees}
        for digest in group.opened:
            wanted.update(plan.tree(digest, group.hash_name).digests)
        absent = cache.missing(wanted, group.hash_name)
        for digest, (_, name) in plan.names(group, group.away | absent).items():
            if digest in group.away:
                states[name] = "missing" if digest in absent else "new"
            else:
                states[name] = "deleted"
    return dict(sorted(states.items()))
