"""Record the workspace's state in `.dvc` files and dvc.lock (`dvkf commit`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.verbs.add import commit as commit_data
from dvkf_prefect.errors import StageNotFoundError
from dvkf_prefect.formats.dvclock import make_entry
from dvkf_prefect.formats.outputs import DataVersion
from dvkf_prefect.pipeline.plan.snapshot import Snapshot
from dvkf_prefect.pipeline.plan.why import reasons_for
from dvkf_prefect.pipeline.run.inputs import check_inputs
from dvkf_prefect.pipeline.run.outputs import record, take_outputs


@dataclass(frozen=True, slots=True)
class Commit:
    """Result of a commit; truthy if anything changed.

    Attributes:
        versions: Versions of the changed outputs of `.dvc` files.
        stages: Addresses of the changed stages.
    """

    versions: tuple[DataVersion, ...] = ()
    stages: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.versions or self.stages)


def commit(repo: Repository, targets: Sequence[str] = (), *, sources: bool = False) -> Commit:
    """Implement `Repo.commit`."""
    versions = commit_data(repo, targets, sources=sources)
    return Commit(tuple(versions), tuple(commit_stages(repo, targets)))


def commit_stages(repo: Repository, targets: Sequence[str] = ()) -> list[str]:
    """Record stages in their current state in the workspace, without running them.

    Args:
        repo: The repository.
        targets: Restrict the commit to these; other targets than stages are ignored. All stages if empty.

    Returns:
        Addresses of the changed stages.

    Raises:
        StageError: A dependency or parameter of a changed stage is missing.
        OutputNotFoundError: An output of a changed stage is missing.
    """
    snapshot = Snapshot(repo, lenient=True)
    wanted: set[str] = set()
    for target in targets:
        with suppress(StageNotFoundError):
            wanted.update(snapshot.graph.find(target))
    recorded = []
    for stage in snapshot.graph.order(wanted if targets else None, alone=True):
        entry = snapshot.entry(stage)
        inputs = snapshot.inputs(stage, entry)
        reasons = reasons_for(snapshot, stage, entry, inputs)
        if any(reason.kind != "always" for reason in reasons):
            check_inputs(stage, inputs)
            with repo.lock(write=[out.path for out in stage.outs]):
                outs = take_outputs(repo, stage, old=entry)
                record(repo, stage, make_entry(stage.command, inputs.items, inputs.params, outs))
            snapshot.forget(out.path for out in stage.outs)
            recorded.append(stage.address)
    return recorded
