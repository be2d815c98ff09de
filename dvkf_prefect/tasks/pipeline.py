"""Tasks on pipelines."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from dvkf_prefect.blocks import DataRepository, KubeflowPipelines
from dvkf_prefect.cards import metrics_card, pipeline_card, stage_card
from dvkf_prefect.errors import DvkfError
from dvkf_prefect.pipeline import metrics
from dvkf_prefect.pipeline.repro import ReproResult, StageEvent, repro
from dvkf_prefect.pipeline.why import Action, Decision
from dvkf_prefect.settings import DvkfSettings
from dvkf_prefect.tasks._artifacts import publish

# A stage that ran always gets its card; beyond this many, those that were skipped are told by the pipeline's card only.
_STAGE_CARDS = 50


@task(task_run_name="repro {repository.name}", cache_policy=NO_CACHE)
def repro_pipeline(
    repository: DataRepository,
    pipelines: KubeflowPipelines,
    targets: Sequence[str] = (),
    *,
    force: bool = False,
) -> ReproResult:
    """Bring a dvc.yaml's stages up to date: run what something changed for, skip the rest.

    When this task is cancelled, or its process dies, the stages that run are ended too; the next run goes on from the
    stages that were done.

    Args:
        repository: The repository.
        pipelines: Where stages run.
        targets: Stages or dvc.yaml files, with what they need; all stages if empty.
        force: Run stages for which nothing changed, too.

    Returns:
        What was done with each stage, and why.

    Raises:
        StageError: A stage failed; gives its command, exit code and the end of its log.
        StageGraphError: The stages form a cycle, or two write one path.

    Example:
        ``repro_pipeline(DataRepository.load("local"), KubeflowPipelines.load("local"))``
    """
    logger = get_run_logger()
    repo = repository.open()
    events: dict[str, StageEvent] = {}

    def tell(event: StageEvent) -> None:
        events[event.stage] = event
        logger.log(logging.ERROR if event.kind == "fail" else logging.INFO, "%s", event)

    try:
        with pipelines.runner(repo) as runner:
            result = repro(repo, targets, runner=runner, force=force, jobs=pipelines.jobs, on_event=tell)
    except DvkfError:
        if events:
            _publish_stages(repository, _so_far(events), events)
        raise
    _publish_stages(repository, result, events)
    return result


def _so_far(events: Mapping[str, StageEvent]) -> ReproResult:
    """Return what was done before a failure ended it all."""
    actions: dict[str, Action] = {"skip": "skip", "restore": "restore"}
    return ReproResult(
        decisions=tuple(Decision(e.stage, actions.get(e.kind, "run"), e.reasons) for e in events.values()),
        ran=tuple(e.stage for e in events.values() if e.kind == "done"),
        skipped=tuple(e.stage for e in events.values() if e.kind == "skip"),
        restored=tuple(e.stage for e in events.values() if e.kind == "restore"),
        failed=tuple(e.stage for e in events.values() if e.kind == "fail"),
    )


def _publish_stages(
    repository: DataRepository, result: ReproResult, events: Mapping[str, StageEvent]
) -> None:
    rows = DvkfSettings().card_rows
    publish(pipeline_card(result, repository.name))
    few = len(result.decisions) <= _STAGE_CARDS
    for decision in result.decisions:
        if few or decision.action != "skip":
            event = events.get(decision.stage)
            publish(stage_card(decision, event, label=repository.label or "", limit=rows))


@task(task_run_name="compare metrics of {repository.name}", cache_policy=NO_CACHE)
def compare_metrics(
    repository: DataRepository, a: str = "HEAD", b: str | None = None
) -> tuple[metrics.MetricChange, ...]:
    """Compare the metrics of two versions.

    Args:
        repository: The repository.
        a: The older revision; one that does not exist yet compares with nothing.
        b: The newer one; None for the workspace.

    Returns:
        A row for each metric: file, name, old, new, change.

    Example:
        ``compare_metrics(DataRepository.load("local"), "HEAD^")``
    """
    repo = repository.open()
    head = repo.git.head() if repo.git is not None else None
    before = repo.git.resolve(a) if repo.git is not None and head else ""
    rows = tuple(metrics.diff(repo, before or a, b))
    card = metrics_card(rows, repository.name, before=before)
    publish(card)
    get_run_logger().info("%s", card.description)
    return rows
