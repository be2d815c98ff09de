"""Model servers on this machine: start, replace, find and stop them.

A server is a separate process (`dvkf_prefect.serving.server`). Its state lies in a state folder, one small file a
model, so any later process finds it. A new version gets the listening socket of the version before it. So the port
always accepts, and no request is refused or cut off.
"""

from __future__ import annotations

import builtins
import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dvkf_prefect.data.repository.locks import RepoLock
from dvkf_prefect.errors import LockedError, ModelDigestError, ServingError
from dvkf_prefect.files import write_atomic
from dvkf_prefect.processes import leash
from dvkf_prefect.processes.identity import LOCALHOST, ProcessId, listen
from dvkf_prefect.serving.control import send_message, take_listener
from dvkf_prefect.serving.endpoint import Endpoint
from dvkf_prefect.serving.lanes import Batching

_LOG_LINES = 20
_LOG_LIMIT = 1 << 20
# An ending server finishes its requests: 2 s for idle connections, 30 s for running computations.
_END_GRACE = 35.0

# Servers started by this process, until they end: a leashed one dies when its leash is released.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class _Server:
    """An endpoint with the data to find its process and its listening socket again."""

    endpoint: Endpoint
    process: ProcessId
    control: str
    port: int
    batching: Batching

    def as_dict(self) -> dict[str, Any]:
        return {
            "endpoint": asdict(self.endpoint),
            "process": self.process.as_dict(),
            "control": self.control,
            "port": self.port,
            "batching": asdict(self.batching),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> _Server:
        return cls(
            Endpoint(**values["endpoint"]),
            ProcessId.from_dict(values["process"]),
            str(values["control"]),
            int(values["port"]),
            Batching(**values["batching"]),
        )


class LocalServing:
    """The model servers of one state folder.

    Args:
        state_dir: Folder of their state and logs; created if missing.
        batching: Bounds of batches, for versions that are deployed by this object.

    Example:
        >>> import tempfile
        >>> LocalServing(Path(tempfile.mkdtemp())).list()
        []
    """

    def __init__(self, state_dir: str | Path, batching: Batching | None = None) -> None:
        self.state_dir = Path(state_dir)
        self.batching = batching or Batching()

    def deploy(
        self,
        name: str,
        version: str,
        model_file: Path,
        digest: str,
        *,
        model_format: str | None = None,
        port: int = 0,
        detached: bool = True,
        timeout: float = 60.0,
    ) -> Endpoint:
        """Serve a version of a model; replace the running version, and its canary, on its port.

        On return, only the new version answers. On failure, the old version continues to run.

        Args:
            name: Name of the model.
            version: Version to serve.
            model_file: The model's file, or a folder with its files.
            digest: md5 of the file, or of the folder's manifest with ``.dir``; verified before it is loaded.
            model_format: Format of the model; by the names of its files if None.
            port: Port on 127.0.0.1; 0 keeps the running version's, or takes a free one.
            detached: Let the server outlive this process; otherwise it ends when this process does, even if killed.
            timeout: Seconds until it must be ready.

        Raises:
            ModelDigestError: The file does not have that digest.
            ServingError: The server did not start; the message ends with the last lines of its log.
        """
        self.state_dir.mkdir(parents=True, exist_ok=True)
        with self._lock(name, timeout):
            running = self._running(name)
            old = running[0] if running else None
            for server in running[1:]:
                self._end(server)
            if old and self._serves(old, version, digest, port, detached):
                return old.endpoint
            listener = self._take_over(old, port)
            try:
                new = self._start(
                    name,
                    version,
                    model_file.absolute(),
                    digest,
                    model_format,
                    listener,
                    detached,
                    timeout,
                    old,
                )
            finally:
                listener.close()
            if old:
                self._end(old)
                self._write(name, [new])
            return new.endpoint

    def start_canary(
        self,
        name: str,
        version: str,
        model_file: Path,
        digest: str,
        percent: int,
        *,
        model_format: str | None = None,
        timeout: float = 60.0,
    ) -> Endpoint:
        """Load a version beside the one that is served, and give it a part of the requests.

        A canary that runs already gets the new percentage, or makes way for another version.

        Args:
            name: Name of the model.
            version: Version of the canary.
            model_file: The model's file, or a folder with its files.
            digest: md5 of the file, or of the folder's manifest with ``.dir``; verified before it is loaded.
            percent: Percentage of the requests, 0 to 99; with 0, only paths with the version reach it.
            model_format: Format of the model; by the names of its files if None.
            timeout: Seconds until it must be loaded.

        Raises:
            ModelDigestError: The file does not have that digest.
            ServingError: The model is not served, this version is the one that is, or it cannot be loaded.
        """
        if not 0 <= percent <= 99:
            raise ServingError(f"a canary cannot have {percent} % of the requests of '{name}'. Use 0 to 99.")
        with self._lock(name, timeout):
            server = self._served(name)
            before = server.endpoint
            if version == before.version:
                raise ServingError(f"'{name}' {version} is served already. Give a canary another version.")
            after = replace(before, canary=version, percent=percent, canary_digest=digest)
            # Written first: after a kill, `abort_canary` ends what may be loaded.
            self._write(name, [replace(server, endpoint=after)])
            message: dict[str, Any] = {
                "op": "load", "name": name, "version": version, "path": str(model_file.absolute()), "digest": digest,
                "percent": percent, "batch_size": self.batching.size, "batch_wait": self.batching.wait,
                "format": model_format,
            }  # fmt: skip
            if (before.canary, before.canary_digest) == (version, digest):
                percents = {version: percent, before.version: 100 - percent}
                message = {"op": "shift", "name": name, "percents": percents}
            try:
                send_message(server.control, message, timeout=timeout)
            except BaseException:
                self._write(name, [server])
                raise
            return after

    def promote_canary(self, name: str, *, timeout: float = 60.0) -> Endpoint:
        """Give the canary of a model all requests; the version before it is unloaded after its last answer.

        Args:
            name: Name of the model.
            timeout: Seconds to wait for the server.

        Raises:
            ServingError: The model is not served, or has no canary.
        """
        return self._end_canary(name, timeout, promote=True)

    def abort_canary(self, name: str, *, timeout: float = 60.0) -> Endpoint:
        """Give all requests back to the version before the canary, which is unloaded after its last answer.

        Args:
            name: Name of the model.
            timeout: Seconds to wait for the server.

        Raises:
            ServingError: The model is not served, or has no canary.
        """
        return self._end_canary(name, timeout, promote=False)

    def _end_canary(self, name: str, timeout: float, *, promote: bool) -> Endpoint:
        self._served(name)  # without a server there is no folder for the lock
        with self._lock(name, timeout):
            server = self._served(name)
            before = server.endpoint
            if not before.canary:
                raise ServingError(f"'{name}' {before.version} has no canary. Start one first.")
            after = replace(before, canary="", percent=0, canary_digest="")
            if promote:
                after = replace(after, version=before.canary, digest=before.canary_digest)
            # The server first: it does the same again after a kill.
            send_message(
                server.control,
                {"op": "shift", "name": name, "percents": {after.version: 100}},
                timeout=timeout,
            )
            self._write(name, [replace(server, endpoint=after)])
            return after

    def _served(self, name: str) -> _Server:
        running = self._running(name)
        if not running:
            raise ServingError(
                f"model '{name}' is not served in {self.state_dir}. Deploy a version of it first."
            )
        return running[0]

    def get(self, name: str) -> Endpoint | None:
        """Return the running server of a model, or None."""
        running = self._running(name)
        return running[0].endpoint if running else None

    def list(self) -> builtins.list[Endpoint]:
        """Return all running servers, sorted by model."""
        found = [self._read(file) for file in self.state_dir.glob("*.json")]
        running = [[server for server in servers if server.process.alive] for servers in found]
        return sorted((servers[0].endpoint for servers in running if servers), key=lambda e: e.model)

    def stop(self, name: str, *, timeout: float = 60.0) -> bool:
        """Stop a model's server; requests in flight are answered first.

        Args:
            name: Name of the model.
            timeout: Seconds to wait for another process that deploys the model.

        Returns:
            True if a server was running.

        Raises:
            ServingError: The server does not end.
        """
        if not self.state_dir.is_dir():
            return False
        with self._lock(name, timeout):
            running = self._running(name)
            for server in running:
                self._end(server)
            self._file(name).unlink(missing_ok=True)
            return bool(running)

    # -- state ---------------------------------------------------------------------------------------------------------

    def _file(self, name: str, suffix: str = ".json") -> Path:
        return self.state_dir / (quote(name, safe="") + suffix)

    @contextmanager
    def _lock(self, name: str, timeout: float) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                stack.enter_context(RepoLock(self._file(name, ".lock")).hold(timeout))
            except LockedError as error:
                raise ServingError(
                    f"model '{name}': another process has been deploying or stopping it for {timeout:.0f} s"
                ) from error
            yield

    def _read(self, file: Path) -> builtins.list[_Server]:
        """Return the servers in a state file: the one that answers, then those it replaces."""
        try:
            return [_Server.from_dict(entry) for entry in json.loads(file.read_bytes())["servers"]]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise ServingError(
                f"{file} does not describe a server ({error}). Find the server by the log beside the file, end it, "
                "and remove the file."
            ) from error

    def _running(self, name: str) -> builtins.list[_Server]:
        return [server for server in self._read(self._file(name)) if server.process.alive]

    def _write(self, name: str, servers: Sequence[_Server]) -> None:
        document = {"servers": [server.as_dict() for server in servers]}
        write_atomic(self._file(name), json.dumps(document, indent=1).encode(), mode=0o600)

    def _serves(self, old: _Server, version: str, digest: str, port: int, detached: bool) -> bool:
        """Return True if the running server matches the request and is ready."""
        endpoint = old.endpoint
        return (
            (endpoint.version, endpoint.digest, endpoint.detached) == (version, digest, detached)
            and not endpoint.canary
            and old.batching == self.batching
            and port in (0, old.port)
            # A leashed server of another process would end with that process.
            and (detached or endpoint.pid in _children)
            and endpoint.ready()
        )

    # -- processes -----------------------------------------------------------------------------------------------------

    def _take_over(self, old: _Server | None, port: int) -> socket.socket:
        """Return the socket to listen on: the running server's own, or a new one."""
        if old and port in (0, old.port):
            listener = take_listener(old.control)
            if listener is not None:
                return listener
            # The server hangs; ending it frees its port.
            self._end(old, grace=1.0)
            port = old.port
        return listen(port)

    def _start(
        self,
        name: str,
        version: str,
        model_file: Path,
        digest: str,
        model_format: str | None,
        listener: socket.socket,
        detached: bool,
        timeout: float,
        old: _Server | None,
    ) -> _Server:
        deadline = time.monotonic() + timeout
        control = f"dvkf-serving-{secrets.token_hex(16)}"
        log = self._file(name, ".log").absolute()
        _rotate(log)
        argv = leash.module_argv("dvkf_prefect.serving.server", "--name", name, "--version", version)
        argv += ["--model", str(model_file), "--digest", digest, "--control", control]
        argv += ["--batch-size", str(self.batching.size), "--batch-wait", str(self.batching.wait)]
        argv += [] if model_format is None else ["--format", model_format]
        ours, theirs = socket.socketpair()
        with ours, open(log, "ab") as log_file:
            log_start = log_file.tell()
            with theirs:
                if detached:
                    process = subprocess.Popen(
                        argv, stdin=theirs.fileno(), stdout=log_file, stderr=log_file, start_new_session=True
                    )
                else:
                    process = leash.LeashedProcess(
                        argv, stdin=theirs.fileno(), stdout=log_file, stderr=log_file
                    )
            try:
                socket.send_fds(ours, [b"l"], [listener.fileno()])
                said = _Said(ours, deadline)
                self._expect(said, "loaded", name, version, log, log_start)
                identity = ProcessId.of(process.pid)
                if identity is None:
                    raise ServingError(
                        f"the server of '{name}' {version} exited right after its start. {_tail(log, log_start)}"
                    )
                port = listener.getsockname()[1]
                endpoint = Endpoint(
                    f"http://{LOCALHOST}:{port}", name, version, digest, process.pid, str(log), detached
                )
                new = _Server(endpoint, identity, control, port, self.batching)
                # Written before the server may accept: if this process dies now, every running server is in a state
                # file.
                self._write(name, [new, *([old] if old else [])])
                ours.sendall(b"g")
                self._expect(said, "ready", name, version, log, log_start)
            except BaseException as error:
                process.kill()
                process.wait()
                if old:
                    self._write(name, [old])
                else:
                    self._file(name).unlink(missing_ok=True)
                if isinstance(error, OSError):
                    raise ServingError(
                        f"the server of '{name}' {version} did not start ({error}). {_tail(log, log_start)}"
                    ) from error
                raise
        _children[process.pid] = process
        return new

    def _expect(self, said: _Said, state: str, name: str, version: str, log: Path, log_start: int) -> None:
        """Wait until the server reports ``state``."""
        answer = said.line()
        if answer.get("state") == state:
            return
        if answer.get("kind") == "digest":
            raise ModelDigestError(answer["message"])
        reason = answer.get("message") or "it exited without a message"
        raise ServingError(
            f"the server of '{name}' {version} did not start: {reason}. {_tail(log, log_start)}"
        )

    def _end(self, server: _Server, *, grace: float = _END_GRACE) -> None:
        try:
            server.process.end(grace)
        except (TimeoutError, PermissionError) as error:
            raise ServingError(f"{server.endpoint} cannot be stopped: {error}") from error
        child = _children.pop(server.process.pid, None)
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
