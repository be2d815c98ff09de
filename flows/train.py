"""Train: bring the data, run what changed, compare, commit, push, register the model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast

from prefect import flow, get_run_logger
from prefect.states import Completed

from dvkf_prefect import (
    DvcRepository,
    KubeflowPipelines,
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
from dvkf_prefect.pipeline.report.metrics import MetricChange


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


if __name__ == "__main__":
    train(model=sys.argv[1] if len(sys.argv) > 1 else None)
