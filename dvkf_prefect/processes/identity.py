"""Server processes that outlive their starter, identified by their start time, and listening sockets on 127.0.0.1.

The kernel may reuse a process id. Together with the process's start time and the boot id it is unique. Source:
proc_pid_stat(5), pidfd_open(2).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dvkf_prefect.errors import ServingError

LOCALHOST = "127.0.0.1"
BACKLOG = 2048


@dataclass(frozen=True, slots=True)
class ProcessId:
    """Identity of one process of this machine; a later process with the same pid has another identity.

    Attributes:
        pid: Process id.
        started: Clock ticks between boot and the process's start.
        boot: Boot id of the kernel.
    """

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """Return the identity of the process with this pid; None if there is none or it is a zombie."""
        started = _started(pid)
        return None if started is None else cls(pid, started, _boot())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProcessId:
        """Build an identity from the values of `as_dict`."""
        return cls(int(values["pid"]), int(values["started"]), str(values["boot"]))

    def as_dict(self) -> dict[str, Any]:
        """Return the identity as plain values for JSON."""
        return asdict(self)

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return self == ProcessId.of(self.pid)

    def end(self, grace: float) -> None:
        """End the process by SIGTERM, by SIGKILL after ``grace`` seconds, and wait for its end.

        Args:
            grace: Seconds between SIGTERM and SIGKILL.

        Raises:
            TimeoutError: The process is still there 5 seconds after SIGKILL.
            PermissionError: The process belongs to another user.
        """
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            # Checked after opening the descriptor: from here on it can only mean this process.
            if not self.alive:
                return
            for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, number)
                if _wait(descriptor, seconds):
                    return
        finally:
            os.close(descriptor)
        raise TimeoutError(f"process {self.pid} did not end")


def _wait(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        if poll.poll(max(left, 0) * 1000):
            return True
        if left <= 0:
            return False


def _started(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The program's name, in parentheses, may itself hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def listen(port: int) -> socket.socket:
    """Open the listening socket of a server on 127.0.0.1.

    Args:
        port: Port number; 0 takes a free one.

    Raises:
        ServingError: The port is taken or not allowed.
    """
    # asyncio turns Nagle's algorithm off (40 ms an answer) only if the socket names its protocol.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOCALHOST, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ServingError(f"cannot listen on {LOCALHOST}:{port}: {error.strerror}") from error
    return listener


def reserve(port: int, *, shared: bool = False) -> socket.socket:
    """Bind a port on 127.0.0.1 for a server that listens there with ``SO_REUSEPORT``, without listening.

    Args:
        port: Port number; 0 takes a free one.
        shared: Let a server that still listens there with ``SO_REUSEPORT`` be.

    Returns:
        A socket that keeps the port until it is closed.

    Raises:
        ServingError: The port is taken or not allowed.
    """
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if not shared and port:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as alone:
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind((LOCALHOST, port))
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((LOCALHOST, port))
    except OSError as error:
        reserved.close()
        raise ServingError(f"cannot listen on {LOCALHOST}:{port}: {error.strerror}") from error
    return reserved
