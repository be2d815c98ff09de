"""Requests and answers beside KFP's own description of its API (``kfp-v2beta1-api.json``)."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
from jsonschema.exceptions import best_match

from .store import Refused

_API = json.loads((Path(__file__).parents[1] / "kfp-v2beta1-api.json").read_text())
for _name, _definition in _API["definitions"].items():
    # The gateway refuses fields that it does not know (DiscardUnknown: false).
    if "properties" in _definition and _name != "protobufAny":
        _definition.setdefault("additionalProperties", False)
# Routes outside that description: the old API's run with its workflow (server/api_converter.go:1695-1715), the log of a
# node (apiserver/main.go, buildHTTPRouter), and those of the UI's server (frontend/server/app.ts).
_OTHERS = re.compile(
    r"/apis/v1beta1/(runs/[^/]+|healthz)|/apis/v1alpha1/runs/[^/]+/nodes/[^/]+/log|/k8s/pod/logs"
)

# Names of parameters, pattern and methods of each path. Names of some parameters have a dot: pipeline.pipeline_id.
_PATHS = [
    (
        re.findall(r"\{([\w.]+)\}", template),
        re.compile(re.sub(r"\\\{[\w.\\]+\\\}", "([^/:]+)", re.escape(template))),
        methods,
    )
    for template, methods in _API["paths"].items()
]


class NoOperationError(AssertionError):
    """The API has no such route, or no such method on it.

    Attributes:
        status: 404 or 405.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def gateway_error(error: Exception) -> Refused:
    """Return what the gateway answers to a request that the API does not have."""
    if isinstance(error, NoOperationError):
        # runtime.DefaultRoutingErrorHandler: a method that a route does not have is "unimplemented", which is 501.
        return {
            404: Refused(404, "Not Found", by="gateway"),
            405: Refused(501, "Method Not Allowed", by="gateway"),
        }[error.status]
    if isinstance(error, jsonschema.ValidationError):
        extra = re.search(r"\('(\w+)' (?:was|were) unexpected\)", error.message)
        said = (
            f'unknown field "{extra[1]}"'
            if extra
            else f"invalid value for {error.json_path}: {error.instance!r}"
        )
        return Refused(400, f"proto: (line 1:1): {said}"[:500], by="gateway")
    return Refused(400, str(error)[:500], by="gateway")


class Operation:
    """An operation of the API.

    Attributes:
        name: Its ``operationId``.
        values: Values of the parameters in its path.
    """

    def __init__(self, method: str, path: str) -> None:
        for names, pattern, methods in _PATHS:
            match = pattern.fullmatch(path)
            if match and method.lower() in methods:
                self._about = methods[method.lower()]
                self.name: str = self._about["operationId"]
                self.values = {n.rpartition(".")[2]: v for n, v in zip(names, match.groups(), strict=True)}
                # A fixed path goes before one with parameters: pipelines/upload is no pipeline.
                if not names:
                    return
        if not hasattr(self, "name"):
            paths = [re.sub(r"\\\{[\w.\\]+\\\}", "[^/:]+", re.escape(t)) for t in _API["paths"]]
            known = any(re.fullmatch(pattern, path) for pattern in paths)
            raise NoOperationError(f"the API has no {method} {path}", 405 if known else 404)

    def check_request(
        self, query: Mapping[str, str], body: Any, files: Mapping[str, bytes] | None = None
    ) -> None:
        """Check the parameters of a request."""
        known = {p["name"]: p for p in self._about["parameters"]}
        for name in query:
            assert known.get(name, {}).get("in") == "query", f"{self.name} has no parameter {name!r}"
        for place, given in (("query", query), ("formData", files or {})):
            missing = {n for n, p in known.items() if p["in"] == place and p.get("required")} - set(given)
            assert not missing, f"{self.name} lacks {missing}"
        if files is not None:
            assert set(files) <= {n for n, p in known.items() if p["in"] == "formData"}, set(files)
            return
        schema = next((p["schema"] for p in self._about["parameters"] if p["in"] == "body"), None)
        if schema is not None:
            check(body, schema)
        else:
            assert not body, f"{self.name} takes no body"

    def check_answer(self, answer: Any, status: int = 200) -> None:
        """Check an answer."""
        check(answer, self._about["responses"]["200" if status == 200 else "default"]["schema"])


# By the schema's JSON. `jsonschema.validate` would check all definitions of the API at each call.
@functools.cache
def _validator(schema: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**json.loads(schema), "definitions": _API["definitions"]})


def check(value: Any, schema: dict) -> None:
    """Check a value against a schema that refers to definitions of the API."""
    error = best_match(_validator(json.dumps(schema)).iter_errors(value))
    if error is not None:
        raise error


def check_call(
    method: str, path: str, query: Mapping[str, str], body: Any, files: Mapping[str, bytes] | None
) -> None:
    """Check a request of a client, whichever server it goes to."""
    if method == "GET" and _OTHERS.fullmatch(path):
        assert set(query) <= {"podname", "runid", "podnamespace"} and body is None
        return
    Operation(method, path).check_request(query, body, files)
