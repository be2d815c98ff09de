"""The requests that both servers are asked, over HTTP and over gRPC."""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

JSON = "application/json"
OCTETS = "application/octet-stream"
BINARY = "Inference-Header-Content-Length"
ROW = [5.1, 3.5, 1.4, 0.2]
ROWS = [ROW, [6.7, 3.0, 5.2, 2.3]]


@dataclass(frozen=True)
class Ask:
    """One request over HTTP.

    Attributes:
        name: Its name in the answers, and in the list of differences.
        method: Method.
        path: Path, as it is sent.
        body: Body; None for none.
        headers: Headers beside ``Host``, ``Content-Length`` and ``Accept-Encoding: identity``.
        chunked: True if the body is sent in chunks.
    """

    name: str
    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    chunked: bool = False

    @property
    def digest(self) -> str:
        """Digest of all that is sent."""
        whole = repr((self.method, self.path, self.body, sorted(self.headers.items()), self.chunked))
        return hashlib.sha256(whole.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Call:
    """One request over gRPC: a method of the Open Inference Protocol and the fields of its message."""

    name: str
    method: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of all that is sent."""
        return hashlib.sha256(repr((self.method, self.fields)).encode()).hexdigest()[:16]


def _encode(body: object) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def _get(name: str, path: str, method: str = "GET") -> Ask:
    return Ask(name, method, path)


def _v1(name: str, body: object, model: str = "iris", kind: str | None = JSON, /, **headers: str) -> Ask:
    sent = {key.replace("_", "-"): value for key, value in headers.items()}
    if kind is not None:
        sent["Content-Type"] = kind
    return Ask(name, "POST", f"/v1/models/{model}:predict", _encode(body), sent)


def _v2(name: str, body: object, model: str = "iris", kind: str | None = JSON, /, **headers: str) -> Ask:
    return Ask(
        name, "POST", f"/v2/models/{model}/infer", _encode(body), _v1("", b"", model, kind, **headers).headers
    )


def _tensor(model: str = "iris", /, **changes: Any) -> dict[str, Any]:
    whole = {
        "iris": {"shape": [2, 4], "datatype": "FP64", "data": [value for row in ROWS for value in row]},
        "echo": {"shape": [1, 2], "datatype": "FP64", "data": [1.0, 2.0]},
        "moody": {"shape": [1, 1], "datatype": "FP64", "data": [1.0]},
        "words": {"shape": [2], "datatype": "BYTES", "data": ["good", "bad"]},
        "table": {"shape": [1, 2], "datatype": "FP64", "data": [1.0, 2.0]},
    }[model]
    return {"name": "input-0", **whole, **changes}


def _without(name: str) -> dict[str, Any]:
    return {key: value for key, value in _tensor().items() if key != name}


def _one(model: str = "iris", /, **changes: Any) -> dict[str, Any]:
    return {"inputs": [_tensor(model, **changes)]}


def _typed(datatype: str, values: list[Any]) -> Ask:
    return _v2(f"V2 {datatype} in JSON", _one("echo", datatype=datatype, data=values), "echo")


def _raw(
    name: str,
    values: bytes,
    model: str = "echo",
    /,
    *,
    size: object = None,
    length: str | None = None,
    kind: str = OCTETS,
    more: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Ask:
    """Return a request with a binary tensor."""
    tensor = _tensor(model, **changes)
    del tensor["data"]
    tensor["parameters"] = {"binary_data_size": len(values) if size is None else size}
    head = json.dumps({"inputs": [tensor], **(more or {})}).encode()
    headers = {"Content-Type": kind, BINARY: length or str(len(head))}
    return Ask(name, "POST", f"/v2/models/{model}/infer", head + values, headers)


def _texts(*texts: str) -> bytes:
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)


_TYPED = {
    "BOOL": [True, False],
    "INT8": [-128, 127],
    "INT16": [-32768, 32767],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**53), 2**53],
    "UINT8": [0, 255],
    "UINT16": [0, 65535],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**53],
    "FP16": [0.5, -2.0],
    "FP32": [0.5, -2.25],
    "FP64": [0.1, -1e300],
}
_BIG = [1.0, 2.0] * 20_000
_VALUES = np.asarray([0.5, -2.25])
_BINARY_OUT = {"parameters": {"binary_data_output": True}}

HTTP = [
    # The server and its models.
    _get("GET /", "/"),
    _get("HEAD /", "/", "HEAD"),
    _get("POST /", "/", "POST"),
    _get("GET /metrics", "/metrics"),
    _get("GET /docs", "/docs"),
    _get("GET /openapi.json", "/openapi.json"),
    _get("unknown path", "/nothing/here"),
    _get("V1 models", "/v1/models"),
    _get("V1 model", "/v1/models/iris"),
    _get("V1 unknown model", "/v1/models/nope"),
    _get("V1 models by POST", "/v1/models", "POST"),
    _get("V2 server", "/v2"),
    _get("V2 server by POST", "/v2", "POST"),
    _get("V2 live", "/v2/health/live"),
    _get("V2 ready", "/v2/health/ready"),
    _get("V2 live by POST", "/v2/health/live", "POST"),
    _get("V2 models", "/v2/models"),
    _get("V2 model", "/v2/models/iris"),
    _get("V2 model by DELETE", "/v2/models/iris", "DELETE"),
    _get("V2 model ready", "/v2/models/iris/ready"),
    _get("V2 unknown model", "/v2/models/nope"),
    _get("V2 unknown model ready", "/v2/models/nope/ready"),
    _get("V2 version", "/v2/models/iris/versions/v1"),
    _get("V2 version ready", "/v2/models/iris/versions/v1/ready"),
    _get("V2 unknown version", "/v2/models/iris/versions/v9"),
    _get("V2 unknown version ready", "/v2/models/iris/versions/v9/ready"),
    _get("V2 repository index", "/v2/repository/index", "POST"),
    _get("V2 load of an unknown model", "/v2/repository/models/nope/load", "POST"),
    _get("model in percent encoding", "/v2/models/%69ris"),
    _get("path of an unknown verb", "/v2/models/iris/explain"),
    _get("V2 server with a slash", "/v2/"),
    _get("V2 live with a slash", "/v2/health/live/"),
    _get("V2 model with a slash", "/v2/models/iris/"),
    _get("V2 model with a query", "/v2/models/iris/ready?verbose=1"),
    _get("V2 model in capitals", "/v2/models/IRIS"),
    _get("OPTIONS of infer", "/v2/models/iris/infer", "OPTIONS"),
    # V1.
    _v1("V1", {"instances": ROWS}),
    _v1("V1 one row", {"instances": [ROW]}),
    _v1("V1 whole numbers", {"instances": [[5, 3, 1, 0]]}),
    _v1("V1 more fields", {"instances": [ROW], "parameters": {"a": 1}, "signature_name": "x"}),
    _v1("V1 instances of another name", {"inputs": [ROW]}),
    _v1("V1 no instances", {"rows": [ROW]}),
    _v1("V1 no list", {"instances": 5}),
    _v1("V1 a text", {"instances": "rows"}),
    _v1("V1 empty list", {"instances": []}),
    _v1("V1 empty row", {"instances": [[]]}),
    _v1("V1 short row", {"instances": [[1, 2, 3]]}),
    _v1("V1 long row", {"instances": [[1, 2, 3, 4, 5]]}),
    _v1("V1 rows that differ in length", {"instances": [ROW, [1, 2]]}),
    _v1("V1 row that is no list", {"instances": ROW}),
    _v1("V1 numbers as texts", {"instances": [["5.1", "3.5", "1.4", "0.2"]]}),
    _v1("V1 words for numbers", {"instances": [["a", "b", "c", "d"]]}),
    _v1("V1 null", {"instances": [[5.1, 3.5, 1.4, None]]}),
    _v1("V1 NaN", b'{"instances": [[1, 2, 3, NaN]]}'),
    _v1("V1 Infinity", b'{"instances": [[1, 2, 3, Infinity]]}'),
    _v1("V1 number out of range", b'{"instances": [[1, 2, 3, 1e999]]}'),
    _v1("V1 huge whole number", b'{"instances": [[1, 2, 3, 1' + b"0" * 400 + b"]]}"),
    _v1("V1 true and false", {"instances": [[True, False, True, False]]}),
    _v1("V1 no body", b""),
    _v1("V1 half a document", b'{"instances": [[1, 2'),
    _v1("V1 a list", b"[[1, 2, 3, 4]]"),
    _v1("V1 not UTF-8", b'\xff\xfe{"instances"'),
    _v1("V1 deep", b"[" * 100_000),
    _v1("V1 big", {"instances": [[1.0, 2.0]] * 20_000}, "echo"),
    _v1("V1 named columns", {"instances": [{"a": 1.0, "b": 2.0}]}, "table"),
    _v1("V1 columns in another order", {"instances": [{"b": 2.0, "a": 1.0}]}, "table"),
    _v1("V1 missing column", {"instances": [{"a": 1.0}]}, "table"),
    _v1("V1 unknown column", {"instances": [{"a": 1.0, "b": 2.0, "c": 3.0}]}, "table"),
    _v1("V1 columns with lists", {"instances": [{"a": [1.0], "b": [2.0]}]}, "table"),
    _v1("V1 texts", {"instances": ["good", "bad"]}, "words"),
    _v1("V1 numbers for texts", {"instances": [1, 2]}, "words"),
    _v1("V1 echo", {"instances": [[1.5, -2.5]]}, "echo"),
    _v1("V1 model raises ValueError", {"instances": [[8]]}, "moody"),
    _v1("V1 model raises KeyError", {"instances": [[9]]}, "moody"),
    _v1("V1 model answers NaN", {"instances": [[7]]}, "moody"),
    _v1("V1 model answers infinity", {"instances": [[6]]}, "moody"),
    _v1("V1 of an unknown model", {"instances": [ROW]}, "nope"),
    _get("V1 predict by GET", "/v1/models/iris:predict"),
    _get("V1 predict by PUT", "/v1/models/iris:predict", "PUT"),
    Ask(
        "V1 explain", "POST", "/v1/models/iris:explain", _encode({"instances": [ROW]}), {"Content-Type": JSON}
    ),
    _v1("V1 without content type", {"instances": [ROW]}, "iris", None),
    _v1("V1 as text/plain", {"instances": [ROW]}, "iris", "text/plain"),
    _v1("V1 with charset", {"instances": [ROW]}, "iris", "application/json; charset=utf-8"),
    _v1("V1 as text/xml", {"instances": [ROW]}, "iris", "text/xml"),
    _v1("V1 gzip", gzip.compress(_encode({"instances": [ROW]}), mtime=0), Content_Encoding="gzip"),
    _v1("V1 that says gzip and is not", {"instances": [ROW]}, Content_Encoding="gzip"),
    _v1("V1 unknown encoding", {"instances": [ROW]}, Content_Encoding="zstd"),
    Ask(
        "V1 in chunks",
        "POST",
        "/v1/models/iris:predict",
        _encode({"instances": ROWS}),
        {"Content-Type": JSON},
        True,
    ),
    _v1("V1 wants XML", {"instances": [ROW]}, Accept="text/xml"),
    # V2 in JSON.
    _v2("V2", _one()),
    _v2("V2 with an id", {"id": "42", **_one()}),
    _v2("V2 nested data", _one(data=ROWS)),
    _v2("V2 parameters", {"parameters": {"a": 1, "b": "x", "c": True}, **_one(parameters={"d": 1.5})}),
    _v2("V2 nulls", {"id": None, "parameters": None, "outputs": None, **_one(parameters=None)}),
    _v2("V2 no outputs", {**_one(), "outputs": []}),
    _v2("V2 nested parameters", {"parameters": {"a": {"b": 1}}, **_one()}),
    _v2("V2 more fields", {"more": 1, **_one(more=2)}),
    _v2("V2 names the output", {**_one(), "outputs": [{"name": "predict"}]}),
    _v2("V2 names an output of kserve", {**_one(), "outputs": [{"name": "output-0"}]}),
    _v2("V2 names an unknown output", {**_one(), "outputs": [{"name": "logits"}]}),
    _v2("V2 outputs that are no list", {**_one(), "outputs": 5}),
    *(_typed(datatype, values) for datatype, values in _TYPED.items()),
    _v2("V2 BYTES in JSON", _one("words"), "words"),
    _v2("V2 null among numbers", _one("echo", data=[1.0, None]), "echo"),
    _v2(
        "V2 NaN",
        b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, NaN]}]}',
        "echo",
    ),
    _v2(
        "V2 infinity",
        b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 1e999]}]}',
        "echo",
    ),
    _v2("V2 big", _one("echo", shape=[20_000, 2], data=_BIG), "echo"),
    _v2("V2 fraction as INT64", _one("echo", datatype="INT64", data=[1.5, 2.5]), "echo"),
    _v2("V2 out of range of UINT8", _one("echo", datatype="UINT8", data=[1, 300]), "echo"),
    _v2("V2 number as BOOL", _one("echo", datatype="BOOL", data=[1, 0]), "echo"),
    _v2("V2 text as FP64", _one("echo", data=["a", "b"]), "echo"),
    _v2("V2 unknown datatype", _one(datatype="FP8")),
    _v2("V2 datatype that is no text", _one(datatype=5)),
    _v2("V2 shape with -1", _one("echo", shape=[-1, 2]), "echo"),
    _v2("V2 shape that the data does not fill", _one(shape=[3, 4])),
    _v2("V2 whole numbers as FP64", _one("echo", data=[1, 2]), "echo"),
    _v2("V2 number as BYTES", _one("words", data=[1, 2]), "words"),
    _v2("V2 datatype in small letters", _one(datatype="fp64")),
    _v2("V2 shape of one dimension", _one(shape=[8])),
    _v2("V2 shape of no dimension", _one(shape=[], data=[1.0])),
    _v2("V2 shape of other features", _one(shape=[4, 2])),
    _v2("V2 shape of no rows", _one(shape=[0, 4], data=[])),
    _v2("V2 shape that is a text", _one(shape="2, 4")),
    _v2("V2 shape of fractions", _one(shape=[2.5, 4])),
    _v2("V2 data that is a number", _one(data=5)),
    _v2("V2 without name", {"inputs": [_without("name")]}),
    _v2("V2 without shape", {"inputs": [_without("shape")]}),
    _v2("V2 without datatype", {"inputs": [_without("datatype")]}),
    _v2("V2 without data", {"inputs": [_without("data")]}),
    _v2("V2 without inputs", {"id": "1"}),
    _v2("V2 no inputs", {"inputs": []}),
    _v2("V2 inputs that are no list", {"inputs": {"a": 1}}),
    _v2("V2 input that is a number", {"inputs": [5]}),
    _v2("V2 two inputs", {"inputs": [_tensor(), _tensor(name="input-1")]}),
    _v2(
        "V2 columns as inputs",
        {
            "inputs": [
                {"name": name, "shape": [2, 1], "datatype": "FP64", "data": values}
                for name, values in (("a", [1.0, 2.0]), ("b", [2.0, 0.0]))
            ],
            "parameters": {"content_type": "pd"},
        },
        "table",
    ),
    _v2("V2 id that is a number", {"id": 42, **_one()}),
    _v2("V2 no body", b""),
    _v2("V2 half a document", b'{"inputs": ['),
    _v2("V2 a list", b"[1]"),
    _v2("V2 not UTF-8", b'\xff\xfe{"inputs"'),
    _v2("V2 model raises ValueError", _one("moody", data=[8.0]), "moody"),
    _v2("V2 model raises KeyError", _one("moody", data=[9.0]), "moody"),
    _v2("V2 model answers NaN", _one("moody", data=[7.0]), "moody"),
    _v2("V2 of an unknown model", _one(), "nope"),
    _v2("V2 of a version", _one(), "iris/versions/v1"),
    _v2("V2 of an unknown version", _one(), "iris/versions/v9"),
    _get("V2 infer by GET", "/v2/models/iris/infer"),
    _v2("V2 without content type", _one(), "iris", None),
    _v2("V2 as text/plain", _one(), "iris", "text/plain"),
    _v2("V2 as text/xml", _one(), "iris", "text/xml"),
    _v2("V2 gzip", gzip.compress(_encode(_one()), mtime=0), "iris", Content_Encoding="gzip"),
    # V2 with binary tensors.
    _raw("V2 binary FP64", _VALUES.tobytes()),
    _raw("V2 binary FP32", _VALUES.astype("<f4").tobytes(), datatype="FP32"),
    _raw("V2 binary FP16", _VALUES.astype("<f2").tobytes(), datatype="FP16"),
    _raw("V2 binary INT64", np.asarray([-1, 2**53], "<i8").tobytes(), datatype="INT64"),
    _raw("V2 binary UINT8", b"\x00\xff", datatype="UINT8"),
    _raw("V2 binary BOOL", b"\x01\x00", datatype="BOOL"),
    _raw("V2 binary BYTES", _texts("good", "bad"), "words"),
    _raw("V2 binary, as JSON", _VALUES.tobytes(), kind=JSON),
    _raw("V2 binary, iris", np.asarray(ROWS).tobytes(), "iris"),
    _raw("V2 binary output", _VALUES.tobytes(), more=_BINARY_OUT),
    _raw("V2 binary NaN", np.asarray([1.0, np.nan]).tobytes()),
    _raw(
        "V2 binary NaN both ways",
        np.asarray([1.0, np.nan]).tobytes(),
        more={"parameters": {"binary_data_output": True}},
    ),
    _raw(
        "V2 binary infinity both ways",
        np.asarray([1.0, np.inf]).tobytes(),
        more={"parameters": {"binary_data_output": True}},
    ),
    _raw(
        "V2 binary answer of NaN",
        np.asarray([7.0]).tobytes(),
        "moody",
        more={"parameters": {"binary_data_output": True}},
    ),
    _raw("V2 binary too short", _VALUES.tobytes()[:8], size=16),
    _raw("V2 binary too long", _VALUES.tobytes() + b"x" * 8, size=16),
    _raw("V2 binary of half a value", b"x" * 12),
    _raw("V2 binary of other values", b"x" * 8),
    _raw("V2 binary size that is a text", _VALUES.tobytes(), size="16"),
    _raw("V2 binary without end of a text", _texts("good", "bad")[:-1], "words"),
    _raw("V2 binary header above the body", _VALUES.tobytes(), length="99999"),
    _raw("V2 binary header that is no number", _VALUES.tobytes(), length="x"),
]


def _doubles(shape: list[int], *values: float) -> dict[str, Any]:
    return {"datatype": "FP64", "shape": shape, "contents": {"fp64_contents": [*values]}}


def _rpc(name: str, model: str, tensor: Mapping[str, Any] | None = None, **fields: Any) -> Call:
    inputs = [] if tensor is None else [{"name": "input-0", **tensor}]
    return Call(name, "ModelInfer", {"model_name": model, "inputs": inputs, **fields})


def _contents(datatype: str, kind: str, values: list[Any]) -> Call:
    tensor = {"datatype": datatype, "shape": [1, 2], "contents": {kind: values}}
    return _rpc(f"gRPC {datatype}", "echo", tensor)


_IRIS = _doubles([2, 4], *ROWS[0], *ROWS[1])
_RAW = {"datatype": "FP64", "shape": [1, 2]}

GRPC = [
    Call("gRPC live", "ServerLive"),
    Call("gRPC ready", "ServerReady"),
    Call("gRPC model ready", "ModelReady", {"name": "iris"}),
    Call("gRPC model ready, unknown", "ModelReady", {"name": "nope"}),
    Call("gRPC server", "ServerMetadata"),
    Call("gRPC model", "ModelMetadata", {"name": "iris"}),
    Call("gRPC model, unknown", "ModelMetadata", {"name": "nope"}),
    _rpc("gRPC iris", "iris", _IRIS),
    _rpc("gRPC with an id", "iris", _IRIS, id="42"),
    _contents("BOOL", "bool_contents", [True, False]),
    _contents("INT8", "int_contents", [-128, 127]),
    _contents("INT32", "int_contents", [-(2**31), 2**31 - 1]),
    _contents("INT64", "int64_contents", [-(2**53), 2**53]),
    _contents("UINT8", "uint_contents", [0, 255]),
    _contents("UINT32", "uint_contents", [0, 2**32 - 1]),
    _contents("UINT64", "uint64_contents", [0, 2**53]),
    _contents("FP32", "fp32_contents", [0.5, -2.25]),
    _contents("FP64", "fp64_contents", [0.1, -1e300]),
    _rpc("gRPC BYTES", "words", {"datatype": "BYTES", "shape": [2], "contents": {"bytes_contents": [b"good", b"bad"]}}),
    _rpc("gRPC raw FP64", "echo", _RAW, raw_input_contents=[_VALUES.tobytes()]),
    _rpc("gRPC raw FP16", "echo", {**_RAW, "datatype": "FP16"}, raw_input_contents=[_VALUES.astype("<f2").tobytes()]),
    _rpc("gRPC NaN", "echo", _doubles([1, 2], 1.0, float("nan"))),
    _rpc("gRPC answer of NaN", "moody", _doubles([1, 1], 7.0)),
    _rpc("gRPC raw too short", "echo", _RAW, raw_input_contents=[b"x" * 8]),
    _rpc("gRPC raw and contents", "echo", _doubles([1, 2], 1.0, 2.0), raw_input_contents=[b""]),
    _rpc("gRPC more raw contents than inputs", "echo", _RAW, raw_input_contents=[_VALUES.tobytes()] * 2),
    _rpc("gRPC other features", "iris", _doubles([1, 2], 1.0, 2.0)),
    _rpc("gRPC shape that the data does not fill", "iris", {**_IRIS, "shape": [3, 4]}),
    _rpc("gRPC unknown datatype", "iris", {**_IRIS, "datatype": "FP8"}),
    _rpc("gRPC no inputs", "iris"),
    _rpc("gRPC unknown model", "nope", _IRIS),
    _rpc("gRPC unknown version", "iris", _IRIS, model_version="v9"),
    _rpc("gRPC model raises KeyError", "moody", _doubles([1, 1], 9.0)),
]  # fmt: skip
