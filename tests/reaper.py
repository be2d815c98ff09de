"""Ends what a test run leaves behind, however the run ends: ``python -I -S reaper.py PID MARK`` beside it.

Whatever the tests start has the run's mark in its environment, also in a session of its own. When the run's process is
gone, all such processes are killed with all that they started, and the run's temporary folder is removed unless the run
came to its end. The folder's name comes over standard input, and an ``end`` before the end.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from contextlib import suppress


def _read(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as stream:
            return stream.read()
    except OSError:
        return b""


def marked(mark: str) -> set[int]:
    """The processes that have the mark, and their descendants; without this one and zombies."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            fields = _read(int(entry), "stat").rpartition(b")")[2].split()
            if fields and fields[0] not in (b"Z", b"X"):
                parents[int(entry)] = int(fields[1])
    wanted = (mark + "=").encode()
    found = {pid for pid in parents if any(e.startswith(wanted) for e in _read(pid, "environ").split(b"\0"))}
    while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= more
    return found - {os.getpid()}


def kill(mark: str, seconds: float = 60.0) -> None:
    """Kill them until there are none."""
    end = time.monotonic() + seconds
    while (found := marked(mark)) and time.monotonic() < end:
        for pid in found:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def main() -> None:
    """Wait for the end of the run, and clean up behind it."""
    run, mark = int(sys.argv[1]), sys.argv[2]
    with suppress(ProcessLookupError):
        poll = select.poll()
        poll.register(os.pidfd_open(run), select.POLLIN)
        poll.poll()
    kill(mark)
    os.set_blocking(0, False)
    said = b""
    with suppress(BlockingIOError):
        while piece := os.read(0, 65536):
            said += piece
    *folders, last = said.decode(errors="surrogateescape").split("\n") or [""]
    if "end" not in (*folders, last):
        for folder in filter(None, folders):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
