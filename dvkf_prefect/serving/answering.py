"""Bytes of a request to bytes of an answer, for a loaded model; in a thread, or in a worker process."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dvkf_prefect.errors import PredictionError, ServingError
from dvkf_prefect.serving.intake import BINARY_HEADER, HttpError, Share, compress, decompress, parse, render
from dvkf_prefect.serving.predictions import NOT_FINITE
from dvkf_prefect.serving.served import Protocol, Question, Served
from dvkf_prefect.serving.tensors import attach_binary, detach_binary

# Smaller answers are not worth compressing.
_COMPRESSED_FROM = 4096
_ERROR = 2000
JSON = "application/json"

_log = logging.getLogger("dvkf.server")


@dataclass(frozen=True)
class Request:
    """One request for a prediction, as it was received.

    Attributes:
        protocol: ``v1`` or ``v2``.
        body: Its body.
        encoding: Compression of the body; empty for none.
        json_size: Size of the JSON at its start, if binary tensors follow; None if all of it is JSON.
        zipped: True if the client accepts gzip.
    """

    protocol: Protocol
    body: bytes
    encoding: str = ""
    json_size: int | None = None
    zipped: bool = False


@dataclass(frozen=True)
class Answer:
    """One answer, ready to send.

    Attributes:
        status: HTTP status.
        body: Its body.
        headers: Its headers, by lower-case name.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def json_answer(
    document: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Answer:
    """Return an answer of JSON."""
    return Answer(status, render(document), {"content-type": JSON, **(headers or {})})


def failure(status: int, text: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Return the answer ``{"error": text}``."""
    return json_answer({"error": text if len(text) <= _ERROR else f"{text[:_ERROR]} …"}, status, headers)


def failure_of(error: BaseException) -> Answer:
    """Return the answer for an exception: 400 for bad input, 500 for a failure of the model."""
    if isinstance(error, HttpError):
        return failure(error.status, str(error), error.headers)
    if isinstance(error, PredictionError):
        return failure(400, str(error))
    _log.error("a request failed", exc_info=error)
    if isinstance(error, ServingError):
        return failure(500, str(error))
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a model's exception runs the model's code
        text = "(its message cannot be formatted)"
    return failure(500, f"{type(error).__name__}: {text}")


def read_request(request: Request, limit: int, share: Share) -> object:
    """Return the JSON of a request, with its binary tensors in place.

    Args:
        request: The request.
        limit: Maximum size of a decompressed body, in bytes.
        share: Memory of the request.

    Raises:
        PredictionError: The body is not valid.
        HttpError: It is too large, or no memory is left for it.
    """
    body = decompress(request.body, request.encoding, limit, share)
    size = request.json_size
    if size is None:
        return parse(body, share)
    if size > len(body):
        raise PredictionError(f"{BINARY_HEADER} is {size}, but the request has {len(body)} bytes")
    document = parse(body[:size], share)
    share.grow(share.taken + len(body) - size)
    attach_binary(document, body[size:])
    return document


def write_answer(request: Request, document: object, found: dict[str, Any]) -> Answer:
    """Return the answer for a model's answer document.

    Args:
        request: The request.
        document: Its JSON, which may ask for binary outputs.
        found: The model's answer.

    Raises:
        ServingError: An output that is sent as JSON has NaN or infinity.
    """
    tail = detach_binary(document, found) if request.protocol == "v2" else b""
    try:
        data = render(found)
    except ValueError as error:
        raise ServingError(f"{NOT_FINITE}, and JSON has no other. Ask for binary data.") from error
    headers = {"content-type": JSON, "vary": "accept-encoding"}
    if tail:
        headers |= {BINARY_HEADER: str(len(data)), "content-type": "application/octet-stream"}
        data += tail
    elif request.zipped and len(data) >= _COMPRESSED_FROM:
        data = compress(data)
        headers["content-encoding"] = "gzip"
    return Answer(200, data, headers)


def answer_request(model: Served, request: Request, limit: int, share: Share) -> Answer:
    """Answer one request; any error becomes an answer.

    Args:
        model: The model.
        request: The request.
        limit: Maximum size of a decompressed body, in bytes.
        share: Memory of the request.
    """
    try:
        document = read_request(request, limit, share)
        return write_answer(request, document, model.answer(request.protocol, document))
    except Exception as error:  # noqa: BLE001 - any error of a model becomes an answer
        return failure_of(error)


@dataclass(frozen=True)
class _Asked:
    position: int
    document: object
    question: Question


def answer_requests(model: Served, requests: list[Request], limit: int, shares: list[Share]) -> list[Answer]:
    """Answer several requests; those of equal kind by one computation over all their rows.

    A request whose computation fails with others is computed again alone. So it cannot spoil their answers.

    Args:
        model: The model.
        requests: The requests.
        limit: Maximum size of a decompressed body, in bytes.
        shares: Memory of each request.
    """
    answers: dict[int, Answer] = {}
    groups: dict[object, list[_Asked]] = {}
    for position, (request, share) in enumerate(zip(requests, shares, strict=True)):
        try:
            document = read_request(request, limit, share)
            asked = _Asked(position, document, model.ask(request.protocol, document))
        except Exception as error:  # noqa: BLE001 - any error of a model becomes an answer
            answers[position] = failure_of(error)
            continue
        kind = kind_of(asked.question)
        groups.setdefault(position if kind is None else kind, []).append(asked)
    for group in groups.values():
        found = _compute_together(model, [asked.question for asked in group]) if len(group) > 1 else None
        for number, asked in enumerate(group):
            try:
                results = model.compute(asked.question) if found is None else found[number]
                answer = write_answer(
                    requests[asked.position], asked.document, asked.question.render(results)
                )
            except Exception as error:  # noqa: BLE001 - any error of a model becomes an answer
                answer = failure_of(error)
            answers[asked.position] = answer
    return [answers[position] for position in range(len(requests))]


def kind_of(question: Question) -> object:
    """Return a value that is equal for questions that one computation can answer; None if none can."""
    inputs = question.inputs
    if hasattr(inputs, "iloc"):
        kind: object = tuple((str(name), str(dtype)) for name, dtype in inputs.dtypes.items())
        if "category" in str(kind):
            return None
    elif isinstance(inputs, Mapping):
        if any(not value.ndim or len(value) != question.rows for value in inputs.values()):
            return None
        kind = tuple((name, value.dtype.str, value.shape[1:]) for name, value in inputs.items())
    else:
        kind = (inputs.dtype.str, inputs.shape[1:])
    return (question.outputs, question.optional, kind)


def _compute_together(model: Served, questions: list[Question]) -> list[dict[str, Any]] | None:
    """Return the outputs of each question from one computation; None if it failed or its rows cannot be parted."""
    import numpy as np

    first = questions[0]
    total = sum(question.rows for question in questions)
    try:
        if hasattr(first.inputs, "iloc"):
            import pandas as pd

            inputs: Any = pd.concat([question.inputs for question in questions], ignore_index=True)
        elif isinstance(first.inputs, Mapping):
            inputs = {
                name: np.concatenate([question.inputs[name] for question in questions])
                for name in first.inputs
            }
        else:
            inputs = np.concatenate([question.inputs for question in questions])
        found = model.compute(Question(inputs, total, first.outputs, first.optional, first.render))
    except Exception:  # noqa: BLE001 - each question is computed alone then, and gets its own error
        return None
    parts: list[dict[str, Any]] = [{} for _ in questions]
    for name, values in found.items():
        if not isinstance(values, np.ndarray) or not values.ndim or len(values) != total:
            return None
        start = 0
        for part, question in zip(parts, questions, strict=True):
            part[name] = values[start : start + question.rows]
            start += question.rows
    return parts
