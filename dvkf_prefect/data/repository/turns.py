"""Turns in a workspace: a flow has it alone, while commands that run stages share it.

A turn is a flock on one file: exclusive for a flow, shared for ``dvkf repro`` and `dvkf_prefect.repro`. The kernel
releases it when the process dies. It does not exclude DVC, which knows the locks of `locks` only.

The file names its holders for those who wait, each in a line of mode, pid, host and description. A killed holder leaves
its line, so a line counts only while its process runs.
"""

from __future__ import annotations

import fcntl
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from dvkf_prefect.data.repository.stage_notes import is_alive
from dvkf_prefect.errors import LockedError
from dvkf_prefect.files import read_description
from dvkf_prefect.text import printable

TURN_WAIT = 24 * 3600.0
"""Seconds to wait for a turn, unless a caller sets its own."""

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_PAUSE = 0.25
_SHARE, _ALONE = "shared", "alone"
_NAMED = 3
# Files whose turn this flow or command has. Threads and subflows that Prefect starts get a copy of the context.
_HELD: ContextVar[frozenset[str]] = ContextVar("turns", default=frozenset())
# Threads of this process that have a turn alone, by file. A wait in the same thread would stop the one who has it.
_THREADS: dict[str, int] = {}


def _warn(message: str) -> None:
    import logging

    logging.getLogger(__name__).warning(message)


@contextmanager
def turn(
    path: Path,
    *,
    holder: str = "",
    timeout: float = TURN_WAIT,
    on_wait: Callable[[str], None] = _warn,
) -> Iterator[None]:
    """Have a turn for the length of a ``with`` block. A holder of the turn passes at once.

    Args:
        path: File of the turn; its folder is created when needed.
        holder: Description of the caller, for those who wait; it then has the workspace alone. Empty shares the
            workspace with others that share it.
        timeout: Seconds to wait for the others.
        on_wait: Called once with a message if the turn is taken.

    Raises:
        LockedError: The others had the workspace for the whole time, or another coroutine of this thread has it.
    """
    name = os.path.realpath(path)
    if name in _HELD.get():
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, _FLAGS, 0o666)
    try:
        _wait(descriptor, path, alone=bool(holder), timeout=timeout, on_wait=on_wait)
        mode = _ALONE if holder else _SHARE
        own = "\t".join((mode, str(os.getpid()), platform.node(), printable(holder or _command())))
        # Who has it now excludes all that had it alone, and whoever has it alone excludes all others.
        others = [] if holder else [line for line in _lines(path) if line.startswith(_SHARE)]
        _write(descriptor, [*others, own])
        token = _HELD.set(_HELD.get() | {name})
        if holder:
            _THREADS[name] = threading.get_ident()
        try:
            yield
        finally:
            if holder:
                _THREADS.pop(name, None)
            _HELD.reset(token)
            left = _lines(path)
            if own in left:
                left.remove(own)
            _write(descriptor, [] if holder else left)
    finally:
        os.close(descriptor)


def _wait(
    descriptor: int, path: Path, *, alone: bool, timeout: float, on_wait: Callable[[str], None]
) -> None:
    deadline = time.monotonic() + timeout
    waited = False
    while not _take(descriptor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH):
        who = _holder(path)
        if _THREADS.get(os.path.realpath(path)) == threading.get_ident():
            raise LockedError(
                f"workspace in use: {path.parent}, by {who} of this thread, so a wait would never end. Await one flow "
                "after the other, or run each in a thread."
            )
        if time.monotonic() >= deadline:
            raise LockedError(
                f"workspace in use: {path.parent}, by {who}, for {timeout:.0f} s. Let it finish, or stop it, and run "
                "this again."
            )
        if not waited:
            waited = True
            on_wait(f"waiting for a turn in the workspace, in use by {who}")
        time.sleep(min(_PAUSE, max(deadline - time.monotonic(), 0)))


def _take(descriptor: int, mode: int) -> bool:
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without flock; DVC's own locks remain
    return True


def _command() -> str:
    """Return the command of this process for others to find; of its arguments, only a verb of ``dvkf``."""
    name, *arguments = [os.path.basename(sys.argv[0]), *sys.argv[1:2]] if sys.argv else [""]
    if not name or name.startswith(("-", "__")):
        return "a command that runs stages"
    return f"`{' '.join((name, *arguments)) if name == 'dvkf' else name}`"


def _write(descriptor: int, lines: list[str]) -> None:
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"), 0)


def _lines(path: Path) -> list[str]:
    """Return the lines of holders; those of processes of this machine that ended are left out."""
    with suppress(OSError):
        lines = read_description(path).decode(errors="replace").splitlines()
        return [line for line in lines if _is_current(line)]
    return []


def _is_current(line: str) -> bool:
    _, pid, host, _ = (*line.split("\t", 3), "", "", "", "")[:4]
    return pid.isdecimal() and (host != platform.node() or is_alive(int(pid)))


def _holder(path: Path) -> str:
    found = []
    for line in _lines(path):
        _, pid, host, said = line.split("\t", 3)
        found.append(f"{said} (process {pid}{'' if host == platform.node() else f' on {host}'})")
    more = ", ..." if len(found) > _NAMED else ""
    return printable(", ".join(found[:_NAMED]) + more) or "a command that runs stages"
