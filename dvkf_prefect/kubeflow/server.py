"""The local model server: one scikit-learn model on 127.0.0.1, as KServe would answer for it.

``python -m dvkf_prefect.kubeflow.server --name NAME --version v1.0.0 --model FILE --digest MD5 --port 8080``

| path | protocol |
|---|---|
| ``GET /v1/models``, ``GET /v1/models/NAME``, ``POST /v1/models/NAME:predict`` | V1 |
| ``GET /v2``, ``/v2/health/live``, ``/v2/health/ready`` | Open Inference Protocol V2 |
| ``GET /v2/models/NAME[/versions/VERSION][/ready]``, ``POST …/infer`` | the same |

On SIGTERM it stops accepting, answers what was asked, tells clients with open connections to reconnect, and ends.
`dvkf_prefect.kubeflow.serving.LocalServing` starts it, and lets one version take over from another.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dvkf_prefect.errors import DvkfError, ModelDigestError, PredictionError, ServingError
from dvkf_prefect.kubeflow.inference import Model, read_verified
from dvkf_prefect.kubeflow.processes import BACKLOG, LOCALHOST, listen

MAX_REQUEST_BYTES = 32 << 20
# How long a client may keep an idle connection to a server that is ending before it is closed under it.
_IDLE_GRACE = 2.0
# A parent that takes longer to say "go" has died in a way that left its socket open.
_GO_TIMEOUT = 60.0

_log = logging.getLogger("dvkf.server")


def create_app(model: Model, *, max_request_bytes: int = MAX_REQUEST_BYTES) -> FastAPI:
    """Build the application that answers for a model.

    Args:
        model: The loaded model.
        max_request_bytes: The largest request body it reads.

    Example:
        >>> from sklearn.dummy import DummyClassifier
        >>> app = create_app(Model(DummyClassifier().fit([[0.0]], [1]), "m", "v0.0.1"))
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)

    def check(name: str, version: str | None = None) -> None:
        if name != model.name or version not in (None, model.version):
            asked = f"'{name}'" + (f" version {version}" if version else "")
            raise HTTPException(
                404, f"no model {asked} here; this server has '{model.name}' version {model.version}"
            )

    async def answer(request: Request, work: Callable[[object], dict[str, Any]]) -> JSONResponse:
        body = await _read(request, max_request_bytes)
        return JSONResponse(await run_in_threadpool(lambda: work(_parse(body))))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, headers=error.headers)

    @app.exception_handler(PredictionError)
    async def wrong(request: Request, error: PredictionError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": f"{type(error).__name__}: {error}"}, 500)

    @app.get("/v1/models")
    async def v1_models() -> JSONResponse:
        return JSONResponse({"models": [model.name]})

    @app.post("/v1/models/{name:path}:predict")
    async def v1_predict(name: str, request: Request) -> JSONResponse:
        check(name)
        return await answer(request, model.predict)

    @app.get("/v1/models/{name:path}")
    async def v1_ready(name: str) -> JSONResponse:
        check(name)
        return JSONResponse({"name": model.name, "ready": True})

    @app.get("/v2")
    @app.get("/v2/")
    async def v2_server() -> JSONResponse:
        return JSONResponse(
            {"name": "dvkf-prefect", "version": metadata.version("dvkf-prefect"), "extensions": []}
        )

    @app.get("/v2/health/live")
    async def v2_live() -> JSONResponse:
        return JSONResponse({"live": True})

    @app.get("/v2/health/ready")
    async def v2_ready() -> JSONResponse:
        return JSONResponse({"ready": True})

    @app.get("/v2/models/{name:path}/versions/{version}/ready")
    async def v2_version_ready(name: str, version: str) -> JSONResponse:
        check(name, version)
        return JSONResponse({"name": model.name, "ready": True})

    @app.get("/v2/models/{name:path}/ready")
    async def v2_model_ready(name: str) -> JSONResponse:
        check(name)
        return JSONResponse({"name": model.name, "ready": True})

    @app.get("/v2/models/{name:path}/versions/{version}")
    async def v2_version(name: str, version: str) -> JSONResponse:
        check(name, version)
        return JSONResponse(model.metadata())

    @app.get("/v2/models/{name:path}")
    async def v2_model(name: str) -> JSONResponse:
        check(name)
        return JSONResponse(model.metadata())

    @app.post("/v2/models/{name:path}/versions/{version}/infer")
    async def v2_version_infer(name: str, version: str, request: Request) -> JSONResponse:
        check(name, version)
        return await answer(request, model.infer)

    @app.post("/v2/models/{name:path}/infer")
    async def v2_infer(name: str, request: Request) -> JSONResponse:
        check(name)
        return await answer(request, model.infer)

    return app


async def _read(request: Request, limit: int) -> bytes:
    """Read a body of at most ``limit`` bytes."""
    if "inference-header-content-length" in request.headers:
        raise PredictionError("binary tensor data is not supported; send the tensors as JSON")
    body = bytearray()
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            # What is over the limit is read on for a while, so that the client gets to read the answer.
            if size <= limit:
                body += chunk
            elif size > 8 * limit:
                break
    except ClientDisconnect as error:
        raise PredictionError("the client went away before its request was whole") from error
    if size > limit:
        raise PredictionError(f"the request is larger than {limit} bytes; send fewer rows at a time")
    return bytes(body)


def _parse(body: bytes) -> object:
    def refuse(constant: str) -> object:
        raise PredictionError(f"{constant} is not JSON; expected finite numbers")

    try:
        return json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        if isinstance(error, PredictionError):
            raise
        what = "the request has no body" if not body else f"the request is not JSON ({error})"
        raise PredictionError(f'{what}; expected {{"instances": [...]}} or {{"inputs": [...]}}') from error


class _Draining:
    """Closes each connection behind its next answer, once ``on`` is set."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.on = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_closing(message: Message) -> None:
            if self.on and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, send_closing)


class _Server(uvicorn.Server):
    """A uvicorn server that gives its listening socket to its successor and ends without dropping a request."""

    def __init__(self, app: ASGIApp, listener: socket.socket, control: str | None) -> None:
        self._draining = _Draining(app)
        config = uvicorn.Config(
            self._draining,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=30,
        )
        super().__init__(config)
        self._listener = listener
        self._control = control
        self._control_socket: socket.socket | None = None
        self.on_ready: Callable[[], None] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._control is not None:
            control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            control.bind("\0" + self._control)
            control.listen(8)
            self._control_socket = control
            asyncio.get_running_loop().add_reader(control.fileno(), self._hand_over, control)
        self.on_ready()

    def _hand_over(self, control: socket.socket) -> None:
        """Give the listening socket to a process of the same user."""
        try:
            peer, _ = control.accept()
        except BlockingIOError:
            return
        with peer:
            _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid == os.getuid():
                socket.send_fds(peer, [b"l"], [self._listener.fileno()])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        if self._control_socket is not None:
            loop.remove_reader(self._control_socket.fileno())
            self._control_socket.close()
        # Stop accepting before closing: a connection accepted but not yet wired up would be dropped by the close, and
        # one that still waits in the queue belongs to the successor, who listens on the same socket.
        loop.remove_reader(self._listener.fileno())
        self._draining.on = True
        deadline = loop.time() + _IDLE_GRACE
        await asyncio.sleep(0.05)
        while self.server_state.connections and loop.time() < deadline:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)


class _Channel:
    """The socket on standard input over which the one who started the server speaks with it."""

    def __init__(self) -> None:
        self._socket = socket.socket(fileno=os.dup(0))
        self._socket.settimeout(_GO_TIMEOUT)

    def listener(self) -> socket.socket:
        _, fds, _, _ = socket.recv_fds(self._socket, 1, 1)
        if not fds:
            raise ServingError("no listening socket was handed over")
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
        prog="python -m dvkf_prefect.kubeflow.server",
        description="Serve one scikit-learn model on 127.0.0.1 by V1 and the Open Inference Protocol.",
    )
    parser.add_argument("--name", required=True, help="the model's name in the paths")
    parser.add_argument("--version", required=True, help="the version it answers as")
    parser.add_argument(
        "--model", required=True, type=Path, help="a joblib or pickle file, or a folder with one"
    )
    parser.add_argument(
        "--digest", required=True, help="its md5, or a folder's with .dir; checked before it is loaded"
    )
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    parser.add_argument("--max-request-bytes", type=int, default=MAX_REQUEST_BYTES)
    parser.add_argument(
        "--control",
        help="the name under which to hand the listening socket to a successor; standard input is then the socket "
        "of the process that starts this one",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the server until it is told to end; return the exit code."""
    options = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    channel = _Channel() if options.control else None
    try:
        listener = channel.listener() if channel else listen(options.port)
        data = read_verified(options.model, options.digest)
        model = Model.load(data, options.name, options.version)
        del data
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
                _log.error("nobody is left to be told")
        return 1

    server = _Server(
        create_app(model, max_request_bytes=options.max_request_bytes), listener, options.control
    )

    def ready() -> None:
        _log.info(
            "%s %s (%s) answers on http://%s:%d",
            model.name, model.version, options.digest, LOCALHOST, listener.getsockname()[1],
        )  # fmt: skip
        if channel:
            channel.say("ready")
            channel.close()

    server.on_ready = ready
    server.run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
