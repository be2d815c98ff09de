"""Flows that bring a pipeline up to date: `repro` records its results, `train` also registers a model."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal

from prefect import flow, get_run_logger
from prefect.states import Completed

from dvkf_prefect import (
    DvcRepository,
    KubeflowPipelines,
    MetricChange,
    ReproResult,
    check_commit,
    commit_results,
    compare_metrics,
    diff_data,
    end_pipeline_runs,
    find_block,
    promote_model,
    pull_data,
    push_commits,
    push_data,
    register_model,
    repro_pipeline,
    show_overview,
    show_plots,
)


def outcome_text(result: ReproResult) -> str:
    """Return the stages that ran and that were restored, for the message of a commit."""
    restored = f"restored {', '.join(result.restored)}" if result.restored else ""
    return "; ".join(filter(None, (", ".join(result.ran), restored))) or "nothing ran"


@flow(name="repro", on_cancellation=[end_pipeline_runs])
def repro(
    repository: DvcRepository | str = "local",
    pipelines: KubeflowPipelines | str = "local",
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
    overrides: Sequence[str] = (),
    uncommitted: Literal["commit", "refuse", "mark"] = "commit",
) -> dict[str, Any]:
    """Run the changed stages of a dvc.yaml, restore or skip the others, and record the results.

    Each stage is a task run with its state, its live log, and a card with the reasons. A cancelled or killed run leaves
    no process behind; the next run continues after the completed stages.

    Args:
        repository: DVC Repository block, or its name.
        pipelines: Kubeflow Pipelines block, or its name: the backend of the stages.
        targets: Stages, outputs or dvc.yaml files to bring up to date, with their upstream stages; all stages if empty.
        force: Also run unchanged stages.
        downstream: Include the stages downstream of the targets, in place of those upstream.
        pull: Download missing inputs, and missing outputs of equal earlier runs, from the remote.
        push: Push data to the remote, and commits to git's origin if there is one.
        on_error: Reaction to a failed stage. keep-going skips its downstream stages and finishes all others, fail
            starts no further stage, ignore continues as if it had succeeded.
        retries: Number of retries after the command or its runner failed. A stage's meta.prefect.retries in dvc.yaml
            takes precedence.
        retry_delay_seconds: Seconds to wait before each retry.
        commit: Commit the results to git, with the ID of this run.
        message: Message of the commit; by default the stages that ran.
        overrides: Values of parameters for this run, such as train.lr=0.2, in the grammar of dvc exp run --set-param.
            The run starts from the last commit, and records values and results on a branch of its own.
        uncommitted: Handling of changed code and parameters that git's last commit does not have. commit adds them to
            the commit, refuse ends the run before its first stage, mark names them in the commit's message.

    Returns:
        The stages that ran, were restored, skipped or failed, and the commit.
    """
    found = find_block(DvcRepository, repository, "repository")
    with found.overridden(overrides) as data, data.turn():
        if commit:
            check_commit(data, uncommitted=uncommitted)
        result = repro_pipeline(
            data,
            find_block(KubeflowPipelines, pipelines, "pipelines"),
            targets,
            force=force,
            downstream=downstream,
            pull=pull,
            on_error=on_error,
            retries=retries,
            retry_delay_seconds=retry_delay_seconds,
        )
        git = data.open().git
        if (result.ran or result.restored) and git is not None and git.head() is not None:
            diff_data(data)
            compare_metrics(data)
            show_plots(data)
        recorded = None
        if commit:
            text = message or f"Repro: {outcome_text(result)}"
            recorded = commit_results(data, text, uncommitted=uncommitted)
        if push:
            push_data(data)
            push_commits(data)
        show_overview(data)
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
        name: A dotted name, or FILE:NAME.

    Raises:
        ValueError: No file has such a number, or several files have it.
    """
    found = [row for row in rows if name in (row.name, f"{row.path}:{row.name}")]
    values = [row.new for row in found if isinstance(row.new, (int, float))]
    if len(values) == 1:
        return float(values[0])
    known = ", ".join(f"{row.path}:{row.name}" for row in rows) or "none"
    trouble, step = (
        ("is in several files", "Name one as FILE:NAME")
        if values
        else ("is not a number of the pipeline", "Use one of these names")
    )
    raise ValueError(f"metric '{name}' {trouble} (metrics: {known}). {step}.")


def check_metric_name(metrics: Mapping[str, Mapping[str, Any]], name: str) -> None:
    """Refuse a misspelt metric before the stages run. A new name without a similar one is accepted.

    Args:
        metrics: Values of the last run by dotted name by file; empty before the first run.
        name: A dotted name, or FILE:NAME.

    Raises:
        ValueError: No file has the metric, but one has a similar name.
    """
    known = [f"{path}:{each}" for path, values in metrics.items() for each in values]
    names = [*known, *(each for values in metrics.values() for each in values)]
    if name not in names and (similar := get_close_matches(name, names, n=1)):
        raise ValueError(
            f"metric '{name}' is not in the last run (metrics: {', '.join(known)}). Use '{similar[0]}'."
        )


@flow(name="train", on_cancellation=[end_pipeline_runs])
def train(
    repository: DvcRepository | str = "local",
    pipelines: KubeflowPipelines | str = "local",
    targets: Sequence[str] = (),
    model: str | None = None,
    stage: str | None = None,
    metric: str | None = None,
    minimum: float | None = None,
    pull: bool = True,
    push: bool = True,
    force: bool = False,
    overrides: Sequence[str] = (),
    uncommitted: Literal["commit", "refuse", "mark"] = "commit",
) -> Any:
    """Bring a DVC pipeline up to date, record the results and register the model.

    Pulls the data, runs the changed stages, and compares data and metrics with the last commit. Commits the results to
    git with the ID of this run, and pushes. Registers the model if its metric reaches the minimum.

    Args:
        repository: DVC Repository block, or its name.
        pipelines: Kubeflow Pipelines block, or its name.
        targets: Stages or dvc.yaml files to bring up to date, with their upstream stages; all stages if empty.
        model: Model to register, by its name in dvc.yaml; none if empty.
        stage: Model stage to assign to the registered version, such as prod.
        metric: Metric that decides on the registration, such as accuracy.
        minimum: Minimum of that metric for the registration.
        pull: Pull the data from the remote first.
        push: Push data to the remote, and commits and tags to git's origin if there is one.
        force: Also run unchanged stages.
        overrides: Values of parameters for this run, such as train.lr=0.2, in the grammar of dvc exp run --set-param.
            The run starts from the last commit, and records values and results on a branch of its own.
        uncommitted: Handling of changed code and parameters that git's last commit does not have. commit adds them to
            the commit, refuse ends the run before its first stage, mark names them in the commit's message.

    Returns:
        The stages that ran, the commit, the metrics and the registered version. The state is Rejected if the metric
        is below the minimum.
    """
    if (metric is None) != (minimum is None):
        raise ValueError("metric and minimum go together. Give both, or neither.")
    logger = get_run_logger()
    found = find_block(DvcRepository, repository, "repository")
    runner = find_block(KubeflowPipelines, pipelines, "pipelines")
    with found.overridden(overrides) as data, data.turn():
        check_commit(data, uncommitted=uncommitted, model=model, stage=stage)
        if metric is not None:
            check_metric_name(data.open().metrics(), metric)
        if pull:
            pull_data(data)
        result = repro_pipeline(data, runner, targets, force=force)
        diff_data(data)
        rows = compare_metrics(data)
        show_plots(data)
        commit = commit_results(data, f"Train: {outcome_text(result)}", uncommitted=uncommitted)
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
                    f"{model} was not registered: {metric} is {value:.6g}, below the minimum of {minimum:.6g}"
                )
                logger.warning(rejected)
            else:
                version = register_model(
                    data, model, message=f"Trained by the flow run of {commit or 'HEAD'}"
                )
                if stage is not None:
                    version = promote_model(data, model, version.version, stage)
                summary["model"] = {
                    "name": version.name,
                    "version": version.version,
                    "stages": list(version.stages),
                }
        if push:
            push_commits(data)
        show_overview(data)
        if rejected:
            return Completed(name="Rejected", message=rejected, data=summary)
        return summary
