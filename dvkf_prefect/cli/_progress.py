"""Progress bar for a terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from dvkf_prefect.data.progress import Part
from dvkf_prefect.text import printable


class Bar:
    """Progress bar on standard error with objects, bytes and remaining time. It is removed at the end."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        # A bar consists of escape sequences, which the safe standard error would escape.
        self._stream = getattr(sys.stderr, "unescaped", sys.stderr)

    def start(self, label: str, files: int, size: int) -> None:
        """Show a new bar.

        Args:
            label: Name of the operation.
            files: Expected number of objects; 0 if unknown.
            size: Expected bytes, exact or estimated; 0 if unknown.
        """
        self.finish()
        self._files = self._size = 0
        self._total, self._expected = files, size
        self._parts: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]}"),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(file=self._stream),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task(
            escape(printable(label)), total=size or None, done=f"0/{files} files" if files else "0 files"
        )
        self._progress.start()

    def expect(self, files: int, size: int) -> None:
        """Change the expected number of files and bytes."""
        self._total, self._expected = files, size
        self.advance(0, 0)

    def advance(self, files: int, size: int, part: Part | None = None) -> None:
        """Advance the bar by completed files and bytes; each of several large files has a bar of its own."""
        if self._progress:
            self._files += files
            self._size += size
            if part is not None and self._total != 1:
                self._advance_part(self._progress, part, size, complete=files > 0)
            done = f"{self._files}/{self._total} files" if self._total else f"{self._files} files"
            total: float | None = self._expected or None
            if self._total and self._files:
                # Without a size, or beyond an estimate, extrapolate from the completed files.
                guess = self._size * self._total / self._files
                total = guess if total is None or self._size > total else total
            self._progress.update(self._task, completed=self._size, total=total, done=done)

    def _advance_part(self, progress: Progress, part: Part, size: int, *, complete: bool) -> None:
        if complete:
            task = self._parts.pop(part.name, None)
            if task is not None:
                progress.remove_task(task)
            return
        if part.name not in self._parts:
            name = f"  {escape(printable(part.name))}"
            self._parts[part.name] = progress.add_task(name, total=part.size or None, done="")
        progress.advance(self._parts[part.name], size)

    def finish(self) -> None:
        """Remove the bars."""
        if self._progress:
            self._progress.stop()
            self._progress = None
