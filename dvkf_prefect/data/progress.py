"""A progress bar for a terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """Shows a transfer on standard error: files, bytes and the time left; gone when it is done."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def start(self, label: str, files: int, size: int) -> None:
        """Show a new bar.

        Args:
            label: What is done.
            files: Number of files to come; 0 when it is not known.
            size: Bytes to come; 0 when it is not known.
        """
        self.finish()
        self._files = 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]} files"),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            transient=True,
        )
        self._total = files
        self._by_size = size > 0
        self._task = self._progress.add_task(label, total=size or None, done=f"0/{files}" if files else "0")
        self._progress.start()

    def advance(self, files: int, size: int) -> None:
        """Move the bar on."""
        if self._progress:
            self._files += files
            done = f"{self._files}/{self._total}" if self._total else str(self._files)
            self._progress.update(self._task, advance=size, done=done)

    def finish(self) -> None:
        """Take the bar away."""
        if self._progress:
            self._progress.stop()
            self._progress = None
