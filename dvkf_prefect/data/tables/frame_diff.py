"""Compare two versions of a table: columns, rows, values and column statistics."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from dvkf_prefect.data.tables.frames import Table
from dvkf_prefect.errors import OutputError
from dvkf_prefect.text import markdown

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from dvkf_prefect.data.repository.repository import Repository

WORKSPACE = "workspace"
# Up to this many different values of a text or category are counted one by one; of more, the most frequent ones.
_VALUES = 20
_FREQUENT = 5
# Characters of a value that are kept.
_VALUE = 100


@dataclass(frozen=True, slots=True)
class ColumnStats:
    """Statistics of a column in one version.

    Attributes:
        dtype: pandas type.
        nulls: Number of missing values.
        mean: Mean of the numbers, without missing ones; None for other types, and without any numbers.
        std: Standard deviation of the numbers (sample: n - 1); None likewise.
        distinct: Number of different values of a text, category or truth value; None for other types.
        values: Those values as text with their counts, the most frequent first: up to 20 of them, or 5 if there are
            more. Categories that no row has are counted as 0.
    """

    dtype: str
    nulls: int
    mean: float | None = None
    std: float | None = None
    distinct: int | None = None
    values: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class ColumnDiff:
    """A column that both versions have.

    Attributes:
        name: Name of the column.
        old: Statistics in the older version.
        new: Statistics in the newer version.
        changed: Number of rows with the same key and a different value; None without a key.
    """

    name: str
    old: ColumnStats
    new: ColumnStats
    changed: int | None = None

    def __bool__(self) -> bool:
        return bool(self.changed) or self.old != self.new

    @property
    def values_added(self) -> tuple[str, ...]:
        """Values that only the newer version has; empty if a version has more values than are counted."""
        return _only_in(self.new, self.old)

    @property
    def values_removed(self) -> tuple[str, ...]:
        """Values that only the older version has; empty likewise."""
        return _only_in(self.old, self.new)


@dataclass(frozen=True, slots=True)
class FrameDiff:
    """The difference between two versions of a table; falsy if empty.

    Attributes:
        path: Path of the table.
        a: Older revision, as the user named it.
        b: Newer revision; ``workspace`` for the workspace.
        key: Columns that identify a row; empty if whole rows are compared.
        rows_a: Number of rows in the older version.
        rows_b: Number of rows in the newer version.
        rows_added: Number of rows only in the newer version, by key or else by content.
        rows_removed: Number of rows only in the older version.
        rows_changed: Number of rows with the same key and different values. None without a key; such a row then counts
            as one removed and one added.
        columns_added: Columns only in the newer version; they do not count as changed rows.
        columns_removed: Columns only in the older version.
        columns: Comparison of each column that both versions have.
    """

    path: str
    a: str
    b: str
    key: tuple[str, ...]
    rows_a: int
    rows_b: int
    rows_added: int
    rows_removed: int
    rows_changed: int | None
    columns_added: tuple[str, ...] = ()
    columns_removed: tuple[str, ...] = ()
    columns: tuple[ColumnDiff, ...] = ()

    def __bool__(self) -> bool:
        return any(
            (
                self.rows_added,
                self.rows_removed,
                self.rows_changed,
                self.columns_added,
                self.columns_removed,
                any(self.columns),
            )
        )

    @property
    def dtypes_changed(self) -> tuple[ColumnDiff, ...]:
        """Columns whose type changed."""
        return tuple(column for column in self.columns if column.old.dtype != column.new.dtype)

    def as_dict(self) -> dict[str, Any]:
        """Return the difference as plain values for JSON."""
        values = asdict(self)
        values["columns"] = [
            {
                name: {**value, "values": [list(pair) for pair in value["values"]]}
                if name in ("old", "new")
                else value
                for name, value in column.items()
            }
            for column in values["columns"]
        ]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def __str__(self) -> str:
        if not self:
            return f"'{self.path}' does not differ from {self.a} to {self.b}: {self.rows_a:,} rows"
        counts = [
            f"{count:,} {what}"
            for count, what in (
                (self.rows_added, "rows added"),
                (self.rows_removed, "rows removed"),
                (self.rows_changed, "rows changed"),
                (len(self.columns_added), "columns added"),
                (len(self.columns_removed), "columns removed"),
                (len(self.dtypes_changed), "types changed"),
            )
            if count
        ]
        said = ", ".join(counts) or "the columns' numbers differ"
        return f"'{self.path}' from {self.a} to {self.b}: {said} ({self.rows_a:,} to {self.rows_b:,} rows)"

    def as_markdown(self, *, limit: int = 20) -> str:
        """Return the difference as markdown for a card: the counts, and a table of the changed columns.

        Args:
            limit: Largest number of columns to show.
        """
        sides = f"`{_code(self.a)}` to `{_code(self.b)}`"
        parts = [f"## {markdown(self.path)}, {sides}"]
        if not self:
            return f"{parts[0]}\n\nNothing differs: {self.rows_a:,} rows."
        by = f"by {', '.join(markdown(name) for name in self.key)}" if self.key else "by their content"
        changed = "" if self.rows_changed is None else f"{self.rows_changed:,}"
        counts = (
            f"{self.rows_a:,}",
            f"{self.rows_b:,}",
            f"{self.rows_added:,}",
            f"{self.rows_removed:,}",
            changed,
        )
        summary = _table(("rows before", "rows after", "added", "removed", "changed"), [counts], limit)
        parts.append(f"Rows are compared {by}.\n\n{summary}")
        for what, names in (("added", self.columns_added), ("removed", self.columns_removed)):
            if names:
                shown = ", ".join(markdown(name) for name in names[:limit])
                more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
                parts.append(f"Columns {what}: {shown}{more}")
        rows = [
            (
                column.name,
                _arrow(column.old.dtype, column.new.dtype),
                "" if column.changed is None else f"{column.changed:,}",
                _arrow(f"{column.old.nulls:,}", f"{column.new.nulls:,}"),
                _arrow(_number(column.old.mean), _number(column.new.mean)),
                _arrow(_number(column.old.std), _number(column.new.std)),
                _arrow(_count(column.old.distinct), _count(column.new.distinct)),
                _values_text(column),
            )
            for column in self.columns
            if column
        ]
        if rows:
            heads = ("column", "type", "values changed", "nulls", "mean", "std", "distinct", "values")
            parts.append(_table(heads, rows, limit))
        return "\n\n".join(parts)


def diff_frames(
    repo: Repository | str | os.PathLike[str],
    path: str,
    a: str,
    b: str = WORKSPACE,
    *,
    key: str | Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    file_format: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> FrameDiff:
    """Compare two versions of a table.

    Args:
        repo: Open repository, folder in a repository, or git url.
        path: File, or directory of parts of one table, relative to the root.
        a: Older git revision; ``workspace`` for the workspace.
        b: Newer git revision; ``workspace`` for the workspace.
        key: Column or columns that identify a row: rows with the same key are compared by value. None compares
            whole rows, regardless of their order, over the columns that both versions have.
        columns: Limit to these columns and the key.
        file_format: One of `frames.FORMATS`; None to derive it from the name.
        options: Further arguments of pandas' reader.

    Raises:
        OutputNotFoundError: A version has no such path.
        OutputError: A version lacks a column of the key, or has several rows with one key.
        ParseError: A version is not of the expected format.
        GitError: A revision does not exist.

    Example:
        >>> print(diff_frames(".", "data/users.csv", "v1", "v2", key="id"))
        'data/users.csv' from v1 to v2: 12 rows added, 3 rows changed (100 to 112 rows)
    """
    keys = (key,) if isinstance(key, str) else tuple(key or ())
    wanted = [*keys, *(name for name in columns if name not in keys)] if columns is not None else None
    old_table, new_table = (
        Table.open(repo, path, rev=None if rev == WORKSPACE else rev, file_format=file_format)
        for rev in (a, b)
    )
    old = old_table.read(columns=wanted, options=options)
    same = old_table.identity is not None and old_table.identity == new_table.identity
    new = old if same else new_table.read(columns=wanted, options=options)
    return compare_frames(old, new, path=path, a=a, b=b, key=keys)


def compare_frames(
    old: pd.DataFrame, new: pd.DataFrame, *, path: str, a: str, b: str, key: Sequence[str] = ()
) -> FrameDiff:
    """Compare two frames; see `diff_frames`.

    Args:
        old: Older frame, rows x columns.
        new: Newer frame, rows x columns.
        path: Name of the table in messages.
        a: Name of the older version in messages.
        b: Name of the newer version in messages.
        key: Columns that identify a row.

    Raises:
        OutputError: A frame lacks a column of the key, or has several rows with one key.
    """
    old, new = old.rename(columns=str), new.rename(columns=str)
    both = [name for name in old.columns if name in set(new.columns)]
    changed: dict[str, int] = {}
    rows_changed: int | None = None
    if key:
        for frame, side in ((old, a), (new, b)):
            _check_key(frame, key, f"'{path}' at {side}")
        left, right = _matched(old, new, key)
        removed, added = len(old) - len(left), len(new) - len(right)
        changed, rows_changed = _changes(old, new, left, right, [name for name in both if name not in key])
        changed.update(dict.fromkeys(key, 0))
    else:
        removed, added = _by_content(old, new, both)
    return FrameDiff(
        path,
        a,
        b,
        tuple(key),
        len(old),
        len(new),
        added,
        removed,
        rows_changed,
        tuple(name for name in new.columns if name not in set(old.columns)),
        tuple(name for name in old.columns if name not in set(new.columns)),
        tuple(ColumnDiff(name, _stats(old[name]), _stats(new[name]), changed.get(name)) for name in both),
    )


def _check_key(frame: pd.DataFrame, key: Sequence[str], name: str) -> None:
    if lacking := [column for column in key if column not in frame.columns]:
        raise OutputError(
            f"{name} has no column {', '.join(lacking)}; it has {', '.join(frame.columns[:20])}"
        )
    twice = frame.duplicated(subset=list(key))
    if twice.any():
        first = frame.loc[twice, list(key)].iloc[0].tolist()
        raise OutputError(
            f"{name} has {int(twice.sum()):,} rows with a duplicate key, the first {first}. Name key columns "
            "that are unique for each row, or none."
        )


def _matched(
    old: pd.DataFrame, new: pd.DataFrame, key: Sequence[str]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the row numbers in both frames of the keys that both have."""
    import pandas as pd

    indexes = [
        pd.Index(frame[key[0]]) if len(key) == 1 else pd.MultiIndex.from_frame(frame[list(key)])
        for frame in (old, new)
    ]
    found = indexes[1].get_indexer(indexes[0])
    left = (found >= 0).nonzero()[0]
    return left, found[left]


def _changes(
    old: pd.DataFrame,
    new: pd.DataFrame,
    left: npt.NDArray[np.intp],
    right: npt.NDArray[np.intp],
    columns: Sequence[str],
) -> tuple[dict[str, int], int]:
    """Return the number of matched rows that differ in each column, and in any column."""
    import numpy as np

    anywhere = np.zeros(len(left), dtype=bool)
    counts: dict[str, int] = {}
    for name in columns:
        differs = ~_equal(old[name].take(left), new[name].take(right))
        counts[name] = int(differs.sum())
        anywhere |= differs
    return counts, int(anywhere.sum())


def _equal(old: pd.Series[Any], new: pd.Series[Any]) -> npt.NDArray[np.bool_]:
    """Compare two columns value by value; two missing values are equal."""
    import pandas as pd

    old, new = _plain(old), _plain(new)
    both_null = old.isna().to_numpy() & new.isna().to_numpy()
    equal: Any
    try:
        equal = pd.Series(old.array == new.array).fillna(False).to_numpy(dtype=bool)
    except (TypeError, ValueError):
        # Values that cannot be compared, such as lists, or times with and without a zone.
        equal = old.astype(str).to_numpy() == new.astype(str).to_numpy()
    result: npt.NDArray[np.bool_] = equal | both_null
    return result


def _plain(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return a column with categories converted to values, because different categories cannot be compared."""
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.astype(column.cat.categories.dtype)
    return column


def _by_content(old: pd.DataFrame, new: pd.DataFrame, columns: Sequence[str]) -> tuple[int, int]:
    """Return the number of rows only in the older and only in the newer frame; duplicates count individually."""
    import numpy as np

    if not columns:
        return len(old), len(new)
    try:
        hashes = [_hashes(frame, other, columns) for frame, other in ((old, new), (new, old))]
    except TypeError:
        # Lists and similar values cannot be hashed, so hash their text.
        hashes = [_hashes(frame, other, columns, as_text=True) for frame, other in ((old, new), (new, old))]
    _, place, counts = np.unique(np.concatenate(hashes), return_inverse=True, return_counts=True)
    before = np.bincount(place[: len(old)], minlength=len(counts))
    surplus = before - (counts - before)
    return int(surplus[surplus > 0].sum()), int(-surplus[surplus < 0].sum())


def _hashes(
    frame: pd.DataFrame, other: pd.DataFrame, columns: Sequence[str], *, as_text: bool = False
) -> npt.NDArray[np.uint64]:
    import pandas as pd
    from pandas.api.types import is_numeric_dtype

    made: dict[str, pd.Series[Any]] = {}
    for name in columns:
        mine, theirs = _plain(frame[name]), _plain(other[name])
        # 1 and 1.0 are equal, but have the same hash only as the same type.
        if mine.dtype != theirs.dtype:
            numbers = is_numeric_dtype(mine) and is_numeric_dtype(theirs)
            mine = mine.astype("float64") if numbers else _text(mine)
        elif as_text and mine.dtype == object:
            mine = _text(mine)
        made[name] = mine
    hashed: Any = pd.util.hash_pandas_object(pd.DataFrame(made), index=False).to_numpy()
    return cast("npt.NDArray[np.uint64]", hashed)


def _text(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return a column's values as text; missing ones stay missing."""
    return column.astype(str).where(column.notna())


def _stats(column: pd.Series[Any]) -> ColumnStats:
    import pandas as pd
    from pandas.api.types import is_bool_dtype, is_complex_dtype, is_numeric_dtype, is_string_dtype

    nulls = int(column.isna().sum())
    # In pandas 2, texts are objects, and None among them hides that they are texts.
    text = is_string_dtype(column.dropna())
    if is_bool_dtype(column) or text or isinstance(column.dtype, pd.CategoricalDtype):
        return ColumnStats(str(column.dtype), nulls, None, None, *_counted(column))
    if not is_numeric_dtype(column) or is_complex_dtype(column):
        return ColumnStats(str(column.dtype), nulls)
    return ColumnStats(str(column.dtype), nulls, _finite(column.mean()), _finite(column.std()))


def _counted(column: pd.Series[Any]) -> tuple[int | None, tuple[tuple[str, int], ...]]:
    """Return the number of different values, and the most frequent ones with their counts."""
    try:
        counts = column.value_counts(dropna=True)
    except TypeError:  # lists and similar values cannot be counted
        return None, ()
    texts: dict[str, int] = {}
    for value, count in counts.items() if len(counts) <= _VALUES else counts.head(_VALUES).items():
        text = str(value)[:_VALUE]
        texts[text] = texts.get(text, 0) + int(count)
    # Sorted, since pandas lists equal counts in the order of the rows.
    found = sorted(texts.items(), key=lambda item: (-item[1], item[0]))
    return len(counts), tuple(found if len(counts) <= _VALUES else found[:_FREQUENT])


def _only_in(one: ColumnStats, other: ColumnStats) -> tuple[str, ...]:
    if one.distinct is None or other.distinct is None or max(one.distinct, other.distinct) > _VALUES:
        return ()
    known = {value for value, _ in other.values}
    return tuple(value for value, _ in one.values if value not in known)


def _values_text(column: ColumnDiff, *, limit: int = 3) -> str:
    """Return new and gone values, then the frequent ones whose count changed."""
    parts = [f"+ {value}" for value in column.values_added[:limit]]
    parts += [f"- {value}" for value in column.values_removed[:limit]]
    before = dict(column.old.values)
    parts += [
        f"{value}: {before[value]:,} → {count:,}"
        for value, count in column.new.values
        if before.get(value, count) != count
    ][:limit]
    return ", ".join(parts)


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _finite(value: Any) -> float | None:
    import pandas as pd

    number = math.nan if pd.isna(value) else float(value)
    return number if math.isfinite(number) else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _arrow(old: str, new: str) -> str:
    return old if old == new else f"{old} → {new}"


def _code(text: str) -> str:
    return " ".join(text.split()).replace("`", "'")[:200]


def _table(heads: Sequence[str], rows: Sequence[Iterable[str]], limit: int) -> str:
    cells = [[markdown(cell) for cell in row] for row in rows[:limit]]
    # A column without a value says nothing.
    used = [i for i in range(len(heads)) if any(row[i] for row in cells)]
    lines = ["| " + " | ".join(heads[i] for i in used) + " |", "|" + " --- |" * len(used)]
    lines += ["| " + " | ".join(row[i] for i in used) + " |" for row in cells]
    more = f"\n\nand {len(rows) - limit:,} more" if len(rows) > limit else ""
    return "\n".join(lines) + more
