"""Plots of a stage for KFP's UI: confusion matrices, ROC curves and pages.

A page is an SVG image for each plot, which needs the extra ``plots`` in the image; without it, or for points that no
template fits, the page has a table of the points. The UI shows it in an iframe without access to anything.
"""

from __future__ import annotations

import base64
import html
import math
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dvkf_prefect.errors import DvkfError, ParseError
from dvkf_prefect.pipeline.report.plot_data import IMAGES, parse, points_of

# The UI draws all of a curve or matrix, and ML Metadata stores them with the artifact.
_POINTS = 200
_CLASSES = 50
_ROWS = 100
_TYPES = {".svg": "svg+xml", ".jpg": "jpeg"}


def classification(path: str, plot: Mapping[str, Any], files: Sequence[tuple[str, bytes]]) -> dict[str, Any]:
    """Return the metadata of a ``ClassificationMetrics`` artifact.

    Args:
        path: File of the points.
        plot: Its template and its fields x and y, see `StageArtifact.plot`.
        files: Path and bytes of the file.

    Returns:
        ``confusionMatrix`` or ``confidenceMetrics`` in the form of ``kfp.dsl.ClassificationMetrics``.

    Raises:
        ParseError: The file is missing, does not parse, or has no such fields.
    """
    if not files:
        raise ParseError(path, "the stage did not write it")
    contents = {path: parse(files[0][1], path, header=bool(plot.get("header", True)))}
    x, y = plot["x"], plot["y"]
    axes: dict[str, Any] = {"y": {path: y} if y else None}
    if x:
        axes["x"] = {path: x}
    rows = points_of(path, axes, contents, "").points
    if not rows:
        raise ParseError(path, "no points")
    if str(plot.get("template", "")).startswith("confusion"):
        columns = [name for name in rows[0] if name not in ("rev", "filename", "field", "step")]
        if len(columns) < 2:
            raise ParseError(path, "a confusion matrix needs the fields of actual and predicted classes")
        return {"confusionMatrix": _matrix(path, rows, x or columns[0], y or columns[1])}
    return {"confidenceMetrics": _curve(path, rows, x, y)}


def _matrix(path: str, rows: Sequence[Mapping[str, Any]], actual: str, predicted: str) -> dict[str, Any]:
    pairs = Counter((str(row[actual]), str(row[predicted])) for row in rows)
    classes = sorted({name for pair in pairs for name in pair})
    if len(classes) > _CLASSES:
        raise ParseError(path, f"{len(classes)} classes; KFP's view of a confusion matrix takes {_CLASSES}")
    return {
        "annotationSpecs": [{"displayName": name} for name in classes],
        "rows": [{"row": [pairs[true, found] for found in classes]} for true in classes],
    }


def _curve(path: str, rows: Sequence[Mapping[str, Any]], x: str, y: str) -> list[dict[str, float]]:
    if len(rows) > _POINTS:
        last = len(rows) - 1
        rows = [rows[round(i * last / (_POINTS - 1))] for i in range(_POINTS)]
    threshold = next((name for name in ("threshold", "thresholds") if name in rows[0]), None)
    try:
        values = [float(row[threshold]) if threshold else 0.0 for row in rows]
        # scikit-learn's first threshold is infinite.
        bound = max((v for v in values if math.isfinite(v)), default=0.0) + 1
        return [
            {
                "confidenceThreshold": value if math.isfinite(value) else bound,
                "recall": float(row[y]),
                "falsePositiveRate": float(row[x]),
            }
            for row, value in zip(rows, values, strict=True)
            if math.isfinite(float(row[x])) and math.isfinite(float(row[y]))
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise ParseError(path, f"not the points of a ROC curve: {error}") from error


def page(title: str, plot: Mapping[str, Any], files: Sequence[tuple[str, bytes]]) -> str:
    """Return an HTML page of a plot.

    Args:
        title: Name of the plot.
        plot: Its properties, see `StageArtifact.plot`.
        files: Path and bytes of its files; of all files of a folder of plots.
    """
    names = [name for name, _ in files]
    if len(files) == 1 and posixpath.splitext(names[0])[1].lower() in (".html", ".htm"):
        return files[0][1].decode(errors="replace")
    parts = [_image(name, data) for name, data in files if _suffix(name) in IMAGES]
    tables = [(name, data) for name, data in files if _suffix(name) not in IMAGES]
    if isinstance(plot.get("y"), Mapping) or title in names:
        if tables:
            parts.append(_drawn(title, plot, tables))
    else:  # a folder of plots
        parts += [_drawn(name, plot, [(name, data)]) for name, data in tables]
    body = "\n".join(parts) or "<p>The stage wrote no points.</p>"
    return (
        f'<!DOCTYPE html>\n<html><head><meta charset="utf-8"><title>{html.escape(title)}</title></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _image(name: str, data: bytes) -> str:
    kind = _TYPES.get(_suffix(name), _suffix(name)[1:])
    text = base64.b64encode(data).decode()
    return f'<p>{html.escape(name)}<br><img src="data:image/{kind};base64,{text}"></p>'


def _drawn(name: str, plot: Mapping[str, Any], files: Sequence[tuple[str, bytes]]) -> str:
    """Return a plot as an image, or as a table if it cannot be drawn; or the reason why it cannot be read."""
    from dvkf_prefect.pipeline.report.plots import Plot

    try:
        contents = {path: parse(data, path, header=bool(plot.get("header", True))) for path, data in files}
        drawn = points_of(name, plot, contents, "")
    except DvkfError as error:
        return f"<p>{html.escape(str(error))}</p>"
    if not drawn.points:
        return f"<p>{html.escape(name)}: no points</p>"
    props = {**drawn.props, "revs_with_datapoints": [""]}
    props.setdefault("title", name)
    try:
        picture = Plot(name, "vega", drawn.points, props).svg()
    except DvkfError as error:
        return _table(name, drawn.points, str(error))
    return picture[picture.index("<svg") :]


def _table(name: str, points: Sequence[Mapping[str, Any]], note: str) -> str:
    columns = [key for key in points[0] if key not in ("rev", "filename", "field")]

    def row(tag: str, values: Iterable[object]) -> str:
        cells = "".join(f"<{tag}>{html.escape(str(value))}</{tag}>" for value in values)
        return f"<tr>{cells}</tr>"

    rows = [row("td", (point.get(key, "") for key in columns)) for point in points[:_ROWS]]
    left = f"<p>{len(points) - _ROWS} more rows</p>" if len(points) > _ROWS else ""
    return (
        f"<h3>{html.escape(name)}</h3><p>{html.escape(note)}</p>\n<table border=1>{row('th', columns)}"
        + "".join(rows)
        + f"</table>{left}"
    )
