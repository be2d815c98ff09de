"""The model server's two protocols, against the specification and against scikit-learn itself."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import pickle
import zlib
from contextlib import ExitStack
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import joblib
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML
from scipy import sparse
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from dvkf_prefect.errors import ModelDigestError, PredictionError, ServingError
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.serving.app import create_app
from dvkf_prefect.serving.lanes import Lane
from dvkf_prefect.serving.loading import load_model, read_verified
from dvkf_prefect.serving.model import Model
from dvkf_prefect.serving.traffic import Models

_SPEC = YAML(typ="safe").load(Path(__file__).with_name("open-inference-v2.openapi.yaml"))
_X, _Y = load_iris(return_X_y=True)


def _conforms(document: object, schema: str) -> None:
    rules = {"$ref": f"#/components/schemas/{schema}", "components": _SPEC["components"]}
    Draft202012Validator(rules).validate(document)


def _conforms_to_path(method: str, path: str, answer: httpx.Response) -> None:
    """Check an answer against the protocol's schema of its path, whatever the test asks for."""
    if not path.startswith("/v2") or method == "HEAD":
        return
    if answer.status_code >= 400:
        _conforms(answer.json(), "inference_error_response")
    elif path in ("/v2", "/v2/"):
        _conforms(answer.json(), "metadata_server_response")
    elif path.endswith("/infer") and "inference-header-content-length" not in answer.headers:
        _conforms(answer.json(), "inference_response")
    elif method == "GET" and path.startswith("/v2/models/") and not path.endswith("/ready"):
        _conforms(answer.json(), "metadata_model_response")


@pytest.fixture(scope="module")
def iris() -> LogisticRegression:
    return LogisticRegression(max_iter=1000).fit(_X, _Y)


class _Client:
    """Asks the application without a socket."""

    def __init__(self, model: Model, **options: Any) -> None:
        models = Models()
        models.put(model.name, Lane(model))
        self._app = create_app(models, **options)

    def request(self, method: str, path: str, **content: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, path, **content)

        answer = asyncio.run(ask())
        _conforms_to_path(method, path, answer)
        return answer

    def get(self, path: str) -> httpx.Response:
        return self.request("GET", path)

    def post(self, path: str, **content: Any) -> httpx.Response:
        return self.request("POST", path, **content)


def _client(estimator: object, **options: Any) -> _Client:
    return _Client(Model(estimator, "iris", "v1.0.0"), **options)


@pytest.fixture
def client(iris: LogisticRegression) -> _Client:
    return _client(iris)


def _tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [2, 4], "datatype": "FP64", "data": [1.0] * 8, **changes}


# -- V1 --------------------------------------------------------------------------------------------------------------


def test_v1(client: _Client, iris: LogisticRegression) -> None:
    assert client.get("/").json() == {"status": "alive"}
    for path in ("/v1/models", "/v2/models"):
        assert client.get(path).json() == {"models": ["iris"]}
    assert client.get("/v1/models/iris").json() == {"name": "iris", "ready": True}
    answer = client.post("/v1/models/iris:predict", json={"instances": _X.tolist()})
    assert answer.status_code == 200
    assert answer.json() == {"predictions": iris.predict(_X).tolist()}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no body"),
        (b"{", "not JSON"),
        (b"[]", '{"instances": [...]}'),
        (b'{"inputs": [[1, 2, 3, 4]]}', '{"instances": [...]}'),
        (b'{"instances": []}', "instances is empty"),
        (b'{"instances": [[]]}', "rows of 4 finite numbers"),
        (b'{"instances": [[1, 2, 3]]}', "shape [1, 3]; expected rows of 4"),
        (b'{"instances": [1, 2, 3, 4]}', "shape [4]"),
        (b'{"instances": [[1, 2, 3, 4], [1, 2]]}', "differ in length"),
        (b'{"instances": [["1", "2", "3", "4"]]}', "not all values are numbers"),
        (b'{"instances": [[1, 2, 3, null]]}', "refused the input: Input X contains NaN"),
        (b'{"instances": [[1, 2, "a", null]]}', "of another type"),
        (b'{"instances": [{"a": 1}]}', "an object"),
        (b'{"instances": [[1, 2, 3, NaN]]}', "NaN is not JSON"),
        (b'{"instances": [[1, 2, 3, -Infinity]]}', "-Infinity is not JSON"),
        (b'{"instances": [[1, 2, 3, 1e999]]}', "not a finite number"),
        (b'{"instances": [[1, 2, 3, 1' + b"0" * 400 + b"]]}", "4"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_v1_refuses(client: _Client, body: bytes, said: str) -> None:
    answer = client.post("/v1/models/iris:predict", content=body)
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["error"]
    assert said in answer.json()["error"]


# -- V2 --------------------------------------------------------------------------------------------------------------


def test_v2_metadata(client: _Client) -> None:
    for path in ("/v2", "/v2/"):
        _conforms(client.get(path).json(), "metadata_server_response")
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").status_code == 200
    for path in ("/v2/models/iris", "/v2/models/iris/versions/v1.0.0"):
        metadata = client.get(path).json()
        _conforms(metadata, "metadata_model_response")
        assert client.get(path + "/ready").status_code == 200
    assert metadata == {
        "name": "iris",
        "versions": ["v1.0.0"],
        "platform": "sklearn",
        "inputs": [{"name": "input-0", "datatype": "FP64", "shape": [-1, 4]}],
        "outputs": [
            {"name": "predict", "datatype": "INT64", "shape": [-1]},
            {"name": "predict_proba", "datatype": "FP64", "shape": [-1, 3]},
        ],
    }


def test_v2_infer(client: _Client, iris: LogisticRegression) -> None:
    request = {"id": "42", "inputs": [_tensor(shape=[150, 4], data=_X.ravel().tolist())]}
    _conforms(request, "inference_request")
    for path in ("/v2/models/iris/infer", "/v2/models/iris/versions/v1.0.0/infer"):
        answer = client.post(path, json=request).json()
        _conforms(answer, "inference_response")
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("iris", "v1.0.0", "42")
    classes, probabilities = answer["outputs"]
    assert classes == {
        "name": "predict",
        "shape": [150],
        "datatype": "INT64",
        "data": iris.predict(_X).tolist(),
    }
    assert probabilities["shape"] == [150, 3]
    np.testing.assert_array_equal(np.reshape(probabilities["data"], (150, 3)), iris.predict_proba(_X))


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "INT8", "INT64", "UINT8", "UINT64", "BOOL"])
def test_v2_datatypes_and_nested_data(client: _Client, datatype: str) -> None:
    value: object = True if datatype == "BOOL" else 1
    nested = _tensor(datatype=datatype, data=[[value] * 4] * 2)
    flat = _tensor(datatype=datatype, data=[value] * 8)
    answers = [client.post("/v2/models/iris/infer", json={"inputs": [t]}).json() for t in (nested, flat)]
    assert answers[0] == answers[1]
    _conforms(answers[0], "inference_response")


def test_v2_asks_for_one_output(client: _Client) -> None:
    request = {"inputs": [_tensor()], "outputs": [{"name": "predict_proba"}]}
    answer = client.post("/v2/models/iris/infer", json=request).json()
    assert [output["name"] for output in answer["outputs"]] == ["predict_proba"]


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, '{"inputs": [tensor]}'),
        ({"inputs": []}, "inputs is empty"),
        ({"inputs": [1]}, "name, shape, datatype and data"),
        ({"inputs": [_tensor(), _tensor()]}, "2 inputs"),
        ({"inputs": [_tensor(shape=[2, 3])]}, "8 values do not fill shape [2, 3]"),
        ({"inputs": [_tensor(shape=[4, 2])]}, "shape [4, 2]; expected rows of 4"),
        ({"inputs": [_tensor(shape=[0, 4], data=[])]}, "no values"),
        ({"inputs": [_tensor(shape=[-1, 4])]}, "whole numbers"),
        ({"inputs": [_tensor(shape="x")]}, "whole numbers"),
        ({"inputs": [_tensor(datatype="FP8")]}, "is not supported. Use one of BOOL"),
        ({"inputs": [_tensor(datatype=["FP64"])]}, "is not supported. Use one of BOOL"),
        ({"inputs": [_tensor(datatype="INT32")]}, "not all INT32"),
        ({"inputs": [_tensor(datatype="UINT8", data=[300] * 8)]}, "out of the range of UINT8"),
        ({"inputs": [_tensor(datatype="UINT8", data=[-1] * 8)]}, "out of the range of UINT8"),
        ({"inputs": [_tensor(datatype="FP32", data=[1e300] * 8)]}, "not a finite number"),
        ({"inputs": [_tensor(datatype="BOOL", data=[1] * 8)]}, "not all BOOL"),
        ({"inputs": [_tensor(datatype="BYTES", data=["a"] * 8)]}, "not all values are numbers"),
        ({"inputs": [_tensor(data=None)]}, "must be a JSON array"),
        ({"inputs": [_tensor(data=[None] * 8)]}, "refused the input: Input X contains NaN"),
        ({"inputs": [_tensor(datatype="INT64", data=[None] * 8)]}, "not all INT64"),
        ({"inputs": [_tensor(datatype="BYTES", data=[None] * 8)]}, "not all values are numbers"),
        ({"inputs": [_tensor()], "outputs": [{"name": "logits"}]}, "no output logits"),
        ({"inputs": [_tensor()], "outputs": ["predict"]}, "no output"),
        ({"inputs": [_tensor()], "outputs": 5}, "outputs is a list"),
    ],
)
def test_v2_refuses(client: _Client, document: object, said: str) -> None:
    answer = client.post("/v2/models/iris/infer", json=document)
    assert answer.status_code == 400, answer.text
    _conforms(answer.json(), "inference_error_response")
    assert said in answer.json()["error"]


_BINARY = "inference-header-content-length"


def _binary(document: dict[str, Any], tail: bytes, **headers: str) -> dict[str, Any]:
    head = json.dumps(document).encode()
    return {"content": head + tail, "headers": {_BINARY: str(len(head)), **headers}}


@pytest.mark.parametrize("datatype", ["FP64", "FP32", "FP16", "INT8", "UINT64", "BOOL"])
def test_binary_tensors(client: _Client, datatype: str) -> None:
    """KServe's and Triton's binary extension, both ways; the answer equals that in JSON."""
    values = np.ones((2, 4), dtype={"BOOL": "bool"}.get(datatype, datatype.replace("FP", "float").lower()))
    tensor = _tensor(datatype=datatype, parameters={"binary_data_size": values.nbytes})
    del tensor["data"]
    path = "/v2/models/iris/infer"
    kind = {"content-type": "application/octet-stream"}
    plain = client.post(path, **_binary({"inputs": [tensor]}, values.tobytes(), **kind)).json()
    assert (
        plain == client.post(path, json={"inputs": [_tensor(datatype=datatype, data=values.tolist())]}).json()
    )
    asked = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    answer = client.post(path, **_binary(asked, values.tobytes()))
    size = int(answer.headers[_BINARY])
    document, tail = json.loads(answer.content[:size]), answer.content[size:]
    for output, expected in zip(document["outputs"], plain["outputs"], strict=True):
        part = tail[: output["parameters"]["binary_data_size"]]
        tail = tail[len(part) :]
        dtype = output["datatype"].replace("FP", "float").lower()
        assert np.frombuffer(part, dtype).tolist() == expected["data"] and "data" not in output
    assert tail == b""
    # One output as bytes, the other as JSON.
    asked = {
        "inputs": [tensor],
        "outputs": [{"name": "predict"}, {"name": "predict_proba", "parameters": {"binary_data": True}}],
    }
    answer = client.post(path, **_binary(asked, values.tobytes()))
    document = json.loads(answer.content[: int(answer.headers[_BINARY])])
    assert ["data" in output for output in document["outputs"]] == [True, False]
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]


def test_binary_texts() -> None:
    pipeline = make_pipeline(CountVectorizer(), MultinomialNB()).fit(["good day", "bad night"], ["yes", "no"])
    tail = b"".join(len(text).to_bytes(4, "little") + text for text in (b"good", "bad ü".encode()))
    tensor = {
        "name": "x", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(tail)}
    }  # fmt: skip
    asked = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    answer = _client(pipeline).post("/v2/models/iris/infer", **_binary(asked, tail))
    assert b"\x03\0\0\0yes\x02\0\0\0no" in answer.content


@pytest.mark.parametrize(
    ("size", "tail", "header", "said"),
    [
        (64, b"x" * 60, None, "exceeds the 60 bytes left"),
        (64, b"x" * 70, None, "6 bytes follow"),
        (60, b"x" * 60, None, "not whole values of FP64"),
        (56, b"x" * 56, None, "7 values do not fill"),
        ("64", b"x" * 64, None, "exceeds the 64 bytes left"),
        (64, b"x" * 64, "999999", "but the request has"),
        (64, b"x" * 64, "-1", "is not a size"),
        (64, b"x" * 64, "3", "not JSON"),
    ],
)
def test_binary_tensors_that_are_not_valid(
    client: _Client, size: Any, tail: bytes, header: str | None, said: str
) -> None:
    tensor = _tensor(parameters={"binary_data_size": size})
    more = {} if header is None else {_BINARY: header}
    answer = client.post("/v2/models/iris/infer", **_binary({"inputs": [tensor]}, tail, **more))
    assert answer.status_code == 400 and said in answer.json()["error"]
    v1 = client.post("/v1/models/iris:predict", content=b"{}", headers={_BINARY: "2"})
    assert v1.status_code == 400 and "V1 has no binary tensors" in v1.json()["error"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/models/other:predict"),
        ("GET", "/v1/models/other"),
        ("GET", "/v2/models/other"),
        ("GET", "/v2/models/other/ready"),
        ("POST", "/v2/models/other/infer"),
        ("GET", "/v2/models/iris/versions/v9.0.0"),
        ("GET", "/v2/models/iris/versions/v9.0.0/ready"),
        ("POST", "/v2/models/iris/versions/v9.0.0/infer"),
    ],
)
def test_unknown_models_and_versions(client: _Client, method: str, path: str) -> None:
    answer = client.request(method, path, json={} if method == "POST" else None)
    assert answer.status_code == 404
    assert "Use 'iris' version v1.0.0" in answer.json()["error"]


def test_unknown_paths_and_methods(client: _Client) -> None:
    assert client.get("/v3").status_code == 404
    assert client.get("/v3").json() == {"error": "Not Found"}
    assert client.post("/v1/models/iris:explain").status_code == 501
    for path in ("/v1/models/iris:predict", "/v1/models/iris:explain", "/v2/models/iris/infer"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert client.get("/v2/models/iris/versions/v1.0.0/infer").status_code == 405
    assert client.get("/v1/models/iris/infer").status_code == 404
    assert client.get("/v2/models/iris:predict").status_code == 404
    assert client.request("DELETE", "/v1/models/iris").status_code == 405
    assert client.get("/docs").status_code == 404


def test_parameters_are_plain_values(client: _Client) -> None:
    for more in (
        {"parameters": {"a": {"b": 1}}},
        {"parameters": [1]},
        {"inputs": [_tensor(parameters={"a": [1]})]},
        {"inputs": [_tensor(parameters="a")]},
    ):
        answer = client.post("/v2/models/iris/infer", json={"inputs": [_tensor()], **more})
        assert answer.status_code == 400 and "parameter" in answer.json()["error"]
    plain = {"a": 1, "b": 0.5, "c": "x", "d": True}
    answer = client.post(
        "/v2/models/iris/infer", json={"inputs": [_tensor(parameters=plain)], "parameters": plain}
    )
    assert answer.status_code == 200


def test_a_request_has_a_bound(iris: LogisticRegression) -> None:
    client = _client(iris, max_request_bytes=1000)
    for size in (1001, 5000, 100_000):
        answer = client.post("/v1/models/iris:predict", content=b" " * size)
        assert answer.status_code == 413
        assert "larger than 1000 bytes" in answer.json()["error"]
    assert client.post("/v1/models/iris:predict", json={"instances": [[1, 2, 3, 4]]}).status_code == 200


def test_names_with_a_folder(iris: LogisticRegression) -> None:
    client = _Client(Model(iris, "vision/nets:iris", "v1.0.0"))
    body = {"instances": [[1, 2, 3, 4]]}
    assert client.post("/v1/models/vision%2Fnets%3Airis:predict", json=body).status_code == 200
    assert client.get("/v2/models/vision%2Fnets%3Airis/versions/v1.0.0/ready").status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        "a/ready",
        "a:predict",
        "a/versions/v1",
        "{name}",
        "a b",
        "数据",
        "100%",
        "a%2Fb",
        "a?b#c",
        "a/infer",
        "-",
    ],
)
def test_odd_names(iris: LogisticRegression, name: str) -> None:
    client = _Client(Model(iris, name, "v1.0.0"))
    quoted = quote(name, safe="")
    assert client.get("/v1/models").json() == {"models": [name]}
    body = {"instances": [[1, 2, 3, 4]]}
    assert client.get(f"/v1/models/{quoted}").json() == {"name": name, "ready": True}
    assert client.post(f"/v1/models/{quoted}:predict", json=body).status_code == 200
    for rest in ("", "/versions/v1.0.0"):
        assert client.get(f"/v2/models/{quoted}{rest}").json()["versions"] == ["v1.0.0"]
        assert client.get(f"/v2/models/{quoted}{rest}/ready").json() == {"name": name, "ready": True}
        answer = client.post(f"/v2/models/{quoted}{rest}/infer", json={"inputs": [_tensor()]})
        assert answer.json()["model_name"] == name
    assert client.get("/v1/models/other").status_code == 404


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/iris", "/v2", "/v2/health/live", "/v2/models/iris"]
)
def test_head_and_other_methods(client: _Client, path: str) -> None:
    head, get = client.request("HEAD", path), client.get(path)
    assert (head.status_code, head.headers["content-type"]) == (200, "application/json")
    assert head.headers["content-length"] == str(len(get.content))
    for method in ("DELETE", "PATCH", "PUT", "OPTIONS"):
        answer = client.request(method, path)
        assert answer.status_code == 405 and "GET" in answer.headers["allow"]
        assert list(answer.json()) == ["error"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "image/png"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-encoding": "br"}, 415),
        ({"content-encoding": "gzip, gzip"}, 415),
        ({"content-encoding": "gzip"}, 400),
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"content-type": "application/vnd.api+json"}, 200),
        ({}, 200),
    ],
)
def test_headers_of_bodies(client: _Client, headers: dict[str, str], status: int) -> None:
    content = b'{"instances": [[1, 2, 3, 4]]}'
    answer = client.post("/v1/models/iris:predict", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["predictions" if status == 200 else "error"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "bare"])
def test_compressed_requests(iris: LogisticRegression, encoding: str) -> None:
    client = _client(iris, max_request_bytes=10_000)

    def packed(data: bytes) -> bytes:
        if encoding == "gzip":
            return gzip.compress(data[:10]) + gzip.compress(data[10:])
        return zlib.compress(data)[2:-4] if encoding == "bare" else zlib.compress(data)

    def ask(data: bytes) -> httpx.Response:
        headers = {"content-encoding": "gzip" if encoding == "gzip" else "deflate"}
        return client.post("/v1/models/iris:predict", content=data, headers=headers)

    whole = packed(b'{"instances": [[1, 2, 3, 4]]}')
    assert ask(whole).status_code == 200
    assert ask(whole[:-9]).status_code == 400
    assert ask(whole + b"rest").status_code == 400
    bomb = ask(packed(b" " * 1_000_000))
    assert bomb.status_code == 413 and "once decompressed" in bomb.json()["error"]
    many = ask(gzip.compress(b" ") * 450 if encoding == "gzip" else whole * 200)
    assert many.status_code in (400, 413)


def test_compressed_answers(client: _Client) -> None:
    rows = {"instances": [[1, 2, 3, 4]] * 5000}
    plain = client.post("/v1/models/iris:predict", json=rows, headers={"accept-encoding": "gzip;q=0"})
    zipped = client.post("/v1/models/iris:predict", json=rows, headers={"accept-encoding": "br, gzip"})
    assert "content-encoding" not in plain.headers and zipped.headers["content-encoding"] == "gzip"
    assert zipped.json() == plain.json()


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
_fields = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("x") | _json,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | _json,
        "datatype": st.sampled_from(["FP64", "INT8", "BYTES", "BOOL", "UINT64", "FP16"]) | _json,
        "data": st.lists(st.none() | st.floats() | st.integers() | st.text(max_size=3), max_size=8) | _json,
    },
)
_bodies = st.one_of(
    st.binary(max_size=60),
    _json.map(lambda value: json.dumps(value).encode()),
    _json.map(lambda value: json.dumps({"instances": value, "inputs": value}).encode()),
    st.lists(_fields, max_size=3).map(lambda value: json.dumps({"inputs": value}).encode()),
    st.lists(st.lists(st.none() | st.floats() | st.integers(), max_size=5), max_size=3).map(
        lambda value: json.dumps({"instances": value}).encode()
    ),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=_bodies, path=st.sampled_from(["/v1/models/iris:predict", "/v2/models/iris/infer"]))
def test_any_body_is_answered(client: _Client, body: bytes, path: str) -> None:
    answer = client.post(path, content=body)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        _conforms(answer.json(), "inference_error_response")
    elif path.startswith("/v2"):
        _conforms(answer.json(), "inference_response")


# -- estimators ------------------------------------------------------------------------------------------------------


def test_a_regressor_has_one_output() -> None:
    target = np.column_stack([_Y, 2 * _Y])
    model = Model(LinearRegression().fit(_X, target), "r", "v1.0.0")
    assert model.metadata()["outputs"] == [{"name": "predict", "datatype": "FP64", "shape": [-1, 2]}]
    assert np.shape(model.predict({"instances": _X[:3].tolist()})["predictions"]) == (3, 2)
    (output,) = model.infer({"inputs": [_tensor()]})["outputs"]
    assert output["shape"] == [2, 2] and len(output["data"]) == 4


def test_classes_that_are_words() -> None:
    names = np.array(["setosa", "versicolor", "virginica"])[_Y]
    model = Model(LogisticRegression(max_iter=1000).fit(_X, names), "m", "v1.0.0")
    assert model.predict({"instances": _X[:1].tolist()}) == {"predictions": ["setosa"]}
    assert model.metadata()["outputs"][0]["datatype"] == "BYTES"
    output = model.infer({"inputs": [_tensor()]})["outputs"][0]
    assert output["datatype"] == "BYTES" and isinstance(output["data"][0], str)


def test_a_model_of_texts() -> None:
    pipeline = make_pipeline(CountVectorizer(), MultinomialNB()).fit(["good day", "bad night"], [1, 0])
    model = Model(pipeline, "m", "v1.0.0")
    assert "inputs" not in model.metadata()
    assert model.predict({"instances": ["good", "bad"]}) == {"predictions": [1, 0]}
    tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["good", "bad"]}
    assert model.infer({"inputs": [tensor]})["outputs"][0]["data"] == [1, 0]


def test_a_model_of_named_features() -> None:
    table = pd.DataFrame({"size": [1.0, 2.0, 3.0, 4.0], "colour": ["red", "blue", "red", "blue"]})
    columns = ColumnTransformer([("colour", OneHotEncoder(), ["colour"])], remainder="passthrough")
    pipeline = make_pipeline(columns, LogisticRegression()).fit(table, [0, 1, 0, 1])
    model = Model(pipeline, "m", "v1.0.0")
    by_name = [{"colour": "red", "size": 1}, {"size": 2, "colour": "blue"}]
    assert model.predict({"instances": by_name}) == {"predictions": [0, 1]}
    assert model.predict({"instances": [[1, "red"], [2, "blue"]]}) == {"predictions": [0, 1]}
    tensors = [
        {"name": "colour", "shape": [2, 1], "datatype": "BYTES", "data": ["red", "blue"]},
        {"name": "size", "shape": [2], "datatype": "FP64", "data": [1, 2]},
    ]
    assert model.infer({"inputs": tensors})["outputs"][0]["data"] == [0, 1]
    with pytest.raises(PredictionError, match=r"missing or unknown features \['size'\]"):
        model.predict({"instances": [{"colour": "red"}]})
    with pytest.raises(PredictionError, match="rows of 2"):
        model.predict({"instances": [[1]]})
    with pytest.raises(PredictionError, match="neither a finite number nor text nor null"):
        model.predict({"instances": [[[], "red"]]})
    with pytest.raises(PredictionError, match="refused the input: Input X contains NaN"):
        model.predict({"instances": [[None, "red"]]})
    with pytest.raises(PredictionError, match="the model refused the input"):
        model.predict({"instances": [["wide", "red"]]})
    tensors[0]["shape"] = [1, 2]
    with pytest.raises(PredictionError, match=r"expected \[rows\] for each feature"):
        model.infer({"inputs": tensors})


class Broken:
    """An estimator that fails, or answers what JSON cannot say."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def predict(self, rows: object) -> object:
        if isinstance(self.answer, Exception):
            raise self.answer
        return np.array([self.answer])


def test_a_model_that_fails() -> None:
    request = {"instances": [1]}
    answer = _client(Broken(RuntimeError("out of order"))).post("/v1/models/iris:predict", json=request)
    assert (answer.status_code, answer.json()) == (500, {"error": "RuntimeError: out of order"})
    answer = _client(Broken(float("nan"))).post("/v1/models/iris:predict", json=request)
    assert answer.status_code == 500 and "not a finite number" in answer.json()["error"]


def _table(rows: int = 40) -> pd.DataFrame:
    return pd.DataFrame({"text": ["good day", "bad day"] * (rows // 2), "n": np.arange(rows, dtype=float)})


def test_a_model_of_a_named_text_column() -> None:
    columns = ColumnTransformer([("t", TfidfVectorizer(), "text"), ("n", "passthrough", ["n"])])
    model = Model(
        make_pipeline(columns, LogisticRegression()).fit(_table(), ["pos", "neg"] * 20), "m", "v1.0.0"
    )
    assert model.predict({"instances": [{"text": "good", "n": 1}]}) == {"predictions": ["pos"]}
    tensors = [
        {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good"]},
        {"name": "n", "shape": [1], "datatype": "INT64", "data": [1]},
    ]
    assert model.infer({"inputs": tensors})["outputs"][0]["data"] == ["pos"]


def test_null_is_nan_where_a_model_takes_it() -> None:
    gaps = _X.copy()
    gaps[::7, 1] = np.nan
    row = [5.0, None, 1.4, 0.2]
    trees = Model(HistGradientBoostingClassifier(max_iter=5).fit(gaps, _Y), "m", "v1.0.0")
    expected = trees.predict({"instances": [row]})["predictions"]
    assert expected == trees._estimator.predict([[5.0, np.nan, 1.4, 0.2]]).tolist()
    assert trees.infer({"inputs": [_tensor(shape=[1, 4], data=row)]})["outputs"][0]["data"] == expected
    assert trees.predict({"instances": [[None] * 4]})["predictions"]
    names = ["a", "b", "c", "d"]
    table = pd.DataFrame(gaps, columns=names)
    imputed = Model(
        make_pipeline(SimpleImputer(), LogisticRegression(max_iter=500)).fit(table, _Y), "m", "v1.0.0"
    )
    assert imputed.predict({"instances": [dict(zip(names, row, strict=True))]})["predictions"]
    assert imputed.predict({"instances": [dict.fromkeys(names)]})["predictions"]
    tensors = [
        {"name": n, "shape": [1], "datatype": "FP32", "data": [v]} for n, v in zip(names, row, strict=True)
    ]
    assert imputed.infer({"inputs": tensors})["outputs"][0]["shape"] == [1]


def test_missing_texts() -> None:
    table = pd.DataFrame({"colour": ["red", None, "blue", "red"] * 5, "size": [1.0, 2.0, np.nan, 4.0] * 5})
    columns = ColumnTransformer(
        [("c", OneHotEncoder(handle_unknown="ignore"), ["colour"]), ("s", SimpleImputer(), ["size"])]
    )
    model = Model(make_pipeline(columns, LogisticRegression()).fit(table, [0, 1, 1, 0] * 5), "m", "v1.0.0")
    rows = [{"colour": None, "size": None}, {"colour": "red", "size": 1}]
    assert len(model.predict({"instances": rows})["predictions"]) == 2
    tensors = [
        {"name": "colour", "shape": [2], "datatype": "BYTES", "data": [None, "red"]},
        {"name": "size", "shape": [2], "datatype": "FP64", "data": [None, 1]},
    ]
    assert model.infer({"inputs": tensors})["outputs"][0]["shape"] == [2]


def test_columns_of_categories() -> None:
    table = pd.DataFrame({"c": pd.Categorical(["a", "b"] * 50), "n": np.arange(100.0)})
    trees = HistGradientBoostingClassifier(max_iter=5, categorical_features="from_dtype").fit(
        table, [0, 1] * 50
    )
    model = Model(trees, "m", "v1.0.0")
    assert model.predict({"instances": [["a", 1], ["b", 2]]})["predictions"] == [0, 1]


def test_several_targets_with_probabilities() -> None:
    targets = np.column_stack([_Y, _Y % 2])
    model = Model(RandomForestClassifier(n_estimators=3).fit(_X, targets), "m", "v1.0.0")
    names = ["predict", "predict_proba-0", "predict_proba-1"]
    assert [each["name"] for each in model.metadata()["outputs"]] == names
    for rows in (1, 2, 5):
        tensor = _tensor(shape=[rows, 4], data=[1.0] * 4 * rows)
        answer = model.infer({"inputs": [tensor]})
        _conforms(answer, "inference_response")
        assert [(o["name"], o["shape"]) for o in answer["outputs"]] == list(
            zip(names, ([rows, 2], [rows, 3], [rows, 2]), strict=True)
        )
    asked = model.infer({"inputs": [_tensor()], "outputs": [{"name": "predict_proba-1"}]})
    assert [each["name"] for each in asked["outputs"]] == names[2:]
    with pytest.raises(PredictionError, match="no output predict_proba-7"):
        model.infer({"inputs": [_tensor()], "outputs": [{"name": "predict_proba-7"}]})


_ANSWERS: list[tuple[Any, list[Any], list[tuple[str, str]]]] = [
    (pd.DataFrame({"a": [1, 2], "b": ["x", None]}), [{"a": 1, "b": "x"}, {"a": 2, "b": None}],
     [("predict-a", "INT64"), ("predict-b", "BYTES")]),
    (pd.Series([1.5, 2.5]), [1.5, 2.5], [("predict", "FP64")]),
    (pd.array([1, None], dtype="Int64"), [1, None], [("predict", "BYTES")]),
    (sparse.csr_matrix([[0, 1], [2, 0]]), [[0, 1], [2, 0]], [("predict", "INT64")]),
    ({"low": np.array([1.0, 2.0]), "high": np.array([3.0, 4.0])}, [{"low": 1, "high": 3}, {"low": 2, "high": 4}],
     [("predict-low", "FP64"), ("predict-high", "FP64")]),
    (["a", "b"], ["a", "b"], [("predict", "BYTES")]),
    ([{"label": "a", "score": np.float32(0.5)}, {}], [{"label": "a", "score": 0.5}, {}], [("predict", "BYTES")]),
    ([[1], [2, 3]], [[1], [2, 3]], [("predict", "BYTES")]),
    ([True, "a"], [True, "a"], [("predict", "BYTES")]),
    (np.array([True, False]), [True, False], [("predict", "BOOL")]),
    (np.array([1, 2], dtype=object), [1, 2], [("predict", "INT64")]),
    (np.array([2**70, 1], dtype=object), [2**70, 1], [("predict", "BYTES")]),
    (np.array(["2020-01-01", "NaT"], dtype="datetime64[ns]"), ["2020-01-01T00:00:00.000000000", None],
     [("predict", "BYTES")]),
    (np.array([1, 2], dtype="timedelta64[s]"), ["1 seconds", "2 seconds"], [("predict", "BYTES")]),
    ([Decimal("1.10"), Decimal("2")], ["1.10", "2"], [("predict", "BYTES")]),
    ([datetime(2020, 1, 2), date(2020, 1, 2)], ["2020-01-02T00:00:00", "2020-01-02"], [("predict", "BYTES")]),
    (np.array([b"a", b"\xff"]), ["a", "/w=="], [("predict", "BYTES")]),
    ("\ud800 lone", ["\ud800 lone"], [("predict", "BYTES")]),
    (7, [7], [("predict", "INT64")]),
    (None, [None], [("predict", "BYTES")]),
    (np.array([1 + 2j]), ["(1+2j)"], [("predict", "BYTES")]),
    (np.ma.masked_array([1, 2], [False, True]), [1, None], [("predict", "BYTES")]),
    (np.float16([0.5]), [0.5], [("predict", "FP16")]),
    (np.longdouble([0.5]), [0.5], [("predict", "FP64")]),
    ((1, 2), [1, 2], [("predict", "INT64")]),
    ([], [], [("predict", "FP64")]),
]  # fmt: skip


class Answering:
    """An estimator with a fixed answer."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def predict(self, rows: object) -> object:
        return self.answer


@pytest.mark.parametrize(("answer", "v1", "v2"), _ANSWERS, ids=lambda value: type(value).__name__)
def test_answers_of_any_type(answer: Any, v1: list[Any], v2: list[tuple[str, str]]) -> None:
    client = _client(Answering(answer))
    got = client.post("/v1/models/iris:predict", json={"instances": [1, 2]})
    assert (got.status_code, got.json()) == (200, {"predictions": v1})
    tensor = {"name": "x", "shape": [2], "datatype": "INT64", "data": [1, 2]}
    got = client.post("/v2/models/iris/infer", json={"inputs": [tensor]})
    assert got.status_code == 200, got.text
    _conforms(got.json(), "inference_response")
    assert [(each["name"], each["datatype"]) for each in got.json()["outputs"]] == v2


@pytest.mark.parametrize(
    "answer",
    [np.array([np.nan]), [float("inf")], {"a": [float("nan")]}, [[1.0], [np.inf, 2]], [{"a": np.nan}]],
)
def test_answers_that_json_cannot_say(answer: Any) -> None:
    client = _client(Answering(answer))
    got = client.post("/v1/models/iris:predict", json={"instances": [1]})
    assert got.status_code == 500 and "not a finite number" in got.json()["error"]


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("bad"), 400), (TypeError("bad"), 400), (KeyError("bad"), 500), (AttributeError("bad"), 500),
        (StopIteration("bad"), 500), (SystemExit(3), 500), (RecursionError("bad"), 500), (MemoryError("bad"), 500),
        (NotImplementedError("bad"), 500), (AssertionError(), 500), (Unprintable(), 500), (KeyboardInterrupt(), 500),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), 400), (RuntimeError("\ud800"), 500),
    ],
)  # fmt: skip
def test_exceptions_of_models(error: BaseException, status: int) -> None:
    class Failing:
        n_features_in_ = 1

        def predict(self, rows: object) -> object:
            raise error

    answer = _client(Failing()).post("/v1/models/iris:predict", json={"instances": [[1]]})
    assert answer.status_code == status and list(answer.json()) == ["error"]


def test_a_method_that_is_not_there_after_all() -> None:
    class Half(Answering):
        def predict_proba(self, rows: object) -> object:
            raise NotImplementedError("no probabilities")

    client = _client(Half([1]))
    tensor = {"name": "x", "shape": [1], "datatype": "INT64", "data": [1]}
    answer = client.post("/v2/models/iris/infer", json={"inputs": [tensor]})
    assert [each["name"] for each in answer.json()["outputs"]] == ["predict"]
    asked = client.post(
        "/v2/models/iris/infer", json={"inputs": [tensor], "outputs": [{"name": "predict_proba"}]}
    )
    assert asked.status_code == 500


def test_what_is_no_model() -> None:
    with pytest.raises(ServingError, match="a dict has no predict method"):
        Model({}, "m", "v1.0.0")


# -- loading ---------------------------------------------------------------------------------------------------------


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (Path.touch, (self.trace,))


def test_a_file_is_verified_before_it_is_unpickled(tmp_path: Path) -> None:
    file = tmp_path / "model.pkl"
    file.write_bytes(pickle.dumps(Trap(tmp_path / "trace")))
    with pytest.raises(ModelDigestError, match="It was not loaded"):
        read_verified(file, "0" * 32, keep=ExitStack())
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("compress", [0, 3])
@pytest.mark.parametrize("how", ["joblib", "pickle"])
def test_files_of_joblib_and_pickle(
    tmp_path: Path, iris: LogisticRegression, how: str, compress: int
) -> None:
    stream = io.BytesIO()
    if how == "joblib":
        joblib.dump(iris, stream, compress=compress)
    else:
        pickle.dump(iris, stream)
    file = tmp_path / "model"
    file.write_bytes(stream.getvalue())
    model = load_model(file, digest_bytes(stream.getvalue()), "m", "v1.0.0", keep=ExitStack())
    assert model.predict({"instances": _X[:2].tolist()}) == {"predictions": iris.predict(_X[:2]).tolist()}


def test_a_folder_with_a_model(tmp_path: Path, iris: LogisticRegression) -> None:
    joblib.dump(iris, tmp_path / "model.joblib")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("words")
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    tree = Tree.from_pairs((p.relative_to(tmp_path).as_posix(), digest_bytes(p.read_bytes())) for p in files)
    files, _ = read_verified(tmp_path, tree.digest, keep=ExitStack())
    assert files.data == (tmp_path / "model.joblib").read_bytes()
    (tmp_path / "notes" / "readme.txt").write_text("other words")
    with pytest.raises(ModelDigestError):
        read_verified(tmp_path, tree.digest, keep=ExitStack())


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    tree = Tree(["a.txt"], [digest_bytes(b"a")])
    with pytest.raises(ServingError, match=r"exactly one of .*found none"):
        read_verified(tmp_path, tree.digest, keep=ExitStack())


def test_what_does_not_load(tmp_path: Path) -> None:
    def load(data: bytes) -> None:
        (tmp_path / "m.pkl").write_bytes(data)
        load_model(tmp_path / "m.pkl", digest_bytes(data), "m", "v1.0.0", keep=ExitStack())

    with pytest.raises(ServingError, match="cannot be read"):
        read_verified(tmp_path / "none", "0" * 32, keep=ExitStack())
    with pytest.raises(ServingError, match="cannot be unpickled"):
        load(b"not a pickle")
    with pytest.raises(ServingError, match=r"no_such_package.*Install the packages"):
        load(b"cno_such_package.module\nModel\n.")


def test_answers_are_json(client: _Client) -> None:
    answer = client.post("/v1/models/iris:predict", json={"instances": [[1, 2, 3, 4]]})
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.content) == answer.json()
