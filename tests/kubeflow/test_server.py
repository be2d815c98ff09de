"""The model server's two protocols, against the specification and against scikit-learn itself."""

from __future__ import annotations

import asyncio
import io
import json
import pickle
from pathlib import Path
from typing import Any

import httpx
import joblib
import numpy as np
import pandas as pd
import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from dvkf_prefect.data.digest import digest_bytes
from dvkf_prefect.data.tree import Tree
from dvkf_prefect.errors import ModelDigestError, PredictionError, ServingError
from dvkf_prefect.kubeflow.inference import Model, read_verified
from dvkf_prefect.kubeflow.server import create_app

_SPEC = YAML(typ="safe").load(Path(__file__).with_name("open-inference-v2.openapi.yaml"))
_X, _Y = load_iris(return_X_y=True)


def _conforms(document: object, schema: str) -> None:
    rules = {"$ref": f"#/components/schemas/{schema}", "components": _SPEC["components"]}
    Draft202012Validator(rules).validate(document)


@pytest.fixture(scope="module")
def iris() -> LogisticRegression:
    return LogisticRegression(max_iter=1000).fit(_X, _Y)


class _Client:
    """Asks the application without a socket."""

    def __init__(self, model: Model, **options: Any) -> None:
        self._app = create_app(model, **options)

    def request(self, method: str, path: str, **content: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, path, **content)

        return asyncio.run(ask())

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
    assert client.get("/v1/models").json() == {"models": ["iris"]}
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
        (b'{"instances": [[1, 2, 3, null]]}', "null"),
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
        ({"inputs": [_tensor(datatype="FP8")]}, "is none of BOOL"),
        ({"inputs": [_tensor(datatype=["FP64"])]}, "is none of BOOL"),
        ({"inputs": [_tensor(datatype="INT32")]}, "not all INT32"),
        ({"inputs": [_tensor(datatype="UINT8", data=[300] * 8)]}, "out of the range of UINT8"),
        ({"inputs": [_tensor(datatype="UINT8", data=[-1] * 8)]}, "out of the range of UINT8"),
        ({"inputs": [_tensor(datatype="FP32", data=[1e300] * 8)]}, "not a finite number"),
        ({"inputs": [_tensor(datatype="BOOL", data=[1] * 8)]}, "not all BOOL"),
        ({"inputs": [_tensor(datatype="BYTES", data=["a"] * 8)]}, "not all values are numbers"),
        ({"inputs": [_tensor(data=None)]}, "must be a JSON array"),
        ({"inputs": [_tensor(data=[None] * 8)]}, "null"),
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


def test_binary_tensors_are_refused(client: _Client) -> None:
    headers = {"Inference-Header-Content-Length": "10"}
    answer = client.post("/v2/models/iris/infer", content=b"x" * 20, headers=headers)
    assert answer.status_code == 400 and "as JSON" in answer.json()["error"]


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
    assert "this server has 'iris' version v1.0.0" in answer.json()["error"]


def test_unknown_paths_and_methods(client: _Client) -> None:
    assert client.get("/v3").status_code == 404
    assert client.get("/v3").json() == {"error": "Not Found"}
    assert client.get("/v1/models/iris:explain").status_code == 404
    assert client.request("DELETE", "/v1/models/iris").status_code == 405
    assert client.get("/docs").status_code == 404


def test_a_request_has_a_bound(iris: LogisticRegression) -> None:
    client = _client(iris, max_request_bytes=1000)
    for size in (1001, 5000, 100_000):
        answer = client.post("/v1/models/iris:predict", content=b" " * size)
        assert answer.status_code == 400
        assert "larger than 1000 bytes" in answer.json()["error"]
    assert client.post("/v1/models/iris:predict", json={"instances": [[1, 2, 3, 4]]}).status_code == 200


def test_names_with_a_folder(iris: LogisticRegression) -> None:
    client = _Client(Model(iris, "vision/nets:iris", "v1.0.0"))
    body = {"instances": [[1, 2, 3, 4]]}
    assert client.post("/v1/models/vision%2Fnets%3Airis:predict", json=body).status_code == 200
    assert client.get("/v2/models/vision%2Fnets%3Airis/versions/v1.0.0/ready").status_code == 200


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
    with pytest.raises(PredictionError, match="neither a finite number nor text"):
        model.predict({"instances": [[None, "red"]]})
    with pytest.raises(PredictionError, match="the model refused the input"):
        model.predict({"instances": [["wide", "red"]]})
    tensors[0]["shape"] = [1, 2]
    with pytest.raises(PredictionError, match=r"each feature's is \[rows\]"):
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
    with pytest.raises(ModelDigestError, match="it was not loaded"):
        read_verified(file, "0" * 32)
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
    data = read_verified(file, digest_bytes(stream.getvalue()))
    model = Model.load(data, "m", "v1.0.0")
    assert model.predict({"instances": _X[:2].tolist()}) == {"predictions": iris.predict(_X[:2]).tolist()}


def test_a_folder_with_a_model(tmp_path: Path, iris: LogisticRegression) -> None:
    joblib.dump(iris, tmp_path / "model.joblib")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("words")
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    tree = Tree.from_pairs((p.relative_to(tmp_path).as_posix(), digest_bytes(p.read_bytes())) for p in files)
    assert read_verified(tmp_path, tree.digest) == (tmp_path / "model.joblib").read_bytes()
    (tmp_path / "notes" / "readme.txt").write_text("other words")
    with pytest.raises(ModelDigestError):
        read_verified(tmp_path, tree.digest)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    tree = Tree(["a.txt"], [digest_bytes(b"a")])
    with pytest.raises(ServingError, match=r"exactly one of .*found none"):
        read_verified(tmp_path, tree.digest)


def test_what_does_not_load(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="cannot be read"):
        read_verified(tmp_path / "none", "0" * 32)
    with pytest.raises(ServingError, match="cannot be unpickled"):
        Model.load(b"not a pickle", "m", "v1.0.0")
    missing = b"cno_such_package.module\nModel\n."
    with pytest.raises(ServingError, match=r"no_such_package.*install the packages"):
        Model.load(missing, "m", "v1.0.0")


def test_answers_are_json(client: _Client) -> None:
    answer = client.post("/v1/models/iris:predict", json={"instances": [[1, 2, 3, 4]]})
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.content) == answer.json()
