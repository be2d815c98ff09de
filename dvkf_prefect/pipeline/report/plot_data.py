"""Points of plots: files of one or several versions, converted to the form that templates take.

Source of the selection and the joins: DVC 3.x (``dvc/repo/plots``, ``dvc/render``).
"""

from __future__ import annotations

import csv
import io
import os
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dvkf_prefect.errors import ParseError
from dvkf_prefect.formats import documents
from dvkf_prefect.pipeline.report.metrics import load_values

IMAGES = (".jpg", ".jpeg", ".gif", ".png", ".svg")
_TABLES = (".csv", ".tsv")
_TREES = (".json", ".yaml", ".yml", ".toml", ".py")
_STEP = "step"
_ANY_X = "dvc_inferred_x_value"
_ANY_Y = "dvc_inferred_y_value"

Points = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Contribution of one version to a plot.

    Attributes:
        points: A row for each point.
        props: Properties of the drawing, among them the axes' fields and labels.
    """

    points: Points
    props: dict[str, Any]


def parse(data: bytes, name: str, *, header: bool = True) -> Any:
    """Parse a file of points by its suffix.

    Args:
        data: Bytes of the file.
        name: Name of the file.
        header: True if the first line of a table names its columns; otherwise they are numbered.

    Returns:
        The bytes of an image, the rows of a table, or nested values.

    Raises:
        ParseError: The file does not parse, or its type cannot be drawn.
    """
    suffix = posixpath.splitext(name)[1]
    if suffix in IMAGES:
        return data
    if suffix in _TREES:
        return load_values(data, name)
    if suffix not in _TABLES:
        raise ParseError(name, "not a format of plots; expected JSON, YAML, TOML, CSV, TSV or an image")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ParseError(name, f"not UTF-8 at byte {error.start}. Write it as UTF-8.") from error
    delimiter = "\t" if suffix == ".tsv" else ","
    documents.check_count(data, name, b"\n", delimiter.encode())
    names = None
    try:
        if not header:
            first = next(csv.reader(io.StringIO(text), delimiter=delimiter), [])
            names = [str(i) for i in range(len(first))]
        return list(csv.DictReader(io.StringIO(text), delimiter=delimiter, fieldnames=names))
    except csv.Error as error:
        raise ParseError(name, f"not a table: {error}") from error


def sources(name: str, props: Mapping[str, Any]) -> list[str]:
    """Return the source files of a plot.

    Args:
        name: Name of the plot; also its file if ``y`` names none.
        props: Properties of the plot.
    """
    x, y = props.get("x"), props.get("y")
    found = list(y) if isinstance(y, dict) else [name]
    if isinstance(x, dict):
        found += list(x)[:1]
    return list(dict.fromkeys(found))


def points_of(name: str, props: Mapping[str, Any], contents: Mapping[str, Any], rev: str) -> Drawn:
    """Return the points of one version of a plot.

    Args:
        name: Name of the plot.
        props: Properties of the plot.
        contents: Parsed contents by file, see `parse`; unreadable files are omitted.
        rev: Name of the version.

    Raises:
        ParseError: A field does not exist, or the axes have different numbers of points.
    """
    tables = {file: _rows(content) for file, content in contents.items()}
    values = {**props, **_axes(name, props, contents)}
    values["y_label"] = _y_label(values)
    values["x_label"] = _x_label(values)
    xs = list(_fields(values.get("x"))) if isinstance(values.get("x"), dict) else []
    ys = list(_fields(values.get("y")))
    for file, column in (*xs, *ys):
        if file in tables and column not in next(iter(tables[file]), {}):
            known = ", ".join(map(str, next(iter(tables[file]), {})))
            raise ParseError(file, f"unknown field '{column}'; expected {known}")
    if len(xs) > 1 and len(xs) != len(ys):
        raise ParseError(name, f"{len(xs)} sources for x and {len(ys)} for y. Give one x, or one for each y.")
    x_file, x_field = xs[0] if xs else (None, _STEP)
    many_x = len(xs) > 1 and len({column for _, column in xs}) > 1
    y_fields = {column for _, column in ys}
    values["x"] = _ANY_X if many_x else x_field
    values["y"] = _ANY_Y if len(y_fields) > 1 else next(iter(y_fields), None)
    y_files = {file for file, _ in ys}
    common = len(os.path.commonpath(list(y_files))) if len(y_files) > 1 else 0
    short = {file: file[common:].strip("/\\") for file in y_files}
    values["anchors_y_definitions"] = [{"filename": short[file], "field": column} for file, column in ys]
    points: Points = []
    for i, (file, column) in enumerate(ys):
        if len(xs) > 1:
            x_file, x_field = xs[i]
        rows = [dict(row) for row in tables.get(file, ())]
        if values["y"] == _ANY_Y:
            _copy(rows, _ANY_Y, rows, column)
        if x_file is None:
            for index, row in enumerate(rows):
                row[_STEP] = index
        else:
            others = tables.get(x_file, [])
            if len(others) != len(rows):
                raise ParseError(
                    name,
                    f"'{x_field}' of '{x_file}' has {len(others)} points and '{column}' of '{file}' "
                    f"{len(rows)}; expected the same number of points",
                )
            _copy(rows, _ANY_X if many_x else x_field, others, x_field)
        for row in rows:
            row.update(rev=rev, filename=short[file], field=column)
        points += rows
    return Drawn(points, values if points else {})


def _copy(rows: Points, name: str, others: Points, column: str) -> None:
    for row, other in zip(rows, others, strict=True):
        if column in other:
            row[name] = other[column]


def _axes(name: str, props: Mapping[str, Any], contents: Mapping[str, Any]) -> dict[str, Any]:
    """Return the axes as fields by file, if they are given in another form."""
    x, y = props.get("x"), props.get("y")
    found: dict[str, Any] = {}
    if isinstance(x, str):
        if isinstance(y, dict):
            found["x"] = {
                file: [x] * len(fields) if isinstance(fields, list) else x for file, fields in y.items()
            }
        else:
            found["x"] = {name: x}
    if y is None:
        found["y"] = _last_field(name, contents)
    elif not isinstance(y, dict):
        found["y"] = {name: y}
    return found


def _last_field(name: str, contents: Mapping[str, Any]) -> dict[str, str] | None:
    if name in contents:
        for rows in _lists(contents[name]):
            if rows and all(isinstance(row, dict) for row in rows):
                return {name: list(rows[0])[-1]}
    return None


def _fields(axis: Any) -> Iterator[tuple[str, str]]:
    for file, fields in (axis or {}).items():
        for column in [fields] if isinstance(fields, str) else fields if isinstance(fields, list) else ():
            yield file, column


def _y_label(values: Mapping[str, Any]) -> str | None:
    y = values.get("y")
    if values.get("y_label") is not None or y is None:
        return values.get("y_label")
    fields = {column for _, column in _fields(y)}
    return next(iter(fields)) if len(fields) == 1 else "y"


def _x_label(values: Mapping[str, Any]) -> str:
    if values.get("x_label") is not None:
        return str(values["x_label"])
    if not isinstance(values.get("x"), dict):
        return _STEP
    fields = {column for _, column in _fields(values["x"])}
    return next(iter(fields)) if len(fields) == 1 else "x"


def _lists(content: Any) -> Iterator[list[Any]]:
    if isinstance(content, list):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            if isinstance(value, (dict, list)):
                yield from _lists(value)


def _rows(content: Any) -> Points:
    """Return the rows of a file; parallel lists of rows are joined row by row."""
    found: Points = []
    for rows in _lists(content):
        if not rows or not all(isinstance(row, dict) for row in rows):
            continue
        if set(rows[0]) != {key for row in rows for key in row}:
            continue
        for index, row in enumerate(rows):
            if len(found) <= index:
                found.append({})
            found[index].update(row)
    return found
