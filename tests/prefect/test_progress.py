"""The progress of a pipeline run: one artifact, updated in place, at a bounded rate."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from dvkf_prefect.pipeline.run.events import StageEvent
from dvkf_prefect.tasks.stages import progress as module
from dvkf_prefect.tasks.stages.progress import PipelineProgress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    made = uuid4()

    def create(kind: str, key: str, text: str, part: float) -> Any:
        assert (kind, key) == ("progress", "progress-digits")
        found.append((text, part))
        return made

    def update(artifact: Any, part: float, text: str) -> None:
        assert artifact == made
        found.append((text, part))

    monkeypatch.setattr(module, "create_artifact", create)
    monkeypatch.setattr(module, "update_artifact", update)
    return found


def event(stage: str, kind: Any, ended: int, total: int = 4) -> StageEvent:
    return StageEvent(stage, kind, ended=ended, total=total)


def test_the_text_has_stages_time_and_bytes(sent: list[tuple[str, float]]) -> None:
    clock = Clock()
    progress = PipelineProgress("digits", clock=clock)
    progress.take(event("a", "skip", 1))
    progress.take(event("b", "start", 1))
    progress.take(event("c", "start", 1))
    clock.now = 75
    assert progress.text() == "**digits**: 1 of 4 stages done, 2 running (b, c), 1 waiting, 1 min 15 s"
    progress.take(event("b", "done", 2), 1_200_000)
    progress.take(event("c", "fail", 3))
    clock.now = 7260
    progress.finish()
    assert sent[-1] == (
        "**digits**: 3 of 4 stages done, 1 failed, 1 not run, 2 h 1 min, 1.2 MB written",
        75.0,
    )


def test_many_events_are_few_updates(sent: list[tuple[str, float]]) -> None:
    progress = PipelineProgress("digits")
    for n in range(500):
        progress.take(event(f"s{n}", "start", n, 500))
        progress.take(event(f"s{n}", "done", n + 1, 500))
    progress.finish()
    assert 1 <= len(sent) <= 3 and sent[-1][1] == 100.0


def test_nothing_that_runs_is_no_artifact(sent: list[tuple[str, float]]) -> None:
    progress = PipelineProgress("digits")
    progress.take(event("a", "skip", 1, 1))
    progress.finish()
    assert sent == []


def test_a_server_that_refuses_the_artifact_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("refused")

    monkeypatch.setattr(module, "create_artifact", fail)
    progress = PipelineProgress("digits")
    progress.take(event("a", "start", 0))
    progress.finish()
