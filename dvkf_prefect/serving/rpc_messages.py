"""Messages of the Open Inference Protocol over gRPC, as its specification defines them, without generated code.

Source: https://github.com/kserve/open-inference-protocol, ``specification/protocol/open_inference_grpc.proto``. The
messages are in a pool of their own, since clients of KServe and of Triton bring messages of the same names.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)

SERVICE = "inference.GRPCInferenceService"
METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")

_PARAMETERS = "map InferParameter"
_TENSOR = {"name": "string", "datatype": "string", "shape": "repeated int64"}
_NAMED = {"name": "string", "version": "string"}
_CONTENTS = {**_TENSOR, "parameters": _PARAMETERS, "contents": "InferTensorContents"}
_MODEL = {"model_name": "string", "model_version": "string", "id": "string", "parameters": _PARAMETERS}
# By message, its fields in the order of their numbers from 1. A dot stands before a message inside another one.
_MESSAGES: dict[str, dict[str, str]] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": "bool"},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": "bool"},
    "ModelReadyRequest": _NAMED,
    "ModelReadyResponse": {"ready": "bool"},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {**_NAMED, "extensions": "repeated string"},
    "ModelMetadataRequest": _NAMED,
    "ModelMetadataResponse": {
        "name": "string",
        "versions": "repeated string",
        "platform": "string",
        "inputs": "repeated ModelMetadataResponse.TensorMetadata",
        "outputs": "repeated ModelMetadataResponse.TensorMetadata",
    },
    "ModelMetadataResponse.TensorMetadata": _TENSOR,
    "ModelInferRequest": {
        **_MODEL,
        "inputs": "repeated ModelInferRequest.InferInputTensor",
        "outputs": "repeated ModelInferRequest.InferRequestedOutputTensor",
        "raw_input_contents": "repeated bytes",
    },
    "ModelInferRequest.InferInputTensor": _CONTENTS,
    "ModelInferRequest.InferRequestedOutputTensor": {"name": "string", "parameters": _PARAMETERS},
    "ModelInferResponse": {
        **_MODEL,
        "outputs": "repeated ModelInferResponse.InferOutputTensor",
        "raw_output_contents": "repeated bytes",
    },
    "ModelInferResponse.InferOutputTensor": _CONTENTS,
    "InferParameter": {
        "bool_param": "one bool",
        "int64_param": "one int64",
        "string_param": "one string",
        "double_param": "one double",
        "uint64_param": "one uint64",
    },
    "InferTensorContents": {
        "bool_contents": "repeated bool",
        "int_contents": "repeated int32",
        "int64_contents": "repeated int64",
        "uint_contents": "repeated uint32",
        "uint64_contents": "repeated uint64",
        "fp32_contents": "repeated float",
        "fp64_contents": "repeated double",
        "bytes_contents": "repeated bytes",
    },
}


def _descriptors() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="dvkf_open_inference_grpc.proto", package="inference", syntax="proto3"
    )
    made: dict[str, descriptor_pb2.DescriptorProto] = {}
    for name, fields in _MESSAGES.items():
        outer, _, inner = name.rpartition(".")
        message = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=name)
        made[name] = message
        for number, (field, kind) in enumerate(fields.items(), 1):
            _add_field(message, f".inference.{name}", field, number, kind)
    service = file.service.add(name=SERVICE.rpartition(".")[2])
    for method in METHODS:
        service.method.add(
            name=method,
            input_type=f".inference.{method}Request",
            output_type=f".inference.{method}Response",
        )
    return file


def _add_field(
    message: descriptor_pb2.DescriptorProto, full_name: str, name: str, number: int, kind: str
) -> None:
    types = descriptor_pb2.FieldDescriptorProto
    how, _, what = kind.rpartition(" ")
    field = message.field.add(name=name, number=number, label=types.LABEL_OPTIONAL)
    if how in ("repeated", "map"):
        field.label = types.LABEL_REPEATED
    if how == "one":
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    if how == "map":
        entry = message.nested_type.add(name="ParametersEntry")
        entry.options.map_entry = True
        _add_field(entry, "", "key", 1, "string")
        _add_field(entry, "", "value", 2, what)
        field.type, field.type_name = types.TYPE_MESSAGE, f"{full_name}.ParametersEntry"
    elif what[0].isupper():
        field.type, field.type_name = types.TYPE_MESSAGE, f".inference.{what}"
    else:
        field.type = types.Type.Value(f"TYPE_{what.upper()}")


_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(_descriptors())


def message(name: str) -> Any:
    """Return the class of a message.

    Args:
        name: Its name, such as ``ModelInferRequest``.
    """
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"inference.{name}"))
