"""Data that a pipeline reads and does not write itself."""

from __future__ import annotations

from collections.abc import Sequence

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.pipeline.plan.selection import choose
from dvkf_prefect.pipeline.plan.snapshot import Snapshot


def sources_of(repo: Repository, targets: Sequence[str] = ()) -> tuple[Output, ...]:
    """Return the tracked outputs that stages, and the stages upstream of them, read but do not write.

    An output counts if a dependency equals it, contains it, or lies inside it.

    Args:
        repo: The repository.
        targets: Stages, dvc.yaml files or outputs; all stages if empty.

    Raises:
        StageNotFoundError: A target is none of these.
        StageGraphError: The stages do not form a graph.
    """
    snapshot = Snapshot(repo, only_looks=True)
    graph = snapshot.graph
    read = {
        f"{dep.path}/"
        for stage in graph.order(choose(repo, graph, targets) if targets else None)
        for dep in stage.deps
        if not dep.external
    }
    return tuple(
        output
        for path, output in sorted(snapshot.outputs.items())
        if output.stage is None
        and any(f"{path}/".startswith(each) or each.startswith(f"{path}/") for each in read)
    )
