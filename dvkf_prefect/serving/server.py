"""The process of the local model server, on 127.0.0.1.

``python -m dvkf_prefect.serving.server --name NAME --version v1.0.0 --model FILE --digest MD5 --port 8080``

On SIGTERM it stops accepting, answers the pending requests, and asks clients with open connections to reconnect. Then
it ends. `dvkf_prefect.serving.local.LocalServing` starts it, replaces one version by another, and adds versions and
models.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive, Scope, Send

from dvkf_prefect.errors import DvkfError, ModelDigestError, ServingError
from dvkf_prefect.processes.identity import BACKLOG, LOCALHOST, listen
from dvkf_prefect.serving.adapters.table import BY_NAME
from dvkf_prefect.serving.answering import Answer
from dvkf_prefect.serving.app import App, create_app
from dvkf_prefect.serving.connections import BoundedProtocol
from dvkf_prefect.serving.control import ControlSocket
from dvkf_prefect.serving.intake import MAX_REQUEST_BYTES
from dvkf_prefect.serving.lanes import Batching, Lane
from dvkf_prefect.serving.loading import load_model
from dvkf_prefect.serving.served import Served
from dvkf_prefect.serving.traffic import Models, State
from dvkf_prefect.serving.workers import WorkerPool

if TYPE_CHECKING:
    from dvkf_prefect.serving.rpc import RpcServer

# Seconds to keep idle connections open during shutdown.
_IDLE_GRACE = 2.0
# Seconds for running computations during shutdown.
_GRACE = 30
# A parent that takes longer to say "go" died in a way that left its socket open.
_GO_TIMEOUT = 60.0

_log = logging.getLogger("dvkf.server")


def load_lane(message: Mapping[str, Any]) -> Lane:
    """Load a version of a model.

    Args:
        message: Fields of the control message ``load``.

    Raises:
        ModelDigestError: The files have another digest; nothing was loaded.
        ServingError: They cannot be loaded.
    """
    batching = Batching(int(message.get("batch_size", 1)), float(message.get("batch_wait", 0)))
    path, model_format = Path(message["path"]), message.get("format")
    name, version, digest = str(message["name"]), str(message["version"]), str(message["digest"])
    with ExitStack() as keep:
        model: Served | WorkerPool
        if workers := int(message.get("workers", 0)):
            fields = {"name": name, "version": version, "digest": digest, "format": model_format}
            model = WorkerPool(path, fields, workers)
            keep.callback(model.close)
        else:
            model = load_model(path, digest, name, version, model_format=model_format, keep=keep)
        return Lane(model, keep.pop_all(), batching)


def check_grpc() -> None:
    """Refuse to serve gRPC without its package.

    Raises:
        ServingError: The package is missing.
    """
    if importlib.util.find_spec("grpc") is None:
        raise ServingError("no package grpc for gRPC. Run `pip install 'dvkf-prefect[serve-grpc]'`.")


class _Manager:
    """Carries out control messages on the models of a server."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._closing: set[asyncio.Task[None]] = set()

    async def handle(self, message: Mapping[str, Any], gone: asyncio.Event) -> None:
        name = str(message["name"])
        if message["op"] == "load":
            left = await self._load(name, message, gone)
        elif message["op"] == "shift":
            left = self._models.shift(name, message["percents"])
        elif message["op"] == "unload":
            left = self._models.remove(name)
        else:
            raise ServingError(f"no control message '{message['op']}'. Use load, shift or unload.")
        _log.info("%s: %s", name, {k: v for k, v in message.items() if k not in ("name", "path")})
        for lane in left:
            task = asyncio.get_running_loop().create_task(lane.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _load(self, name: str, message: Mapping[str, Any], gone: asyncio.Event) -> list[Lane]:
        version = str(message["version"])
        self._models.note(State(name, version, "LOADING"))
        try:
            lane = await run_in_threadpool(load_lane, message)
            if gone.is_set():  # no record would name the version that gets requests
                lane.end()
                raise ServingError(f"'{name}' {version} was loaded too late: its client has gone.")
        except BaseException as error:
            self._models.note(State(name, version, "UNAVAILABLE", str(error)))
            raise
        return self._models.put(name, lane, int(message.get("percent", 100)))


class _Draining:
    """Middleware that closes each connection after its next answer, once ``on`` is set."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.on = False

    def quick(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer | None:
        return None if self.on else self._app.quick(path, headers, body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_closing(message: Message) -> None:
            if self.on and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, send_closing)


class _Server(uvicorn.Server):
    """A uvicorn server that hands its listening socket to its successor and ends without dropping a request."""

    def __init__(
        self,
        models: Models,
        limit: int,
        listener: socket.socket,
        control: str | None,
        grpc_port: int | None = None,
    ) -> None:
        app = create_app(models, max_request_bytes=limit)
        self._draining = _Draining(app)
        self._service = app.service
        self._grpc_port = grpc_port
        self._rpc: RpcServer | None = None
        self._manager = _Manager(models)
        config = uvicorn.Config(
            self._draining,
            loop="asyncio",
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=_GRACE,
        )
        super().__init__(config)
        self._listener = listener
        self._control = control
        self._control_socket: ControlSocket | None = None
        self.on_ready: Callable[[], None] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._grpc_port is not None:
            from dvkf_prefect.serving.rpc import RpcServer

            self._rpc = RpcServer(self._service, self._grpc_port, self._service.limit)
            await self._rpc.start()
        if self._control is not None:
            self._control_socket = ControlSocket(self._control, self._listener, self._manager.handle)
        self.on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        if self._control_socket is not None:
            self._control_socket.close()
        # Stop accepting before closing. The close would drop a connection that is accepted but not yet set up. One
        # that still waits in the queue belongs to the successor, which listens on the same socket.
        loop.remove_reader(self._listener.fileno())
        self._draining.on = True
        ending = None if self._rpc is None else loop.create_task(self._rpc.stop(_GRACE))
        deadline = loop.time() + _IDLE_GRACE
        await asyncio.sleep(0.05)
        while self.server_state.connections and loop.time() < deadline:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)
        if ending is not None:
            await ending


class _Channel:
    """Socket on standard input, to communicate with the starter of the server."""

    def __init__(self) -> None:
        self._socket = socket.socket(fileno=os.dup(0))
        self._socket.settimeout(_GO_TIMEOUT)

    def listener(self) -> socket.socket:
        _, fds, _, _ = socket.recv_fds(self._socket, 1, 1)
        if not fds:
            raise ServingError("no listening socket was received")
        return socket.socket(fileno=fds[0])

    def say(self, state: str, **more: str) -> None:
        self._socket.sendall(json.dumps({"state": state, **more}).encode() + b"\n")

    def wait_for_go(self) -> bool:
        return self._socket.recv(1) == b"g"

    def close(self) -> None:
        self._socket.close()
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dvkf_prefect.serving.server",
        description="Serve a model on 127.0.0.1 by V1 and the Open Inference Protocol.",
    )
    parser.add_argument("--name", required=True, help="name of the model in the paths")
    parser.add_argument("--version", required=True, help="version of the model")
    parser.add_argument(
        "--model", required=True, type=Path, help="file of the model, or folder with its files"
    )
    parser.add_argument(
        "--digest",
        required=True,
        help="md5 of the model, with .dir for a folder; checked before it is loaded",
    )
    parser.add_argument(
        "--format",
        help=f"format of the model, one of {', '.join(BY_NAME)} (default: by the names of its files)",
    )
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: a free one)")
    parser.add_argument(
        "--batch-size", type=int, default=1, help="maximum number of requests in one computation (default: 1)"
    )
    parser.add_argument(
        "--batch-wait", type=float, default=0.0, help="seconds that a request waits for more (default: 0)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="processes that compute; 0 for threads of this one (default: 0)",
    )
    parser.add_argument("--grpc-port", type=int, help="port for gRPC (default: no gRPC)")
    parser.add_argument("--max-request-bytes", type=int, default=MAX_REQUEST_BYTES)
    parser.add_argument(
        "--control",
        help="name of the control socket for a successor; standard input must be a socket of the parent process",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the server until it is stopped; return the exit code."""
    options = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    channel = _Channel() if options.control else None
    try:
        listener = channel.listener() if channel else listen(options.port)
        if options.grpc_port is not None:
            check_grpc()
        fields = {"path": options.model, "digest": options.digest, "format": options.format}
        fields |= {"batch_size": options.batch_size, "batch_wait": options.batch_wait}
        fields |= {"workers": options.workers}
        models = Models()
        models.put(options.name, load_lane({"name": options.name, "version": options.version, **fields}))
        if channel:
            channel.say("loaded")
            if not channel.wait_for_go():
                raise ServingError("the process that started this server ended before it was ready")
    except (DvkfError, OSError) as error:
        _log.error("%s", error)
        if channel:
            kind = "digest" if isinstance(error, ModelDigestError) else "start"
            try:
                channel.say("failed", kind=kind, message=str(error))
            except OSError:
                _log.error("the process that started this server is gone")
        return 1

    server = _Server(models, options.max_request_bytes, listener, options.control, options.grpc_port)

    def ready() -> None:
        _log.info(
            "%s %s (%s) answers on http://%s:%d",
            options.name, options.version, options.digest, LOCALHOST, listener.getsockname()[1],
        )  # fmt: skip
        if channel:
            channel.say("ready")
            channel.close()

    server.on_ready = ready
    try:
        server.run(sockets=[listener])
    finally:
        models.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
