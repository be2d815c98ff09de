"""Ends what a test run leaves behind, however the run ends: ``python -I -S reaper.py PID MARK`` beside it.

Each process that the tests start has the run's mark in its environment, also in a session of its own. After the end of
the run's process they are killed with all their descendants, and mounts in the run's temporary folder are removed. The
folder itself is removed unless the run came to its end. Its name comes over standard input, and `end` before the end.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
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


def unmount(folder: str) -> None:
    """Unmount all below the folder: containers, images of disks. A mount would keep the space of a removed file."""
    points = [line.split(b" ")[1] for line in _read(os.getpid(), "mounts").splitlines()]
    # Blanks and the like are octal escapes there: proc_pid_mounts(5).
    names = [
        os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), each))
        for each in points
    ]
    for point in sorted((each for each in names if each.startswith(folder + "/")), reverse=True):
        subprocess.run(
            ["umount", "--lazy", point], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        )


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
    ended = "end" in (*folders, last)
    for folder in folders:
        if folder in ("", "end"):
            continue
        unmount(folder)
        if not ended:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
