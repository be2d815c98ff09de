"""Profiles of tables: columns with their types, missing and different values, and the spread of numbers and times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ColumnProfile:
    """Content of a column. It holds no single text of the table.

    Attributes:
        name: Name of the column.
        dtype: Its type in pandas.
        missing: Number of missing values.
        distinct: Number of different values; None if they cannot be counted.
        low: Lowest number or time as text; empty for other types.
        high: Highest number or time as text.
        counts: Number of values in equal intervals from `low` to `high`.
    """

    name: str
    dtype: str
    missing: int
    distinct: int | None = None
    low: str = ""
    high: str = ""
    counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class FrameProfile:
    """Content of a table.

    Attributes:
        rows: Number of rows.
        columns: The columns.
        sample: First rows as texts, if they were asked for.
    """

    rows: int
    columns: tuple[ColumnProfile, ...]
    sample: tuple[tuple[str, ...], ...] = ()


def profile_frame(frame: pd.DataFrame, *, bins: int = 24, sample: int = 0) -> FrameProfile:
    """Return the profile of a table.

    Args:
        frame: The table.
        bins: Number of intervals.
        sample: Number of first rows to keep as texts.

    Example:
        >>> profile_frame(pd.DataFrame({"x": [1, 2, 2]}), bins=2).columns[0].counts
        (1, 2)
    """
    columns = tuple(_column(str(name), frame.iloc[:, i], bins) for i, name in enumerate(frame.columns))
    rows = tuple(tuple(map(str, row)) for row in frame.head(sample).itertuples(index=False, name=None))
    return FrameProfile(len(frame), columns, rows)


def _column(name: str, column: pd.Series[Any], bins: int) -> ColumnProfile:
    from pandas.api.types import is_bool_dtype, is_complex_dtype, is_datetime64_any_dtype, is_numeric_dtype

    missing = int(column.isna().sum())
    try:
        distinct: int | None = int(column.nunique())
    except TypeError:  # lists and similar values cannot be counted
        distinct = None
    low = high = ""
    counts: tuple[int, ...] = ()
    known = column.dropna()
    if is_datetime64_any_dtype(column) and len(known):
        low, high = f"{known.min():%Y-%m-%d}", f"{known.max():%Y-%m-%d}"
        counts = _counts(known.astype("int64"), bins)
    elif is_numeric_dtype(column) and not is_bool_dtype(column) and not is_complex_dtype(column):
        numbers = known.astype("float64")
        numbers = numbers[numbers.abs() < float("inf")]
        if len(numbers):
            low, high = f"{numbers.min():.6g}", f"{numbers.max():.6g}"
            counts = _counts(numbers, bins)
    return ColumnProfile(name, str(column.dtype), missing, distinct, low, high, counts)


def _counts(numbers: pd.Series[Any], bins: int) -> tuple[int, ...]:
    import numpy as np

    # In [0, 1]: the width of an interval between the largest numbers is no number.
    values = numbers.to_numpy(dtype="float64") / 2
    low, high = values.min(), values.max()
    shares = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
    return tuple(int(count) for count in np.histogram(shares, bins=bins, range=(0.0, 1.0))[0])
