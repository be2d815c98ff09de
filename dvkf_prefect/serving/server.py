"""The local model server: one scikit-learn model on 127.0.0.1, with KServe's protocols.

``python -m dvkf_prefect.serving.server --name NAME --version v1.0.0 --model FILE --digest MD5 --port 8080``

| path | protocol |
|---|---|
| ``GET /v1/models``, ``GET /v1/models/NAME``, ``POST /v1/models/NAME:predict`` | V1 |
| ``GET /v2``, ``/v2/health/live``, ``/v2/health/ready`` | Open Inference Protocol V2 |
| ``GET /v2/models/NAME[/versions/VERSION][/ready]``, ``POST …/infer`` | the same |

On SIGTERM it stops accepting, answers the pending requests, and asks clients with open connections to reconnect. Then
it ends. `dvkf_prefect.serving.local.LocalServing` starts it, and replaces one version by another.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import secrets
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dvkf_prefect.errors import DvkfError, ModelDigestError, PredictionError, ServingError
from dvkf_prefect.processes.identity import BACKLOG, LOCALHOST, listen
from dvkf_prefect.serving.connections import BoundedProtocol
from dvkf_prefect.serving.intake import (
    MAX_REQUEST_BYTES,
    Budget,
    HttpError,
    Share,
    accepts_gzip,
    check_headers,
    compress,
    decompress,
    parse,
    read_body,
    render,
)
from dvkf_prefect.serving.model import Model, read_verified

# Seconds to keep idle connections open during shutdown.
_IDLE_GRACE = 2.0
# A parent that takes longer to say "go" died in a way that left its socket open.
_GO_TIMEOUT = 60.0

# Smaller answers are not worth compressing.
_COMPRESSED_FROM = 4096
_ERROR = 2000
_REST = re.compile(r"(:predict|(/versions/[^/]+)?(/ready|/infer)?)")

_log = logging.getLogger("dvkf.server")


def create_app(model: Model, *, max_request_bytes: int = MAX_REQUEST_BYTES) -> FastAPI:
    """Build the application that answers for a model.

    Args:
        model: The loaded model.
        max_request_bytes: Maximum size of a request body.

    Example:
        >>> from sklearn.dummy import DummyClassifier
        >>> app = create_app(Model(DummyClassifier().fit([[0.0]], [1]), "m", "v0.0.1"))
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    budget = Budget()
    # Placeholder for the model's name in a matched path: names may contain any character of a path.
    here = secrets.token_hex(8)
    app.add_middleware(_Named, name=model.name, here=here)
    get = partial(app.api_route, methods=["GET", "HEAD"])

    def check(name: str, version: str | None = None) -> None:
        if name != here or version not in (None, model.version):
            asked = f"'{model.name if name == here else name}'" + (f" version {version}" if version else "")
            raise HTTPException(
                404, f"no model {asked} here; this server has '{model.name}' version {model.version}"
            )

    async def answer(request: Request, work: Callable[[object], dict[str, Any]]) -> Response:
        encoding = check_headers(request.headers, max_request_bytes)
        with budget.share() as share:
            body = await read_body(_stream(request), max_request_bytes, share)
            zipped = accepts_gzip(request.headers)
            # Parsing, predicting and rendering are all slow for many rows.
            return await run_in_threadpool(_work, work, body, encoding, max_request_bytes, share, zipped)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return _failure(error.status_code, str(error.detail), error.headers)

    @get("/v1/models")
    async def v1_models() -> Response:
        return _json({"models": [model.name]})

    @app.post("/v1/models/{name:path}:predict")
    async def v1_predict(name: str, request: Request) -> Response:
        check(name)
        return await answer(request, model.predict)

    @get("/v1/models/{name:path}")
    async def v1_ready(name: str) -> Response:
        check(name)
        return _json({"name": model.name, "ready": True})

    @get("/v2")
    @get("/v2/")
    async def v2_server() -> Response:
        return _json({"name": "dvkf-prefect", "version": metadata.version("dvkf-prefect"), "extensions": []})

    @get("/v2/health/live")
    async def v2_live() -> Response:
        return _json({"live": True})

    @get("/v2/health/ready")
    async def v2_ready() -> Response:
        return _json({"ready": True})

    @get("/v2/models/{name:path}/versions/{version}/ready")
    async def v2_version_ready(name: str, version: str) -> Response:
        check(name, version)
        return _json({"name": model.name, "ready": True})

    @get("/v2/models/{name:path}/ready")
    async def v2_model_ready(name: str) -> Response:
        check(name)
        return _json({"name": model.name, "ready": True})

    @app.post("/v2/models/{name:path}/versions/{version}/infer")
    async def v2_version_infer(name: str, version: str, request: Request) -> Response:
        check(name, version)
        return await answer(request, model.infer)

    @app.post("/v2/models/{name:path}/infer")
    async def v2_infer(name: str, request: Request) -> Response:
        check(name)
        return await answer(request, model.infer)

    @get("/v2/models/{name:path}/versions/{version}")
    async def v2_version(name: str, version: str) -> Response:
        check(name, version)
        return _json(model.metadata())

    @get("/v2/models/{name:path}")
    async def v2_model(name: str) -> Response:
        check(name)
        return _json(model.metadata())

    app.add_middleware(_Answering)
    return app


def _json(document: dict[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(render(document), status, headers=dict(headers or {}), media_type="application/json")


def _failure(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json({"error": text if len(text) <= _ERROR else f"{text[:_ERROR]} …"}, status, headers)


def _failure_of(error: Exception) -> Response:
    """Return the answer for an exception."""
    if isinstance(error, HttpError):
        return _failure(error.status, str(error), error.headers)
    if isinstance(error, PredictionError):
        return _failure(400, str(error))
    _log.error("a request failed", exc_info=error)
    if isinstance(error, ServingError):
        return _failure(500, str(error))
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a model's exception runs the model's code
        text = "(its text cannot be made)"
    return _failure(500, f"{type(error).__name__}: {text}")


def _work(
    work: Callable[[object], dict[str, Any]],
    body: bytes,
    encoding: str,
    limit: int,
    share: Share,
    zipped: bool,
) -> Response:
    try:
        data = render(work(parse(decompress(body, encoding, limit, share), share)))
    except Exception as error:  # noqa: BLE001 - any error of a model becomes an answer
        return _failure_of(error)
    headers = {"vary": "accept-encoding"}
    if zipped and len(data) >= _COMPRESSED_FROM:
        data = compress(data)
        headers["content-encoding"] = "gzip"
    return Response(data, headers=headers, media_type="application/json")


async def _stream(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as error:
        raise PredictionError("the client went away before its request was whole") from error


class _Named:
    """Middleware that replaces the model's name in paths by a placeholder, so that names cannot confuse routes."""

    def __init__(self, app: ASGIApp, name: str, here: str) -> None:
        self._app = app
        self._here = here
        self._prefixes = {
            f"/{version}/models/{name}": f"/{version}/models/{here}" for version in ("v1", "v2")
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for prefix, marked in self._prefixes.items():
            path: str = scope.get("path", "")
            if path.startswith(prefix) and _REST.fullmatch(rest := path[len(prefix) :]):
                scope = {**scope, "path": marked + rest}
        await self._app(scope, receive, send)


class _Answering:
    """Middleware that answers every exception, so that uvicorn need not close the connection."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            if started:
                raise
            await _failure_of(error)(scope, receive, send)


class _Draining:
    """Middleware that closes each connection after its next answer, once ``on`` is set."""

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
    """A uvicorn server that hands its listening socket to its successor and ends without dropping a request."""

    def __init__(self, app: ASGIApp, listener: socket.socket, control: str | None) -> None:
        self._draining = _Draining(app)
        config = uvicorn.Config(
            self._draining,
            loop="asyncio",
            http=BoundedProtocol,
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
        """Send the listening socket to a process of the same user."""
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
        # Stop accepting before closing. The close would drop a connection that is accepted but not yet set up. One
        # that still waits in the queue belongs to the successor, which listens on the same socket.
        loop.remove_reader(self._listener.fileno())
        self._draining.on = True
        deadline = loop.time() + _IDLE_GRACE
        await asyncio.sleep(0.05)
        while self.server_state.connections and loop.time() < deadline:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)


class _Channel:
    """Socket on standard input, to communicate with the starter of the server."""

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
        prog="python -m dvkf_prefect.serving.server",
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
    """Run the server until it is stopped; return the exit code."""
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
