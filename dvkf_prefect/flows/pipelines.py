"""Flows that bring a pipeline up to date: `repro` records its results, `train` also registers a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from prefect import flow, get_run_logger
from prefect.states import Completed

from dvkf_prefect import (
    DvcRepository,
    KubeflowPipelines,
    MetricChange,
    commit_results,
    compare_metrics,
    diff_data,
    promote_model,
    pull_data,
    push_commits,
    push_data,
    register_model,
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


def find_metric(rows: tuple[MetricChange, ...], name: str) -> float:
    """Return the new value of a metric.

    Args:
        rows: The metrics.
        name: A dotted name, or the file and the name with a colon between.

    Raises:
        ValueError: There is no such number, or it stands in several files.
    """
    found = [row for row in rows if name in (row.name, f"{row.path}:{row.name}")]
    values = [row.new for row in found if isinstance(row.new, (int, float))]
    if len(values) == 1:
        return float(values[0])
    known = ", ".join(f"{row.path}:{row.name}" for row in rows) or "none"
    trouble = (
        "is in several files; name one as FILE:NAME" if values else "is not a number that the pipeline writes"
    )
    raise ValueError(f"metric '{name}' {trouble} (metrics: {known})")


@flow(name="train")
def train(
    repository: str = "local",
    pipelines: str = "local",
    targets: Sequence[str] = (),
    model: str | None = None,
    stage: str | None = None,
    metric: str | None = None,
    minimum: float | None = None,
    pull: bool = True,
    push: bool = True,
    force: bool = False,
) -> Any:
    """Bring a DVC pipeline up to date on Kubeflow Pipelines, record the results and register the model.

    Pulls the data, runs the stages for which something changed, compares data and metrics with the last commit,
    commits the results to git with the id of this run, pushes, and registers the model if its metric is good enough.

    Args:
        repository: Name of the DVC Repository block.
        pipelines: Name of the Kubeflow Pipelines block.
        targets: Stages or dvc.yaml files to bring up to date; all stages if empty.
        model: Model to register, by its name in dvc.yaml; none if empty.
        stage: Stage to give to the registered version, such as prod.
        metric: Metric that the model must reach to be registered, such as accuracy.
        minimum: The least that metric must be.
        pull: Bring the data from the remote first.
        push: Push data to the remote, and commits and tags to git's origin if there is one.
        force: Run stages for which nothing changed, too.

    Returns:
        What ran, the commit, the metrics and the registered version; the state is Rejected when the metric is too low.
    """
    if (metric is None) != (minimum is None):
        raise ValueError("metric and minimum go together: give both, or neither")
    logger = get_run_logger()
    data = cast(DvcRepository, DvcRepository.load(repository))
    runner = cast(KubeflowPipelines, KubeflowPipelines.load(pipelines))
    if pull:
        pull_data(data)
    result = repro_pipeline(data, runner, targets, force=force)
    diff_data(data)
    rows = compare_metrics(data)
    commit = commit_results(data, f"Train: {', '.join(result.ran) or 'nothing ran'}")
    if push:
        push_data(data)
    summary: dict[str, Any] = {
        "ran": list(result.ran),
        "restored": list(result.restored),
        "skipped": list(result.skipped),
        "commit": commit,
        "metrics": {f"{row.path}:{row.name}": row.new for row in rows},
        "model": None,
    }
    rejected = ""
    if model is not None:
        if metric is not None and minimum is not None and (value := find_metric(rows, metric)) < minimum:
            rejected = (
                f"{model} was not registered: {metric} is {value:.6g}, and must be at least {minimum:.6g}"
            )
            logger.warning(rejected)
        else:
            version = register_model(data, model, message=f"Trained by the flow run of {commit or 'HEAD'}")
            if stage is not None:
                version = promote_model(data, model, version.version, stage)
            summary["model"] = {
                "name": version.name,
                "version": version.version,
                "stages": list(version.stages),
            }
    if push:
        push_commits(data)
    if rejected:
        return Completed(name="Rejected", message=rejected, data=summary)
    return summary
