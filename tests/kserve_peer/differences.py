"""In what the answers of the two servers may differ: each kind of difference on purpose, with its reason.

The same rows are in docs/how-to/serving.md. A difference that is not here fails a test, and so does one that is here
and is gone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import grpc

# What differs: the status; the predictions; names, version, id and nulls around them; other content; the form of an
# error.
Aspect = Literal["status", "values", "envelope", "content", "form"]


@dataclass(frozen=True)
class Difference:
    """One kind of difference.

    Attributes:
        request: The requests, for the reader.
        kserve: What kserve answers, with every status.
        here: What this server answers, with every status.
        reason: Why.
        asks: Names of the requests; empty for all answers of the aspect.
        aspect: What differs.
    """

    request: str
    kserve: str
    here: str
    reason: str
    asks: tuple[str, ...]
    aspect: Aspect = "status"


DIFFERENCES = [
    Difference(
        "rows or tensors that do not fit the model, or that it refuses",
        "500",
        "400",
        "the request is at fault; `inference_error_response` is for 400",
        (
            "V1 no instances",
            "V1 empty list",
            "V1 empty row",
            "V1 short row",
            "V1 long row",
            "V1 rows that differ in length",
            "V1 row that is no list",
            "V1 numbers as texts",
            "V1 words for numbers",
            "V1 null",
            "V1 a list",
            "V1 missing column",
            "V1 unknown column",
            "V1 model raises ValueError",
            "V2 out of range of UINT8",
            "V2 text as FP64",
            "V2 number as BYTES",
            "V2 unknown datatype",
            "V2 shape that the data does not fill",
            "V2 shape of one dimension",
            "V2 shape of no dimension",
            "V2 shape of other features",
            "V2 shape of no rows",
            "V2 no inputs",
            "V2 model raises ValueError",
            "V2 binary too short",
            "V2 binary of half a value",
            "V2 binary of other values",
            "V2 binary size that is a text",
            "V2 binary without end of a text",
            "V2 binary header that is no number",
        ),
    ),
    Difference(
        "V2 that is not JSON, or that lacks a field or has one of another type",
        "422",
        "400",
        'the Open Inference Protocol knows 400 and `{"error": ...}`',
        (
            "V2 nested parameters",
            "V2 outputs that are no list",
            "V2 datatype that is no text",
            "V2 shape that is a text",
            "V2 shape of fractions",
            "V2 data that is a number",
            "V2 without name",
            "V2 without shape",
            "V2 without datatype",
            "V2 without data",
            "V2 without inputs",
            "V2 inputs that are no list",
            "V2 input that is a number",
            "V2 id that is a number",
            "V2 no body",
            "V2 half a document",
            "V2 a list",
        ),
    ),
    Difference(
        "numbers with a fraction as INT64 or numbers as BOOL; shape with -1; datatype `fp64`; more inputs than the "
        "model has; bytes after the binary tensors",
        "200",
        "400",
        "kserve cuts, guesses or ignores; the answer may be wrong",
        (
            "V2 fraction as INT64",
            "V2 number as BOOL",
            "V2 shape with -1",
            "V2 datatype in small letters",
            "V2 two inputs",
            "V2 binary too long",
        ),
    ),
    Difference(
        "`NaN` in the JSON of V2; infinity for an estimator",
        "200",
        "400",
        "`NaN` is not JSON, `null` stands for a missing value; estimators refuse infinity",
        ("V2 NaN", "V2 infinity", "V2 binary infinity both ways"),
    ),
    Difference(
        "an answer of NaN or infinity as JSON",
        "200 with `null`",
        "500",
        "the protocol's schema has no `null` among data; binary tensors and gRPC have NaN",
        (
            "V1 model answers NaN",
            "V1 model answers infinity",
            "V2 model answers NaN",
            "V2 null among numbers",
            "V2 binary NaN",
        ),
    ),
    Difference(
        "an output by name",
        "200 for `output-0`, 400 for `predict`",
        "400 for `output-0`, 200 for `predict`",
        "outputs are named after the method: `predict`, `predict_proba`",
        ("V2 names the output", "V2 names an output of kserve"),
    ),
    Difference(
        "FP16 as JSON",
        "400",
        "200",
        "the protocol's JSON has FP16",
        ("V2 FP16 in JSON", "V2 binary FP16"),
    ),
    Difference(
        "`inputs` in V1",
        "200",
        "400",
        "they are columns for TensorFlow Serving; V1 of KServe has `instances`",
        ("V1 instances of another name",),
    ),
    Difference(
        "rows by name in V1",
        "500, and 200 for rows of lists",
        "200, and 400 for rows of lists",
        "a row is one instance; kserve makes a table of each",
        ("V1 named columns", "V1 columns in another order", "V1 columns with lists"),
    ),
    Difference(
        "a path with a version",
        "501",
        "200, or 404 for an unknown one",
        "versions are served side by side",
        (
            "V2 version",
            "V2 version ready",
            "V2 unknown version",
            "V2 unknown version ready",
            "V2 of a version",
            "V2 of an unknown version",
        ),
    ),
    Difference(
        "an unknown version over gRPC",
        "`OK`",
        "`NOT_FOUND`",
        "kserve ignores the version",
        ("gRPC unknown version",),
    ),
    Difference(
        "a model that fails, over gRPC",
        "`INVALID_ARGUMENT`",
        "`INTERNAL`",
        "the request is not at fault",
        ("gRPC model raises KeyError",),
    ),
    Difference(
        "JSON without a content type, with a charset, or as `text/plain`; binary tensors as `application/json`",
        "400 or 500",
        "200",
        "the paths take JSON alone, and a header gives its size before binary tensors",
        ("V1 as text/plain", "V1 with charset", "V2 without content type", "V2 as text/plain", "V2 binary, as JSON"),
    ),
    Difference(
        "another content type, such as `text/xml`",
        "400 or 500",
        "415",
        "HTTP has a status for it",
        ("V1 as text/xml", "V2 as text/xml"),
    ),
    Difference("a body in gzip", "400", "200", "HTTP has compression", ("V1 gzip", "V2 gzip")),
    Difference(
        "a body that is not in its content encoding, or in an unknown one",
        "200",
        "400 or 415",
        "the header says how to read the body",
        ("V1 that says gzip and is not", "V1 unknown encoding"),
    ),
    Difference("V1 with GET", "404", "405 with `Allow`", "HTTP has a status for it", ("V1 predict by GET",)),
    Difference("`HEAD /`", "405", "200", "RFC 9110 wants HEAD wherever GET is", ("HEAD /",)),
    Difference(
        "`/openapi.json`", "200", "404", "the protocol's own document describes the paths", ("GET /openapi.json",)
    ),
    Difference(
        "`POST /v2/repository/index`",
        "404",
        "200",
        "Triton's list of versions and their state",
        ("V2 repository index",),
    ),
    Difference(
        "`POST /v2/repository/models/NAME/load` of an unknown model",
        "503",
        "404",
        "deployments alone load models",
        ("V2 load of an unknown model",),
    ),
    Difference(
        "a path with a slash at its end",
        "307",
        "200 for `/v2/`, 404 for others",
        "the protocol has `/v2/`, and names of models may have slashes",
        ("V2 server with a slash", "V2 live with a slash", "V2 model with a slash"),
    ),
    Difference(
        "an unknown path or method, and V2 that is not UTF-8",
        '404, 405 or 400 with `{"detail": ...}`',
        '404, 405 or 400 with `{"error": ...}`',
        "the Open Inference Protocol has `error`",
        (
            "POST /",
            "GET /docs",
            "unknown path",
            "V1 models by POST",
            "V2 server by POST",
            "V2 live by POST",
            "V2 model by DELETE",
            "path of an unknown verb",
            "OPTIONS of infer",
            "V1 predict by PUT",
            "V2 infer by GET",
            "V2 not UTF-8",
        ),
        "form",
    ),
    Difference(
        "the metadata of the server and of a model",
        "200 or `OK`, no inputs, outputs and versions of a model",
        "200 or `OK`, with them",
        "clients read names, types and shapes there",
        ("V2 server", "V2 model", "model in percent encoding", "gRPC server", "gRPC model"),
        "content",
    ),
    Difference(
        "an answer of V2",
        "200 or `OK`; the output `output-0`, an id of its own, `null` for what is not there",
        "200 or `OK`; outputs by method, the version, no id that was not sent, no `null`",
        "the protocol's schema has no `null`, and an id is the client's",
        (),
        "envelope",
    ),
]  # fmt: skip

_CODES = {code.name for code in grpc.StatusCode}


def codes(cell: str) -> set[str]:
    """Return the statuses that a cell of the table names."""
    return {*re.findall(r"\b[1-5]\d\d\b", cell), *(_CODES & {*re.findall("`([A-Z_]+)`", cell)})}


def status(answer: Mapping[str, Any]) -> str:
    """Return the status of an answer over HTTP or gRPC."""
    return str(answer.get("status", answer.get("code")))


def differs(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> set[Aspect]:
    """Compare two answers; texts of errors are each server's own."""
    if status(theirs) != status(ours):
        return {"status"}
    mine, other = (answer.get("message", answer.get("json")) for answer in (ours, theirs))
    if not isinstance(mine, dict) or not isinstance(other, dict):
        # Metrics, an empty body, or the details of an error over gRPC.
        return set() if type(mine) is type(other) and theirs.get("type") == ours.get("type") else {"content"}
    if status(ours) not in ("200", "OK"):
        return set() if mine.keys() == other.keys() else {"form"}
    if "outputs" in mine and "model_name" in mine:
        found: set[Aspect] = set()
        size = len(theirs.get("bytes", ""))
        raw = [(answer.get("bytes") or "")[:size] for answer in (ours, theirs)]
        if _values(mine) != _values(other) or raw[0] != raw[1]:
            found.add("values")
        return found | ({"envelope"} if mine != other else set())
    if "models" in mine:
        mine, other = ({**each, "models": sorted(each["models"])} for each in (mine, other))
    return set() if mine == other else {"values" if "predictions" in mine else "content"}


def _values(answer: Mapping[str, Any]) -> Any:
    """Return the model, the client's id and the first output of a V2 answer: kserve's model has one."""
    first = {key: value for key, value in answer["outputs"][0].items() if key not in ("name", "parameters")}
    sent = answer.get("id") if answer.get("id") != "<uuid>" else None
    return answer["model_name"], sent, first, answer.get("raw_output_contents", [])[:1]
