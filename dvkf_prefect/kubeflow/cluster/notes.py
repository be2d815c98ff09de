"""Local records of runs: a file for each content of stages, with the run started last and its attempt."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from dvkf_prefect.files import write_atomic


def mark_taken(note: Path) -> None:
    """Record that all results of a run were collected; do nothing for a run of another machine.

    Args:
        note: Local file that records the run.
    """
    with suppress(OSError, ValueError):
        known = json.loads(note.read_bytes())
        write_atomic(note, json.dumps({**known, "taken": True}).encode())


def left_key(note: Path) -> str:
    """Return the key of the run started last, if not all of its results were collected; else ""."""
    try:
        known = json.loads(note.read_bytes())
        return "" if known.get("taken") else str(known["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def first_attempt(note: Path) -> int:
    """Return the attempt to look for first; the next one if the last run's results were collected."""
    try:
        known = json.loads(note.read_bytes())
        return int(known["attempt"]) + bool(known.get("taken"))
    except (OSError, ValueError, KeyError, TypeError):
        return 0
