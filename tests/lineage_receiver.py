"""A receiver of OpenLineage events that refuses what the specification does not allow.

The schemas are the project's own, unchanged: spec/OpenLineage.json and spec/facets of OpenLineage/OpenLineage at
commit 8f02abfb7a252783b95df79f443edb13959bf52c (August 2026), Apache-2.0. They allow properties that they do not
describe, for facets of others. This package sends none, so they are refused here. Older clients name older versions of
a facet's schema; of the same major version the newest one is the judge.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource

FORMATS = FormatChecker(["uuid"])


@FORMATS.checks("date-time", ValueError)
def _is_time(value: object) -> bool:
    """A time of RFC 3339 has an offset."""
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


@FORMATS.checks("uri", ValueError)
def _is_uri(value: object) -> bool:
    return not isinstance(value, str) or bool(urlsplit(value).scheme and urlsplit(value).netloc)


def _described(schema: Any) -> Any:
    """Return a schema that does not allow undescribed properties by itself."""
    if isinstance(schema, dict):
        left = {key: value for key, value in schema.items() if (key, value) != ("additionalProperties", True)}
        return {key: _described(value) for key, value in left.items()}
    return [_described(each) for each in schema] if isinstance(schema, list) else schema


_FILES = sorted((Path(__file__).parent / "models" / "openlineage-schemas").glob("*.json"))
_DOCUMENTS: dict[str, Any] = {
    each["$id"]: each for each in (_described(json.loads(f.read_text())) for f in _FILES)
}
_REGISTRY: Registry[Any] = Registry().with_resources(
    (url, Resource.from_contents(document)) for url, document in _DOCUMENTS.items()
)
_EVENT = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"


def _errors(url: str, value: Any) -> list[str]:
    rules = Draft202012Validator(
        {"$ref": url, "unevaluatedProperties": False}, registry=_REGISTRY, format_checker=FORMATS
    )
    return [f"{error.json_path}: {error.message}" for error in rules.iter_errors(value)]


def _newest(url: str) -> str:
    """Return the address of the schema that is here, for that of an older one of the same major version."""
    found = re.fullmatch(r"(https://openlineage\.io/spec/facets/)(\d+)-(\d+)-(\d+)(/\w+\.json)(#.*)", url)
    if found is None:
        return url
    base, major, *minor, name, part = found.groups()
    for known in _DOCUMENTS:
        same = re.fullmatch(re.escape(base) + major + r"-(\d+)-(\d+)" + re.escape(name), known)
        if same is not None and [*map(int, minor)] <= [*map(int, same.groups())]:
            return known + part
    return url


def _facet_errors(facets: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield what the schemas that facets name themselves do not allow."""
    for name, facet in facets.items():
        url = facet["_schemaURL"]
        if (newest := _newest(url)) != url:
            facet, url = {**facet, "_schemaURL": newest}, newest
        document = _DOCUMENTS.get(url.partition("#")[0], {})
        if url != document.get("$id", "") + document.get("properties", {}).get(name, {}).get("$ref", "#"):
            yield f"facet {name}: {url} is not its schema"
            continue
        yield from (f"facet {name}: {error}" for error in _errors(url, facet))


def errors_of(event: dict[str, Any]) -> list[str]:
    """Return what the schemas of the event and of its facets do not allow."""
    if found := _errors(_EVENT, event):
        return found
    if event["schemaURL"] != _EVENT:
        return [f"{event['schemaURL']} is not the schema of a run's event"]
    owners = [event["run"], event["job"], *event.get("inputs", ()), *event.get("outputs", ())]
    parts = [owner.get(key, {}) for owner in owners for key in ("facets", "inputFacets", "outputFacets")]
    return [error for facets in parts for error in _facet_errors(facets)]


class Receiver:
    """The events that were accepted, and the reasons of refusals.

    Attributes:
        url: Address of the receiver.
        status: Status to answer with in place of accepting, 0 for none.
        silent: True to accept connections and never answer.
        requests: Number of requests.
    """

    def __init__(self) -> None:
        self.url = ""
        self.status = 0
        self.silent = False
        self.requests = 0
        self.events: list[dict[str, Any]] = []
        self.refused: list[str] = []
        self.keys: list[str] = []
        self.closing = threading.Event()

    def problem(self, path: str, event: Any) -> str:
        """Return the reason to refuse an event; empty for none."""
        if path != "/api/v1/lineage":
            return f"no such path: {path}"
        if errors := errors_of(event):
            return errors[0]
        states = [each["eventType"] for each in self.events if each["run"]["runId"] == event["run"]["runId"]]
        if (event["eventType"] == "START") != (not states):
            return f"{event['eventType']} after {states}"
        if {"COMPLETE", "FAIL", "ABORT"} & set(states):
            return f"{event['eventType']} of a run that ended"
        return ""

    def of(self, job: str) -> list[dict[str, Any]]:
        """Return the events of a job."""
        return [event for event in self.events if event["job"]["name"] == job]


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Yield a receiver on a free port."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_POST(self) -> None:
            receiver.requests += 1
            if receiver.silent:
                receiver.closing.wait()
                return
            event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            receiver.keys.append(self.headers.get("Authorization") or "")
            problem = receiver.problem(self.path, event)
            if problem:
                receiver.refused.append(problem)
            elif not receiver.status:
                receiver.events.append(event)
            self.send_response(receiver.status or (400 if problem else 201))
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
