"""gRPC of the model server, by the messages of the specification and by Triton's client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import joblib
import numpy as np
import pytest
from kserve_peer.ours import serving
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from dvkf_prefect.errors import ServingError
from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.serving import rpc_messages
from dvkf_prefect.serving.lanes import Lane
from dvkf_prefect.serving.local import LocalServing
from dvkf_prefect.serving.model import Model
from dvkf_prefect.serving.predictions import DATATYPES
from dvkf_prefect.serving.rpc_messages import METHODS, SERVICE, message
from dvkf_prefect.serving.tensor_model import TensorModel, TensorSpec
from dvkf_prefect.serving.tensors import pack_texts
from dvkf_prefect.serving.traffic import Models

_X, _Y = load_iris(return_X_y=True)
_IRIS = LogisticRegression(max_iter=500).fit(_X, _Y)
_LIMIT = 1 << 20


class _Echo:
    """A program that answers its input."""

    inputs = (TensorSpec("x"),)
    outputs = ()

    def run(self, inputs: Any) -> Any:
        if inputs["x"].dtype == object and "fail" in inputs["x"]:
            raise KeyError("no such thing")
        return {"x": inputs["x"]}


class _Client:
    """Calls methods by the messages of the specification."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def call(self, method: str, metadata: tuple[tuple[str, str], ...] = (), /, **fields: Any) -> Any:
        return self.whole(method, metadata, **fields)[0]

    def whole(self, method: str, metadata: tuple[tuple[str, str], ...] = (), /, **fields: Any) -> Any:
        stub = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=message(f"{method}Request").SerializeToString,
            response_deserializer=message(f"{method}Response").FromString,
        )
        request = message(f"{method}Request")(**fields)
        return stub.with_call(request, timeout=60, metadata=metadata, wait_for_ready=True)

    def code(self, method: str, /, **fields: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as refused:
            self.call(method, **fields)
        return refused.value.code(), refused.value.details()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    models = Models()
    models.put("iris", Lane(Model(_IRIS, "iris", "v1")))
    models.put("iris", Lane(Model(_IRIS, "iris", "v2")), 50)
    models.put("echo", Lane(TensorModel(_Echo(), "echo", "v1", "echo")))
    with serving(models, _LIMIT) as (http, port):
        yield f"127.0.0.1:{port} {http}"


@pytest.fixture
def client(address: str) -> Iterator[_Client]:
    with grpc.insecure_channel(address.split()[0]) as channel:
        yield _Client(channel)


def test_the_server_and_its_models(client: _Client) -> None:
    assert client.call("ServerLive").live and client.call("ServerReady").ready
    assert client.call("ServerMetadata").name == "dvkf-prefect"
    assert client.call("ModelReady", name="iris").ready
    assert client.call("ModelReady", name="iris", version="v2").ready
    found = client.call("ModelMetadata", name="iris")
    assert (found.platform, sorted(found.versions)) == ("sklearn", ["v1", "v2"])
    assert (found.inputs[0].name, found.inputs[0].datatype, list(found.inputs[0].shape)) == (
        "input-0",
        "FP64",
        [-1, 4],
    )
    assert [output.name for output in found.outputs] == ["predict", "predict_proba"]
    for method in ("ModelReady", "ModelMetadata"):
        code, text = client.code(method, name="none")
        assert code == grpc.StatusCode.NOT_FOUND and "no model 'none' on this server" in text


def _input(datatype: str, shape: list[int], **contents: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": datatype, "shape": shape, **({"contents": contents} if contents else {})}


def test_contents_and_raw_contents(client: _Client) -> None:
    rows = _X[:3]
    typed = client.call(
        "ModelInfer",
        model_name="iris",
        id="7",
        inputs=[_input("FP64", [3, 4], fp64_contents=rows.ravel().tolist())],
    )
    assert (typed.model_name, typed.id) == ("iris", "7") and typed.model_version in ("v1", "v2")
    predicted, probable = typed.outputs
    assert (predicted.name, predicted.datatype, list(predicted.shape)) == ("predict", "INT64", [3])
    assert list(predicted.contents.int64_contents) == _IRIS.predict(rows).tolist()
    assert list(probable.contents.fp64_contents) == _IRIS.predict_proba(rows).ravel().tolist()
    assert not typed.raw_output_contents
    raw = client.call(
        "ModelInfer",
        model_name="iris",
        model_version="v1",
        inputs=[_input("FP64", [3, 4])],
        outputs=[{"name": "predict_proba"}],
        raw_input_contents=[rows.astype("<f8").tobytes()],
    )
    assert raw.model_version == "v1" and not raw.outputs[0].HasField("contents")
    assert raw.raw_output_contents[0] == _IRIS.predict_proba(rows).astype("<f8").tobytes()


_FIELDS = {"BOOL": "bool", "INT64": "int64", "UINT64": "uint64", "FP32": "fp32", "FP64": "fp64"}


@pytest.mark.parametrize("datatype", DATATYPES)
def test_each_datatype_comes_back(client: _Client, datatype: str) -> None:
    if datatype == "BYTES":
        values: list[Any] = ["a", "ü", ""]
        data, contents = (
            pack_texts([text.encode() for text in values]),
            {"bytes_contents": [text.encode() for text in values]},
        )
    else:
        values = [0, 1, 1]
        data = np.array(values, np.dtype(DATATYPES[datatype])).tobytes()
        field = _FIELDS.get(datatype, "uint" if datatype.startswith("U") else "int")
        contents = {f"{field}_contents": values}
    found = client.call(
        "ModelInfer", model_name="echo", inputs=[_input(datatype, [3])], raw_input_contents=[data]
    )
    assert (found.outputs[0].datatype, list(found.outputs[0].shape)) == (datatype, [3])
    assert list(found.raw_output_contents) == [data]
    if datatype == "FP16":
        code, text = client.code("ModelInfer", model_name="echo", inputs=[_input("FP16", [1])])
        assert code == grpc.StatusCode.INVALID_ARGUMENT and "has raw contents only" in text
        return
    found = client.call("ModelInfer", model_name="echo", inputs=[_input(datatype, [3], **contents)])
    ((field, back),) = [(field.name, list(value)) for field, value in found.outputs[0].contents.ListFields()]
    assert {field: back} == contents and not found.raw_output_contents


def test_requests_that_are_refused(client: _Client) -> None:
    good = {"fp64_contents": [1.0, 2.0]}
    for said, fields in {
        "no model 'none'": {"model_name": "none", "inputs": [_input("FP64", [2], **good)]},
        "version v9": {"model_name": "echo", "model_version": "v9", "inputs": [_input("FP64", [2], **good)]},
    }.items():
        code, text = client.code("ModelInfer", **fields)
        assert code == grpc.StatusCode.NOT_FOUND and said in text
    for said, more in {
        "2 values do not fill shape": {"inputs": [_input("FP64", [3], **good)]},
        "Send int_contents for INT8": {"inputs": [_input("INT8", [2], **good)]},
        "datatype 'FP8' is not supported": {"inputs": [_input("FP8", [2], **good)]},
        "out of the range of INT8": {"inputs": [_input("INT8", [1], int_contents=[300])]},
        "1 raw_input_contents for 2 inputs": {
            "inputs": [_input("FP64", [1])] * 2,
            "raw_input_contents": [b"x"],
        },
        "contents beside raw": {"inputs": [_input("FP64", [2], **good)], "raw_input_contents": [b"x" * 16]},
        "not whole values": {"inputs": [_input("FP64", [2])], "raw_input_contents": [b"xyz"]},
        "expected x of any type": {"inputs": []},
    }.items():
        code, text = client.code("ModelInfer", model_name="echo", **more)
        assert code == grpc.StatusCode.INVALID_ARGUMENT and said in text, text
    code, text = client.code(
        "ModelInfer", model_name="echo", inputs=[_input("BYTES", [1], bytes_contents=[b"fail"])]
    )
    assert code == grpc.StatusCode.INTERNAL and "KeyError" in text
    code, _ = client.code(
        "ModelInfer", model_name="echo", inputs=[_input("INT8", [1])], raw_input_contents=[b"x" * 2 * _LIMIT]
    )
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_split_and_the_metrics_are_those_of_http(client: _Client, address: str) -> None:
    fields = {"model_name": "iris", "inputs": [_input("FP64", [1, 4], fp64_contents=[1.0] * 4)]}
    url = f"http://127.0.0.1:{address.split()[1]}"
    body = {"instances": [[1.0] * 4]}
    seen = set()
    for number in range(20):
        key = f"user-{number}"
        found, call = client.whole("ModelInfer", (("x-sticky-key", key),), **fields)
        assert dict(call.initial_metadata())["x-model-version"] == found.model_version
        answer = httpx.post(
            f"{url}/v1/models/iris:predict", json=body, headers={"x-sticky-key": key}, trust_env=False
        )
        assert answer.headers["x-model-version"] == found.model_version
        seen.add(found.model_version)
    assert seen == {"v1", "v2"}
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    assert 'dvkf_requests_total{model="iris",protocol="grpc",status="200",version="v1"}' in text


def test_the_client_of_triton(address: str) -> None:
    triton = pytest.importorskip("tritonclient.grpc")
    client = triton.InferenceServerClient(address.split()[0])
    try:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("iris")
        assert client.get_model_metadata("iris").platform == "sklearn"
        rows = _X[::10]
        tensor = triton.InferInput("input-0", list(rows.shape), "FP64")
        tensor.set_data_from_numpy(rows)
        found = client.infer("iris", [tensor], outputs=[triton.InferRequestedOutput("predict")])
        assert found.as_numpy("predict").tolist() == _IRIS.predict(rows).tolist()
        texts = triton.InferInput("x", [2], "BYTES")
        texts.set_data_from_numpy(np.array(["a", "ü"], dtype=object))
        assert [each.decode() for each in client.infer("echo", [texts]).as_numpy("x")] == ["a", "ü"]
    finally:
        client.close()


def test_the_messages_are_those_of_triton() -> None:
    """Triton's have more messages and fields; what both have is equal on the wire."""
    triton = pytest.importorskip("tritonclient.grpc.service_pb2").DESCRIPTOR
    service = triton.services_by_name[SERVICE.rpartition(".")[2]]
    for method in METHODS:
        assert service.methods_by_name[method].input_type.full_name == f"inference.{method}Request"
    compared = 0

    def compare(ours: Any, theirs: Any) -> None:
        nonlocal compared
        for field in ours.fields:
            other = theirs.fields_by_name[field.name]
            assert (field.number, field.type, field.is_repeated) == (
                other.number,
                other.type,
                other.is_repeated,
            )
            if field.message_type:
                assert field.message_type.full_name == other.message_type.full_name
            compared += 1
        for inner in ours.nested_types:
            compare(inner, theirs.nested_types_by_name[inner.name])

    for name in rpc_messages._MESSAGES:
        if "." not in name:
            compare(message(name).DESCRIPTOR, triton.message_types_by_name[name])
    assert compared > 50


def test_a_new_version_keeps_the_port(tmp_path: Path) -> None:
    model = tmp_path / "iris.joblib"
    joblib.dump(_IRIS, model)
    serving = LocalServing(tmp_path / "state")
    try:
        first = serving.deploy("iris", "v1", model, digest_file(model), grpc_port=0)
        assert serving.deploy("iris", "v1", model, digest_file(model), grpc_port=0) == first
        rows = {"model_name": "iris", "inputs": [_input("FP64", [1, 4], fp64_contents=[1.0] * 4)]}
        with grpc.insecure_channel(first.grpc) as channel:
            assert _Client(channel).call("ModelInfer", **rows).model_version == "v1"
        second = serving.deploy("iris", "v2", model, digest_file(model), grpc_port=0)
        assert (second.url, second.grpc) == (first.url, first.grpc) and second.pid != first.pid
        with grpc.insecure_channel(second.grpc) as channel:
            assert _Client(channel).call("ModelInfer", **rows).model_version == "v2"
        assert second.grpc_port is not None
        with pytest.raises(ServingError, match="cannot listen on"):
            serving.deploy("other", "v1", model, digest_file(model), grpc_port=second.grpc_port)
        without = serving.deploy("iris", "v2", model, digest_file(model))
        assert without.grpc == "" and without.grpc_port is None and without.pid != second.pid
    finally:
        serving.stop("iris")


def test_a_shared_server_has_one_grpc(tmp_path: Path) -> None:
    model = tmp_path / "iris.joblib"
    joblib.dump(_IRIS, model)
    serving = LocalServing(tmp_path / "state", server="team")
    try:
        one = serving.deploy("one", "v1", model, digest_file(model), grpc_port=0)
        two = serving.deploy("two", "v1", model, digest_file(model))
        assert two.grpc == one.grpc
        with grpc.insecure_channel(one.grpc) as channel:
            assert _Client(channel).call("ModelReady", name="two").ready
        with pytest.raises(ServingError, match=f"has gRPC on port {one.grpc_port}"):
            serving.deploy("two", "v2", model, digest_file(model), grpc_port=1)
    finally:
        serving.stop("one")
        serving.stop("two")
