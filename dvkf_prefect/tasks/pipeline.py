"""Tasks on pipelines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from dvkf_prefect.blocks import DvcRepository, KubeflowPipelines, find_block
from dvkf_prefect.cards import TreeChange, metrics_card, pipeline_card, plain, stage_card
from dvkf_prefect.errors import DvkfError
from dvkf_prefect.kubeflow.cluster.watch import TaskEvent
from dvkf_prefect.openlineage.sending import watch_stages
from dvkf_prefect.pipeline.plan.decide import Expansion, Rules
from dvkf_prefect.pipeline.plan.why import Action, Decision
from dvkf_prefect.pipeline.report.metrics import MetricChange, metrics_history
from dvkf_prefect.pipeline.run.events import OnError, ReproResult, StageEvent
from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.pipeline.step.runner import Runner
from dvkf_prefect.settings import DvkfSettings
from dvkf_prefect.tasks._artifacts import publish
from dvkf_prefect.tasks._assets import Assets
from dvkf_prefect.tasks._changes import changed_files
from dvkf_prefect.tasks._git import parent_run
from dvkf_prefect.tasks._logging import run_logger
from dvkf_prefect.tasks._names import listed, run_name
from dvkf_prefect.tasks._progress import ArtifactProgress
from dvkf_prefect.tasks._versions import publish_versions, recorded_versions
from dvkf_prefect.tasks.stages.log import join_lines
from dvkf_prefect.tasks.stages.progress import PipelineProgress
from dvkf_prefect.tasks.stages.runner import stage_tasks

# Skipped stages get cards of their own only in pipelines of at most this size: each is a request, which takes longer
# than all else about such a stage. The pipeline's card lists all.
_STAGE_CARDS = 10


def repro_pipeline(
    repository: DvcRepository | str,
    pipelines: KubeflowPipelines | str,
    targets: str | Sequence[str] = (),
    *,
    force: bool = False,
    downstream: bool = False,
    pull: bool = False,
    on_error: OnError = "keep-going",
    retries: int = 0,
    retry_delay_seconds: float = 0.0,
) -> ReproResult:
    """Bring the stages of a dvc.yaml up to date, in a flow or a task: each stage is a task run of its own.

    Independent stages run in parallel. Except on a cluster, the run waits for its turn in the workspace, see
    `DvcRepository.turn`. When the run is cancelled, or its process dies, running stages end too. The next run continues
    after the completed stages. On a cluster, it finds the pipeline run of the one before.

    Args:
        repository: The repository.
        pipelines: Backend that runs the stages.
        targets: Stages or dvc.yaml files to bring up to date, with their upstream stages; all stages if empty.
        force: Also run unchanged stages.
        downstream: Include the stages downstream of the targets, in place of those upstream.
        pull: Download missing inputs, and missing outputs of equal earlier runs, from the remote.
        on_error: Reaction to a failed stage. ``keep-going`` skips its downstream stages and finishes all others,
            ``fail`` starts no further stage, ``ignore`` continues as if it had succeeded.
        retries: Number of retries after the command or its runner failed. A stage's ``meta: prefect:`` in dvc.yaml
            takes precedence.
        retry_delay_seconds: Seconds to wait before each retry.

    Returns:
        The outcome of each stage, and the reasons.

    Raises:
        StageError: A stage failed; with its command, exit code and the end of its log.
        StageGraphError: The stages form a cycle, or two write the same path.
        ParseError: A dvc.yaml, or a stage's ``meta: prefect:`` in it, is invalid.

    Example:
        ``repro_pipeline(DvcRepository.load("local"), KubeflowPipelines.load("local"), retries=2)``
    """
    repository = find_block(DvcRepository, repository, "repository")
    pipelines = find_block(KubeflowPipelines, pipelines, "pipelines")
    logger = run_logger()
    repo = repository.open().using(progress=ArtifactProgress(repository.name))
    events: dict[str, StageEvent] = {}
    changes: dict[str, Mapping[str, TreeChange]] = {}
    skipped: list[str] = []

    def log_skipped() -> None:
        # Each record is a request of a handler and a row of the server's database.
        for record in join_lines(skipped):
            logger.info("%s", record)
        skipped.clear()

    def open_runner(on_event: Callable[[TaskEvent], None]) -> Runner:
        # On a cluster, equal stages find the pipeline run that a killed flow run left. With force, only a retry does.
        owner = flow_run.get_id() or ""
        return pipelines.runner(repo, run_key=owner if force else "", owner=owner, on_event=on_event)

    # On a cluster, stages run apart from the workspace, and equal runs of several workers are one.
    alone = nullcontext() if pipelines.backend == "kubeflow" else repository.turn()
    with (
        alone,
        stage_tasks(
            repo,
            open_runner,
            jobs=pipelines.parallel,
            retries=retries,
            retry_delay_seconds=retry_delay_seconds,
            reuse=not force,
            name=repository.name,
        ) as runner,
    ):
        progress = PipelineProgress(repository.name)

        def report(event: StageEvent) -> None:
            progress.take(event, runner.size_of(event.stage) if event.kind == "done" else 0)
            if event.kind == "skip":
                skipped.append(str(event))
            else:
                log_skipped()
                logger.log(logging.ERROR if event.kind == "fail" else logging.INFO, "%s", event)
            for warning in event.warnings:
                logger.warning("%s", runner.mask(warning))
            if event.kind == "start":
                # Compare now: the workspace may change until the stage ends.
                paths = {dep.name: dep.path for dep in runner.snapshot.graph.stages[event.stage].deps}
                changes[event.stage] = changed_files(repo, event.reasons, paths)
            runner.on_event(event)
            masked = replace(event, log_tail=runner.mask(event.log_tail), message=runner.mask(event.message))
            events[event.stage] = masked
            if event.kind in ("done", "restore", "fail"):
                show(masked)

        def show(event: StageEvent) -> None:
            card = stage_card(
                decision_of(event),
                repository.name,
                event,
                limit=DvkfSettings().card_rows,
                files=changes.get(event.stage),
            )
            publish(card, task_run=runner.task_run(event.stage))

        def show_versions(result: ReproResult) -> None:
            made = {
                out.path: runner.task_run(stage)
                for stage in (*result.ran, *result.restored)
                for out in runner.snapshot.graph.stages[stage].outs
                if out.kind == "out" and out.cached
            }
            # Without targets, all outputs of the repository would be meant.
            versions = recorded_versions(repo, list(made)) if made else ()
            earlier = {
                out.path for stage in result.restored for out in runner.snapshot.graph.stages[stage].outs
            }
            for restored in (False, True):
                shown = [version for version in versions if (version.path in earlier) == restored]
                publish_versions(repository, repo, shown, task_runs=made, made=not restored)
            if versions:
                Assets(repository, repo).written_by_stages(versions, made)

        try:
            result = repro(
                repo,
                listed(targets),
                runner=runner,
                expansion=Expansion(downstream=downstream),
                rules=Rules(force=force, pull=pull),
                on_error=on_error,
                jobs=pipelines.parallel,
                on_event=watch_stages(repo, report, parent=parent_run()),
            )
        except DvkfError as error:
            if events:
                so_far = _so_far(events, error.blocked)
                runner.show_blocked(so_far)
                publish(pipeline_card(so_far, repository.name))
                show_versions(so_far)
            raise
        finally:
            log_skipped()
            progress.finish()
        runner.show_blocked(result)
        publish(pipeline_card(result, repository.name))
        show_versions(result)
        if len(result.decisions) <= _STAGE_CARDS:
            for stage in result.skipped:
                show(events[stage])
    return result


_ACTIONS: Mapping[str, Action] = {"skip": "skip", "restore": "restore"}


def decision_of(event: StageEvent) -> Decision:
    """Return the decision behind an event.

    Args:
        event: A stage's event from `repro`.
    """
    return Decision(event.stage, _ACTIONS.get(event.kind, "run"), event.reasons)


def _so_far(events: Mapping[str, StageEvent], blocked: tuple[str, ...]) -> ReproResult:
    """Return the result up to a failure that ended the run."""
    return ReproResult(
        decisions=tuple(map(decision_of, events.values())),
        ran=tuple(e.stage for e in events.values() if e.kind == "done"),
        skipped=tuple(e.stage for e in events.values() if e.kind == "skip"),
        restored=tuple(e.stage for e in events.values() if e.kind == "restore"),
        failed=tuple(e.stage for e in events.values() if e.kind == "fail"),
        blocked=blocked,
    )


@task(task_run_name=run_name("compare metrics of {repository.name}"), cache_policy=NO_CACHE)
def compare_metrics(
    repository: DvcRepository | str, a: str = "HEAD", b: str | None = None
) -> tuple[MetricChange, ...]:
    """Compare the metrics of two versions.

    Args:
        repository: The repository.
        a: The older revision; one that does not exist yet compares with nothing.
        b: The newer one; None for the workspace.

    Returns:
        A row for each metric: file, name, old, new, change.

    Example:
        ``compare_metrics(DvcRepository.load("local"), "HEAD^")``
    """
    repository = find_block(DvcRepository, repository, "repository")
    repo = repository.open()
    head = repo.git.head() if repo.git is not None else None
    before = repo.git.resolve(a) if repo.git is not None and head else ""
    rows = tuple(repo.diff_metrics(before or a, b))
    card = metrics_card(rows, repository.name, before=before, history=metrics_history(repo, b))
    publish(card)
    run_logger().info("%s", plain(card.description))
    return rows
