"""What `repro` tells while it works, and in the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dvkf_prefect.pipeline.plan.why import Decision, Reason


@dataclass(frozen=True, slots=True)
class StageEvent:
    """Something that happened to a stage.

    Attributes:
        stage: Its address.
        kind: ``start``, ``skip``, ``restore``, ``done`` or ``fail``.
        reasons: Why it ran or was restored.
        seconds: How long its commands ran.
        log_tail: The end of what they printed.
        message: What went wrong, for ``fail``.
        frozen: Whether it is frozen.
        ended: How many stages were done with, this one among them, but for ``start``.
        total: How many there are.
        warnings: What it read or wrote and did not declare, as far as it was seen.
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
    """What was done, each in the order of the graph.

    Attributes:
        decisions: One for each stage that was come to.
        ran: Addresses of stages that ran.
        skipped: Those that nothing changed for.
        restored: Those whose outputs came from the cache.
        failed: Those that failed.
        blocked: Those that were not come to, because one that they need failed, or any did and it was to end there.
    """

    decisions: tuple[Decision, ...] = ()
    ran: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()


OnError = Literal["fail", "keep-going", "ignore"]
