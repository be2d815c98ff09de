"""Artifacts in Prefect: created for the current run, and updated in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING
from uuid import UUID

from prefect import runtime
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import SyncClientContext
from prefect.utilities.urls import url_for

from dvkf_prefect.cards import Card

if TYPE_CHECKING:
    from dvkf_prefect.models.lineage import Lineage

FLOW_RUN = "Prefect-Flow-Run"
"""Key of the git trailer with the ID of a flow run."""


def publish(card: Card, *, task_run: UUID | None = None, metadata: Mapping[str, str] | None = None) -> UUID:
    """Add a card to the timeline of its key, as an artifact of the current run.

    Args:
        card: The card.
        task_run: Task run to attach it to instead.
        metadata: Values to keep with the artifact; Prefect's pages do not show them.

    Returns:
        ID of the artifact.
    """
    return create_artifact(
        "markdown", card.key, card.description, card.markdown, task_run=task_run, metadata=metadata
    )


def create_artifact(
    kind: str,
    key: str,
    description: str,
    data: str | float,
    *,
    task_run: UUID | None = None,
    metadata: Mapping[str, str] | None = None,
) -> UUID:
    """Create an artifact of the current run, in sync and in async flows.

    Prefect's own functions return a coroutine in the body of an async flow, and nothing awaits it there.

    Args:
        kind: Prefect's type of the artifact: ``markdown``, ``table`` or ``progress``.
        key: Key of its timeline.
        description: Description in markdown.
        data: Its content.
        task_run: Task run to attach it to instead.
        metadata: Values to keep with the artifact.

    Returns:
        ID of the artifact.
    """
    own_task, flow_run = runtime.task_run.get_id(), runtime.flow_run.get_id()
    wanted = ArtifactCreate(
        key=key,
        type=kind,
        description=description,
        data=data,
        metadata_=dict(metadata) if metadata else None,
        task_run_id=task_run or (UUID(own_task) if own_task else None),
        flow_run_id=UUID(flow_run) if flow_run else None,
    )
    with SyncClientContext.get_or_create() as context:
        return context.client.create_artifact(wanted).id


def run_link(flow_run: str) -> tuple[str, str]:
    """Return name and address of a flow run in Prefect's pages; empty without any.

    Args:
        flow_run: ID of the flow run; empty for none. Another run than the current one is named by its ID.
    """
    if not flow_run:
        return "", ""
    name = runtime.flow_run.get_name() if flow_run == runtime.flow_run.get_id() else None
    return name or flow_run, url_for("flow-run", obj_id=flow_run) or ""


def run_links(lineages: Iterable[Lineage]) -> dict[str, tuple[str, str]]:
    """Return name and address of each flow run that made one of the versions, by ID."""
    runs = {run for each in lineages for key, run in each.runs.items() if key == FLOW_RUN}
    return {run: run_link(run) for run in runs}


def update_artifact(artifact: UUID, data: str | float, description: str) -> None:
    """Update an artifact in place.

    Args:
        artifact: ID of the artifact.
        data: Its new content.
        description: Its new description.
    """
    with SyncClientContext.get_or_create() as context:
        context.client.update_artifact(artifact, ArtifactUpdate(data=data, description=description))
