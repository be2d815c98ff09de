"""Tables are read back as they were written, or refused: each type of value in each format."""

from __future__ import annotations

import math
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from repos import make_repo

from dvkf_prefect.data.tables.frames import read_frame, write_frame
from dvkf_prefect.errors import OutputError
from dvkf_prefect.repo import Repo

_KINDS = ("csv", "tsv", "csv.gz", "json", "jsonl", "ndjson", "parquet", "feather")


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Repo:
    root = tmp_path_factory.mktemp("repo")
    return make_repo(root)


def _equal(old: Any, new: Any) -> bool:
    """Plain Python's idea of the same value; written apart from the product's."""
    if isinstance(old, np.ndarray | np.generic):
        old = old.tolist()
    if isinstance(new, np.ndarray | np.generic):
        new = new.tolist()
    missing = [
        v is None or v is pd.NaT or v is pd.NA or (isinstance(v, float) and math.isnan(v)) for v in (old, new)
    ]
    if any(missing):
        return all(missing)
    if isinstance(old, list | tuple):
        return isinstance(new, list | tuple) and len(old) == len(new) and all(map(_equal, old, new))
    if isinstance(old, dict):
        return isinstance(new, dict) and set(old) == set(new) and all(_equal(old[k], new[k]) for k in old)
    if isinstance(old, bool) or isinstance(new, bool):
        return type(old) is type(new) and old == new
    return old == new and isinstance(old, str) == isinstance(new, str)


def _exact(repo: Repo, frame: pd.DataFrame, kind: str, index: bool = False) -> bool:
    """Whether it is kept; when it is, it is compared."""
    path = f"t.{kind}"
    file = repo.root / path
    file.unlink(missing_ok=True)
    try:
        write_frame(repo, frame, path, index=index, force=True)
    except OutputError as error:
        assert "cannot hold this table: " in str(error) and "write parquet" in str(error)
        assert not file.exists() and not [
            p for p in repo.root.glob(".*") if p.name not in (".git", ".dvc", ".dvcignore", ".gitignore")
        ]
        return False
    back = read_frame(repo, path)
    wanted = frame.reset_index() if index and kind != "parquet" else frame
    assert len(back.columns) == len(wanted.columns) and len(back) == len(wanted)
    for position in range(len(wanted.columns)):
        old, new = wanted.iloc[:, position], back.iloc[:, position]
        cast = new.astype(old.dtype) if str(old.dtype) in ("float32", "float16") else new
        for before, after in zip(old.astype(object).tolist(), cast.astype(object).tolist(), strict=True):
            assert _equal(before, after), (kind, old.name, before, after)
    return True


_ALL = set(_KINDS)
_TEXT = {"csv", "tsv", "csv.gz"}
_JSON = {"json", "jsonl", "ndjson"}
_ARROW = {"parquet", "feather"}
_CASES: dict[str, tuple[Any, set[str]]] = {
    "floats": ([1.23456789012345e-11, 0.1 + 0.2, 12345.678901234567, 3e-15, -0.0, 1e22, 9.5e-300], _ALL),
    "extreme floats": ([5e-324, 1.7976931348623157e308], _TEXT | _ARROW),
    "missing floats": ([1.5, None, float("nan")], _ALL),
    "infinity": ([1.5, float("inf"), float("-inf")], _TEXT | _ARROW),
    "short floats": (np.float32([0.1, 1 / 3, 3e38]), _ALL),
    "small integers": (np.int8([1, -128, 127]), _ALL),
    "large integers": ([2**53 + 1, -(2**63), 2**63 - 1], _ALL),
    "unsigned": (np.uint64([0, 2**64 - 1]), _ALL),
    "nullable integers": (pd.array([1, None, 3], dtype="Int64"), _ALL),
    "nullable large integers": (pd.array([2**53 + 1, None], dtype="Int64"), _ARROW),
    "huge integers": (pd.Series([2**70, 1], dtype=object), _TEXT),
    "bools": ([True, False], _ALL),
    "bools with gaps": (pd.Series([True, None, False], dtype=object), _TEXT | _ARROW),
    "text": (["a", "ü", "数据", "x y"], _ALL),
    "text with gaps": (["a", None, "b"], _ALL),
    "zip codes": (["007", "010"], _ARROW),
    "NA": (["NA", "x"], _JSON | _ARROW),
    "null": (["null", "None", "nan", "x"], _JSON | _ARROW),
    "empty": (["", "x"], _JSON | _ARROW),
    "all empty": (["", ""], _JSON | _ARROW),
    "numbers as text": (["1e5", "2"], _ARROW),
    "bools as text": (["True", "False"], _JSON | _ARROW),
    "quotes": (['a"b', "c,d", "e\tf", "g'h", "i;j", "k\\l"], _ALL),
    "lines": (["a\nb", "c\n", "\nd"], _ALL),
    "spaces": ([" a", "b ", "  "], _ALL),
    "slash": (["a/b", "</script>"], _ALL),
    "moments": (pd.to_datetime(["2020-01-01 10:00:00.123456789"]), _ARROW),
    "days": (pd.to_datetime(["2020-01-01", None]), _ARROW),
    "zones": (pd.to_datetime(["2020-01-01 10:00"]).tz_localize("Europe/Paris"), _ARROW),
    "spans": (pd.to_timedelta(["1 days 00:00:00.000000001"]), _ARROW),
    "dates": ([date(2020, 1, 2)], _ARROW),
    "decimals": ([Decimal("1.10")], _ARROW),
    "bytes": ([b"a\xff"], _ARROW),
    "lists": ([[1, 2], [3]], _JSON | _ARROW),
    "mappings": ([{"a": 1, "b": "x"}, {"a": 2, "b": "y"}], _JSON | _ARROW),
    "uneven mappings": ([{"a": 1}, {"b": "y"}], _JSON),
    "categories": (pd.Categorical(["b", "a", None]), _ALL),
    "ordered categories": (pd.Categorical(["b", "a"], ["b", "a"], ordered=True), _ARROW),
    "mixed": (pd.Series([1, "a", 2.5], dtype=object), _JSON),
    "mixed numbers": (pd.Series([1, 2.5], dtype=object), _ALL),
    "nothing": (pd.Series([None, None], dtype=object), _ALL),
    "complex": ([1 + 2j], set()),
    "sets": ([{1}], set()),
}  # fmt: skip


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("case", list(_CASES))
def test_kept_or_refused(repo: Repo, case: str, kind: str) -> None:
    values, keeping = _CASES[case]
    frame = pd.DataFrame({"id": range(len(values)), "v": values})
    assert _exact(repo, frame, kind) == (kind in keeping)


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame([[1, 2]], columns=["a", "a"]),
        pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", 1), ("a", 2)])),
        pd.DataFrame({"v": [1]}, index=pd.Index(["key"])),
        pd.DataFrame({"v": [1]}, index=pd.Index([7], name="key")),
        pd.DataFrame({"v": [1]}, index=pd.MultiIndex.from_tuples([("a", 1)])),
        pd.DataFrame(),
        pd.DataFrame(index=range(3)),
        pd.DataFrame({"a": []}),
        pd.DataFrame({"v": [1, 2, 3]}).iloc[1:],
        pd.DataFrame([[1]], columns=[0]),
        pd.DataFrame([[1]], columns=["7"]),
        pd.DataFrame([[1]], columns=[""]),
        pd.DataFrame([[1]], columns=["a\nb"]),
        pd.DataFrame({"only": ["", None, "x"]}),
        pd.DataFrame({"only": [None, 1.0]}),
        pd.DataFrame({"v": ["a\0b"]}),
        pd.DataFrame({"v": ["a\rb", "\ufeffc"]}),
        pd.DataFrame({"v": pd.Series(["\ud800"], dtype=object)}),
        pd.DataFrame({"v": [datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=2)))], "t": [time(1, 2)]}),
    ],
)
def test_odd_shapes_are_kept_or_refused(repo: Repo, frame: pd.DataFrame, kind: str) -> None:
    for index in (False, True):
        _exact(repo, frame, kind, index=index)


def test_an_index_that_says_something_is_not_left_out(repo: Repo) -> None:
    frame = pd.DataFrame({"v": [1, 2]}, index=pd.Index(["a", "b"], name="key"))
    for kind in _KINDS:
        with pytest.raises(OutputError, match=r"the index would be lost\. .*reset_index"):
            write_frame(repo, frame, f"k.{kind}", force=True)
        assert _exact(repo, frame, kind, index=True)
    assert read_frame(repo, "t.parquet").index.tolist() == ["a", "b"]


def test_the_message_says_where_and_what_to_do(repo: Repo) -> None:
    frame = pd.DataFrame({"town": ["a", "b"], "zip": ["x", "007"]})
    with pytest.raises(OutputError) as refused:
        write_frame(repo, frame.assign(zip=["100", "007"]), "zips.csv")
    assert "column 'zip': '100' in row 0 is read back as 100" in str(refused.value)
    assert "read_options" in str(refused.value)
    assert not (repo.root / "zips.csv").exists()
    how = {"dtype": {"zip": "str"}}
    write_frame(repo, frame.assign(zip=["100", "007"]), "zips.csv", read_options=how)
    assert read_frame(repo, "zips.csv", options=how)["zip"].tolist() == ["100", "007"]
    when = pd.DataFrame({"when": pd.to_datetime(["2020-01-01 10:00:00.123456789"])})
    write_frame(repo, when, "when.csv", read_options={"parse_dates": ["when"]})
    with pytest.raises(OutputError, match="column 'x': JSON has no infinity"):
        write_frame(repo, pd.DataFrame({"x": [float("inf")]}), "x.json")


def test_what_was_there_stays_when_a_table_is_refused(repo: Repo) -> None:
    write_frame(repo, pd.DataFrame({"v": [1]}), "stays.csv", force=True)
    with pytest.raises(OutputError):
        write_frame(repo, pd.DataFrame({"v": ["007"]}), "stays.csv", force=True)
    assert read_frame(repo, "stays.csv")["v"].tolist() == [1]


def test_options_of_the_writer_are_the_callers_own(repo: Repo) -> None:
    frame = pd.DataFrame({"v": [0.123456789]})
    write_frame(repo, frame, "short.csv", options={"float_format": "%.3f"}, force=True)
    assert read_frame(repo, "short.csv")["v"].tolist() == [0.123]
    with pytest.raises(OutputError, match=r"in row 0 is read back as 0\.123"):
        write_frame(repo, frame, "s.csv", options={"float_format": "%.3f"}, read_options={}, force=True)


_text = st.text(max_size=6) | st.sampled_from(
    ["", "NA", "007", "1e5", "true", " x", '"', "a,b", "\r\n", "-", "1_0", "#"]
)
_columns = st.one_of(
    st.lists(st.floats(width=64), min_size=3, max_size=3),
    st.lists(st.none() | st.floats(), min_size=3, max_size=3),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=3),
    st.lists(_text, min_size=3, max_size=3),
    st.lists(st.none() | _text, min_size=3, max_size=3),
    st.lists(st.none() | st.booleans(), min_size=3, max_size=3),
    st.lists(st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)), min_size=3, max_size=3),
    st.lists(st.one_of(st.integers(), st.floats(), _text, st.none()), min_size=3, max_size=3),
    st.lists(st.lists(st.integers(0, 9) | _text, max_size=2), min_size=3, max_size=3),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(columns=st.dictionaries(_text, _columns, min_size=1, max_size=3), kind=st.sampled_from(_KINDS))
def test_any_table_is_kept_or_refused(repo: Repo, columns: dict[str, list[Any]], kind: str) -> None:
    _exact(repo, pd.DataFrame({name: pd.Series(values) for name, values in columns.items()}), kind)
