"""The fake server's packages of images, filters and answers, rule by rule (paths as in `tests.kubeflow.fake`)."""

from __future__ import annotations

import json
from urllib.parse import quote

import httpx
import pytest

from dvkf_prefect.kubeflow.compile.images import image_of
from dvkf_prefect.kubeflow.compile.pod_settings import Placement

from .fake import FakeKfp, filters
from .fake.filters import FIELDS
from .fake.server import COMPLETE
from .fake.store import Refused
from .test_fake import API, Client, pipeline

EXECUTOR = "python3 -m kfp.dsl.executor_main --help"
SOURCE = "python3 -c 'from dvkf_prefect.kubeflow.pod.pod import run_in_pod'"


@pytest.fixture
def client(kfp):
    client = Client(kfp)
    yield client
    client.http.close()


# -- images: sdk/python/kfp/dsl/component_factory.py:503-586 ---------------------------------------------------------


@pytest.mark.parametrize(
    ("packages", "command", "said"),
    [
        ({}, EXECUTOR, "(ModuleNotFoundError: No module named 'kfp')"),
        ({"dvkf_prefect": ""}, EXECUTOR, "(ModuleNotFoundError: No module named 'kfp')"),
        ({"kfp": "1.8.22", "dvkf_prefect": ""}, EXECUTOR, "No module named 'kfp.dsl.executor_main'"),
        ({"kfp": ""}, SOURCE, "ModuleNotFoundError: No module named 'dvkf_prefect'"),
        ({"kfp": "", "dvkf_prefect": "0.3.0"}, SOURCE, "No module named 'dvkf_prefect.kubeflow.pod'"),
    ],
)
def test_a_pod_imports_what_its_image_has(client, kfp, packages, command, said):
    have = kfp.images["example.org/"]
    kfp.images["example.org/a:1"] = {name: version or have[name] for name, version in packages.items()}
    assert client.ended(client.run(pipeline(command=command)))["state"] == "FAILED"
    assert said in kfp.run.tasks["a"].log


@pytest.mark.parametrize(
    ("installed", "absent"),
    [
        (f"'dvkf-prefect[serve]=={COMPLETE['dvkf_prefect']}'", []),
        ("'kfp==2.17.3'", ["dvkf_prefect"]),
        ("'dvkf_prefect==0.3.0'", ["dvkf_prefect.kubeflow.pod"]),
        ("'kfp==1.8.22' 'dvkf-prefect'", ["kfp.dsl.executor_main"]),
        ("'kfp-kubernetes'", ["kfp", "dvkf_prefect"]),
    ],
)
def test_packages_that_a_command_installs_are_there(tmp_path, installed, absent):
    kfp = FakeKfp(tmp_path)
    command = ["sh", "-c", f"python3 -m pip install {installed}"]
    image = image_of(Placement(packages=("dvkf-prefect",)), "")
    assert kfp.absent({"image": image, "command": command}) == absent
    assert kfp.absent({"image": image, "command": ["true"]}) == ["kfp", "dvkf_prefect"]
    assert kfp.packages({"image": "nowhere.org/x:1", "command": command}) is None


# -- filters: apiserver/filter/filter.go, apiserver/server/list_request_util.go, apiserver/list/list.go ---------------


def listed(client: Client, *predicates: dict, path: str = "/experiments", **query: str) -> httpx.Response:
    text = {"filter": quote(json.dumps({"predicates": predicates}))} if predicates else {}
    return client.http.get(API + path, params={**text, **query})


def names(client: Client, *predicates: dict, **query: str) -> set[str]:
    """Names of the experiments that a filter leaves, of all pages."""
    found, token = set(), ""
    while True:
        answer = listed(client, *predicates, **query, **({"page_token": token} if token else {}))
        assert answer.status_code == 200, answer.text
        body = answer.json()
        found |= {each["display_name"] for each in body.get("experiments", ())}
        token = body.get("next_page_token", "")
        if not token:
            return found


@pytest.fixture
def three(client, kfp):
    for name in ("alpha", "Beta_1", "betaX1"):
        client.post("/experiments", display_name=name, description=f"about {name}")
    for number, row in enumerate(kfp.experiments.values()):
        row["created_at"] = f"2026-01-0{number + 1}T00:00:00Z"


BY_NAME = {"key": "display_name"}
BY_TIME = {"key": "created_at"}


OPERATIONS = [
    ({**BY_NAME, "operation": "EQUALS", "stringValue": "ALPHA"}, "a"),
    ({"key": "name", "operation": 1, "string_value": "alpha"}, "a"),
    ({**BY_NAME, "operation": "NOT_EQUALS", "string_value": "alpha"}, "bc"),
    ({**BY_NAME, "operation": "GREATER_THAN", "string_value": "BETA_1"}, "c"),
    ({**BY_NAME, "operation": "LESS_THAN_EQUALS", "string_value": "beta_1"}, "ab"),
    ({**BY_NAME, "operation": "IN", "string_values": {"values": ["Alpha", "BETAX1"]}}, "ac"),
    ({**BY_NAME, "operation": 8, "stringValues": {"values": []}}, ""),
    # LIKE: an underscore is any character, and a percent sign any text.
    ({**BY_NAME, "operation": "IS_SUBSTRING", "string_value": "a_1"}, "bc"),
    ({"key": "description", "operation": "IS_SUBSTRING", "string_value": "B%1"}, "bc"),
    ({**BY_TIME, "operation": "GREATER_THAN", "timestamp_value": "2026-01-01T00:00:00Z"}, "bc"),
    ({**BY_TIME, "operation": "GREATER_THAN_EQUALS", "timestampValue": "2026-01-02T00:00:00Z"}, "bc"),
    ({**BY_TIME, "operation": "LESS_THAN", "long_value": "1767312000"}, "a"),
    ({**BY_TIME, "operation": "EQUALS", "int_value": 1767312000}, "b"),
    ({**BY_TIME, "operation": "IN", "long_values": {"values": [1767225600, 1767398400]}}, "ac"),
]


def test_each_operation_of_a_filter(client, three):
    every = dict(zip("abc", ("alpha", "Beta_1", "betaX1"), strict=True))
    for predicate, found in OPERATIONS:
        assert names(client, predicate) == {every[letter] for letter in found}, predicate


REFUSED = [
    (
        {"key": "state", "operation": "EQUALS", "string_value": "x"},
        "no support for filtering on unrecognized",
    ),
    ({**BY_NAME, "operation": "IN", "string_value": "x"}, "cannot use IN operator with scalar type"),
    ({**BY_NAME, "operation": "EQUALS", "string_values": {"values": ["x"]}}, "scalar operator on array"),
    ({**BY_TIME, "operation": "IS_SUBSTRING", "int_value": 1}, "non string value type"),
    ({**BY_NAME, "operation": "LIKE", "string_value": "x"}, "LIKE"),
    ({**BY_NAME, "string_value": "x"}, "OPERATION_UNSPECIFIED"),
    ({**BY_NAME, "operation": "EQUALS"}, "EQUALS with []"),
    ({"operation": "EQUALS", "string_value": "x"}, "Predicate key cannot be empty"),
    ({**BY_NAME, "op": "EQUALS", "string_value": "x"}, "unknown field"),
]


def test_filters_that_are_refused(client):
    for predicate, said in REFUSED:
        answer = listed(client, predicate)
        assert (answer.status_code, answer.json()["code"]) == (400, 3), predicate
        assert said in answer.json()["message"], predicate


KINDS = {
    "runs": "/runs", "experiments": "/experiments", "pipelines": "/pipelines", "recurringRuns": "/recurringruns",
    "pipeline_versions": "/pipelines/PIPELINE/versions",
}  # fmt: skip


def taken(kind: str, **query: str) -> bool:
    try:
        filters.page(kind, [], query)
    except Refused as refused:
        assert (refused.status, refused.code) == (400, 3)
        return False
    return True


def test_fields_by_which_a_kind_of_row_is_filtered_and_sorted(client):
    """apiserver/model: APIToModelFieldMap of each"""
    assert set(KINDS) == set(FIELDS)
    made = client.post("/pipelines", display_name="p").json()["pipeline_id"]
    for kind, path in KINDS.items():
        for name in {name for fields in FIELDS.values() for name in fields}:
            predicate = {"key": name, "operation": "EQUALS", "string_value": "x"}
            text = quote(json.dumps({"predicates": [predicate]}))
            known = name in FIELDS[kind]
            assert taken(kind, filter=text) == taken(kind, sort_by=f"{name} DESC") == known, (kind, name)
        last = {"key": name, "operation": "EQUALS", "string_value": "x"}
        status = listed(client, last, path=path.replace("PIPELINE", made)).status_code
        assert status == (200 if name in FIELDS[kind] else 400), (kind, name)


def test_orders_that_are_refused(client):
    for order in ("name up", "name asc desc", "size"):
        assert listed(client, sort_by=order).status_code == 400, order


def test_a_page_token_holds_filter_order_and_next_row(client, three, kfp):
    query = {"sort_by": "name desc"}
    like = {**BY_NAME, "operation": "IS_SUBSTRING", "stringValue": "a"}
    first = listed(client, like, **query).json()
    assert [e["display_name"] for e in first["experiments"]] == ["betaX1", "Beta_1"] and first[
        "total_size"
    ] == 3
    token = first["next_page_token"]
    # Rows that are made meanwhile do not move the next page.
    client.post("/experiments", display_name="zeta")
    same = {"key": "name", "operation": 8 + 1, "string_value": "a"}
    for answer in (
        listed(client, page_token=token),
        listed(client, like, page_token=token, sort_by="NAME  Desc"),
        listed(client, same, page_token=token, **query),
    ):
        assert [e["display_name"] for e in answer.json()["experiments"]] == ["alpha"], answer.text
    for answer in (
        listed(client, {**like, "stringValue": "b"}, page_token=token, **query),
        listed(client, page_token=token, sort_by="name"),
        listed(client, like, page_token=token),
    ):
        assert answer.status_code == 400 and "page token does not match" in answer.json()["message"]
    for wrong in ("x", "e30="):
        assert "Invalid page token" in listed(client, page_token=wrong).json()["message"]


def test_sizes_of_pages(client, three):
    """list.go: validatePageSize: more than 200 are 200, and not an error"""
    assert len(listed(client, page_size="1").json()["experiments"]) == 1
    assert listed(client, page_size="5000").status_code == 200
    assert "page size should be greater" in listed(client, page_size="-1").json()["message"]
    assert listed(client, page_size="x").json()["details"] == []


# -- answers: common/util/error.go, grpc-gateway's runtime ------------------------------------------------------------


def test_statuses_and_bodies_of_refusals(client, kfp):
    """Each refusal has gRPC's code for its HTTP status; those of the API server have the user's message in details."""
    ended = client.run(pipeline(command="exit 0"))
    client.ended(ended)
    archived = client.run(pipeline())
    client.post(f"/experiments/{client.experiment}:archive")
    known = client.create(pipeline()).json()["experiment_id"]
    answers = [
        (client.create(pipeline(), display_name=""), 400, 3, "The run name is empty"),
        (client.post("/experiments", display_name=""), 400, 3, "Experiment name is empty"),
        (client.post("/experiments", display_name="e"), 409, 6, "Already exist error"),
        (client.create(pipeline(), experiment_id="no"), 404, 5, "experiment no not found"),
        (client.http.get(f"{API}/runs/no"), 404, 5, "Run no not found"),
        (client.http.get(f"{API}/experiments/no"), 404, 5, "Experiment no not found"),
        (client.post("/runs/no:terminate"), 404, 5, "Run no not found"),
        (client.post(f"/runs/{ended}:terminate"), 400, 3, "Row not found"),
        (client.post(f"/runs/{ended}:retry"), 409, 10, "Workflow must be Failed/Error to retry"),
        (client.post(f"/runs/{archived}:unarchive"), 400, 9, "must be un-archived first"),
        (client.create({**pipeline(), "schemaVersion": "1"}), 500, 13, "invalid v2 pipeline"),
        (client.create(pipeline(), description="x" * 256), 500, 13, "Error 1406"),
    ]  # fmt: skip
    assert known == client.experiment
    for answer, status, code, said in answers:
        body = answer.json()
        assert (answer.status_code, body["code"]) == (status, code) and said in body["message"], body
        (detail,) = body["details"]
        assert detail["@type"].endswith("google.rpc.Status") and detail["code"] == code
        assert (
            detail["message"] == "Internal Server Error"
            if code == 13
            else detail["message"] in body["message"]
        )


def test_statuses_of_multi_user_mode(client, kfp):
    """resource_manager.go (IsAuthorized), run_server.go:148"""
    kfp.multi_user, kfp.allowed = True, {kfp.user: {"mine"}}
    for namespace, user, status, code in (
        ("", kfp.user, 400, 3),
        ("theirs", kfp.user, 403, 7),
        ("mine", "", 401, 16),
        ("mine", kfp.user, 200, 0),
    ):
        kfp.user = user
        answer = client.http.get(f"{API}/experiments", params={"namespace": namespace})
        assert (answer.status_code, answer.json().get("code", 0)) == (status, code)
        kfp.user = "user@example.org"


def test_the_gateways_own_refusals(client, kfp):
    """grpc-gateway: runtime.DefaultRoutingErrorHandler; protojson refuses what the API does not have"""
    json_type = {"Content-Type": "application/json"}
    experiments = f"{API}/experiments"
    answers = [
        (client.http.get(f"{API}/nothing"), 404, 5, "Not Found"),
        (client.http.delete(experiments), 501, 12, "Method Not Allowed"),
        (client.http.post(experiments, content=b"{", headers=json_type), 400, 3, ""),
        (client.post("/experiments", display_name="x", colour=1), 400, 3, 'unknown field "colour"'),
        (client.post("/experiments", display_name=1), 400, 3, "invalid value"),
    ]
    for answer, status, code, said in answers:
        body = answer.json()
        assert (answer.status_code, body["code"], body["details"]) == (status, code, []), body
        assert said in body["message"]
    # The product must make no such request: each is a failure of the test that does.
    assert len(kfp.problems) == len(answers)
    kfp.problems.clear()


def test_uploads_and_logs_have_bodies_of_their_own(client, kfp):
    """pipeline_upload_server.go (writeErrorToResponse), frontend/server/handlers/pod-logs.ts"""
    files = {"uploadfile": ("p.yaml", b"{}")}
    answer = client.http.post(f"{API}/pipelines/upload_version", files=files, params={"pipelineid": "none"})
    assert answer.status_code == 400 and set(answer.json()) == {"error_message", "error_details"}
    query = {"podname": "none", "runid": "none", "podnamespace": "kubeflow"}
    answer = client.http.get("/k8s/pod/logs", params=query)
    assert answer.status_code == 500 and answer.text.startswith("Could not get main container logs: Error:")


def test_answers_of_what_is_in_front_of_the_server(client, kfp):
    kfp.tokens, kfp.body_limit = {"t"}, 100
    assert (
        client.http.get(f"{API}/experiments").status_code,
        client.http.get(f"{API}/experiments").text,
    ) == (401, "{}")
    away = client.http.get("/", headers={"Authorization": "Bearer no"})
    assert (away.status_code, away.headers["Location"]) == (302, "/oauth2/start?rd=%2F")
    large = client.post("/experiments", display_name="x" * 100)
    assert large.status_code == 413 and "html" in large.headers["Content-Type"]
