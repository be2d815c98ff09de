"""gRPC of the model server: the Open Inference Protocol, beside HTTP in the same process.

A request becomes one with binary tensors of V2. So it has the same checks, limits, batches and worker processes, and
an equal answer. An answer has raw contents if the request had them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc import aio

from dvkf_prefect.errors import PredictionError
from dvkf_prefect.processes.identity import LOCALHOST
from dvkf_prefect.serving.answering import Answer, Request
from dvkf_prefect.serving.endpoint import VERSION_HEADER
from dvkf_prefect.serving.intake import BINARY_HEADER, MAX_REQUESTS, HttpError
from dvkf_prefect.serving.predictions import DATATYPES
from dvkf_prefect.serving.rpc_messages import METHODS, SERVICE, message
from dvkf_prefect.serving.service import Service
from dvkf_prefect.serving.tensors import pack_texts, unpack_texts
from dvkf_prefect.serving.traffic import STICKY_HEADER

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
# Field of a datatype's values; those of FP16 are raw alone.
_FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# Bytes of a request beside its tensors.
_ENVELOPE = 1 << 16


class RpcServer:
    """The gRPC service of a server; make it on the event loop.

    Args:
        service: What it answers with.
        port: Port on 127.0.0.1; a server before it on the same port may still end.
        limit: Maximum size of a request, in bytes.
    """

    def __init__(self, service: Service, port: int, limit: int) -> None:
        self._service = service
        self._server = aio.server(
            options=[
                ("grpc.max_receive_message_length", limit + _ENVELOPE),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 1),
            ],
            maximum_concurrent_rpcs=MAX_REQUESTS,
        )
        calls: dict[str, Callable[..., Any]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
        }
        handlers = {
            method: grpc.unary_unary_rpc_method_handler(
                calls[method],
                request_deserializer=message(f"{method}Request").FromString,
                response_serializer=message(f"{method}Response").SerializeToString,
            )
            for method in METHODS
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self._server.add_insecure_port(f"{LOCALHOST}:{port}")

    async def start(self) -> None:
        """Accept requests."""
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Stop accepting, and wait for the answers to requests.

        Args:
            grace: Seconds to wait.
        """
        await self._server.stop(grace)

    async def _server_live(self, request: Any, context: Any) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def _server_ready(self, request: Any, context: Any) -> Any:
        return message("ServerReadyResponse")(ready=self._service.all_ready)

    async def _model_ready(self, request: Any, context: Any) -> Any:
        try:
            lane = self._service.models.lane(request.name, request.version or None)
        except HttpError as error:
            await _abort(context, error.status, str(error))
        return message("ModelReadyResponse")(ready=lane.ready)

    async def _server_metadata(self, request: Any, context: Any) -> Any:
        return message("ServerMetadataResponse")(name="dvkf-prefect", version=self._service.version)

    async def _model_metadata(self, request: Any, context: Any) -> Any:
        try:
            found = self._service.describe(request.name, request.version or None)
        except HttpError as error:
            await _abort(context, error.status, str(error))
        return message("ModelMetadataResponse")(**{key: found[key] for key in found if key != "features"})

    async def _model_infer(self, request: Any, context: Any) -> Any:
        metadata = dict(context.invocation_metadata() or ())
        try:
            asked = _to_v2(request)
            with self._service.budget.share() as share:
                share.grow(len(asked.body))
                version, answer = await self._service.compute(
                    request.model_name,
                    request.model_version or None,
                    metadata.get(STICKY_HEADER),
                    asked,
                    share,
                    label="grpc",
                )
        except PredictionError as error:
            await _abort(context, 400, str(error))
        except HttpError as error:
            await _abort(context, error.status, str(error))
        await context.send_initial_metadata(((VERSION_HEADER, version),))
        if answer.status != 200:
            await _abort(context, answer.status, json.loads(answer.body)["error"])
        return _to_message(answer, raw=bool(request.raw_input_contents))


async def _abort(context: Any, status: int, text: str) -> None:
    await context.abort(_CODES.get(status, grpc.StatusCode.INTERNAL), text)


def _to_v2(request: Any) -> Request:
    """Return the V2 request with binary tensors for a message.

    Raises:
        PredictionError: Its contents do not fit its tensors.
    """
    raw: Sequence[bytes] = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise PredictionError(
            f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs. Send one for each input, or none."
        )
    inputs, parts = [], []
    for position, tensor in enumerate(request.inputs):
        fields = [field.name for field, _ in tensor.contents.ListFields()]
        if raw and fields:
            raise PredictionError(
                f"input '{tensor.name}' has contents beside raw_input_contents. Send one of both."
            )
        part = raw[position] if raw else _packed(tensor, fields)
        parts.append(part)
        inputs.append(
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "datatype": tensor.datatype,
                "parameters": {"binary_data_size": len(part)},
            }
        )
    document: dict[str, Any] = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    if request.outputs:
        document["outputs"] = [{"name": output.name} for output in request.outputs]
    if request.id:
        document["id"] = request.id
    head = json.dumps(document).encode()
    return Request("v2", b"".join([head, *parts]), json_size=len(head))


def _packed(tensor: Any, fields: Sequence[str]) -> bytes:
    """Return the values of a tensor's contents as raw bytes."""
    import numpy as np

    wanted = _FIELDS.get(tensor.datatype)
    if wanted is None:
        known = "has raw contents only" if tensor.datatype in DATATYPES else "is not supported"
        raise PredictionError(f"input '{tensor.name}': datatype {tensor.datatype!r} {known}")
    if [*fields] not in ([], [wanted]):
        raise PredictionError(
            f"input '{tensor.name}' has {', '.join(fields)}. Send {wanted} for {tensor.datatype}."
        )
    values = getattr(tensor.contents, wanted)
    if tensor.datatype == "BYTES":
        return pack_texts(values)
    try:
        array = np.asarray(list(values), np.dtype(DATATYPES[tensor.datatype]).newbyteorder("<"))
    except OverflowError as error:
        raise PredictionError(
            f"input '{tensor.name}': a value is out of the range of {tensor.datatype}"
        ) from error
    return array.tobytes()


def _to_message(answer: Answer, *, raw: bool) -> Any:
    """Return the message of a V2 answer with binary tensors."""
    import numpy as np

    size = int(answer.headers.get(BINARY_HEADER, len(answer.body)))
    document = json.loads(answer.body[:size])
    response = message("ModelInferResponse")(
        model_name=document["model_name"], model_version=document["model_version"], id=document.get("id", "")
    )
    # FP16 has no field, and contents are either raw for all outputs or for none.
    raw = raw or any(output["datatype"] not in _FIELDS for output in document["outputs"])
    for output in document["outputs"]:
        length = output["parameters"]["binary_data_size"]
        part, size = answer.body[size : size + length], size + length
        name, datatype = output["name"], output["datatype"]
        tensor = response.outputs.add(name=name, datatype=datatype, shape=output["shape"])
        if raw:
            response.raw_output_contents.append(part)
        elif datatype == "BYTES":
            tensor.contents.bytes_contents.extend(unpack_texts(part))
        else:
            array = np.frombuffer(part, np.dtype(DATATYPES[datatype]).newbyteorder("<"))
            getattr(tensor.contents, _FIELDS[datatype]).extend(array.tolist())
    return response
