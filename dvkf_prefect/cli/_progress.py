"""A progress bar for a terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from dvkf_prefect.text import printable


class Bar:
    """A bar on standard error: objects, bytes and the time left; gone when it is done."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        # The command line escapes what is written to standard error; a bar is made of escape sequences.
        self._stream = getattr(sys.stderr, "unescaped", sys.stderr)

    def start(self, label: str, files: int, size: int) -> None:
        """Show a new bar.

        Args:
            label: What is done.
            files: Number of objects to come; 0 when it is not known.
            size: Bytes to come, or about so many; 0 when it is not known.
        """
        self.finish()
        self._files = self._size = 0
        self._total, self._expected = files, size
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]} files"),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=Console(file=self._stream),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task(
            escape(printable(label)), total=size or None, done=f"0/{files}" if files else "0"
        )
        self._progress.start()

    def advance(self, files: int, size: int) -> None:
        """Move the bar on."""
        if self._progress:
            self._files += files
            self._size += size
            done = f"{self._files}/{self._total}" if self._total else str(self._files)
            total: float | None = self._expected or None
            if self._total and self._files:
                # Without a size, or past a guessed one, what came so far tells how much is to come.
                guess = self._size * self._total / self._files
                total = guess if total is None or self._size > total else total
            self._progress.update(self._task, completed=self._size, total=total, done=done)

    def finish(self) -> None:
        """Take the bar away."""
        if self._progress:
            self._progress.stop()
            self._progress = None
