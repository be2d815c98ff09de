"""Tasks on runs and recurring runs of a Kubeflow Pipelines server."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound

from dvkf_prefect.blocks import DvcRepository, KubeflowPipelines, find_block
from dvkf_prefect.cards import artifact_key, escape
from dvkf_prefect.errors import ConfigError
from dvkf_prefect.kubeflow.export.cron import kubeflow_cron
from dvkf_prefect.kubeflow.export.schedules import Schedule, Schedules
from dvkf_prefect.tasks._artifacts import create_artifact
from dvkf_prefect.tasks._logging import run_logger
from dvkf_prefect.tasks._names import run_name


@dataclass(frozen=True, slots=True)
class DeploymentSchedule:
    """Schedule of a Prefect deployment.

    Attributes:
        cron: Five fields of a crontab.
        timezone: Its time zone.
        day_or: Either day is enough if both are restricted.
        active: True if it starts flow runs.
    """

    cron: str
    timezone: str
    day_or: bool
    active: bool


def schedule_of(deployment: str) -> DeploymentSchedule:
    """Return the schedule of a Prefect deployment.

    Args:
        deployment: Name of the flow and of the deployment: ``train/nightly``.

    Raises:
        ConfigError: There is no such deployment, or it has not exactly one schedule, which is a cron.
    """
    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(deployment)
        except (ObjectNotFound, ValueError) as error:
            raise ConfigError(
                f"there is no deployment '{deployment}'. Name it as FLOW/DEPLOYMENT."
            ) from error
    crons = [each for each in found.schedules if isinstance(each.schedule, CronSchedule)]
    if len(found.schedules) != 1 or not crons:
        raise ConfigError(
            f"the deployment '{deployment}' has {len(found.schedules)} schedules, {len(crons)} of them with a cron; "
            "Kubeflow needs one with a cron. Give the times by --cron."
        )
    (only,) = crons
    assert isinstance(only.schedule, CronSchedule)
    cron = only.schedule
    return DeploymentSchedule(
        cron.cron, cron.timezone or "UTC", cron.day_or, only.active and not found.paused
    )


@task(task_run_name=run_name("schedule stages of {repository.name} on Kubeflow"), cache_policy=NO_CACHE)
def schedule_pipeline(
    repository: DvcRepository | str,
    pipelines: KubeflowPipelines | str,
    targets: Sequence[str] = (),
    *,
    cron: str,
    timezone: str = "UTC",
    server_timezone: str = "UTC",
    name: str = "",
    force: bool = False,
    paused: bool = False,
) -> Schedule:
    """Create a recurring run of the stages on Kubeflow, in place of the one of that name.

    Kubeflow starts its runs, without Prefect, from the sources and data of this commit. Their results go to the run
    cache of the remote; `repro_pipeline` with ``pull`` records them.

    Args:
        repository: The repository.
        pipelines: Settings of the cluster, and its credentials.
        targets: Stages, outputs or dvc.yaml files; all stages if empty.
        cron: Times as in a crontab, of five fields.
        timezone: Time zone of the times.
        server_timezone: Time zone of Kubeflow's controller.
        name: Name of the recurring run; that of the repository and the targets if empty.
        force: Let each run repeat the stages, even if an equal run is known.
        paused: Create it without starting runs.

    Raises:
        ConfigError: The times are wrong, or Kubeflow cannot express them.
        RunnerError: The server refuses it.

    Example:
        ``schedule_pipeline(repository, pipelines, cron="0 3 * * *")``
    """
    repository = find_block(DvcRepository, repository, "repository")
    pipelines = find_block(KubeflowPipelines, pipelines, "pipelines")
    text = kubeflow_cron(cron, timezone, server_zone=server_timezone)
    settings = pipelines.settings()
    with closing(settings.connect()) as api:
        made = Schedules(repository.open(), settings, api).create(
            text, targets, name=name, force=force, paused=paused
        )
    run_logger().info("recurring run %s", made)
    create_artifact(
        "markdown",
        artifact_key("schedule", repository.name),
        f"Recurring run of {escape(repository.name)} on Kubeflow: {escape(made.cron)}",
        f"[{escape(made.name)}]({made.url})" if made.url else escape(str(made)),
    )
    return made


@task(task_run_name=run_name("delete a schedule of {repository.name} on Kubeflow"), cache_policy=NO_CACHE)
def unschedule_pipeline(
    repository: DvcRepository | str, pipelines: KubeflowPipelines | str, name: str
) -> None:
    """Delete a recurring run on Kubeflow; its runs stay.

    Args:
        repository: The repository.
        pipelines: Settings of the cluster, and its credentials.
        name: Name or ID of the recurring run.

    Raises:
        RunnerError: There is none, or several have that name.

    Example:
        ``unschedule_pipeline(repository, pipelines, "digits all stages")``
    """
    repository = find_block(DvcRepository, repository, "repository")
    pipelines = find_block(KubeflowPipelines, pipelines, "pipelines")
    settings = pipelines.settings()
    with closing(settings.connect()) as api:
        schedules = Schedules(repository.open(), settings, api)
        schedules.delete(schedules.find(name).schedule_id)
    run_logger().info("deleted the recurring run %s", name)


@task(task_run_name=run_name("retry run {run_id} on Kubeflow"), cache_policy=NO_CACHE)
def retry_pipeline_run(
    pipelines: KubeflowPipelines | str, run_id: str, repository: DvcRepository | str | None = None
) -> str:
    """Run the failed stages of a failed run on Kubeflow again, in the same run.

    `repro_pipeline` follows the run afterwards and records its results.

    Args:
        pipelines: Settings of the cluster, and its credentials.
        run_id: ID of the run.
        repository: Repository of its stages. Its remote has their counts of attempts, which begin anew. Without it,
            stages without attempts left fail at once.

    Returns:
        Page of the run in Kubeflow's UI; "" if unknown.

    Raises:
        RunnerError: The run has not failed, or the server does not retry it.

    Example:
        ``retry_pipeline_run(pipelines, "0b3c…", repository)``
    """
    pipelines = find_block(KubeflowPipelines, pipelines, "pipelines")
    if repository is not None:
        repository = find_block(DvcRepository, repository, "repository")
    page = pipelines.retry_run(run_id, repository.open() if repository is not None else None)
    run_logger().info("retrying run %s%s", run_id, f": {page}" if page else "")
    return page


@task(task_run_name=run_name("terminate run {run_id} on Kubeflow"), cache_policy=NO_CACHE)
def terminate_pipeline_run(pipelines: KubeflowPipelines | str, run_id: str) -> None:
    """End a run on Kubeflow; do nothing if it has ended.

    Args:
        pipelines: Settings of the cluster, and its credentials.
        run_id: ID of the run.

    Raises:
        RunnerError: There is no such run, or the server refuses it.

    Example:
        ``terminate_pipeline_run(pipelines, "0b3c…")``
    """
    pipelines = find_block(KubeflowPipelines, pipelines, "pipelines")
    pipelines.terminate_run(run_id)
    run_logger().info("terminating run %s", run_id)


@task(task_run_name=run_name("archive run {run_id} on Kubeflow"), cache_policy=NO_CACHE)
def archive_pipeline_run(pipelines: KubeflowPipelines | str, run_id: str) -> None:
    """Move a run on Kubeflow to the archive, where lists and the UI hide it.

    Args:
        pipelines: Settings of the cluster, and its credentials.
        run_id: ID of the run.

    Raises:
        RunnerError: There is no such run, or the server refuses it.

    Example:
        ``archive_pipeline_run(pipelines, "0b3c…")``
    """
    pipelines = find_block(KubeflowPipelines, pipelines, "pipelines")
    pipelines.archive_run(run_id)
    run_logger().info("archived run %s", run_id)


@task(task_run_name=run_name("unarchive run {run_id} on Kubeflow"), cache_policy=NO_CACHE)
def unarchive_pipeline_run(pipelines: KubeflowPipelines | str, run_id: str) -> None:
    """Move a run on Kubeflow back from the archive.

    Args:
        pipelines: Settings of the cluster, and its credentials.
        run_id: ID of the run.

    Raises:
        RunnerError: There is no such run, its experiment is archived too, or the server refuses it.

    Example:
        ``unarchive_pipeline_run(pipelines, "0b3c…")``
    """
    pipelines = find_block(KubeflowPipelines, pipelines, "pipelines")
    pipelines.unarchive_run(run_id)
    run_logger().info("moved run %s back from the archive", run_id)
