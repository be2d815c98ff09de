"""Progress callbacks for operations on many files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

Direction = Literal["push", "fetch"]


class Progress(Protocol):
    """Progress of a transfer; methods are called from several threads."""

    def start(self, label: str, files: int, size: int) -> None:
        """Receive the plan: a label and the total of files and bytes, 0 if unknown."""

    def advance(self, files: int, size: int) -> None:
        """Receive the number of files and bytes completed since the last call."""

    def finish(self) -> None:
        """Receive the end of the transfer."""


# Progress of work on many files: called with the files and bytes completed since the last call.
Advance = Callable[[int, int], None]


def starting(progress: Progress | None, label: str) -> Advance | None:
    """Start a new piece of work in ``progress``; return its callback for completed files and bytes."""
    if progress is None:
        return None
    progress.start(label, 0, 0)
    return progress.advance
