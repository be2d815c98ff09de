"""Model servers on this machine: start, replace, find and stop them.

A server is a separate process (`dvkf_prefect.serving.server`). Its state lies in a state folder, one small file a
server, so any later process finds it. A model has a server of its own, or shares a named one with others. A new
version gets the listening socket of the server before it, or is loaded beside the old one in a shared server. So the
port always accepts, and no request is refused or cut off.
"""

from __future__ import annotations

import builtins
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dvkf_prefect.errors import ServingError
from dvkf_prefect.processes.identity import LOCALHOST, listen, reserve
from dvkf_prefect.serving import launch
from dvkf_prefect.serving.control import send_message, take_listener
from dvkf_prefect.serving.endpoint import Endpoint
from dvkf_prefect.serving.lanes import Batching
from dvkf_prefect.serving.launch import ModelFiles, Started
from dvkf_prefect.serving.records import Hosted, Records, ServerRecord


class LocalServing:
    """The model servers of one state folder.

    Args:
        state_dir: Folder of their state and logs; created if missing.
        batching: Bounds of batches, for versions that are deployed by this object.
        server: Name of the server that models are deployed into; each model gets a server of its own if empty.
        workers: Number of processes that compute for a version; 0 for threads of the server.

    Example:
        >>> import tempfile
        >>> LocalServing(Path(tempfile.mkdtemp())).list()
        []
    """

    def __init__(
        self, state_dir: str | Path, batching: Batching | None = None, server: str = "", workers: int = 0
    ) -> None:
        self.state_dir = Path(state_dir)
        self.workers = workers
        self.batching = batching or Batching()
        self.server = server
        self._records = Records(self.state_dir)

    def deploy(
        self,
        name: str,
        version: str,
        model_file: Path,
        digest: str,
        *,
        model_format: str | None = None,
        port: int = 0,
        grpc_port: int | None = None,
        detached: bool = True,
        timeout: float = 60.0,
    ) -> Endpoint:
        """Serve a version of a model; replace the running version, and its canary, on its port.

        A model that is served keeps its server. On return, only the new version answers. On failure, the old version
        continues to run, and so do other models of the server.

        Args:
            name: Name of the model.
            version: Version to serve.
            model_file: The model's file, or a folder with its files.
            digest: md5 of the file, or of the folder's manifest with ``.dir``; verified before it is loaded.
            model_format: Format of the model; by the names of its files if None.
            port: Port on 127.0.0.1; 0 keeps the running version's, or takes a free one.
            grpc_port: Port on 127.0.0.1 for gRPC; 0 as for ``port``, None for no gRPC.
            detached: Let the server outlive this process; otherwise it ends when this process does, even if killed.
            timeout: Seconds until it must be ready.

        Raises:
            ModelDigestError: The file does not have that digest.
            ServingError: The server did not start; the message ends with the last lines of its log. Or the model is
                served by another server, or the named server has another port or lifetime.
        """
        self.state_dir.mkdir(parents=True, exist_ok=True)
        model = ModelFiles(
            name, version, model_file.absolute(), digest, model_format, self.batching, self.workers
        )
        key = self._key(name)
        with self._lock(key, name, timeout):
            running = self._records.running(key)
            old = running[0] if running else None
            for server in running[1:]:
                launch.end(server)
            if old and (found := self._serving(old, model, port, grpc_port, detached)):
                return found
            if old and Records.is_shared(key):
                return self._deploy_beside(key, old, model, port, grpc_port, detached, timeout)
            listener = self._take_over(old, port)
            try:
                return self._start(key, model, listener, grpc_port, detached, timeout, old)
            finally:
                listener.close()

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
        key = self._records.place_of(name)
        with self._lock(key, name, timeout):
            server, hosted = self._served(key, name)
            before = hosted.endpoint
            if version == before.version:
                raise ServingError(f"'{name}' {version} is served already. Give a canary another version.")
            after = replace(before, canary=version, percent=percent, canary_digest=digest)
            # Written first: after a kill, `abort_canary` ends what may be loaded.
            self._records.write(key, [server.having(replace(hosted, endpoint=after))])
            model = ModelFiles(
                name, version, model_file.absolute(), digest, model_format, self.batching, self.workers
            )
            same = (before.canary, before.canary_digest) == (version, digest)
            percents = {version: percent, before.version: 100 - percent}
            shift = {"op": "shift", "name": name, "percents": percents}
            try:
                if not (same and _carried_out(server.control, shift, timeout)):
                    send_message(server.control, _load_message(model, percent), timeout=timeout)
            except BaseException:
                self._records.write(key, [server])
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
        key = self._records.place_of(name)
        self._served(key, name)  # without a server there is no folder for the lock
        with self._lock(key, name, timeout):
            server, hosted = self._served(key, name)
            before = hosted.endpoint
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
            self._records.write(key, [server.having(replace(hosted, endpoint=after))])
            return after

    def _served(self, key: str, name: str) -> tuple[ServerRecord, Hosted]:
        for record in self._records.running(key)[:1]:
            if hosted := record.find(name):
                return record, hosted
        raise ServingError(f"model '{name}' is not served in {self.state_dir}. Deploy a version of it first.")

    def get(self, name: str) -> Endpoint | None:
        """Return the running endpoint of a model, or None."""
        for record in self._records.running(self._records.place_of(name))[:1]:
            if hosted := record.find(name):
                return hosted.endpoint
        return None

    def list(self) -> builtins.list[Endpoint]:
        """Return the endpoints of all running servers, sorted by model."""
        servers = [running[0] for running in self._records.all() if running]
        return sorted((hosted.endpoint for each in servers for hosted in each.models), key=lambda e: e.model)

    def stop(self, name: str, *, timeout: float = 60.0) -> bool:
        """Stop a model's server, or unload it from a shared one; requests in flight are answered first.

        A shared server ends with its last model.

        Args:
            name: Name of the model.
            timeout: Seconds to wait for another process that deploys the model, and for the server.

        Returns:
            True if the model was served.

        Raises:
            ServingError: The server does not end, or does not answer.
        """
        if not self.state_dir.is_dir():
            return False
        key = self._records.place_of(name)
        with self._lock(key, name, timeout):
            running = self._records.running(key)
            if running and running[0].without(name).models:
                found = running[0].find(name) is not None
                if found:
                    # The server first: it does the same again after a kill.
                    send_message(running[0].control, {"op": "unload", "name": name}, timeout=timeout)
                    self._records.write(key, [running[0].without(name), *running[1:]])
                return found
            for server in running:
                launch.end(server)
            self._records.write(key, [])
            return bool(running)

    def _key(self, name: str) -> str:
        """Return the key of the server to deploy a model into."""
        place = self._records.place_of(name)
        if not self.server or place == (key := Records.key(name, self.server)):
            return place
        if running := self._records.running(place):
            at = running[0].models[0].endpoint.server or "one of its own"
            raise ServingError(
                f"model '{name}' is served by another server ({at}) than '{self.server}': {self.state_dir}. Undeploy "
                "it first."
            )
        return key

    @contextmanager
    def _lock(self, key: str, name: str, timeout: float) -> Iterator[None]:
        what = f"the server of model '{name}'" if Records.is_shared(key) else f"model '{name}'"
        with self._records.lock(key, what, timeout):
            yield

    def _serving(
        self, old: ServerRecord, model: ModelFiles, port: int, grpc_port: int | None, detached: bool
    ) -> Endpoint | None:
        """Return the endpoint of a running server that matches the request and is ready."""
        hosted = old.find(model.name)
        if hosted is None:
            return None
        endpoint = hosted.endpoint
        same = (
            (endpoint.version, endpoint.digest, endpoint.detached) == (model.version, model.digest, detached)
            and not endpoint.canary
            and (hosted.batching, hosted.workers) == (model.batching, model.workers)
            and port in (0, old.port)
            and _is_grpc_of(endpoint, grpc_port)
            # A leashed server of another process would end with that process.
            and (detached or launch.is_child(old.process))
            and endpoint.ready()
        )
        return endpoint if same else None

    def _deploy_beside(
        self,
        key: str,
        server: ServerRecord,
        model: ModelFiles,
        port: int,
        grpc_port: int | None,
        detached: bool,
        timeout: float,
    ) -> Endpoint:
        """Load a model into a running shared server."""
        where = f"the server '{server.models[0].endpoint.server}'"
        if port not in (0, server.port):
            raise ServingError(
                f"{where} listens on port {server.port}, not {port}. Undeploy its models to change it."
            )
        first = server.models[0].endpoint
        if grpc_port is not None and not _is_grpc_of(first, grpc_port):
            has = f"gRPC on port {first.grpc_port}" if first.grpc else "no gRPC"
            raise ServingError(f"{where} has {has}. Undeploy its models to change it.")
        if server.detached != detached or not (detached or launch.is_child(server.process)):
            life = "outlives" if server.detached else "ends with"
            raise ServingError(
                f"{where} {life} the process that started it. Use detached={server.detached}, or "
                "undeploy its models."
            )
        # The server first: a deployment that is cut short loads the version again.
        send_message(server.control, _load_message(model, 100), timeout=timeout)
        alone = replace(first, canary="", percent=0, canary_digest="")
        endpoint = replace(alone, model=model.name, version=model.version, digest=model.digest)
        self._records.write(key, [server.having(Hosted(endpoint, model.batching, model.workers))])
        return endpoint

    # -- processes -----------------------------------------------------------------------------------------------------

    def _take_over(self, old: ServerRecord | None, port: int) -> socket.socket:
        """Return the socket to listen on: the running server's own, or a new one."""
        if old and port in (0, old.port):
            listener = take_listener(old.control)
            if listener is not None:
                return listener
            # The server hangs; ending it frees its port.
            launch.end(old, grace=1.0)
            port = old.port
        return listen(port)

    def _start(
        self,
        key: str,
        model: ModelFiles,
        listener: socket.socket,
        grpc_port: int | None,
        detached: bool,
        timeout: float,
        old: ServerRecord | None,
    ) -> Endpoint:
        log = self._records.file(key, ".log").absolute()
        port = listener.getsockname()[1]
        reserved, rpc = None, ""
        if grpc_port is not None:
            before = old.models[0].endpoint.grpc_port if old else None
            reserved = reserve(
                grpc_port or before or 0, shared=before is not None and grpc_port in (0, before)
            )
            grpc_port = int(reserved.getsockname()[1])
            rpc = f"{LOCALHOST}:{grpc_port}"
        records: builtins.list[ServerRecord] = []

        def loaded(started: Started) -> None:
            endpoint = Endpoint(
                f"http://{LOCALHOST}:{port}", model.name, model.version, model.digest, started.process.pid, str(log),
                detached, server=self.server if Records.is_shared(key) else "", grpc=rpc,
            )  # fmt: skip
            hosted = Hosted(endpoint, model.batching, model.workers)
            records.append(ServerRecord(started.process, started.control, port, (hosted,)))
            # Written before the server may accept: if this process dies now, every running server is in a state
            # file. The server before is first until the new one answers, which may end with this process.
            self._records.write(key, [*([old] if old else []), *records])

        try:
            launch.start(
                model, log, listener, grpc_port=grpc_port, detached=detached, timeout=timeout, loaded=loaded
            )
        except BaseException:
            self._records.write(key, [old] if old else [])
            raise
        finally:
            if reserved is not None:
                reserved.close()
        if old:
            self._records.write(key, [*records, old])
            launch.end(old)
            self._records.write(key, records)
        return records[0].models[0].endpoint


def _is_grpc_of(endpoint: Endpoint, grpc_port: int | None) -> bool:
    """Return True if a server has the gRPC that is asked for."""
    if grpc_port is None or not endpoint.grpc:
        return grpc_port is None and not endpoint.grpc
    return grpc_port in (0, endpoint.grpc_port)


def _carried_out(control: str, message: Mapping[str, Any], timeout: float) -> bool:
    """Return False if a server refuses a change, as of a version whose loading was cut short before it began."""
    try:
        send_message(control, message, timeout=timeout)
    except ServingError:
        return False
    return True


def _load_message(model: ModelFiles, percent: int) -> dict[str, Any]:
    return {
        "op": "load", "name": model.name, "version": model.version, "path": str(model.path), "digest": model.digest,
        "format": model.format, "percent": percent, "batch_size": model.batching.size,
        "batch_wait": model.batching.wait,
        "workers": model.workers,
    }  # fmt: skip
