"""Serializers of tables: what is stored comes back as it was, and what would change is refused."""

from __future__ import annotations

import datetime
import decimal
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from prefect.serializers import Serializer

from dvkf_prefect import ArrowSerializer, ParquetSerializer
from dvkf_prefect.errors import ConfigError, OutputError, ParseError

pa = pytest.importorskip("pyarrow")
SERIALIZERS: list[Any] = [ArrowSerializer(), ParquetSerializer(), ArrowSerializer(compression=None)]
DAY = pd.Timestamp("2024-05-01", tz="Europe/Berlin")


def frames() -> dict[str, pd.DataFrame]:
    kinds = pd.DataFrame(
        {
            "int8": np.array([1, -2, 3], "i1"),
            "uint64": np.array([1, 2**63, 3], "u8"),
            "float32": np.array([0.1, np.nan, -0.0], "f4"),
            "bool": [True, False, True],
            "text": ["a", None, "ü"],
            "object text": pd.Series(["a", None, "b"], dtype=object),
            "object numbers": pd.Series([1, None, 3], dtype=object),
            "Int64": pd.array([1, None, 2**62 + 1], "Int64"),
            "boolean": pd.array([True, None, False], "boolean"),
            "category": pd.Categorical(["b", "a", "b"], ["b", "unused", "a"], ordered=True),
            "number category": pd.Categorical([3, 1, 3]),
            "day": [DAY, pd.NaT, DAY + pd.Timedelta(days=1)],
            "nanoseconds": pd.to_datetime([1, 2, 3], unit="ns"),
            "delta": pd.to_timedelta([1, 2, 3], unit="s"),
            "date": [datetime.date(2024, 5, 1), None, datetime.date(1, 1, 1)],
            "decimal": [decimal.Decimal("1.10"), None, decimal.Decimal("-2.25")],
            "bytes": [b"\0\xff", b"", None],
            "lists": [[1.0, 2.0], [], None],
        }
    )
    named = pd.DataFrame({"x": [1.5, 2.5]}, index=pd.Index(["a", "b"], name="id"))
    named.attrs = {"source": "lake"}
    wide = pd.DataFrame(np.arange(4.0).reshape(2, 2), columns=pd.MultiIndex.from_product([["a"], ["x", "y"]]))
    return {
        "kinds": kinds,
        "named": named,
        "range": pd.DataFrame({"x": [1, 2]}, index=pd.RangeIndex(10, 14, 2, name="step")),
        "times": pd.DataFrame(
            {"x": [1, 2]}, index=pd.date_range("2024-05-01", periods=2, freq="h", tz="UTC")
        ),
        "levels": pd.DataFrame(
            {"x": [1, 2]},
            index=pd.MultiIndex.from_arrays([pd.Categorical(["b", "a"]), [1, 2]], names=["g", None]),
        ),
        "wide": wide,
        "numbered": pd.DataFrame({0: [1], 1: ["a"]}),
        "empty": kinds.head(0),
        "no columns": pd.DataFrame(index=[1, 2, 3]),
        "intervals": pd.DataFrame({"x": [1, 2]}, index=pd.interval_range(0, 2)),
    }


@pytest.mark.parametrize("serializer", SERIALIZERS, ids=["arrow", "parquet", "plain"])
@pytest.mark.parametrize("name", frames())
def test_frames_come_back_as_they_were(serializer: Any, name: str) -> None:
    frame = frames()[name]
    got = serializer.loads(serializer.dumps(frame))
    pd.testing.assert_frame_equal(got, frame, check_exact=True, check_freq=True)
    assert got.attrs == frame.attrs
    assert type(got.index) is type(frame.index)
    for column in frame.columns[frame.dtypes == "category"]:
        assert got[column].cat.categories.equals(frame[column].cat.categories)


@pytest.mark.parametrize("serializer", SERIALIZERS[:2], ids=["arrow", "parquet"])
@pytest.mark.parametrize(
    "series",
    [
        pd.Series([1, 2], name="rows", index=["a", "b"]),
        pd.Series(["a", None]),
        pd.Series([1.5], name=("a", 1)),
        pd.Series(pd.Categorical(["b", "a"], ["b", "a"]), name=3),
    ],
    ids=["named", "text", "levels", "category"],
)
def test_series_come_back_as_they_were(serializer: Any, series: pd.Series[Any]) -> None:
    pd.testing.assert_series_equal(serializer.loads(serializer.dumps(series)), series, check_exact=True)


@pytest.mark.parametrize("serializer", SERIALIZERS[:2], ids=["arrow", "parquet"])
def test_arrow_tables_come_back_with_their_metadata(serializer: Any) -> None:
    table = pa.table({"x": pa.array([1, None], pa.int16()), "d": pa.array(["a", "b"]).dictionary_encode()})
    table = table.replace_schema_metadata({"by": "us"})
    got = serializer.loads(serializer.dumps(table))
    assert got.equals(table)
    assert got.schema.metadata == {b"by": b"us"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([1, 2], "it is no pandas DataFrame or Series"),
        (pd.DataFrame({"x": [1, "a"]}, dtype=object), "x"),
        (pd.DataFrame({"x": [(1, 2)]}), "column 'x': the tuple in row 0 would be ndarray"),
        (pd.DataFrame({"x": [1 + 2j]}), "complex"),
        (pd.DataFrame({"x": pd.arrays.SparseArray([0, 1])}), "x"),
        (pd.DataFrame([[1, 2]], columns=["x", "x"]), "[Dd]uplicate"),
        (pd.DataFrame({"x": [{"a": 1}, {"b": 2}]}), "column 'x'"),
        (pd.DataFrame({"x": [2**70]}, dtype=object), "too large|too big|int"),
        (pd.Series([1], name=DAY), "plain text"),
    ],
)
def test_what_would_change_is_refused(value: Any, reason: str) -> None:
    for serializer in SERIALIZERS[:2]:
        with pytest.raises(OutputError, match=f"cannot store this {type(value).__name__}.*{reason}"):
            serializer.dumps(value)


def test_a_subclass_of_a_frame_is_refused() -> None:
    class Rows(pd.DataFrame):
        pass

    with pytest.raises(OutputError, match="cannot store this Rows"):
        ArrowSerializer().dumps(Rows({"x": [1]}))


def test_other_bytes_are_refused() -> None:
    for serializer in SERIALIZERS:
        whole = serializer.dumps(frames()["named"])
        for blob in (b"", b"?", whole[:40], Serializer(type="pickle").dumps([1])):
            with pytest.raises(ParseError, match="cannot be read by"):
                serializer.loads(blob)


def test_a_missing_pyarrow_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'dvkf-prefect\[tables\]'"):
        ArrowSerializer().dumps(frames()["named"])


def test_prefect_finds_them_by_type_and_reads_no_heavy_module() -> None:
    code = (
        "import sys; from prefect.plugins import load_prefect_collections; load_prefect_collections();"
        "from prefect.serializers import Serializer;"
        "print([type(Serializer(type=t)).__name__ for t in ('dvkf-arrow', 'dvkf-parquet')], 'pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['ArrowSerializer', 'ParquetSerializer'] False\n"
