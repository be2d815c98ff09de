"""Tables as DVC prints them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from dvkf_prefect.cli._output import shown
from dvkf_prefect.text import printable


def plain_table(rows: Sequence[Sequence[str | None]], *, right: bool = False, painted: bool = False) -> str:
    """Return rows in aligned columns, two spaces apart.

    Args:
        rows: Cells by row; None is shown as ``-``.
        right: Align the first column to the right.
        painted: True if the cells have colours and are already safe to print.
    """
    cells = [["-" if cell is None else cell if painted else shown(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
        if right:
            padded[0] = " " * (widths[0] - _width(row[0])) + row[0]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in GitHub's markdown, with an empty line after it. Cells are escaped."""
    headers, rows = [_plain(header) for header in headers], [[_plain(cell) for cell in row] for row in rows]
    # DVC makes a header two columns wider than needed.
    widths = [max(len(header) + 2, *(_width(row[i]) for row in rows), 0) for i, header in enumerate(headers)]

    def line(cells: Sequence[str]) -> str:
        padded = (cell + " " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join((line(headers), f"|{rule}|", *map(line, rows), ""))


def _plain(cell: str) -> str:
    """Escape cell separators, pictures, links and HTML in a cell; all else stays as in DVC."""
    text = " ".join(cell.splitlines()).replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(")
    return printable(text)


def natural_size(size: float) -> str:
    """Format a number of bytes by powers of 1024, in about four characters."""
    if size < 1024:
        return f"{size:.0f}"
    for unit in ("", "k", "M", "G", "T", "P", "E", "Z"):
        if abs(size) < 999.5:
            if abs(size) < 99.95:
                return f"{size:1.2f}{unit}" if abs(size) < 9.995 else f"{size:2.1f}{unit}"
            return f"{size:3.0f}{unit}"
        size /= 1024
    return f"{size:3.1f}Y"


def _width(text: str) -> int:
    """Return the width of a text on a terminal, in columns."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )
