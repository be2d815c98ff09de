"""Values as markdown: escaped text, code, links, tables and blocks of limited length."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone

from dvkf_prefect.text import JOINER, markdown, printable

ROWS = 20
"""Default for the maximum number of rows."""

_CELL = 200
_BAR = re.compile(r"((?<!\\)(?:\\\\)*)\|")
_ADDRESS = re.compile(r"https?://[\w.:\[\]-]+(?:/[\w.~%/-]*)?", re.ASCII)


class Markup(str):
    """Text that is markdown already. Other text in a table is escaped; what is made of a `Markup` is other text."""


def escape(value: object) -> Markup:
    r"""Escape a value for markdown: one line of limited length, without markup or links. A `Markup` is not changed.

    Example:
        >>> escape("a|b <c>")
        'a\\|b &lt;c&gt;'
    """
    if isinstance(value, Markup):
        return value
    return Markup(markdown(value, limit=_CELL))


def code(value: object) -> Markup:
    """Return a value as inline code of markdown: one line of limited length.

    Example:
        >>> code("a`b")
        "`a'b`"
    """
    text = printable(" ".join(str(value).split())).replace("`", "'")[:_CELL]
    return Markup(f"`{text}`" if text else "")


def plain(markup: str) -> str:
    """Return the text of a card's description for a log: without marks of markdown and escapes.

    Example:
        >>> plain(f"**{escape('a_b')}** is at {code('4f')}")
        'a_b is at 4f'
    """
    text = re.sub(r"(?<!\\)(\*\*|`)", "", markup).replace(JOINER, "")
    return html.unescape(re.sub(r"\\([\\`*_\[\]|~])", r"\1", text))


def link(text: str, url: str) -> Markup:
    """Return a markdown link; escaped text if the url is no plain web address.

    Example:
        >>> link("docs", "https://example.org/a"), link("x", "javascript:alert(1)")
        ('[docs](https://example.org/a)', 'x')
    """
    return Markup(f"[{escape(text)}]({url})") if _ADDRESS.fullmatch(url) else escape(text)


def address(url: str) -> Markup:
    """Return a plain web address unchanged, for markdown turns it into a link; escape other text."""
    return Markup(url) if _ADDRESS.fullmatch(url) else escape(url)


def block(text: str, language: str = "text") -> str:
    """Return text as a code block of markdown; its fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{printable(text, lines=True)}\n{fence}"


def size_text(size: float | None) -> str:
    """Format a number of bytes with a decimal unit.

    Example:
        >>> size_text(1234567)
        '1.2 MB'
    """
    if size is None:
        return "unknown"
    if abs(size) < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if abs(size) < 999.5:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def count_text(count: int, noun: str) -> str:
    """Format a count with its noun, in the plural if needed.

    Example:
        >>> count_text(1437, "file")
        '1,437 files'
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def time_text(value: datetime | str) -> str:
    """Format a time with its zone, UTC.

    Args:
        value: A time with a zone, or its text in ISO 8601. Other text is returned unchanged.

    Example:
        >>> time_text("2026-11-29T11:04:47+01:00")
        '2026-11-29 10:04:47 UTC'
    """
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        return str(value)
    return f"{time.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, limit: int = ROWS) -> str:
    """Return a markdown table of the first rows, with a count of the remaining ones.

    A named column without a value in these rows is left out.

    Args:
        columns: Headers of the columns.
        rows: Cells by row; all but a `Markup` are escaped.
        limit: Maximum number of rows.
    """
    rows = list(rows)
    # A table ends a cell at a bar even in code.
    cells = [[_BAR.sub(r"\1\|", escape(cell)) for cell in row] for row in rows[:limit]]
    used = [i for i, name in enumerate(columns) if not name or not cells or any(row[i] for row in cells)]
    lines = ["| " + " | ".join(escape(columns[i]) for i in used) + " |", "|" + " --- |" * len(used)]
    lines += ["| " + " | ".join(row[i] for i in used) + " |" for row in cells]
    text = "\n".join(lines)
    if len(rows) > limit:
        text += f"\n\nand {len(rows) - limit:,} more"
    return text
