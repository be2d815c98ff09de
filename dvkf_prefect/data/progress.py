"""Progress of verbs, as callbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

Direction = Literal["push", "fetch"]


class Progress(Protocol):
    """Is told how a transfer goes, from several threads."""

    def start(self, label: str, files: int, size: int) -> None:
        """The plan: how many files and bytes there are to move; 0 where it is not known."""

    def advance(self, files: int, size: int) -> None:
        """So many more files and bytes are done."""

    def finish(self) -> None:
        """Nothing more will come."""


# Progress of work on many files: told how many files and bytes were finished since the last call.
Advance = Callable[[int, int], None]


def starting(progress: Progress | None, label: str) -> Advance | None:
    """Show a new piece of work; return what is told of its files and bytes."""
    if progress is None:
        return None
    progress.start(label, 0, 0)
    return progress.advance
