"""Parameters of pods that the settings give: of all pods of a run, and a stage's attempts and nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings, RemoteInPods
from dvkf_prefect.kubeflow.compile.compile import inline_limit
from dvkf_prefect.kubeflow.compile.pod_settings import Placement
from dvkf_prefect.kubeflow.compile.pod_values import seconds_of
from dvkf_prefect.kubeflow.compile.workspace import WORKSPACE_PATH
from dvkf_prefect.kubeflow.exchange.bundle import Bundle
from dvkf_prefect.kubeflow.exchange.runs import AttemptPolicy, PodRun
from dvkf_prefect.kubeflow.trainer.plan import plan_training


def pods_of_run(
    settings: ClusterSettings,
    described: RemoteInPods,
    remote: str,
    bundle: Bundle,
    edges: Mapping[str, Sequence[str]],
    *,
    exported: bool = False,
) -> PodRun:
    """Return the parameters of every pod of a run, without its key.

    Args:
        settings: Settings of the cluster.
        described: The remote for pods.
        remote: Name of the remote.
        bundle: The sources.
        edges: Predecessors of each stage.
        exported: True for a pipeline that runs without a dispatcher.
    """
    return PodRun(
        "",
        described.url,
        described.options,
        remote,
        bundle.digest,
        bundle.commit,
        inline=inline_limit(edges),
        exported=exported,
        volume=WORKSPACE_PATH if settings.workspace else "",
    )


def pod_of_stage(
    about: PodRun,
    settings: ClusterSettings,
    stage: str,
    task: str,
    placement: Placement,
    *,
    is_read: bool,
    record: str = "",
) -> str:
    """Return the parameters of a stage's pod as JSON.

    Args:
        about: Parameters of every pod of the run.
        settings: Settings of the cluster.
        stage: Address of the stage.
        task: Name of its task.
        placement: Settings of its pod.
        is_read: True if later stages of the run read its outputs.
        record: Key of the stage's `Record` on the remote; "" if its runs are not recorded.

    Raises:
        ConfigError: A setting has no place in a distributed training.
    """
    return replace(
        about,
        task=task,
        attempts=attempts_of(placement),
        record=record,
        keeps=bool(about.volume) and is_read,
        training=_training_of(settings, stage, placement),
    ).to_json()


def _training_of(settings: ClusterSettings, stage: str, placement: Placement) -> dict[str, Any] | None:
    """Return the plan of a stage's nodes as JSON values; None for a stage that is no distributed training."""
    plan = plan_training(
        stage,
        placement,
        image=settings.image,
        namespace=settings.namespace,
        start=settings.patience.start,
        schedule=settings.patience.schedule,
    )
    return plan.to_values() if plan else None


def attempts_of(placement: Placement) -> AttemptPolicy:
    """Return the attempts of a stage in its pod."""
    retries = placement.retries
    if retries is None or not retries.count:
        return AttemptPolicy()
    wait = seconds_of(retries.backoff) if retries.backoff else 0
    window = seconds_of(retries.max) if retries.max else 0
    factor = 2 if retries.factor is None else retries.factor
    return AttemptPolicy(retries.count + 1, wait, factor, window, placement.timeout or 0)
