"""Artifacts in Prefect: cards of results, and the progress of transfers."""

from __future__ import annotations

import contextvars
import json
import threading
import time
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.actions import ArtifactCreate
from prefect.context import SyncClientContext
from prefect.runtime import flow_run as flow_run_id

from dvkf_prefect.cards import Card, artifact_key, count_text, escape, size_text

# Minimum seconds between two updates of a progress bar: a fast transfer must not wait for the server.
_PAUSE = 1.0


def publish(card: Card, *, task_run: UUID | None = None) -> UUID:
    """Add a card to the timeline of its key, as an artifact of the current run.

    Args:
        card: The card.
        task_run: Task run to attach it to instead.

    Returns:
        ID of the artifact.
    """
    if task_run is not None:
        flow_run = flow_run_id.get_id()
        with SyncClientContext.get_or_create() as context:
            wanted = ArtifactCreate(
                key=card.key,
                type="table" if card.table else "markdown",
                description=card.description,
                data=json.dumps([dict(row) for row in card.table]) if card.table else card.markdown,
                task_run_id=task_run,
                flow_run_id=UUID(flow_run) if flow_run else None,
            )
            return context.client.create_artifact(wanted).id
    if card.table:
        rows: list[dict[str, Any]] = [dict(row) for row in card.table]
        made = create_table_artifact(rows, key=card.key, description=card.description)
    else:
        made = create_markdown_artifact(card.markdown, key=card.key, description=card.description)
    # Prefect's functions return an awaitable only in an async run, and these tasks are sync.
    return cast(UUID, made)


class ArtifactProgress:
    """Progress of a transfer as an artifact; without objects to move, no artifact is made.

    Args:
        name: Short name of the repository, for the artifact's key.

    Example:
        ``repo.push(progress=ArtifactProgress("digits"))``
    """

    def __init__(self, name: str) -> None:
        self._name = name
        # Transfers report from their own threads, which lack the context of the run.
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._artifact: UUID | None = None
        self._label = ""
        self._files = self._size = self._done_files = self._done_size = 0
        self._sent = 0.0

    def start(self, label: str, files: int, size: int) -> None:
        """Begin a transfer with its expected number of files and bytes."""
        with self._lock:
            self._label, self._files, self._size = label, files, size
            self._done_files = self._done_size = 0
            self._sent = time.monotonic()
            if files:
                key = artifact_key("transfer", self._name)
                made = self._context.run(create_progress_artifact, 0.0, key=key, description=self._text())
                self._artifact = cast(UUID, made)

    def advance(self, files: int, size: int) -> None:
        """Count files and bytes as complete."""
        with self._lock:
            self._done_files += files
            self._done_size += size
            if self._artifact is not None and time.monotonic() - self._sent >= _PAUSE:
                self._update()

    def finish(self) -> None:
        """Show the final state."""
        with self._lock:
            if self._artifact is not None:
                self._update()
                self._artifact = None

    def _update(self) -> None:
        part = self._done_size / self._size if self._size else self._done_files / self._files
        self._sent = time.monotonic()
        self._context.run(
            update_progress_artifact,
            cast(UUID, self._artifact),
            round(100 * min(part, 1.0), 1),
            description=self._text(),
        )

    def _text(self) -> str:
        done = f"{self._done_files:,} of {count_text(self._files, 'object')}"
        return f"{escape(self._label)}: {done}, {size_text(self._done_size)}"
