"""Progress callbacks for operations on many files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

Direction = Literal["push", "fetch"]
# Minimum seconds between two reports on files that are being copied.
_PAUSE = 0.25
# Up to this many files, reports on large ones name the file.
NAMED = 8


@dataclass(frozen=True, slots=True)
class Part:
    """File whose bytes are reported while it is copied.

    Attributes:
        name: Path for users.
        size: Size in bytes, 0 if unknown.
    """

    name: str
    size: int = 0


class Progress(Protocol):
    """Progress of a transfer; methods are called from several threads."""

    def start(self, label: str, files: int, size: int) -> None:
        """Receive the plan: a label and the total of files and bytes, 0 if unknown."""

    def expect(self, files: int, size: int) -> None:
        """Receive new totals of the current work, when they are known only after its start."""

    def advance(self, files: int, size: int, part: Part | None = None) -> None:
        """Receive the number of files and bytes completed since the last call.

        Bytes of a large file come while it is copied, with 0 files. A negative number of bytes takes back those of a
        file that was damaged.

        Args:
            files: Number of files.
            size: Number of bytes.
            part: The large file that the bytes belong to, if the work is on few files.
        """

    def finish(self) -> None:
        """Receive the end of the transfer."""


class Advance(Protocol):
    """Progress of work on many files: called with the files and bytes completed since the last call."""

    def __call__(self, files: int, size: int, part: Part | None = None) -> None:
        """Receive files and bytes, see `Progress.advance`."""


class NoProgress:
    """Progress that nothing shows."""

    def start(self, label: str, files: int, size: int) -> None:
        """Do nothing."""

    def expect(self, files: int, size: int) -> None:
        """Do nothing."""

    def advance(self, files: int, size: int, part: Part | None = None) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


NO_PROGRESS = NoProgress()


class Work:
    """Piece of work: a callback for completed files and bytes, and totals that may grow.

    Args:
        progress: Receiver of the calls.
        files: Total of files, 0 if unknown.
        size: Total of bytes, 0 if unknown.
    """

    def __init__(self, progress: Progress, files: int = 0, size: int = 0) -> None:
        self._progress = progress
        self._files = files
        self._size = size

    def __call__(self, files: int, size: int, part: Part | None = None) -> None:
        """Count files and bytes as complete, see `Progress.advance`."""
        if part is None:
            self._progress.advance(files, size)
        else:
            self._progress.advance(files, size, part)

    def more(self, files: int, size: int) -> None:
        """Add to the totals; negative numbers reduce them."""
        self._files += files
        self._size += size
        if self._files or self._size:
            self._progress.expect(self._files, self._size)


NO_WORK = Work(NO_PROGRESS)


class Steps:
    """Bytes of large files while they are copied, reported a few times a second.

    One object serves one thread.

    Args:
        advance: Receiver of files and bytes.
        parts: Names of the files, by the key of `note`.

    Example:
        >>> steps = Steps(lambda files, size, part=None: print(files, size))
        >>> steps.note("a", 100)
        >>> steps.done("a", 300)
        1 300
    """

    def __init__(
        self,
        advance: Advance,
        parts: Mapping[str, Part] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._advance = advance
        self._parts = parts or {}
        self._clock = clock
        self._last = clock()
        self._waiting = 0
        self._key = ""
        self._sent: dict[str, int] = {}

    def note(self, key: str, size: int) -> None:
        """Note bytes of a file that is not complete yet.

        Args:
            key: The file.
            size: Bytes since the last call.
        """
        if key != self._key:
            self._report()
            self._key = key
        self._waiting += size
        now = self._clock()
        if now - self._last >= _PAUSE:
            self._last = now
            self._report()

    def done(self, key: str, size: int, *, files: int = 1) -> None:
        """Report the end of a file.

        Args:
            key: The file.
            size: All of its bytes; 0 if it failed.
            files: Number of files that it counts for; 0 if it failed.
        """
        if key == self._key:
            self._waiting = 0
            self._key = ""
        sent = self._sent.pop(key, 0)
        part = self._parts.get(key) if sent else None
        if part is None:
            self._advance(files, size - sent)
        else:
            self._advance(files, size - sent, part)

    def _report(self) -> None:
        if not self._waiting:
            return
        self._sent[self._key] = self._sent.get(self._key, 0) + self._waiting
        part = self._parts.get(self._key)
        if part is None:
            self._advance(0, self._waiting)
        else:
            self._advance(0, self._waiting, part)
        self._waiting = 0


@contextmanager
def counting(progress: Progress, label: str, files: int = 0, size: int = 0) -> Iterator[Work]:
    """Start a piece of work, yield its callback for completed files and bytes, and finish it at the end of the block.

    Args:
        progress: Receiver of the calls.
        label: Name of the work.
        files: Total of files, 0 if unknown.
        size: Total of bytes, 0 if unknown.
    """
    progress.start(label, files, size)
    try:
        yield Work(progress, files, size)
    finally:
        progress.finish()
