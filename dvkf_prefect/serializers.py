"""Serializers of Prefect for tables: pandas frames and series, and Arrow tables, in Arrow's formats.

They are registered with Prefect as ``dvkf-arrow`` and ``dvkf-parquet`` when this package is installed. Reading a result
runs no code, as unpickling would. What a format cannot hold unchanged is refused when the result is stored.

Sources: https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format,
https://arrow.apache.org/docs/python/pandas.html.
"""

from __future__ import annotations

import base64
import json
import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal

from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger
from prefect.serializers import Serializer
from pydantic import Field

from dvkf_prefect.data.tables.frame_check import LossError, columns_to_read, compare
from dvkf_prefect.errors import ConfigError, OutputError, ParseError

if TYPE_CHECKING:
    import pandas as pd

# Key of our own part of a table's metadata.
_OURS = b"dvkf"
# Errors of pyarrow for values without a type of Arrow; its own are subclasses of these.
_UNFIT = (ValueError, TypeError, NotImplementedError, OverflowError, KeyError)
_SERIES = "dvkf.series"


class _Tables(ABC):
    """Base of both serializers: from values to tables of Arrow, and back."""

    type: str

    def dumps(self, obj: Any) -> bytes:
        """Encode a table.

        Args:
            obj: A pandas DataFrame or Series, or a pyarrow Table.

        Returns:
            The bytes of the format, in base64 as Prefect's records need it.

        Raises:
            OutputError: It is no table, or the format would change it.
            ConfigError: pyarrow is not installed.
        """
        self._check_installed()
        try:
            return base64.b64encode(self._dump(obj))
        except (LossError, *_UNFIT) as error:
            refusal = OutputError(
                f"'{self.type}' cannot store this {type(obj).__name__}: {str(error).rstrip('.')}. Convert it, or set "
                "result_serializer='pickle'."
            )
            # Prefect's own message leaves the reason out, and the run goes on without a stored result.
            inside = FlowRunContext.get() is not None or TaskRunContext.get() is not None
            (get_run_logger() if inside else logging.getLogger(__name__)).warning("%s", refusal)
            raise refusal from error

    def loads(self, blob: bytes) -> Any:
        """Decode a table.

        Args:
            blob: What `dumps` returned.

        Returns:
            The table, of the type it had.

        Raises:
            ParseError: The bytes are no such table.
            ConfigError: pyarrow is not installed.
        """
        self._check_installed()
        try:
            return self._restore(self._decode(base64.b64decode(blob, validate=True)))
        except (OSError, *_UNFIT) as error:
            raise ParseError("the result", f"cannot be read by '{self.type}': {error}") from error

    @abstractmethod
    def _encode(self, table: Any) -> bytes:
        """Return a table of Arrow in the format."""

    @abstractmethod
    def _decode(self, data: bytes) -> Any:
        """Return the table of Arrow."""

    def _check_installed(self) -> None:
        try:
            import pyarrow  # noqa: F401 - heavy, and optional
        except ImportError as error:
            raise ConfigError(
                f"'{self.type}' needs the package 'pyarrow': pip install 'dvkf-prefect[tables]' ({error})"
            ) from error

    def _dump(self, obj: Any) -> bytes:
        import pyarrow as pa

        if isinstance(obj, pa.Table):
            data = self._encode(_marked(obj, {"kind": "table"}))
            if self._decode(data).schema.remove_metadata() != obj.schema.remove_metadata():
                raise LossError("a column would change its type")
            return data
        import pandas as pd
        from pandas.api.types import is_object_dtype

        if type(obj) is pd.Series:
            frame = obj.to_frame(_SERIES)
            ours: dict[str, Any] = {"kind": "series", "name": _plain_name(obj.name)}
        elif type(obj) is pd.DataFrame:
            frame, ours = obj, {"kind": "frame"}
        else:
            raise LossError("it is no pandas DataFrame or Series, and no pyarrow Table")
        # What Arrow or pandas would change: objects, lists in them, categories, and indexes that are no columns.
        numbered = list(enumerate(frame.dtypes))
        ours["objects"] = [position for position, dtype in numbered if is_object_dtype(dtype)]
        ours["nested"] = [position for position in ours["objects"] if _is_nested(frame.iloc[:, position])]
        ours["freq"] = getattr(frame.index, "freqstr", None) if frame.index.dtype.kind in "mM" else None
        columns: Any = frame.columns
        if isinstance(columns, pd.RangeIndex):
            ours["columns"] = [columns.start, columns.stop, columns.step], columns.name
        plain = frame.copy(deep=False)
        ours["categories"] = []
        for position, dtype in numbered:
            if isinstance(dtype, pd.CategoricalDtype):
                ours["categories"].append([position, _categories(dtype), bool(dtype.ordered)])
                plain.isetitem(position, frame.iloc[:, position].cat.codes.to_numpy())
        data = self._encode(_marked(pa.Table.from_pandas(plain), ours))
        got = self._restore(self._decode(data))
        _check_same(frame, got.to_frame(_SERIES) if ours["kind"] == "series" else got)
        return data

    def _restore(self, table: Any) -> Any:
        metadata = dict(table.schema.metadata or {})
        ours = json.loads(metadata.pop(_OURS))
        table = table.replace_schema_metadata(metadata or None)
        if ours["kind"] == "table":
            return table
        import pandas as pd

        frame = table.to_pandas(integer_object_nulls=True)
        for position in ours["objects"]:
            if position in ours["nested"]:
                frame.isetitem(position, _objects(table.column(position).to_pylist(), frame.index))
            elif not pd.api.types.is_object_dtype(frame.dtypes.iloc[position]):
                frame.isetitem(position, frame.iloc[:, position].astype(object))
        for position, categories, ordered in ours["categories"]:
            made = pd.CategoricalDtype(_restore_categories(categories), ordered=ordered)
            frame.isetitem(
                position, pd.Categorical.from_codes(frame.iloc[:, position].to_numpy(), dtype=made)
            )
        if ours["freq"]:
            frame.index.freq = ours["freq"]
        if "columns" in ours:
            (start, stop, step), label = ours["columns"]
            frame.columns = pd.RangeIndex(start, stop, step, name=label)
        if ours["kind"] == "frame":
            return frame
        series = frame[_SERIES]
        name = ours["name"]
        series.attrs = frame.attrs
        return series.rename(tuple(name) if isinstance(name, list) else name)


class ArrowSerializer(_Tables, Serializer):
    """Serializer of tables in Arrow's IPC format, the faster one: ``result_serializer="dvkf-arrow"``.

    Attributes:
        compression: Compression of the columns; None for none.

    Example:
        ``@task(result_serializer="dvkf-arrow", persist_result=True)``
    """

    type: str = Field(default="dvkf-arrow", frozen=True)
    compression: Literal["lz4", "zstd"] | None = "zstd"

    def _encode(self, table: Any) -> bytes:
        return _to_ipc(table, self.compression)

    def _decode(self, data: bytes) -> Any:
        return _from_ipc(data)


class ParquetSerializer(_Tables, Serializer):
    """Serializer of tables as parquet, the smaller one: ``result_serializer="dvkf-parquet"``.

    Attributes:
        compression: Compression of the columns; None for none.

    Example:
        ``@task(result_serializer="dvkf-parquet", persist_result=True)``
    """

    type: str = Field(default="dvkf-parquet", frozen=True)
    compression: Literal["snappy", "zstd", "gzip"] | None = "zstd"

    def _encode(self, table: Any) -> bytes:
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression=self.compression or "none")
        data: bytes = sink.getvalue().to_pybytes()
        return data

    def _decode(self, data: bytes) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        return pq.read_table(pa.BufferReader(data))


def _marked(table: Any, ours: dict[str, Any]) -> Any:
    """Return a table with our own part of the metadata."""
    return table.replace_schema_metadata({**(table.schema.metadata or {}), _OURS: json.dumps(ours).encode()})


def _is_nested(column: pd.Series[Any]) -> bool:
    """Return True for a column of lists or mappings, which pandas would get as arrays."""
    return any(isinstance(value, (list, dict)) for value in column)


def _objects(values: list[Any], index: Any) -> Any:
    """Return a column of objects; pandas would take lists of equal length for columns."""
    import numpy as np
    import pandas as pd

    cells = np.empty(len(values), dtype=object)
    cells[:] = values
    return pd.Series(cells, index=index, dtype=object)


def _categories(dtype: pd.CategoricalDtype) -> str:
    """Return the categories of a column as text; parquet keeps those of texts only."""
    import pandas as pd
    import pyarrow as pa

    frame = pd.DataFrame({"": dtype.categories})
    ours = {"object": pd.api.types.is_object_dtype(dtype.categories.dtype)}
    return base64.b64encode(_to_ipc(_marked(pa.Table.from_pandas(frame), ours), None)).decode()


def _restore_categories(text: str) -> Any:
    import pandas as pd

    table = _from_ipc(base64.b64decode(text))
    found = pd.Index(table.to_pandas()[""].array)
    return found.astype(object) if json.loads(table.schema.metadata[_OURS])["object"] else found


def _to_ipc(table: Any, compression: str | None) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _from_ipc(data: bytes) -> Any:
    import pyarrow as pa

    with pa.ipc.open_file(pa.BufferReader(data)) as reader:
        return reader.read_all()


def _plain_name(name: Any) -> Any:
    """Return the name of a series as a value of JSON."""
    if name is None or isinstance(name, (str, int, float, bool)):
        return name
    if isinstance(name, tuple) and all(isinstance(part, (str, int, float, bool)) for part in name):
        return list(name)
    raise LossError(f"the name {name!r} is no plain text or number")


def _check_same(frame: pd.DataFrame, got: pd.DataFrame) -> None:
    """Compare a frame with the one that is read back.

    Raises:
        LossError: A name, a type, the index or a value differs.
    """
    import pandas as pd
    from pandas.api.types import is_object_dtype

    _check_index("columns", frame.columns, got.columns)
    for position, (old, new) in enumerate(zip(frame.dtypes, got.dtypes, strict=True)):
        kinds = [
            dtype.categories.dtype if isinstance(dtype, pd.CategoricalDtype) else dtype
            for dtype in (old, new)
        ]
        if old != new or kinds[0] != kinds[1]:
            raise LossError(f"column {frame.columns[position]!r} would change its type from {old} to {new}")
    _check_index("index", frame.index, got.index)
    names = columns_to_read(frame, "parquet") or []
    compare(frame.loc[:, names], got.loc[:, names])
    for name in names:
        if is_object_dtype(frame[name].dtype):
            _check_types(name, frame[name], got[name])
    if frame.attrs != got.attrs:
        raise LossError("its attrs would change")


def _check_index(what: str, old: Any, new: Any) -> None:
    import pandas as pd

    same = type(old) is type(new) and list(old.names) == list(new.names) and old.equals(new)
    if same and isinstance(old, pd.MultiIndex):
        same = list(old.dtypes) == list(new.dtypes)
    elif same:
        same = old.dtype == new.dtype
    if not same:
        raise LossError(f"the {what} would change: {_shown(old)} would be {_shown(new)}")


def _check_types(name: Any, old: pd.Series[Any], new: pd.Series[Any]) -> None:
    for row, (missing, before, after) in enumerate(zip(old.isna(), old, new, strict=True)):
        if not missing and type(before) is not type(after):
            raise LossError(
                f"column {name!r}: the {type(before).__name__} in row {row} would be {type(after).__name__}"
            )


def _shown(index: Any) -> str:
    return f"{type(index).__name__}(dtype={index.dtype}, names={list(index.names)})"
