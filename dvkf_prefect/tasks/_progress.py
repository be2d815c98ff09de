"""Progress of transfers, of `add` and of `checkout` as one artifact: files, bytes, rate and remaining time."""

from __future__ import annotations

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable
from uuid import UUID

from dvkf_prefect.cards import artifact_key, count_text, escape, size_text
from dvkf_prefect.data.progress import NAMED, Part
from dvkf_prefect.tasks._artifacts import create_artifact, update_artifact

# Minimum seconds between two updates of a progress bar: a fast transfer must not wait for the server.
_PAUSE = 1.0
# Seconds over which the rate is measured.
_WINDOW = 20.0


class Meter:
    """Counts of files and bytes with their rate.

    Args:
        files: Expected number of files, 0 if unknown.
        size: Expected bytes, 0 if unknown.
        clock: Returns seconds that increase.

    Attributes:
        files: Expected number of files, 0 if unknown.
        size: Expected bytes, 0 if unknown.
        parts: Bytes so far and all bytes of each large file that is not complete, by its name.

    Example:
        >>> meter = Meter(2, 4_000_000, clock=iter([0.0, 2.0, 2.0]).__next__)
        >>> meter.add(1, 1_000_000)
        >>> meter.text()
        '1 of 2 files, 1.0 MB of 4.0 MB, 500.0 kB/s, about 6 s left'
    """

    def __init__(self, files: int = 0, size: int = 0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.files = files
        self.size = size
        self.parts: dict[str, tuple[int, int]] = {}
        self._clock = clock
        self._began = clock()
        self._done_files = self._done_size = 0
        self._samples = deque([(self._began, 0, 0)])

    def add(self, files: int, size: int, part: Part | None = None) -> None:
        """Count files and bytes as complete; see `Progress.advance`."""
        self._done_files += files
        self._done_size += size
        if part is not None:
            if files:
                self.parts.pop(part.name, None)
            elif part.name in self.parts or len(self.parts) < NAMED:
                self.parts[part.name] = (self.parts.get(part.name, (0, 0))[0] + size, part.size)
        now = self._clock()
        if now - self._samples[-1][0] >= _PAUSE:
            self._samples.append((now, self._done_files, self._done_size))
            while len(self._samples) > 2 and now - self._samples[0][0] > _WINDOW:
                self._samples.popleft()

    @property
    def part(self) -> float:
        """Completed part of the work, from 0 to 1; 0 if no total is known."""
        if self.size:
            return max(0.0, min(self._done_size / self.size, 1.0))
        return min(self._done_files / self.files, 1.0) if self.files else 0.0

    def text(self, *, ended: bool = False) -> str:
        """Return the counts, the rate and the remaining time as text.

        Args:
            ended: The work is complete: give its duration and its mean rate.
        """
        now = self._clock()
        if ended:
            seconds = now - self._began
            texts = [f"{self._files_text()}, {size_text(self._done_size)} in {duration(seconds)}"]
            if seconds >= _PAUSE:
                texts.append(f"{size_text(self._done_size / seconds)}/s")
            return ", ".join(texts)
        files = self._files_text(partly=True)
        size = size_text(self._done_size) + (
            f" of {size_text(self.size)}" if self.size >= self._done_size > 0 else ""
        )
        began, files_before, size_before = self._samples[0]
        seconds = now - began
        texts = [files, size]
        if seconds > 0 and self._done_size > size_before:
            rate = (self._done_size - size_before) / seconds
            texts.append(f"{size_text(rate)}/s")
            if self.size > self._done_size:
                texts.append(_left((self.size - self._done_size) / rate))
        elif seconds > 0 and self.files > self._done_files > files_before:
            left = (self.files - self._done_files) * seconds / (self._done_files - files_before)
            texts.append(_left(left))
        return ", ".join(texts)

    def _files_text(self, *, partly: bool = False) -> str:
        """Return the number of complete files, with their total during the work and if some failed."""
        if self.files and (partly or self._done_files < self.files):
            return f"{self._done_files:,} of {count_text(self.files, 'file')}"
        return count_text(self._done_files, "file")


class ArtifactProgress:
    """Progress of work as an artifact.

    Work with a known number of files has one from its start; other work has one once it lasts a second.

    Args:
        name: Short name of the repository, for the artifact's key and description.
        clock: Returns seconds that increase.

    Example:
        ``repo.using(progress=ArtifactProgress("digits")).push()``
    """

    def __init__(self, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        # Transfers report from their own threads, which lack the context of the run.
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._artifact: UUID | None = None
        self._label = ""
        self._meter = Meter(clock=clock)
        self._sent = 0.0

    def start(self, label: str, files: int, size: int) -> None:
        """Begin work with its expected number of files and bytes."""
        with self._lock:
            self._label = label
            self._meter = Meter(files, size, clock=self._clock)
            self._artifact = None
            self._sent = self._clock()
            if files:
                self._show()

    def expect(self, files: int, size: int) -> None:
        """Change the expected number of files and bytes."""
        with self._lock:
            self._meter.files, self._meter.size = files, size

    def advance(self, files: int, size: int, part: Part | None = None) -> None:
        """Count files and bytes as complete."""
        with self._lock:
            self._meter.add(files, size, part)
            if self._clock() - self._sent >= _PAUSE:
                self._show()

    def finish(self) -> None:
        """Show the final state."""
        with self._lock:
            if self._artifact is not None:
                self._show(ended=True)
                self._artifact = None

    def text(self, *, ended: bool = False) -> str:
        """Return the description of the artifact.

        Args:
            ended: The work is complete.
        """
        text = f"**{escape(self._name)}**: {escape(self._label)}: {self._meter.text(ended=ended)}"
        for name, (done, size) in () if ended else self._meter.parts.items():
            text += f"\n- {escape(name)}: {size_text(done)}{f' of {size_text(size)}' if size else ''}"
        return text

    def _show(self, *, ended: bool = False) -> None:
        meter = self._meter
        text = self.text(ended=ended)
        part = round(100 * (1.0 if ended and not (meter.files or meter.size) else meter.part), 1)
        if self._artifact is None:
            key = artifact_key("transfer", self._name)
            self._artifact = self._context.run(create_artifact, "progress", key, text, part)
        else:
            self._context.run(update_artifact, self._artifact, part, text)
        self._sent = self._clock()


def _left(seconds: float) -> str:
    return f"{'about ' if seconds >= 1 else ''}{duration(seconds)} left"


def duration(seconds: float) -> str:
    """Return a time as two of hours, minutes and seconds.

    Example:
        >>> duration(75), duration(7260)
        ('1 min 15 s', '2 h 1 min')
    """
    if seconds < 1:
        return "less than 1 s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
