"""Sends the requests, and writes down what came back."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from dvkf_prefect.serving.rpc_messages import SERVICE, message
from kserve_peer.asks import BINARY, Ask, Call

# Items above which a list is written down as its digest, and characters above which a text is left out.
_MANY = 1000
_LONG = 2000
_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def send(ask: Ask, port: int) -> dict[str, Any]:
    """Send a request over HTTP on a connection of its own.

    Returns:
        The status; the media type, if there is a body; ``json``, ``text`` or ``bytes`` in hexadecimal.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        headers = dict(ask.headers)
        if ask.chunked and ask.body:
            headers["Transfer-Encoding"] = "chunked"
            parts = iter([ask.body[:10], ask.body[10:]])
            connection.request(ask.method, ask.path, parts, headers, encode_chunked=True)
        else:
            connection.request(ask.method, ask.path, ask.body, headers)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    found: dict[str, Any] = {"status": answer.status}
    size = answer.headers.get(BINARY)
    if size is not None:
        found["bytes"] = body[int(size) :].hex()
        body = body[: int(size)]
    elif body:
        found["type"] = answer.headers.get_content_type()
    if answer.headers.get("allow"):
        found["allow"] = answer.headers["allow"]
    try:
        found["json"] = _brief(json.loads(body))
    except ValueError:
        if body and len(body) <= _LONG:
            found["text"] = body.decode()
    return found


def call(asked: Call, channel: grpc.Channel) -> dict[str, Any]:
    """Send a request over gRPC.

    Returns:
        The status code, and ``message`` or ``details``.
    """
    stub = channel.unary_unary(
        f"/{SERVICE}/{asked.method}",
        request_serializer=message(f"{asked.method}Request").SerializeToString,
        response_deserializer=message(f"{asked.method}Response").FromString,
    )
    request = message(f"{asked.method}Request")(**asked.fields)
    try:
        answer = stub(request, timeout=60, wait_for_ready=True)
    except grpc.RpcError as error:
        return {"code": error.code().name, "details": error.details()}
    return {"code": "OK", "message": _brief(MessageToDict(answer, preserving_proto_field_name=True))}


def _brief(document: Any) -> Any:
    """Return a document without what differs from run to run, and without long lists and many keys."""
    if isinstance(document, dict):
        if len(json.dumps(document)) > 10 * _MANY and "openapi" in document:
            return sorted(document)
        document = {key: _brief(value) for key, value in document.items()}
        if isinstance(document.get("id"), str) and _UUID.fullmatch(document["id"]):
            document["id"] = "<uuid>"
        return document
    if isinstance(document, list):
        if len(document) > _MANY:
            digest = hashlib.sha256(json.dumps(document).encode()).hexdigest()[:16]
            return f"<{len(document)} items of digest {digest}>"
        return [_brief(value) for value in document]
    return document
