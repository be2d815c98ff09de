"""The fake registry behaves as the real one was read to: each case has its place in the sources."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from .fake import FakeRegistry

MODEL = {"name": "iris", "owner": "a"}


class Client:
    def __init__(self) -> None:
        self.fake = FakeRegistry()

    def __call__(self, method: str, path: str, body: Any = None, **query: str) -> tuple[int, Any]:
        content = b"" if body is None else json.dumps(body).encode()
        return self.fake.answer(method, f"{self.fake.base}/{path}", query, content)


@pytest.fixture
def ask() -> Client:
    return Client()


def text(value: str) -> dict[str, str]:
    return {"metadataType": "MetadataStringValue", "string_value": value}


def test_the_wire_pairs_of_models(ask: Client) -> None:
    status, made = ask(
        "POST", "registered_models", {**MODEL, "customProperties": {"dvkf.stage": text("prod")}}
    )
    assert (status, made["id"], made["state"]) == (201, "1", "LIVE")
    assert ask("POST", "registered_models", MODEL) == (
        409,
        {"code": "Conflict", "message": "registered model with name iris already exists: conflict"},
    )
    assert ask("GET", "registered_model", name="x") == (
        404,
        {"code": "Not Found", "message": "no registered models found for name=x, externalId=: not found"},
    )
    message = 'invalid registered model ID: strconv.ParseInt: parsing "abc": invalid syntax: bad request'
    assert ask("GET", "registered_models/abc") == (400, {"code": "Bad Request", "message": message})
    required = "required field 'name' is zero value."
    assert ask("POST", "registered_models", {}) == (422, {"code": "Bad Request", "message": required})
    status, answer = ask("POST", "registered_models", {"name": "i", "foo": 1})
    assert (status, answer["message"]) == (400, 'json: unknown field "foo"')
    assert ask("DELETE", "registered_models/1")[0] == 405


def test_the_wire_pairs_of_versions_and_artifacts(ask: Client) -> None:
    ask("POST", "registered_models", MODEL)
    version = {"name": "1.0.0", "registeredModelId": "1", "externalId": "dvkf:version:iris@1.0.0"}
    assert ask("POST", "model_versions", version)[1]["id"] == "2"
    artifact = {"artifactType": "model-artifact", "name": "iris", "state": "LIVE"}
    status, made = ask("POST", "model_versions/2/artifacts", artifact)
    assert (status, made["id"]) == (201, "1")
    status, answer = ask("POST", "model_versions/2/artifacts", artifact)
    assert (status, answer["message"]) == (409, "model artifact with name iris already exists: conflict")
    assert ask("POST", "model_versions/2/artifacts", {**artifact, "id": "1", "uri": "s3://b/"})[0] == 200
    assert ask("POST", "model_versions/9/artifacts", artifact)[0] == 404
    # The project's own client finds artifacts by name and version.
    assert ask("GET", "model_artifact", name="iris", parentResourceId="2")[1]["id"] == "1"
    assert ask("GET", "model_artifact", name="iris", parentResourceId="1")[0] == 404
    # A version's parent is not checked.
    assert ask("POST", "model_versions", {"name": "2.0.0", "registeredModelId": "9999"})[0] == 201
    ask("PATCH", "model_versions/2", {"customProperties": {"a": text("1")}})
    assert list(
        ask("PATCH", "model_versions/2", {"customProperties": {"b": text("2")}})[1]["customProperties"]
    ) == ["b"]
    assert ask("PATCH", "model_versions/2", {"state": "ARCHIVED"})[1]["customProperties"] == {"b": text("2")}
    assert ask("PATCH", "model_versions/2", {"state": "GONE"})[0] == 400


def test_names_are_patterns_in_a_find(ask: Client) -> None:
    for name in ("modelXa", "other"):
        ask("POST", "registered_models", {"name": name})
    assert ask("GET", "registered_model", name="model_a")[1]["name"] == "modelXa"
    assert ask("GET", "registered_model", name=r"model\_a")[0] == 404
    ask("POST", "registered_models", {"name": "model_a"})
    status, answer = ask("GET", "registered_model", name="model_a")
    assert status == 404 and answer["message"].startswith("multiple registered models found")


def test_what_is_unique(ask: Client) -> None:
    ask("POST", "registered_models", {"name": "Iris", "externalId": "one"})
    assert ask("POST", "registered_models", {"name": "iris"})[0] == 409
    assert (
        ask("POST", "model_versions", {"name": "v1", "registeredModelId": "1", "externalId": "one"})[0] == 409
    )
    assert ask("POST", "model_versions", {"name": "v1", "registeredModelId": "1"})[0] == 201
    assert ask("POST", "model_versions", {"name": "V1", "registeredModelId": "1"})[0] == 409
    assert ask("POST", "model_versions", {"name": "v1", "registeredModelId": "2"})[0] == 201
    assert ask("POST", "model_versions", {"name": "n" * 253, "registeredModelId": "1"})[0] == 201
    assert ask("POST", "model_versions", {"name": "n" * 254, "registeredModelId": "1"})[0] == 500


def test_pages(ask: Client) -> None:
    for number in range(3):
        ask("POST", "registered_models", {"name": f"m{number}"})
    everything = ask("GET", "registered_models")[1]
    assert (everything["pageSize"], everything["size"], everything["nextPageToken"]) == (0, 3, "")
    first = ask("GET", "registered_models", pageSize="2", orderBy="ID")[1]
    assert base64.b64decode(first["nextPageToken"]) == b"2:2"
    last = ask("GET", "registered_models", pageSize="2", nextPageToken=first["nextPageToken"])[1]
    assert ([item["name"] for item in last["items"]], last["nextPageToken"]) == (["m2"], "")
    assert ask("GET", "registered_models", nextPageToken="?")[0] == 400
    back = ask("GET", "registered_models", orderBy="CREATE_TIME", sortOrder="DESC")[1]
    assert [item["name"] for item in back["items"]] == ["m2", "m1", "m0"]


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ({"metadataType": "MetadataIntValue", "int_value": "3"}, 201),
        ({"metadataType": "MetadataIntValue", "int_value": 3}, 400),
        ({"string_value": "no type"}, 400),
        ({"metadataType": "MetadataProtoValue", "type": "t", "proto_value": "AA=="}, 400),
    ],
)
def test_custom_properties(ask: Client, value: Any, status: int) -> None:
    assert ask("POST", "registered_models", {"name": "m", "customProperties": {"k": value}})[0] == status


def test_a_wrong_base_is_a_text(ask: Client) -> None:
    assert ask.fake.answer("GET", "/api/model_registry/v1/registered_models", {}, b"") == (
        404,
        "404 page not found\n",
    )
