"""Tensors of Open Inference Protocol V2 requests and answers, as JSON or as binary data.

The binary data extension (https://github.com/kserve/open-inference-protocol) is KServe's and Triton's: the header
``Inference-Header-Content-Length`` is the size of the JSON; raw little-endian values follow it. An input has their
size in ``parameters.binary_data_size``. An element of BYTES is four bytes of length and its content.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dvkf_prefect.errors import PredictionError
from dvkf_prefect.serving.predictions import DATATYPES

if TYPE_CHECKING:
    import numpy.typing as npt

BINARY_EXTENSION = "binary_tensor_data"
_SIZE = "binary_data_size"


class _Raw(bytes):
    """Binary data of one tensor, in place of its JSON list."""


def attach_binary(document: object, tail: bytes) -> None:
    """Put the binary data after a request's JSON in place of the ``data`` of its inputs.

    Args:
        document: The parsed JSON; changed in place.
        tail: All bytes after the JSON.

    Raises:
        PredictionError: The sizes of the inputs do not add up to the bytes sent.
    """
    inputs = document.get("inputs") if isinstance(document, dict) else None
    start = 0
    for entry in inputs if isinstance(inputs, list) else ():
        parameters = entry.get("parameters") if isinstance(entry, dict) else None
        size = parameters.get(_SIZE) if isinstance(parameters, dict) else None
        if size is None:
            continue
        if type(size) is not int or size < 0 or start + size > len(tail):
            raise PredictionError(
                f"input '{entry.get('name')}': {_SIZE} {size!r} exceeds the {len(tail) - start} bytes left. Send as "
                "many bytes as the inputs name."
            )
        entry["data"] = _Raw(tail[start : start + size])
        start += size
    if start != len(tail):
        raise PredictionError(
            f"{len(tail) - start} bytes follow the binary data of the inputs. Give each binary input its "
            f"parameters.{_SIZE}."
        )


def detach_binary(document: object, answer: dict[str, Any]) -> bytes:
    """Move the outputs that the request wants as binary data out of an answer.

    Args:
        document: The request. ``parameters.binary_data_output`` is its default, ``outputs[].parameters.binary_data``
            the choice of one output.
        answer: The V2 answer. Such outputs lose ``data`` and get ``parameters.binary_data_size``.

    Returns:
        The bytes that follow the answer's JSON; empty without such outputs.
    """
    if not isinstance(document, dict):
        return b""
    default = _parameter(document, "binary_data_output") is True
    wanted = {
        entry["name"]: _parameter(entry, "binary_data")
        for entry in document.get("outputs") or ()
        if isinstance(entry, dict) and isinstance(entry.get("name"), str)
    }
    parts = []
    for output in answer["outputs"]:
        asked = wanted.get(output["name"], wanted.get(output["name"].rpartition("-")[0]))
        if asked if isinstance(asked, bool) else default:
            data = _to_bytes(output.pop("data"), output["datatype"])
            output["parameters"] = {_SIZE: len(data)}
            parts.append(data)
    return b"".join(parts)


def _parameter(entry: Mapping[str, Any], name: str) -> Any:
    parameters = entry.get("parameters")
    return parameters.get(name) if isinstance(parameters, dict) else None


def _to_bytes(values: list[Any], datatype: str) -> bytes:
    import numpy as np

    if datatype == "BYTES":
        return pack_texts([text.encode() for text in values])
    return np.asarray(values, np.dtype(DATATYPES[datatype]).newbyteorder("<")).tobytes()


def _from_bytes(name: str, data: bytes, datatype: str) -> npt.NDArray[Any]:
    import numpy as np

    if datatype != "BYTES":
        dtype = np.dtype(DATATYPES[datatype])
        if len(data) % dtype.itemsize:
            raise PredictionError(f"input '{name}': {len(data)} bytes are not whole values of {datatype}")
        if datatype == "BOOL" and data.strip(b"\0\1"):
            raise PredictionError(f"input '{name}': a BOOL is a byte 0 or 1")
        return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)
    try:
        texts = [text.decode() for text in unpack_texts(data)]
    except (ValueError, struct.error) as error:
        raise PredictionError(
            f"input '{name}': the binary data is not a list of UTF-8 texts with lengths"
        ) from error
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array


def check_request(document: Mapping[str, Any]) -> None:
    """Check the fields of a request beside its tensors.

    Args:
        document: The request.

    Raises:
        PredictionError: Its id is no text, or its parameters are not valid.
    """
    if not isinstance(document.get("id"), str | None):
        raise PredictionError("the request: id must be a text")
    check_parameters(document, "the request")


def check_parameters(entry: Mapping[str, Any], what: str) -> None:
    """Check the parameters of a request or a tensor.

    Args:
        entry: The request or the tensor.
        what: Its name for the error.

    Raises:
        PredictionError: A value is neither a text nor a number nor a boolean, as the protocol wants.
    """
    parameters = entry.get("parameters")
    if parameters is None:
        return
    if not isinstance(parameters, dict):
        raise PredictionError(f"{what}: parameters is an object")
    for name, value in parameters.items():
        if not isinstance(value, str | int | float):
            raise PredictionError(f"{what}: parameter '{name}' must be a text, a number or a boolean")


def pack_texts(texts: Iterable[bytes]) -> bytes:
    """Return texts as the binary data of a BYTES tensor."""
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def unpack_texts(data: bytes) -> list[bytes]:
    """Return the texts in the binary data of a BYTES tensor.

    Raises:
        ValueError: It ends in the middle of a text.
        struct.error: It ends in the middle of a length.
    """
    texts = []
    start = 0
    while start < len(data):
        end = start + 4 + struct.unpack_from("<I", data, start)[0]
        if end > len(data):
            raise ValueError("the data ends in the middle of a text")
        texts.append(data[start + 4 : end])
        start = end
    return texts


def read_tensor(entry: object) -> tuple[str, npt.NDArray[Any]]:
    """Read one V2 input tensor; its data may be nested or flat, as the protocol allows.

    Returns:
        Its name and its values, of its shape and datatype. NaN stands for null among numbers.

    Raises:
        PredictionError: The tensor is not valid; the message names the input.
    """
    import numpy as np

    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise PredictionError("an input has name, shape, datatype and data")
    name: str = entry["name"]
    check_parameters(entry, f"input '{name}'")
    shape, datatype, data = entry.get("shape"), entry.get("datatype"), entry.get("data")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise PredictionError(f"input '{name}': shape must be a list of whole numbers")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise PredictionError(
            f"input '{name}': datatype {datatype!r} is not supported. Use one of {', '.join(DATATYPES)}."
        )
    if isinstance(data, _Raw):
        array = _from_bytes(name, data, datatype)
    elif isinstance(data, list):
        array = read_array(data, f"data of shape {shape}")
    else:
        raise PredictionError(f"input '{name}': data must be a JSON array")
    if array.size != math.prod(shape):
        raise PredictionError(f"input '{name}': {array.size} values do not fill shape {shape}")
    dtype = np.dtype(DATATYPES[datatype])
    if dtype.kind == "O" and array.dtype.kind == "f" and np.isnan(array).all():
        # Only nulls.
        array = np.full(array.shape, None, dtype=object)
    fits = {"b": "b", "u": "iu", "i": "iu", "f": "iuf", "O": "O"}[dtype.kind]
    if array.size and array.dtype.kind not in fits:
        raise PredictionError(f"input '{name}': the data is not all {datatype}")
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise PredictionError(f"input '{name}': a value is out of the range of {datatype}")
    with np.errstate(over="ignore"):
        return name, array.astype(dtype).reshape(shape)


def read_instances(document: object, wanted: str) -> list[Any]:
    """Return the instances of a V1 request, at least one.

    Args:
        document: The JSON of the request.
        wanted: Description of valid instances, for the error.

    Raises:
        PredictionError: It has none.
    """
    if not isinstance(document, dict) or not isinstance(document.get("instances"), list):
        raise PredictionError(f'expected {{"instances": [...]}}, {wanted}')
    if not document["instances"]:
        raise PredictionError(f"instances is empty; expected {wanted}")
    instances: list[Any] = document["instances"]
    return instances


def read_array(values: object, wanted: str) -> npt.NDArray[Any]:
    """Convert JSON values to an array; NaN stands for null among numbers.

    Args:
        values: Nested lists of numbers, or of texts.
        wanted: Description of valid values, for the error.

    Raises:
        PredictionError: The rows differ in length, or values are mixed, objects or out of range.
    """
    import numpy as np

    try:
        array = np.asarray(values)
    except ValueError as error:
        raise PredictionError(f"the rows differ in length; expected {wanted}") from error
    if array.dtype.kind == "U":
        return array.astype(object)
    if array.dtype.kind == "O":
        return _with_nulls(array, wanted)
    return array


def _with_nulls(array: npt.NDArray[Any], wanted: str) -> npt.NDArray[Any]:
    """Return an array of numbers with NaN for null, or of texts with None."""
    kinds = {type(value) for value in array.ravel().tolist()}
    if type(None) in kinds and kinds <= {type(None), int, float, bool}:
        try:
            return array.astype(float)
        except OverflowError as error:
            raise PredictionError(f"a value is out of range; expected {wanted}") from error
    if type(None) in kinds and kinds <= {type(None), str}:
        return array
    raise PredictionError(f"a value is an object or out of range, or of another type; expected {wanted}")
