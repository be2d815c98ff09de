"""Conversion of a model's answers, of any shape and type, to JSON values and Open Inference Protocol tensors."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dvkf_prefect.errors import ServingError

if TYPE_CHECKING:
    import numpy.typing as npt

DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}
NOT_FINITE = "the model predicted a value that is not a finite number"
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_DEPTH = 32


def rows_of(answer: Any) -> list[Any]:
    """Convert an answer to JSON values, one per row if it has rows.

    Args:
        answer: Return value of an estimator's method: an array, a table, a sparse matrix, a mapping of columns, ...

    Raises:
        ServingError: It contains NaN or infinity, which JSON cannot express.
    """
    columns = _columns(answer)
    if columns is not None:
        names, values = list(columns), [rows_of(column) for column in columns.values()]
        if values and len({len(column) for column in values}) == 1:
            return [dict(zip(map(str, names), row, strict=True)) for row in zip(*values, strict=True)]
        return [dict(zip(map(str, names), values, strict=True))]
    array = _array(answer)
    if array.dtype.kind in "biuf":
        _check_finite(array)
        plain: Any = array.tolist()
    else:
        plain = _value(array)
    return plain if isinstance(plain, list) else [plain]


def tensors_of(name: str, answer: Any, rows: int) -> list[dict[str, Any]]:
    """Convert an answer to V2 output tensors.

    Args:
        name: Name of the output. Parts of an answer are ``NAME-PART``: a column's name or a number.
        answer: Return value of an estimator's method.
        rows: Number of rows in the request; distinguishes a list of outputs from a list of rows.

    Returns:
        The tensors; their data may have NaN and infinity, which binary tensors and gRPC can express.
    """
    parts: Mapping[Any, Any] | None = _columns(answer)
    if parts is None and isinstance(answer, list | tuple) and _is_several(answer, rows):
        parts = dict(enumerate(answer))
    if parts is None:
        return [_tensor(name, answer)]
    return [_tensor(f"{name}-{part}", values) for part, values in parts.items()]


def _is_several(answer: Any, rows: int) -> bool:
    """Distinguish a list of one array per output, as forests return for several targets, from a list of rows."""
    shapes: list[tuple[int, ...]] = [getattr(part, "shape", ()) for part in answer]
    if not shapes or not all(len(shape) >= 1 and shape[0] == rows for shape in shapes):
        return False
    return len(answer) != rows or all(len(shape) >= 2 for shape in shapes)


def _columns(answer: Any) -> Mapping[Any, Any] | None:
    if isinstance(answer, Mapping):
        return answer
    # A table of pandas, polars or another library, recognised by its attributes without an import.
    if hasattr(answer, "columns") and hasattr(answer, "iloc"):
        return {name: answer.iloc[:, position] for position, name in enumerate(answer.columns)}
    return None


def _array(answer: Any) -> npt.NDArray[Any]:
    import numpy as np

    if hasattr(answer, "toarray") and hasattr(answer, "nnz"):
        answer = answer.toarray()
    if isinstance(answer, np.ma.MaskedArray):
        return np.asarray(answer.tolist(), dtype=object)
    if hasattr(answer, "isna") and not _is_numbers(answer):
        # pandas' own types: missing values become null, not NaN.
        missing = np.asarray(answer.isna(), dtype=bool)
        answer = np.asarray(answer, dtype=object).copy()
        answer[missing] = None
    if not isinstance(answer, np.ndarray) and hasattr(answer, "to_numpy"):
        answer = answer.to_numpy()
    try:
        # Keep the types where numpy would guess, such as numbers among texts.
        array = np.asarray(answer, dtype=object if _is_mixed(answer) else None)
    except ValueError:
        # Rows of different lengths.
        array = np.empty(len(answer), dtype=object)
        array[:] = [np.asarray(row, dtype=object) if isinstance(row, list | tuple) else row for row in answer]
    if array.dtype.kind == "f" and array.dtype.name not in _NAMES:
        array = array.astype(float)
    if array.dtype.kind == "O" and array.size:
        array = _narrowed(array)
    return array


def _is_numbers(values: Any) -> bool:
    return type(values.dtype).__module__.startswith("numpy") and values.dtype.kind in "biuf"


def _is_mixed(answer: Any) -> bool:
    if not isinstance(answer, list | tuple):
        return False
    kinds = {type(value) for value in answer}
    return len(kinds) > 1 and any(issubclass(kind, str | bytes | bool) for kind in kinds)


def _narrowed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Convert an array of objects to numbers if all are of one numeric kind."""
    import numpy as np

    kinds = {type(value) for value in array.ravel().tolist()}
    if kinds <= {float} or kinds <= {int} or kinds <= {bool}:
        narrow = np.asarray(array.tolist())
        if narrow.dtype.kind in "biuf" and narrow.shape == array.shape:
            return narrow
    return array


def _check_finite(array: npt.NDArray[Any]) -> None:
    import numpy as np

    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ServingError(NOT_FINITE)


def _tensor(name: str, answer: Any) -> dict[str, Any]:
    array = _array(answer)
    if not array.ndim:
        array = array.reshape(1)
    datatype = _NAMES.get(array.dtype.name, "BYTES")
    flat = array.ravel()
    data = flat.tolist() if datatype != "BYTES" else [_text(value) for value in _value(flat)]
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": data}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _value(value: Any, depth: int = _DEPTH) -> Any:
    """Convert one answer to JSON's own types; other types become text."""
    if value is None or isinstance(value, str | bool):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ServingError(NOT_FINITE)
        return float(value)
    if depth == 0:
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _value(each, depth - 1) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_value(each, depth - 1) for each in value]
    return _scalar(value, depth)


def _scalar(value: Any, depth: int) -> Any:
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind in "Mm" and hasattr(value, "astype"):
        texts = value.astype(str).tolist()
        return _times(texts)
    if hasattr(value, "tolist"):
        plain = value.tolist()
        return _value(plain, depth - 1) if type(plain) is not type(value) else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        raw = bytes(value)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return base64.b64encode(raw).decode()
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _times(texts: Any) -> Any:
    if isinstance(texts, list):
        return [_times(text) for text in texts]
    return None if texts == "NaT" else texts
