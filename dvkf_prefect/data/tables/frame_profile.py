"""Profiles of tables: columns with their types, missing and different values, and the spread of numbers and times."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:$|[T ]\d\d:)")


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
        counts: Number of values in equal intervals from `low` to `high`; empty for identifiers, which are integers
            that all differ.
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
    from pandas.api.types import (
        is_bool_dtype,
        is_complex_dtype,
        is_datetime64_any_dtype,
        is_integer_dtype,
        is_numeric_dtype,
    )

    missing = int(column.isna().sum())
    try:
        distinct: int | None = int(column.nunique())
    except TypeError:  # lists and similar values cannot be counted
        distinct = None
    low = high = ""
    counts: tuple[int, ...] = ()
    known = column.dropna()
    dtype = str(column.dtype)
    if (times := _times(known)) is not None:
        known, dtype = times, f"{dtype} (time)"
        low, high = f"{times.min():%Y-%m-%d}", f"{times.max():%Y-%m-%d}"
        counts = _counts(times.astype("int64"), bins)
    elif is_datetime64_any_dtype(column) and len(known):
        low, high = f"{known.min():%Y-%m-%d}", f"{known.max():%Y-%m-%d}"
        counts = _counts(known.astype("int64"), bins)
    elif is_numeric_dtype(column) and not is_bool_dtype(column) and not is_complex_dtype(column):
        numbers = known.astype("float64")
        numbers = numbers[numbers.abs() < float("inf")]
        if len(numbers):
            # Whole numbers are floats where some are missing.
            integers = is_integer_dtype(column) or bool((numbers % 1 == 0).all())
            low, high = (_number_text(each, integers) for each in (numbers.min(), numbers.max()))
            if not (integers and distinct == len(numbers) > bins):
                counts = _counts(numbers, bins, integers=integers)
    return ColumnProfile(name, dtype, missing, distinct, low, high, counts)


def _times(known: pd.Series[Any]) -> pd.Series[Any] | None:
    """Return texts that are all dates of ISO 8601 as times, as CSV has them; None for any other column."""
    import pandas as pd
    from pandas.api.types import is_string_dtype

    if not len(known) or not is_string_dtype(known) or not known.head(20).astype(str).str.match(_DATE).all():
        return None
    try:
        return pd.to_datetime(known, format="ISO8601", utc=True)
    except (ValueError, TypeError):
        return None


def _number_text(value: float, integer: bool) -> str:
    return f"{value:.0f}" if integer and abs(value) < 1e15 else f"{value:.6g}"


def _counts(numbers: pd.Series[Any], bins: int, *, integers: bool = False) -> tuple[int, ...]:
    import numpy as np

    if integers and (span := float(numbers.max()) - float(numbers.min()) + 1) < 1e15:
        # As many integers in each interval, else some would look rare.
        width = max(1, -(-span // bins))
        places = ((numbers.to_numpy(dtype="float64") - float(numbers.min())) // width).astype("int64")
        return tuple(int(count) for count in np.bincount(places, minlength=int(-(-span // width))))
    # In [0, 1]: the width of an interval between the largest numbers is no number.
    values = numbers.to_numpy(dtype="float64") / 2
    low, high = values.min(), values.max()
    shares = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
    return tuple(int(count) for count in np.histogram(shares, bins=bins, range=(0.0, 1.0))[0])
