"""Timeouts of runs on a server."""

from __future__ import annotations

from dataclasses import dataclass

RUN_LIMIT = 7 * 86400.0
"""Maximum duration of a run, in seconds.

The files it needs beside the remote's objects may be collected a day later (`dvkf_prefect.data.upkeep.gc.RUN_AGE`).
"""


@dataclass(frozen=True, slots=True)
class Patience:
    """Timeouts, in seconds.

    Attributes:
        poll_from: Interval between two polls of a run after a change.
        poll_to: Interval between two polls of a run without changes for a long time.
        run: Maximum duration of a run, at most `RUN_LIMIT`; then it is terminated.
        cancel: Wait for a terminated run's end.
        start: Wait for a pod whose image cannot be pulled, or whose container cannot be created.
        schedule: Wait for a pod that fits on no node.
    """

    poll_from: float = 2.0
    poll_to: float = 30.0
    run: float = RUN_LIMIT
    cancel: float = 120.0
    start: float = 300.0
    schedule: float = 1800.0
