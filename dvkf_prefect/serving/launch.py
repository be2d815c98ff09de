"""Processes of model servers: started, watched until they are ready, ended."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dvkf_prefect.errors import ModelDigestError, ServingError
from dvkf_prefect.processes import leash
from dvkf_prefect.processes.identity import ProcessId
from dvkf_prefect.serving.lanes import Batching
from dvkf_prefect.serving.records import ServerRecord

_LOG_LINES = 20
_LOG_LIMIT = 1 << 20
# An ending server finishes its requests: 2 s for idle connections, 30 s for running computations.
_END_GRACE = 35.0

# Servers started by this process, until they end: a leashed one dies when its leash is released.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class ModelFiles:
    """A version of a model to load.

    Attributes:
        name: Name of the model.
        version: The version.
        path: Absolute path of its file, or of the folder with its files.
        digest: md5 of the file, or of the folder's manifest with ``.dir``; verified before it is loaded.
        format: Format of the model; by the names of its files if None.
        batching: Bounds of its batches.
        workers: Number of processes that compute; 0 for threads of the server.
    """

    name: str
    version: str
    path: Path
    digest: str
    format: str | None
    batching: Batching
    workers: int

    def __str__(self) -> str:
        return f"'{self.name}' {self.version}"


@dataclass(frozen=True)
class Started:
    """A server that has loaded its model, before it answers.

    Attributes:
        process: Its process.
        control: Name of its control socket.
    """

    process: ProcessId
    control: str


def start(
    model: ModelFiles,
    log: Path,
    listener: socket.socket,
    *,
    grpc_port: int | None,
    detached: bool,
    timeout: float,
    loaded: Callable[[Started], None],
) -> None:
    """Start a server for a model, and wait until it answers.

    Args:
        model: The model.
        log: Log file of the server.
        listener: Socket to listen on.
        grpc_port: Port for gRPC; None for no gRPC.
        detached: Let the server outlive this process.
        timeout: Seconds until it must be ready.
        loaded: Called once the model is loaded, before the server may answer.

    Raises:
        ModelDigestError: The file does not have the model's digest.
        ServingError: The server did not start; the message ends with the last lines of its log.
    """
    deadline = time.monotonic() + timeout
    control = f"dvkf-serving-{secrets.token_hex(16)}"
    _rotate(log)
    argv = leash.module_argv("dvkf_prefect.serving.server", "--name", model.name, "--version", model.version)
    argv += ["--model", str(model.path), "--digest", model.digest, "--control", control]
    argv += ["--batch-size", str(model.batching.size), "--batch-wait", str(model.batching.wait)]
    argv += ["--workers", str(model.workers)]
    argv += [] if grpc_port is None else ["--grpc-port", str(grpc_port)]
    argv += [] if model.format is None else ["--format", model.format]
    ours, theirs = socket.socketpair()
    with ours, open(log, "ab") as log_file:
        log_start = log_file.tell()
        process: subprocess.Popen[bytes]
        with theirs:
            if detached:
                process = subprocess.Popen(
                    argv, stdin=theirs.fileno(), stdout=log_file, stderr=log_file, start_new_session=True
                )
            else:
                process = leash.LeashedProcess(argv, stdin=theirs.fileno(), stdout=log_file, stderr=log_file)
        try:
            socket.send_fds(ours, [b"l"], [listener.fileno()])
            said = _Said(ours, deadline)
            _expect(said, "loaded", model, log, log_start)
            identity = ProcessId.of(process.pid)
            if identity is None:
                raise ServingError(
                    f"the server of {model} exited right after its start. {_tail(log, log_start)}"
                )
            loaded(Started(identity, control))
            ours.sendall(b"g")
            _expect(said, "ready", model, log, log_start)
        except BaseException as error:
            process.kill()
            process.wait()
            if isinstance(error, OSError):
                raise ServingError(
                    f"the server of {model} did not start ({error}). {_tail(log, log_start)}"
                ) from error
            raise
    for pid, child in [*_children.items()]:
        if child.poll() is not None:  # it ended by itself, or was killed
            del _children[pid]
    _children[process.pid] = process


def is_child(process: ProcessId) -> bool:
    """Return True if this process started the server."""
    return process.pid in _children


def end(record: ServerRecord, *, grace: float = _END_GRACE) -> None:
    """End a server; requests in flight are answered first.

    Args:
        record: The server.
        grace: Seconds until it is killed.

    Raises:
        ServingError: It cannot be ended.
    """
    try:
        record.process.end(grace)
    except (TimeoutError, PermissionError) as error:
        raise ServingError(f"{record.models[0].endpoint} cannot be stopped: {error}") from error
    child = _children.pop(record.process.pid, None)
    if child:
        child.wait()


class _Said:
    """Lines reported by a starting server, read until one deadline."""

    def __init__(self, channel: socket.socket, deadline: float) -> None:
        self._channel = channel
        self._deadline = deadline
        self._buffer = b""

    def line(self) -> dict[str, str]:
        """Return the next line; empty if the server ended without one.

        Raises:
            TimeoutError: The deadline passed without a line.
        """
        while b"\n" not in self._buffer:
            self._channel.settimeout(max(self._deadline - time.monotonic(), 0.001))
            try:
                data = self._channel.recv(65536)
            except TimeoutError:
                raise TimeoutError("it was not ready in time") from None
            except ConnectionResetError:
                return {}
            if not data:
                return {}
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, str] = json.loads(line)
        return answer


def _expect(said: _Said, state: str, model: ModelFiles, log: Path, log_start: int) -> None:
    """Wait until the server reports ``state``."""
    answer = said.line()
    if answer.get("state") == state:
        return
    if answer.get("kind") == "digest":
        raise ModelDigestError(answer["message"])
    reason = answer.get("message") or "it exited without a message"
    raise ServingError(f"the server of {model} did not start: {reason.rstrip('.')}. {_tail(log, log_start)}")


def _rotate(log: Path) -> None:
    """Rename a log that exceeds the size limit; one older file is kept."""
    with suppress(FileNotFoundError):
        if log.stat().st_size > _LOG_LIMIT:
            os.replace(log, log.with_name(log.name + ".1"))


def _tail(log: Path, start: int) -> str:
    with open(log, "rb") as stream:
        stream.seek(max(start, stream.seek(0, os.SEEK_END) - 65536))
        lines = stream.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
    return f"The end of its log {log}:\n" + ("\n".join(lines) or "(it is empty)")
