"""A receiver of OpenLineage events that refuses what the specification does not allow.

The rules are those of OpenLineage 2-0-2 (https://openlineage.io/spec/2-0-2/OpenLineage.json) and of the facets that are
sent, https://openlineage.io/spec/facets/: DatasetVersion 1-0-1, Schema 1-2-0, ErrorMessage 1-0-1,
ParentRun 1-2-0, JobType 2-0-4 and TagsRun 1-0-0.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

TEXT = {"type": "string", "minLength": 1}
URI = {"type": "string", "format": "uri", "pattern": "^[a-z][a-z0-9+.-]*://"}
UUID = {"type": "string", "format": "uuid"}
TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"}


def facet(name: str, required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    url = {
        "type": "string",
        "pattern": rf"^https://openlineage\.io/spec/facets/\d+-\d+-\d+/{name}\.json#/\$defs/{name}$",
    }
    fields = {
        "_producer": URI,
        "_schemaURL": url,
        "_deleted": {"type": "boolean"},
        **required,
        **(optional or {}),
    }
    return record(fields, ["_producer", "_schemaURL", *required])


def record(fields: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


COLUMN = record(
    {"name": TEXT, "type": TEXT, "fields": {"type": "array"}, "ordinal_position": {"type": "integer"}},
    ["name"],
)
COLUMNS = {"type": "array", "items": COLUMN}
# ParentRun 1-2-0 may forward facets of the parent.
RUN = record({"runId": UUID, "facets": record({}, [])}, ["runId"])
NAMED = {"namespace": TEXT, "name": TEXT}
JOB = record({**NAMED, "facets": record({}, [])}, [*NAMED])
TAG = record({"key": TEXT, "value": TEXT, "source": TEXT}, ["key", "value"])
RUN_FACETS = {
    "errorMessage": facet(
        "ErrorMessageRunFacet",
        {"message": {"type": "string"}, "programmingLanguage": TEXT},
        {"stackTrace": TEXT},
    ),
    "parent": facet("ParentRunFacet", {"run": RUN, "job": JOB}, {"root": {"type": "object"}}),
    # The client adds its version.
    "tags": facet("TagsRunFacet", {"tags": {"type": "array", "items": TAG}}),
}
DATASET_FACETS = {
    "version": facet("DatasetVersionDatasetFacet", {"datasetVersion": TEXT}),
    "schema": facet("SchemaDatasetFacet", {"fields": COLUMNS}),
}
TYPE = facet(
    "JobTypeJobFacet", {"processingType": TEXT, "integration": TEXT}, {"jobType": TEXT, "emissionPattern": {}}
)
DATASET = {"namespace": TEXT, "name": TEXT, "facets": record(DATASET_FACETS, [])}
EVENT = record(
    {
        "eventType": {"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
        "eventTime": TIME,
        "producer": URI,
        "schemaURL": {"const": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"},
        "run": record({"runId": UUID, "facets": record(RUN_FACETS, [])}, ["runId"]),
        "job": record(
            {"namespace": TEXT, "name": TEXT, "facets": record({"jobType": TYPE}, [])}, ["namespace", "name"]
        ),
        "inputs": {
            "type": "array",
            "items": record({**DATASET, "inputFacets": record({}, [])}, ["namespace", "name"]),
        },
        "outputs": {
            "type": "array",
            "items": record({**DATASET, "outputFacets": record({}, [])}, ["namespace", "name"]),
        },
    },
    ["eventTime", "producer", "schemaURL", "run", "job", "eventType"],
)
RULES = Draft202012Validator(EVENT, format_checker=FormatChecker())


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
        if errors := [f"{error.json_path}: {error.message}" for error in RULES.iter_errors(event)]:
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
