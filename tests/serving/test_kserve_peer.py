"""The same requests to this model server and to kserve.ModelServer, whose recorded answers are in tests/kserve_peer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from jsonschema import Draft202012Validator
from kserve_peer import ours, record
from kserve_peer.asks import GRPC, HTTP, Ask
from kserve_peer.client import call, send
from kserve_peer.differences import DIFFERENCES, codes, differs, status
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
_SPEC = YAML(typ="safe").load(ROOT / "tests" / "kubeflow" / "open-inference-v2.openapi.yaml")
_PAGE = (ROOT / "docs" / "how-to" / "serving.md").read_text()
_RECORDED = json.loads(record.FILE.read_text())
_THEIRS: dict[str, dict[str, Any]] = _RECORDED["answers"]
pytestmark = pytest.mark.xdist_group("kserve_peer")

# Schema of the answers below a path of V2, by the end of the path; errors have their own.
_SCHEMAS = {
    "/infer": "inference_response",
    "/v2": "metadata_server_response",
    "/v2/": "metadata_server_response",
}
# Answers that the protocol gives no body.
_BARE = ("/ready", "/live", "/v2/models", "/v2/repository/index")


@pytest.fixture(scope="module")
def answers() -> Iterator[dict[str, dict[str, Any]]]:
    """This server's answers."""
    with ours.running() as (http, rpc), grpc.insecure_channel(f"127.0.0.1:{rpc}") as channel:
        found = {ask.name: send(ask, http) for ask in HTTP}
        found.update((asked.name, call(asked, channel)) for asked in GRPC)
    yield found


def test_each_answer_is_that_of_kserve_or_differs_on_purpose(answers: Any) -> None:
    everywhere = {row.aspect for row in DIFFERENCES if not row.asks}
    wrong = {}
    for asked in [*HTTP, *GRPC]:
        theirs, mine = _THEIRS[asked.name], answers[asked.name]
        assert theirs["asked"] == asked.digest, f"{asked.name} has changed: run `make kserve-answers`"
        listed = {row.aspect for row in DIFFERENCES if asked.name in row.asks}
        if differs(theirs, mine) - everywhere != listed:
            wrong[asked.name] = (listed, theirs, mine)
    assert not wrong


def test_each_difference_is_as_it_is_told(answers: Any) -> None:
    """Each status that a cell names is seen, and no other."""
    for row in DIFFERENCES:
        names = row.asks or [name for name in _THEIRS if row.aspect in differs(_THEIRS[name], answers[name])]
        assert names, row
        assert codes(row.kserve) == {status(_THEIRS[name]) for name in names}, row
        assert codes(row.here) == {status(answers[name]) for name in names}, row


def _schema(ask: Ask) -> str | None:
    path = ask.path.partition("?")[0]
    if path.endswith(_BARE):
        return None
    return next((name for end, name in _SCHEMAS.items() if path.endswith(end)), "metadata_model_response")


def _with_data(output: dict[str, Any]) -> dict[str, Any]:
    """Return a tensor with a list for data that follows as bytes, or that is written down as its digest."""
    if "data" not in output:
        assert output["parameters"]["binary_data_size"] > 0
        return {**output, "data": []}
    return {**output, "data": []} if isinstance(output["data"], str) else output


def test_each_answer_is_valid_by_the_protocol(answers: Any) -> None:
    checked = set()
    for ask in HTTP:
        answer = answers[ask.name]
        name = _schema(ask) if answer["status"] == 200 else "inference_error_response"
        if not ask.path.startswith("/v2") or name is None:
            continue
        document = answer["json"]
        if name == "inference_response":
            document = {**document, "outputs": [_with_data(output) for output in document["outputs"]]}
        rules = {"$ref": f"#/components/schemas/{name}", "components": _SPEC["components"]}
        errors = [error.message for error in Draft202012Validator(rules).iter_errors(document)]
        assert not errors, (ask.name, errors)
        if answer["status"] >= 400:
            assert list(document) == ["error"], ask.name
        checked.add(name)
    assert checked == {*_SCHEMAS.values(), "metadata_model_response", "inference_error_response"}


def test_kserve_is_of_the_version_that_the_page_names() -> None:
    assert _THEIRS.keys() == {asked.name for asked in [*HTTP, *GRPC]}
    assert len(_THEIRS) == len(HTTP) + len(GRPC)
    assert f"`kserve.ModelServer` {_RECORDED['kserve'].rpartition('.')[0]}" in _PAGE
    assert f"{len(_THEIRS)} requests" in _PAGE


def test_the_page_lists_each_difference_with_its_reason() -> None:
    table = _PAGE[_PAGE.index("## Differences from kserve.ModelServer") :]
    rows = re.findall(r"^\| (.+) \| (.+) \| (.+) \| (.+) \|$", table, re.MULTILINE)[1:]
    assert rows == [(row.request, row.kserve, row.here, row.reason) for row in DIFFERENCES]
