"""Events and result of `repro`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dvkf_prefect.pipeline.plan.why import Decision, Reason


@dataclass(frozen=True, slots=True)
class StageEvent:
    """Event of a stage.

    Attributes:
        stage: Address of the stage.
        kind: ``start``, ``skip``, ``restore``, ``done`` or ``fail``.
        reasons: Reasons why it ran or was restored.
        seconds: Running time of its commands.
        log_tail: Last lines of the commands' output.
        message: Error message, for ``fail``.
        frozen: True if the stage is frozen.
        ended: Number of finished stages, this one included except for ``start``.
        total: Total number of stages.
        warnings: Undeclared reads and writes, as far as detected.
    """

    stage: str
    kind: Literal["start", "skip", "restore", "done", "fail"]
    reasons: tuple[Reason, ...] = ()
    seconds: float = 0.0
    log_tail: str = ""
    message: str = ""
    frozen: bool = False
    ended: int = 0
    total: int = 0
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        why = "; ".join(map(str, self.reasons)) or "nothing changed"
        match self.kind:
            case "start":
                return f"Stage '{self.stage}': running, because {why}"
            case "skip":
                return f"Stage '{self.stage}': skipped, {why}"
            case "restore":
                return f"Stage '{self.stage}': restored from the cache, because {why}"
            case "done":
                return f"Stage '{self.stage}': done in {self.seconds:.1f} s"
            case _:
                return f"Stage '{self.stage}': failed"


@dataclass(frozen=True, slots=True)
class ReproResult:
    """Result of `repro`; stages in the order of the graph.

    Attributes:
        decisions: Decisions on all stages that were reached.
        ran: Addresses of stages that ran.
        skipped: Addresses of stages without changes.
        restored: Addresses of stages whose outputs were restored from the cache.
        failed: Addresses of failed stages.
        blocked: Stages not started because a dependency failed or `on_error="fail"` stopped the run.
    """

    decisions: tuple[Decision, ...] = ()
    ran: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()


OnError = Literal["fail", "keep-going", "ignore"]
