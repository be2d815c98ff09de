"""HTTP application of the model server: KServe's V1 protocol, the Open Inference Protocol V2, metrics.

| path | protocol |
|---|---|
| ``GET /`` | ``{"status": "alive"}``, as kserve.ModelServer |
| ``GET /v1/models``, ``GET /v1/models/NAME``, ``POST /v1/models/NAME:predict`` | V1 |
| ``GET /v2``, ``/v2/health/live``, ``/v2/health/ready`` | Open Inference Protocol V2 |
| ``GET /v2/models/NAME[/versions/VERSION][/ready]``, ``POST …/infer`` | the same |
| ``GET /v2/models`` | list of the models, as kserve.ModelServer |
| ``POST /v2/repository/index`` | state of each version, as Triton |
| ``GET /metrics`` | Prometheus |

The header ``X-Model-Version`` of an answer is the version that computed it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dvkf_prefect.errors import PredictionError
from dvkf_prefect.serving.answering import (
    JSON,
    Answer,
    Request,
    failure,
    failure_of,
    json_answer,
)
from dvkf_prefect.serving.endpoint import VERSION_HEADER
from dvkf_prefect.serving.intake import (
    BINARY_HEADER,
    MAX_REQUEST_BYTES,
    HttpError,
    accepts_gzip,
    check_headers,
    parse,
    read_body,
    render,
)
from dvkf_prefect.serving.metrics import CONTENT_TYPE
from dvkf_prefect.serving.served import Protocol
from dvkf_prefect.serving.service import Service
from dvkf_prefect.serving.tensors import BINARY_EXTENSION
from dvkf_prefect.serving.traffic import STICKY_HEADER, Models

_INDEX_BYTES = 4096
# Ends of paths that answer POST alone.
_POSTED = {"/v1": (":predict", ":explain"), "/v2": ("/infer",)}


class _Handlers:
    """The handlers of the routes.

    Args:
        service: What they answer with.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.models = service.models
        # Prefix of a name in a matched path: names may contain any character of a path, so they are in hexadecimal.
        self.mark = secrets.token_hex(8)

    def marked(self, name: str) -> str:
        return self.mark + name.encode(errors="surrogatepass").hex()

    def name(self, request: HttpRequest) -> str:
        """Return the model of a path; a name that is not marked is not one of the server's."""
        found: str = request.path_params["name"]
        if not found.startswith(self.mark):
            self.models.split(found)
            raise HTTPException(404)
        if not re.fullmatch("[0-9a-f]*", found[len(self.mark) :]):
            if found.endswith(_POSTED[request.url.path[:3]]):
                raise HTTPException(405, headers={"Allow": "POST"})
            raise HTTPException(404)
        return bytes.fromhex(found[len(self.mark) :]).decode(errors="surrogatepass")

    async def answer(self, request: HttpRequest, protocol: Protocol) -> Response:
        version = request.path_params.get("version") or request.headers.get(VERSION_HEADER)
        name, key, limit = self.name(request), request.headers.get(STICKY_HEADER), self.service.limit
        self.models.lane(name, version)
        encoding = check_headers(request.headers, limit)
        with self.service.budget.share() as share:
            body = await read_body(_stream(request), limit, share)
            json_size = _json_size(request, protocol)
            asked = Request(protocol, body, encoding, json_size, accepts_gzip(request.headers))
            chosen, found = await self.service.compute(name, version, key, asked, share, label=protocol)
        return _response(found, {VERSION_HEADER: chosen})

    async def v1_predict(self, request: HttpRequest) -> Response:
        return await self.answer(request, "v1")

    async def v2_infer(self, request: HttpRequest) -> Response:
        return await self.answer(request, "v2")

    async def v1_explain(self, request: HttpRequest) -> Response:
        name = self.name(request)
        return _response(failure(501, f"model '{name}' has no explanations. Use :predict."))

    async def alive(self, request: HttpRequest) -> Response:
        return _json({"status": "alive"})

    async def list_models(self, request: HttpRequest) -> Response:
        return _json({"models": self.models.names})

    async def repository_index(self, request: HttpRequest) -> Response:
        with self.service.budget.share() as share:
            body = await read_body(_stream(request), _INDEX_BYTES, share)
            asked = parse(body, share) if body else {}
        if not isinstance(asked, dict):
            raise PredictionError('expected {"ready": true}, or no body')
        states = [s for s in self.models.states() if s.state == "READY" or asked.get("ready") is not True]
        return _response(Answer(200, render([asdict(state) for state in states]), {"content-type": JSON}))

    async def server(self, request: HttpRequest) -> Response:
        return _json(
            {"name": "dvkf-prefect", "version": self.service.version, "extensions": [BINARY_EXTENSION]}
        )

    async def live(self, request: HttpRequest) -> Response:
        return _json({"live": True})

    async def ready(self, request: HttpRequest) -> Response:
        if not self.service.all_ready:
            raise HttpError(503, "a model has no worker process now. Try again later.", {"retry-after": "1"})
        return _json({"ready": True})

    async def model_ready(self, request: HttpRequest) -> Response:
        name = self.name(request)
        lane = self.models.lane(name, request.path_params.get("version"))
        if not lane.ready:
            text = f"model '{name}' {lane.version} has no worker process now. Try again later."
            raise HttpError(503, text, {"retry-after": "1"})
        return _json({"name": name, "ready": True})

    async def model(self, request: HttpRequest) -> Response:
        name, version = self.name(request), request.path_params.get("version")
        return _json(self.service.describe(name, version))

    async def metrics_page(self, request: HttpRequest) -> Response:
        return Response(self.service.metrics.render(), media_type=CONTENT_TYPE)


def create_app(models: Models, *, max_request_bytes: int = MAX_REQUEST_BYTES) -> App:
    """Build the application that answers for models.

    Args:
        models: The models; they may change while it runs.
        max_request_bytes: Maximum size of a request body.
    """
    service = Service(models, max_request_bytes)
    app = _Handlers(service)
    model, version = "/v2/models/{name:path}", "/versions/{version}"
    routes = [
        Route("/", app.alive),
        Route("/metrics", app.metrics_page),
        Route("/v1/models", app.list_models),
        Route("/v1/models/{name:path}:predict", app.v1_predict, methods=["POST"]),
        Route("/v1/models/{name:path}:explain", app.v1_explain, methods=["POST"]),
        Route("/v1/models/{name:path}", app.model_ready),
        Route("/v2", app.server),
        Route("/v2/", app.server),
        Route("/v2/repository/index", app.repository_index, methods=["POST"]),
        Route("/v2/health/live", app.live),
        Route("/v2/health/ready", app.ready),
        Route("/v2/models", app.list_models),
        Route(model + version + "/ready", app.model_ready),
        Route(model + "/ready", app.model_ready),
        Route(model + version + "/infer", app.v2_infer, methods=["POST"]),
        Route(model + "/infer", app.v2_infer, methods=["POST"]),
        Route(model + version, app.model),
        Route(model, app.model),
    ]
    return App(_Named(Router(routes, redirect_slashes=False), app), service)


def _json_size(request: HttpRequest, protocol: Protocol) -> int | None:
    size = request.headers.get(BINARY_HEADER)
    if size is None:
        return None
    if protocol == "v1":
        raise PredictionError("V1 has no binary tensors. Send JSON, or use the V2 path.")
    if not size.isdecimal() or len(size) > 18:
        raise PredictionError(f"the header {BINARY_HEADER} is not a size: {size[:100]!r}")
    return int(size)


def _json(document: dict[str, Any]) -> Response:
    return _response(json_answer(document))


def _response(answer: Answer, more: dict[str, str] | None = None) -> Response:
    return Response(answer.body, answer.status, headers={**answer.headers, **(more or {})})


async def _stream(request: HttpRequest) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as error:
        raise PredictionError("the client disconnected before the end of its request") from error


class _Named:
    """Middleware that writes the model's name of a path in hexadecimal, so that names cannot confuse routes."""

    def __init__(self, app: ASGIApp, handlers: _Handlers) -> None:
        self._app = app
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        prefix = path[: len("/v1/models/")]
        if prefix in ("/v1/models/", "/v2/models/"):
            rest = path[len(prefix) :]
            name = self._handlers.models.longest(rest)
            if name is not None:
                scope = {**scope, "path": prefix + self._handlers.marked(name) + rest[len(name) :]}
        # The router raises an error for an unknown path if the scope has an application, and answers in text if not.
        await self._app({**scope, "app": self._handlers}, receive, send)


class App:
    """The application. It answers every exception, so that uvicorn need not close the connection.

    Args:
        app: The application below.
        service: What it answers with.

    Attributes:
        service: The same, for other protocols.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self.service = service

    def quick(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer | None:
        """Answer a request for a prediction at once, if the model computes it in no time.

        Args:
            path: Path of a POST request.
            headers: Its headers, by lower-case name.
            body: Its body.

        Returns:
            The answer; None if the request must be computed in a thread, or is wrong.
        """
        return self.service.answer_at_once(path, headers, body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI asks."""
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
            if isinstance(error, HTTPException):
                answer = failure(error.status_code, str(error.detail), error.headers)
            else:
                answer = failure_of(error)
            await _response(answer)(scope, receive, send)
