"""A Kubeflow Model Registry that is as strict as the real one, in memory.

Each request and answer is checked against the project's OpenAPI file (v1alpha3), beside this module. Behaviour that
the file does not say is read in kubeflow/model-registry bd07139 and v0.3.8; each is cited where it is made. ``v1`` is
the same below another base path (clients from 0.3.15).
"""

from __future__ import annotations

import base64
import http.server
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import jsonschema
from ruamel.yaml import YAML
from servers import serving

SPEC = YAML(typ="safe").load(Path(__file__).with_name("model-registry.openapi.yaml"))
Record = dict[str, Any]
Answer = tuple[int, Any]

# Kinds: schema, schema of a list, words in messages.
KINDS = {
    "registered_models": ("RegisteredModel", "registered model"),
    "model_versions": ("ModelVersion", "model version"),
    "model_artifacts": ("ModelArtifact", "model artifact"),
}
STATUS = {
    400: "Bad Request",
    404: "Not Found",
    409: "Conflict",
    422: "Bad Request",
    500: "Internal Server Error",
}


def check(schema: str, value: Any) -> None:
    """Hold a value against a schema of the OpenAPI file."""
    wanted = {"$ref": f"#/components/schemas/{schema}", "components": SPEC["components"]}
    jsonschema.Draft202012Validator(wanted).validate(value)


def properties_of(schema: str) -> dict[str, Any]:
    """All fields of a schema, those of its parts too."""
    found: dict[str, Any] = {}

    def visit(part: Mapping[str, Any]) -> None:
        if "$ref" in part:
            visit(SPEC["components"]["schemas"][part["$ref"].rpartition("/")[2]])
        found.update(part.get("properties", {}))
        for inner in part.get("allOf", ()):
            visit(inner)

    visit({"$ref": f"/{schema}"})
    return found


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str) -> None:
        self.status, self.message = status, message
        super().__init__(message)


class FakeRegistry:
    """The server.

    Args:
        base: Its base path: ``v1alpha3`` up to server 0.3.8, ``v1`` for later ones.

    Attributes:
        calls: Method and path of each request that arrived.
        headers: Headers of the requests that came by HTTP.
        interrupt: Called with the number of a request before and after it is served; may raise a transport's error.
    """

    def __init__(self, base: str = "v1alpha3") -> None:
        self.base = f"/api/model_registry/{base}"
        self.contexts: dict[str, Record] = {}
        self.artifacts: dict[str, Record] = {}
        self.parents: dict[str, str] = {}
        self.calls: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.interrupt: Callable[[int, str], None] = lambda number, when: None
        self._clock = 1_767_000_000_000

    def transport(self) -> httpx.MockTransport:
        """The way to it for an httpx client of this process."""
        return httpx.MockTransport(self._serve)

    @contextmanager
    def served(self) -> Iterator[str]:
        """Its address on this machine, for clients of other kinds."""
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def handle_one(self) -> None:
                path, _, query = self.path.partition("?")
                fake.headers.append(dict(self.headers))
                fake.calls.append(f"{self.command} {path.removeprefix(fake.base)}")
                content = self.rfile.read(int(self.headers.get("content-length", "0")))
                status, answer = fake.answer(self.command, path, dict(parse_qsl(query)), content)
                body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
                self.send_response(status)
                self.send_header(
                    "content-type", "text/plain" if isinstance(answer, str) else "application/json"
                )
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PATCH = do_DELETE = handle_one

            def log_message(self, *_: Any) -> None:
                pass

        with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
            yield f"http://127.0.0.1:{port}"

    def _serve(self, request: httpx.Request) -> httpx.Response:
        number = len(self.calls)
        self.interrupt(number, "before")
        self.calls.append(f"{request.method} {request.url.path.removeprefix(self.base)}")
        query = dict(parse_qsl(request.url.query.decode()))
        status, answer = self.answer(request.method, request.url.path, query, request.content)
        self.interrupt(number, "after")
        if isinstance(answer, str):
            return httpx.Response(status, text=answer)
        return httpx.Response(status, json=answer)

    @property
    def writes(self) -> list[str]:
        """The requests that may change something."""
        return [call for call in self.calls if not call.startswith("GET")]

    # -- routes --------------------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: Mapping[str, str], content: bytes) -> Answer:
        """Serve one request: its status, and a JSON value or a text."""
        if not path.startswith(self.base + "/"):
            return 404, "404 page not found\n"  # H1: a wrong base path is answered by the router, as text
        parts = path.removeprefix(self.base + "/").split("/")
        try:
            status, answer = self._route(method, parts, query, content)
        except Refused as error:
            status, answer = error.status, {"code": STATUS[error.status], "message": error.message}
            check("Error", answer)
        return status, answer

    def _route(self, method: str, parts: list[str], query: Mapping[str, str], content: bytes) -> Answer:
        match method, parts:
            case "GET", [("registered_model" | "model_version" | "model_artifact") as single]:
                return 200, self._answered(single + "s", self._find(single + "s", query))
            case "GET", [("registered_models" | "model_versions" | "model_artifacts") as kind]:
                return 200, self._listed(kind, self._all(kind), query)
            case "GET", ["registered_models", id_, "versions"]:
                parent = self._get("registered_models", id_)
                rows = [r for r in self._all("model_versions") if r["registeredModelId"] == parent["id"]]
                return 200, self._listed("model_versions", rows, query)
            case "GET", ["model_versions", id_, "artifacts"]:
                parent = self._get("model_versions", id_)
                rows = [r for r in self._all("model_artifacts") if self.parents[r["id"]] == parent["id"]]
                return 200, self._listed("model_artifacts", rows, query)
            case "POST", ["model_versions", id_, "artifacts"]:
                return self._upsert(id_, self._body(content, "ModelArtifact"))
            case "POST", [("registered_models" | "model_versions") as kind]:
                return 201, self._answered(kind, self._create(kind, content))
            case "GET", [kind, id_] if kind in KINDS:
                return 200, self._answered(kind, self._get(kind, id_))
            case "PATCH", [kind, id_] if kind in KINDS:
                return 200, self._answered(kind, self._update(kind, id_, content))
            case "DELETE", _:
                return 405, ""  # H2: nothing can be deleted, only archived
            case _:
                return 404, "404 page not found\n"

    # -- reading -------------------------------------------------------------------------------------------------------

    def _all(self, kind: str) -> list[Record]:
        table = self.artifacts if kind == "model_artifacts" else self.contexts
        return [record for record in table.values() if record["_kind"] == kind]

    def _get(self, kind: str, id_: str) -> Record:
        word = KINDS[kind][1]
        if not re.fullmatch(r"[0-9]+", id_):
            # J11; core/registered_model.go by apiutils.ValidateIDAsInt32.
            why = f'strconv.ParseInt: parsing "{id_}": invalid syntax'
            raise Refused(400, f"invalid {word} ID: {why}: bad request")
        found = next((record for record in self._all(kind) if record["id"] == id_), None)
        if found is None:
            raise Refused(404, f"no {word} found for id {id_}: not found")
        return found

    def _find(self, kind: str, query: Mapping[str, str]) -> Record:
        name, external, parent = (query.get(key, "") for key in ("name", "externalId", "parentResourceId"))
        if not name and not external:
            raise Refused(400, "invalid parameters call, supply either name or externalId: bad request")
        found = self._all(kind)
        if external:
            found = [record for record in found if record.get("externalId") == external]
        if name:
            # H5: db/service/registered_model.go:47 compares by LIKE, whose escape is the backslash.
            pieces = re.findall(r"\\.|.", name, re.DOTALL)
            pattern = "".join({"%": ".*", "_": "."}.get(p, re.escape(p[-1])) for p in pieces)
            found = [r for r in found if re.fullmatch(pattern, r["name"], re.IGNORECASE | re.DOTALL)]
        if parent:
            found = [record for record in found if record["_parent"] == parent]
        words = f"{KINDS[kind][1]}s found for name={name}, externalId={external}"
        if not found:
            raise Refused(404, f"no {words}: not found")
        if len(found) > 1:
            raise Refused(404, f"multiple {words}: not found")
        return found[0]

    def _listed(self, kind: str, rows: list[Record], query: Mapping[str, str]) -> Record:
        # H9: no default page size; 0 is everything. The token is base64 of "id:value".
        size = int(query.get("pageSize", "0"))
        if query.get("orderBy", "ID") not in ("CREATE_TIME", "LAST_UPDATE_TIME", "ID"):
            raise Refused(400, f"invalid order by {query['orderBy']}: bad request")
        field = {"CREATE_TIME": "createTimeSinceEpoch", "LAST_UPDATE_TIME": "lastUpdateTimeSinceEpoch"}
        key = field.get(query.get("orderBy", "ID"), "id")
        back = query.get("sortOrder", "ASC") == "DESC"
        rows = sorted(rows, key=lambda r: (int(r[key]), int(r["id"])), reverse=back)
        if token := query.get("nextPageToken"):
            try:
                last = base64.b64decode(token, validate=True).decode().split(":")[0]
                place = [record["id"] for record in rows].index(last)
            except ValueError:
                raise Refused(400, "invalid nextPageToken: bad request") from None
            rows = rows[place + 1 :]
        shown = rows[:size] if size else rows
        more = len(shown) < len(rows)
        token = base64.b64encode(f"{shown[-1]['id']}:{shown[-1][key]}".encode()).decode() if more else ""
        answer = {
            "items": [self._public(record) for record in shown],
            "nextPageToken": token,
            "pageSize": size,
            "size": len(shown),
        }
        check(f"{KINDS[kind][0]}List", answer)
        return answer

    def _public(self, record: Record) -> Record:
        return {key: value for key, value in record.items() if not key.startswith("_")}

    def _answered(self, kind: str, record: Record) -> Record:
        shown = self._public(record)
        check(KINDS[kind][0], shown)
        return shown

    # -- writing -------------------------------------------------------------------------------------------------------

    def _body(self, content: bytes, schema: str) -> Record:
        if b"\\u0000" in content or b"\0" in content:
            raise Refused(400, "null bytes are not allowed: bad request")  # H3
        try:
            body = json.loads(content)
        except ValueError as error:
            raise Refused(400, f"{error}: bad request") from None
        known = properties_of(schema)
        for key in body:
            if key not in known:
                raise Refused(400, f'json: unknown field "{key}"')  # H3, J11: DisallowUnknownFields
        # H7: null and absent are the same.
        return {key: value for key, value in body.items() if value is not None}

    def _valid(self, schema: str, body: Record) -> None:
        for field in SPEC["components"]["schemas"][schema].get("required", ()):
            if not body.get(field):
                raise Refused(422, f"required field '{field}' is zero value.")  # H3: 422 with the code of 400
        try:
            check(schema, body)
        except jsonschema.ValidationError as error:
            raise Refused(400, f"{error.message}: bad request") from None
        for value in body.get("customProperties", {}).values():
            if value["metadataType"] == "MetadataProtoValue":
                raise Refused(400, "unsupported proto value: bad request")  # H8

    def _create(self, kind: str, content: bytes) -> Record:
        schema = f"{KINDS[kind][0]}Create"
        body = self._body(content, schema)
        self._valid(schema, body)
        # H6: the parent of a version is not checked (core/model_version.go:16-63).
        defaults = {"state": "LIVE"}
        return self._insert(self.contexts, kind, {**defaults, **body}, body.get("registeredModelId", ""))

    def _insert(self, table: dict[str, Record], kind: str, body: Record, parent: str) -> Record:
        self._check_unique(table, kind, body, parent, "")
        moment = self._now()
        id_ = str(len(table) + 1)  # J12: contexts share one sequence of ids, artifacts have another
        record = {
            "customProperties": {},
            **body,
            "id": id_,
            "createTimeSinceEpoch": moment,
            "lastUpdateTimeSinceEpoch": moment,
            "_kind": kind,
            "_parent": parent,
        }
        table[id_] = record
        return record

    def _check_unique(self, table: dict[str, Record], kind: str, body: Record, parent: str, own: str) -> None:
        word = KINDS[kind][1]
        name, external = body.get("name", ""), body.get("externalId", "")
        stored = f"{parent}:{name}" if parent else name
        # H4: names are stored with their parent's id in varchar(255), and MySQL's strict mode refuses longer ones.
        if len(stored) > 255 or len(external) > 255:
            raise Refused(500, "Error 1406 (22001): Data too long for column")
        for other in table.values():
            if other["id"] == own:
                continue
            theirs = f"{other['_parent']}:{other['name']}" if other["_parent"] else other["name"]
            # H4: the collation ignores case; external ids are unique in the whole table, with the same message.
            same = other["_kind"] == kind and theirs.casefold() == stored.casefold()
            if same or (external and other.get("externalId", "").casefold() == external.casefold()):
                raise Refused(409, f"{word} with name {name} already exists: conflict")

    def _update(self, kind: str, id_: str, content: bytes) -> Record:
        schema = f"{KINDS[kind][0]}Update"
        body = self._body(content, schema)
        self._valid(schema, body)
        record = self._get(kind, id_)
        table = self.artifacts if kind == "model_artifacts" else self.contexts
        self._check_unique(table, kind, {**record, **body}, record["_parent"], id_)
        # H7: custom properties are replaced as a whole; all else that is absent stays.
        record.update(body, lastUpdateTimeSinceEpoch=self._now())
        return record

    def _upsert(self, version: str, body: Record) -> Answer:
        parent = self._get("model_versions", version)  # H6: artifacts do check it
        if not body.get("artifactType"):
            raise Refused(422, "required field 'artifactType' is zero value.")
        self._valid("ModelArtifact", body)
        if id_ := body.get("id"):
            fields = {
                key: value for key, value in body.items() if key in properties_of("ModelArtifactUpdate")
            }
            return 200, self._answered(
                "model_artifacts", self._update("model_artifacts", id_, json.dumps(fields).encode())
            )
        body = {"state": "UNKNOWN", "name": f"uuid-{len(self.artifacts)}", **body}
        made = self._insert(self.artifacts, "model_artifacts", body, parent["id"])
        self.parents[made["id"]] = parent["id"]
        return 201, self._answered("model_artifacts", made)

    def _now(self) -> str:
        self._clock += 1
        return str(self._clock)
