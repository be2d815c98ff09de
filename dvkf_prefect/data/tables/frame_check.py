"""Check that a written table reads back unchanged, so that losses are found before it is tracked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import pandas as pd

# Kinds of dtype that parquet and feather keep unchanged, so that they need not be read back.
_KEPT_BY_ARROW = "biuMm"
_SHOWN = 60
_BLOCK = 10_000


class LossError(Exception):
    """Raised for a table that a format cannot hold; the message names the column."""


def check_shape(frame: pd.DataFrame, kind: str, index: bool) -> None:
    """Refuse tables whose names or index would be lost.

    Args:
        frame: Table to write.
        kind: Format.
        index: True if the index is written too.

    Raises:
        LossError: Columns share a name, or a meaningful index is not written.
    """
    import pandas as pd

    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise LossError(f"two columns are called {_shown(twice[0])}. Rename one")
    if kind == "feather" and (odd := [name for name in frame.columns if not isinstance(name, str)]):
        raise LossError(f"the column {_shown(odd[0])} has a name that is not a string. Rename it")
    rows = frame.index
    named = isinstance(rows, pd.MultiIndex) or rows.name is not None
    if not index and (named or (len(rows) and not pd.api.types.is_integer_dtype(rows.dtype))):
        raise LossError(
            "the index would be lost. Turn it into columns with reset_index(), or write it with index=True"
        )


def expected(frame: pd.DataFrame, kind: str, index: bool) -> pd.DataFrame:
    """Return the table that a lossless round trip gives.

    Args:
        frame: Table that was written.
        kind: Format.
        index: True if the index was written too.
    """
    if not index:
        return frame.reset_index(drop=True)
    if kind == "parquet":
        return frame
    if kind in ("csv", "tsv"):
        # An unnamed index becomes an unnamed column, which pandas names by its position.
        names = [f"Unnamed: {n}" if name is None else name for n, name in enumerate(frame.index.names)]
        return frame.reset_index(names=names)
    return frame.reset_index()


def columns_to_read(frame: pd.DataFrame, kind: str) -> list[Any] | None:
    """Return the columns to read back for a comparison; None for all."""
    if kind not in ("parquet", "feather"):
        return None
    # Half floats, objects, categories and pandas' own types may change in a round trip.
    return [
        name
        for name, dtype in frame.dtypes.items()
        if type(dtype).__module__.startswith("pandas")
        or not (dtype.kind in _KEPT_BY_ARROW or (dtype.kind == "f" and dtype.itemsize > 2))
    ]


def compare(wanted: pd.DataFrame, got: pd.DataFrame) -> None:
    """Compare a written table with the one read back.

    Types may be wider or narrower if all values are equal: a small integer may read as a large one, a category as its
    text. All markers of missing values are equal.

    Raises:
        LossError: A value differs; the message names the column and row.
    """
    import pandas as pd

    if list(wanted.columns) != list(got.columns):
        names = zip([*wanted.columns, None], [*got.columns, None], strict=False)
        old, new = next((pair for pair in names if not _same(*pair)), (None, None))
        raise LossError(f"the column {_shown(old)} is read back as {_shown(new)}. Rename it with plain text")
    if len(wanted) != len(got):
        raise LossError(f"{len(wanted)} rows are read back as {len(got)}")
    if isinstance(wanted.index, pd.MultiIndex) or list(wanted.index) != list(range(len(wanted))):
        _compare_column("(the index)", wanted.index.to_series(), got.index.to_series())
    for position, name in enumerate(wanted.columns):
        _compare_column(name, wanted.iloc[:, position], got.iloc[:, position])


def _compare_column(name: Any, old: pd.Series[Any], new: pd.Series[Any]) -> None:
    if _is_same_at_once(old, new):
        return
    if getattr(old.dtype, "ordered", False) and not getattr(new.dtype, "ordered", False):
        raise LossError(f"the order of the categories of column {_shown(name)} would be lost")
    narrow = old.dtype.name if old.dtype.kind == "f" and new.dtype.kind in "iuf" else None
    if narrow is not None:
        # Compare a short float at its own precision.
        new = new.astype(narrow)  # type: ignore[call-overload]
    for row, (before, after) in enumerate(zip(_values(old), _values(new), strict=True)):
        if not _same(before, after):
            raise LossError(
                f"column {_shown(name)}: {_shown(before)} in row {row} is read back as {_shown(after)}"
            )


def _is_same_at_once(old: pd.Series[Any], new: pd.Series[Any]) -> bool:
    """Compare columns of numbers, times or text as a whole; False means that values must be compared one by one."""
    import numpy as np
    import pandas as pd

    kind = old.dtype.kind
    if isinstance(old.dtype, np.dtype) and old.dtype == new.dtype and kind in "biufMm":
        before, after = old.to_numpy(), new.to_numpy()
        return bool(np.array_equal(before, after, equal_nan=kind in "fMm"))
    texts = [pd.api.types.infer_dtype(each, skipna=True) for each in (old, new)]
    if texts != ["string", "string"] or "category" in (old.dtype.name, new.dtype.name):
        return False
    missing = old.isna().to_numpy(bool)
    if not np.array_equal(missing, new.isna().to_numpy(bool)):
        return False
    sides = [np.asarray(each, dtype=object)[~missing] for each in (old, new)]
    return bool((sides[0] == sides[1]).all())


def _values(column: pd.Series[Any]) -> Iterator[Any]:
    for start in range(0, len(column), _BLOCK):
        yield from column.iloc[start : start + _BLOCK].astype(object).tolist()


def _is_missing(value: Any) -> bool:
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or type(value).__name__ in ("NAType", "NaTType")
    )


def _same(old: Any, new: Any) -> bool:
    if hasattr(old, "tolist") and hasattr(old, "dtype"):
        old = old.tolist()
    if hasattr(new, "tolist") and hasattr(new, "dtype"):
        new = new.tolist()
    if _is_missing(old) or _is_missing(new):
        return _is_missing(old) and _is_missing(new)
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return len(old) == len(new) and all(map(_same, old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_same(value, new[key]) for key, value in old.items())
    if isinstance(old, bool) or isinstance(new, bool):
        return old is new
    if isinstance(old, int | float) and isinstance(new, int | float):
        return old == new
    if not isinstance(new, type(old)) and not isinstance(old, type(new)):
        return False
    try:
        # Times of the same moment in different zones compare equal, but are not the same value.
        return bool(old == new) and str(getattr(old, "tzinfo", "")) == str(getattr(new, "tzinfo", ""))
    except Exception:  # noqa: BLE001 - values of a table may be of any type
        return False


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def write_json(frame: pd.DataFrame, stream: BinaryIO, lines: bool) -> None:
    """Write records with all digits of their numbers, and otherwise in pandas' format.

    Args:
        frame: The table.
        stream: Output stream.
        lines: Write one record on each line, without a list around them.

    Raises:
        LossError: A value has a type that JSON does not support.
    """
    names = [name if isinstance(name, str) else str(name) for name in frame.columns]
    if not lines:
        stream.write(b"[")
    for start in range(0, len(frame), _BLOCK):
        block = frame.iloc[start : start + _BLOCK]
        columns = [_json_column(name, block.iloc[:, at]) for at, name in enumerate(names)]
        rows: Sequence[tuple[Any, ...]] = list(zip(*columns, strict=True)) if names else [()] * len(block)
        text = (",", "\n")[lines].join(
            json.dumps(dict(zip(names, row, strict=True)), separators=(",", ":"), default=_plain)
            for row in rows
        )
        before = "" if start == 0 or lines else ","
        # pandas escapes slashes; in JSON they occur only inside strings.
        stream.write((before + text.replace("/", "\\/") + ("\n" if lines else "")).encode())
    if not lines:
        stream.write(b"]")


def _json_column(name: str, column: pd.Series[Any]) -> list[Any]:
    if type(column.dtype).__module__.startswith("numpy") and column.dtype.kind in "biu":
        return column.tolist()
    out: list[Any] = []
    for value in column.astype(object).tolist():
        if _is_missing(value):
            value = None
        elif isinstance(value, float) and math.isinf(value):
            raise LossError(f"column {_shown(name)}: JSON has no infinity")
        out.append(value)
    return out


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise LossError(f"JSON has no {type(value).__name__} such as {_shown(value)}")
