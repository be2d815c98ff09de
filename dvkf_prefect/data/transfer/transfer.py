"""Execution of transfers between the cache and a remote: bounded, resumable, and verified object by object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dvkf_prefect import durability
from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.progress import Progress
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
    """

    remote: str
    files: int = 0
    size: int = 0
    present: int = 0

    def __add__(self, other: Transfer) -> Transfer:
        names = self.remote if self.remote == other.remote else f"{self.remote},{other.remote}"
        return Transfer(names, self.files + other.files, self.size + other.size, self.present + other.present)


def execute(plan: Plan, *, jobs: int | None = None, progress: Progress | None = None) -> Transfer:
    """Execute a plan, and add the failures to it.

    A push uploads files first, and each manifest after all of its files. A fetch has read the manifests already.

    Args:
        plan: The plan.
        jobs: Number of parallel transfers; None for the remote's default.
        progress: Called as files and bytes complete.

    Raises:
        RemoteError: The remote cannot be used at all; objects that arrived are kept.
        DiskFullError: The disk is full; objects that arrived are kept.
    """
    files, size = plan.brought
    if progress and plan:
        way = "to" if plan.direction == "push" else "from"
        progress.start(f"{plan.direction} {way} {plan.remote.name}", plan.files, plan.expected())
    try:
        for batch in plan.batches:
            moved = move(
                plan.direction,
                batch.digests,
                batch.hash_name,
                plan.cache,
                plan.remote,
                limits=batch.limits(),
                jobs=jobs,
                progress=progress,
            )
            files, size = files + moved.files, size + moved.size
            plan.fail(batch, moved.failed)
            if moved.is_hopeless:
                plan.failures["all others"] = (
                    f"{MOST_FAILED:,} objects failed at {plan.remote}, so no more were tried"
                )
                continue
            lost = batch.absent.union(moved.failed)
            # A manifest on the remote stands for its files, so those must be durable first.
            durability.flush()
            whole = [
                digest
                for digest in batch.manifests
                if not lost or lost.isdisjoint(plan.tree(digest, batch.hash_name).digests)
            ]
            moved = move(
                plan.direction, whole, batch.hash_name, plan.cache, plan.remote, jobs=jobs, progress=progress
            )
            files, size = files + moved.files, size + moved.size
            plan.fail(batch, moved.failed)
        durability.flush()
    finally:
        if progress:
            progress.finish()
    return Transfer(plan.remote.name, files, size, plan.present)


def push(
    outputs: Sequence[Output],
    cache: Cache,
    remote: Remote,
    *,
    parts: Parts | None = None,
    deep: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Transfer:
    """Upload outputs to a remote: files first, each manifest after all of its files; see `plan_push`.

    Raises:
        TransferError: Some objects failed; all others arrived, except manifests with failed files.
        RemoteError: The remote cannot be used at all.
    """
    plan = plan_push(outputs, cache, remote, parts=parts, deep=deep, jobs=jobs)
    done = execute(plan, jobs=jobs, progress=progress)
    if plan.failures:
        raise TransferError(str(remote), plan.failures)
    return done


def fetch(
    outputs: Sequence[Output],
    cache: Cache,
    remote: Remote,
    *,
    parts: Parts | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Transfer:
    """Download outputs from a remote into the cache, verifying each object before it is stored; see `plan_fetch`.

    Raises:
        TransferError: Some objects are missing or damaged on the remote; all others arrived.
        RemoteError: The remote cannot be used at all.
    """
    plan = plan_fetch(outputs, cache, remote, parts=parts, jobs=jobs)
    done = execute(plan, jobs=jobs, progress=progress)
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
    jobs: int | None = None,
) -> dict[str, str]:
    """Compare the cache with a remote.

    Args:
        outputs: Outputs to check; those with ``push: false`` are skipped.
        cache: The cache.
        remote: The remote.
        parts: Selected paths inside an output, by the path of the output; all of it otherwise.
        deep: Check the files of manifests that are on the remote too.
        jobs: Number of parallel requests.

    Returns:
        State of each path that is not in both: ``new`` (only in the cache), ``deleted`` (only on the remote) or
        ``missing`` (in neither).

    Raises:
        RemoteError: The remote cannot be used.
    """
    states: dict[str, str] = {}
    plan = plan_push([o for o in outputs if o.pushed], cache, remote, parts=parts, deep=deep, jobs=jobs)
    for batch in plan.batches:
        wanted = {*batch.files, *batch.trees}
        for digest in batch.opened:
            wanted.update(plan.tree(digest, batch.hash_name).digests)
        absent = cache.missing(wanted, batch.hash_name)
        for digest, (_, name) in plan.names(batch, batch.away | absent).items():
            if digest in batch.away:
                states[name] = "missing" if digest in absent else "new"
            else:
                states[name] = "deleted"
    return dict(sorted(states.items()))
