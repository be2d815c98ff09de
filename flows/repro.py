"""Repro: bring the stages of a DVC pipeline up to date, each as a task of this flow."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal, cast

from prefect import flow

from dvkf_prefect import (
    DvcRepository,
    KubeflowPipelines,
    commit_results,
    push_commits,
    push_data,
    repro_pipeline,
)


@flow(name="repro")
def repro(
    repository: str = "local",
    pipelines: str = "local",
    targets: Sequence[str] = (),
    force: bool = False,
    downstream: bool = False,
    pull: bool = True,
    push: bool = True,
    on_error: Literal["keep-going", "fail", "ignore"] = "keep-going",
    retries: int = 0,
    retry_delay_seconds: float = 10.0,
    commit: bool = True,
    message: str | None = None,
) -> dict[str, Any]:
    """Run the stages of a dvc.yaml for which something changed, restore or skip the others, and record the results.

    Each stage is a task run: its state, its log while it runs, and a card that says why it ran. A run that was
    cancelled or killed leaves nothing running; the next one goes on from the stages that were done.

    Args:
        repository: Name of the DVC Repository block.
        pipelines: Name of the Kubeflow Pipelines block, which says where stages run.
        targets: Stages, outputs or dvc.yaml files to bring up to date, with what they need; all stages if empty.
        force: Run stages for which nothing changed, too.
        downstream: Bring the targets and all that need them up to date, instead of what they need.
        pull: Bring data that is not here, and what equal runs wrote, from the remote.
        push: Push data to the remote, and commits to git's origin if there is one.
        on_error: When a stage fails: keep-going leaves out those that need it and finishes all others, fail starts no
            other, ignore goes on as if it had not.
        retries: How often a stage is tried again when its command, or what runs it, failed; a stage's
            meta.prefect.retries in dvc.yaml counts more.
        retry_delay_seconds: Seconds to wait before each of these tries.
        commit: Commit the results to git, with the id of this run.
        message: Message of that commit; by default the stages that ran.

    Returns:
        The stages that ran, were restored or were skipped, and the commit.
    """
    data = cast(DvcRepository, DvcRepository.load(repository))
    result = repro_pipeline(
        data,
        cast(KubeflowPipelines, KubeflowPipelines.load(pipelines)),
        targets,
        force=force,
        downstream=downstream,
        pull=pull,
        on_error=on_error,
        retries=retries,
        retry_delay_seconds=retry_delay_seconds,
    )
    recorded = None
    if commit:
        recorded = commit_results(data, message or f"Repro: {', '.join(result.ran) or 'nothing ran'}")
    if push:
        push_data(data)
        push_commits(data)
    return {
        "ran": list(result.ran),
        "restored": list(result.restored),
        "skipped": list(result.skipped),
        "failed": list(result.failed),
        "commit": recorded,
    }


if __name__ == "__main__":
    repro(targets=sys.argv[1:])
