"""Pandas frames as tensors of the Open Inference Protocol, and its answers as series and frames.

A model trained with named columns gets each column by its name; another gets one tensor of all columns. Texts and
categories are BYTES. A missing value is null. An answer has the index of the frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dvkf_prefect.errors import PredictionError, ServingError

if TYPE_CHECKING:
    import pandas as pd

_PREDICT = "predict"


def is_frame(values: object) -> bool:
    """Return True for a pandas frame, without importing pandas."""
    return hasattr(values, "iloc") and hasattr(values, "to_dict") and hasattr(values, "columns")


def tensors_of_frame(frame: pd.DataFrame, metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return V2 input tensors for the rows of a frame.

    Args:
        frame: The frame, shape ``[rows, columns]``.
        metadata: V2 metadata of the model: ``inputs``, and ``features`` if it was trained with named columns.

    Raises:
        PredictionError: The columns are not those of the model, or have values that cannot be sent; the message
            names them.
    """
    columns = [str(name) for name in frame.columns]
    if doubled := sorted({name for name in columns if columns.count(name) > 1}):
        raise PredictionError(f"the frame has several columns {', '.join(doubled)}. Rename them.")
    inputs = metadata.get("inputs") or []
    names = metadata.get("features") or [each["name"] for each in inputs]
    if metadata.get("features") or len(names) > 1 or names == columns:
        missing = [name for name in names if name not in columns]
        unknown = [name for name in columns if name not in names]
        if missing or unknown:
            said = [f"lacks columns {', '.join(missing)}"] if missing else []
            said += [f"has unknown columns {', '.join(unknown)}"] if unknown else []
            raise PredictionError(
                f"the frame {' and '.join(said)}. The model was trained with {', '.join(names)}."
            )
        by_name = {str(name): frame.iloc[:, position] for position, name in enumerate(frame.columns)}
        deep = {each["name"]: len(each.get("shape") or ()) for each in inputs}
        return [_column(name, by_name[name], deep.get(name, 1)) for name in names]
    return [_matrix(frame, columns, inputs[0] if inputs else {})]


def _column(name: str, column: pd.Series[Any], dimensions: int) -> dict[str, Any]:
    datatype, data = _values(name, column)
    shape = [len(data)] + [1] * (dimensions - 1)
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def _matrix(frame: pd.DataFrame, columns: Sequence[str], wanted: Mapping[str, Any]) -> dict[str, Any]:
    width = (wanted.get("shape") or [-1])[-1]
    if width not in (-1, len(columns)):
        raise PredictionError(
            f"the frame has {len(columns)} columns ({', '.join(columns)}). The model takes {width}."
        )
    read = [_values(name, frame.iloc[:, position]) for position, name in enumerate(columns)]
    texts = [name for name, (datatype, _) in zip(columns, read, strict=True) if datatype == "BYTES"]
    if texts and len(texts) < len(columns):
        raise PredictionError(
            f"the columns {', '.join(texts)} are texts, others are numbers. This model takes one tensor of one type."
        )
    kinds = {kind for kind, _ in read}
    datatype = "BYTES" if texts else wanted.get("datatype") or (kinds.pop() if len(kinds) == 1 else "FP64")
    rows = zip(*(data for _, data in read), strict=True)
    data = [value for row in rows for value in row]
    if datatype != "BOOL":
        data = [int(value) if isinstance(value, bool) else value for value in data]
    return {
        "name": wanted.get("name", "input-0"),
        "shape": [len(frame), len(columns)],
        "datatype": datatype,
        "data": data,
    }


def _values(name: str, column: pd.Series[Any]) -> tuple[str, list[Any]]:
    """Return the datatype of a column, and its values with None for missing ones."""
    import pandas as pd

    kinds = pd.api.types
    missing = column.isna().tolist()
    dtype = column.dtype.categories.dtype if isinstance(column.dtype, pd.CategoricalDtype) else column.dtype
    if kinds.is_bool_dtype(dtype) and not any(missing):
        return "BOOL", [bool(value) for value in column.tolist()]
    if kinds.is_integer_dtype(dtype) and not any(missing):
        return ("UINT64" if kinds.is_unsigned_integer_dtype(dtype) else "INT64"), [int(v) for v in column]
    if kinds.is_numeric_dtype(dtype) and not kinds.is_complex_dtype(dtype):
        return "FP64", [
            None if gone else float(value) for value, gone in zip(column.tolist(), missing, strict=True)
        ]
    values = [None if gone else value for value, gone in zip(column.tolist(), missing, strict=True)]
    if odd := next((value for value in values if value is not None and not isinstance(value, str)), None):
        raise PredictionError(
            f"column '{name}' has a {type(odd).__name__}. Use numbers, texts or categories of them."
        )
    return "BYTES", values


def names_of_answer(metadata: Mapping[str, Any]) -> Sequence[str]:
    """Return the outputs to ask for: the prediction alone, if the model has others beside it."""
    outputs = [each["name"] for each in metadata.get("outputs") or ()]
    return (_PREDICT,) if _PREDICT in outputs or metadata.get("features") else ()


def answer_of(frame: pd.DataFrame, outputs: Sequence[Mapping[str, Any]]) -> pd.Series[Any] | pd.DataFrame:
    """Return V2 output tensors as a series, or as a frame if they have several columns.

    Args:
        frame: The frame that was asked for.
        outputs: The tensors.

    Raises:
        ServingError: A tensor does not have a row for each row of the frame.
    """
    import numpy as np
    import pandas as pd

    columns: dict[str, Any] = {}
    for output in outputs:
        data = output["data"]
        values = np.asarray(data, dtype=object if output["datatype"] == "BYTES" else None)
        values = values.reshape(output["shape"])
        if not values.ndim or len(values) != len(frame):
            raise ServingError(
                f"output '{output['name']}' has shape {output['shape']}, and the frame {len(frame)} rows"
            )
        flat = values.reshape(len(frame), -1)
        if values.ndim == 1 or flat.shape[1] == 1:
            columns[output["name"]] = flat[:, 0]
        else:
            columns |= {f"{output['name']}-{number}": flat[:, number] for number in range(flat.shape[1])}
    found = pd.DataFrame(columns, index=frame.index).infer_objects()
    return found.iloc[:, 0] if len(columns) == 1 else found


def answer_of_rows(frame: pd.DataFrame, predictions: Sequence[Any]) -> pd.Series[Any] | pd.DataFrame:
    """Return V1 predictions as a series, or as a frame if each is a list or a mapping.

    Args:
        frame: The frame that was asked for.
        predictions: One prediction per row.

    Raises:
        ServingError: Their number is not that of the rows.
    """
    import pandas as pd

    if len(predictions) != len(frame):
        raise ServingError(f"{len(predictions)} predictions for {len(frame)} rows of the frame")
    if predictions and isinstance(predictions[0], list | dict):
        return pd.DataFrame(list(predictions), index=frame.index)
    return pd.Series(list(predictions), index=frame.index, name=_PREDICT)
