"""Progress of a pipeline run as one artifact: stages done, running and waiting, time and bytes, updated in place."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from uuid import UUID

from dvkf_prefect.cards import artifact_key, count_text, escape, size_text
from dvkf_prefect.pipeline.run.events import StageEvent
from dvkf_prefect.tasks._artifacts import create_artifact, update_artifact
from dvkf_prefect.tasks._progress import duration

# Seconds between two updates after changes, and without any.
_PAUSE = 2.0
_TICK = 15.0
# Names of running stages that are shown.
_NAMED = 5


class PipelineProgress:
    """Progress of a pipeline run; it has no artifact if no stage runs.

    Args:
        name: Short name of the repository, for the artifact's key and description.
        clock: Returns seconds that increase.

    Example:
        ``progress = PipelineProgress("digits")``
    """

    def __init__(self, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        # Updates come from a thread, which lacks the context of the run.
        self._context = contextvars.copy_context()
        self._changed = threading.Condition()
        self._began = clock()
        self._ended = self._total = self._failed = self._size = 0
        self._running: dict[str, None] = {}
        self._artifact: UUID | None = None
        self._dirty = self._finished = False
        self._thread: threading.Thread | None = None

    def take(self, event: StageEvent, size: int = 0) -> None:
        """Count an event of a stage.

        Args:
            event: The event from `repro`.
            size: Bytes of the outputs that the stage wrote; 0 if unknown.
        """
        with self._changed:
            self._ended, self._total = event.ended, event.total
            self._size += size
            self._failed += event.kind == "fail"
            self._running.pop(event.stage, None)
            if event.kind == "start":
                self._running[event.stage] = None
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="dvkf-progress", daemon=True)
                    self._thread.start()
            self._dirty = True
            self._changed.notify_all()

    def finish(self) -> None:
        """Show the final state."""
        with self._changed:
            self._finished = True
            self._running.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def text(self) -> str:
        """Return the description of the artifact."""
        parts = [f"{self._ended:,} of {count_text(self._total, 'stage')} done"]
        if self._failed:
            parts.append(f"{self._failed:,} failed")
        if self._running:
            named = ", ".join(escape(stage) for stage in list(self._running)[:_NAMED])
            more = ", ..." if len(self._running) > _NAMED else ""
            parts.append(f"{len(self._running):,} running ({named}{more})")
        if waiting := self._total - self._ended - len(self._running):
            parts.append(f"{waiting:,} {'not run' if self._finished else 'waiting'}")
        parts.append(duration(self._clock() - self._began))
        if self._size:
            parts.append(f"{size_text(self._size)} written")
        return f"**{escape(self._name)}**: " + ", ".join(parts)

    def _work(self) -> None:
        while True:
            with self._changed:
                last = self._finished
                self._dirty = False
                part, text = self._ended / max(self._total, 1), self.text()
            with suppress(Exception):  # the run goes on without its progress
                self._context.run(self._show, round(100 * part, 1), text)
            if last:
                return
            with self._changed:
                self._changed.wait_for(lambda: self._finished, _PAUSE)
                self._changed.wait_for(lambda: self._dirty or self._finished, _TICK - _PAUSE)

    def _show(self, part: float, text: str) -> None:
        if self._artifact is None:
            key = artifact_key("progress", self._name)
            self._artifact = create_artifact("progress", key, text, part)
        else:
            update_artifact(self._artifact, part, text)
