"""Processes of any machine, as the files name them that several machines share."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass

from dvkf_prefect.processes.identity import ProcessId


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds something on a remote.

    Attributes:
        machine: Name of the machine.
        process: The process; None if it cannot be known.
        owner: The work that the process does, such as the ID of a flow run.
    """

    machine: str
    process: ProcessId | None
    owner: str = ""

    @classmethod
    def here(cls, owner: str = "") -> Holder:
        """Return this process."""
        return cls(socket.gethostname(), ProcessId.of(os.getpid()), owner=owner)

    @classmethod
    def from_json(cls, data: bytes) -> Holder:
        """Read the JSON of `to_json`; an unreadable file has an unknown holder."""
        try:
            values = json.loads(data)
            process = values["process"]
            known = ProcessId.from_dict(process) if process else None
            owner = str(values.get("owner") or "")
            return cls(str(values["machine"]), known, owner)
        except (ValueError, TypeError, KeyError):
            return cls("an unknown machine", None)

    def to_json(self) -> bytes:
        """Return the holder as JSON."""
        process = self.process.as_dict() if self.process else None
        return json.dumps({"machine": self.machine, "process": process, "owner": self.owner}).encode()

    @property
    def gone(self) -> bool:
        """True if it was a process of this machine, since its last boot, that has ended."""
        here = ProcessId.of(os.getpid())
        if self.process is None or here is None or self.machine != socket.gethostname():
            return False
        return self.process.boot == here.boot and not self.process.alive

    @property
    def alive(self) -> bool:
        """True if it is known to be a running process of this machine."""
        here = ProcessId.of(os.getpid())
        if self.process is None or here is None or self.machine != socket.gethostname():
            return False
        return self.process.boot == here.boot and self.process.alive

    def __str__(self) -> str:
        return f"process {self.process.pid} on {self.machine}" if self.process else self.machine
