"""Small charts as SVG: lines over versions, histograms, and graphs of nodes. They need no library."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dvkf_prefect.text import printable

_BLUE, _GREY, _INK = "#2563eb", "#d4d4d8", "#27272a"
_FONT = 'font-family="system-ui,sans-serif" font-size="11"'
# Pixels: between columns, from row to row, of a node's height, between nodes of a line, and of a letter at most.
_GAP, _ROW, _HIGH, _BESIDE, _LETTER = 36, 34, 24, 14, 6.5
# Width of a card on Prefect's narrower pages.
_WIDE = 640
# A larger graph is no help in a card.
_NODES = 60


def _text(value: object, length: int) -> str:
    return html.escape(_short(value, length))


def _short(value: object, length: int) -> str:
    """Return a value as text as wide as ``length`` Latin letters at most."""
    text = printable(" ".join(str(value).split()))
    if _letters(text) <= length:
        return text
    while _letters(text) >= length:
        text = text[:-1]
    return text + "…"


def _letters(text: str) -> int:
    """Return the width of a text in Latin letters: a Chinese, Japanese or Korean one takes two, an accent none."""
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1
        for each in text
    )


def _number(value: float) -> str:
    # Ten characters at most, for which the margin has room.
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1e7 else f"{value:.4g}"


def _svg(width: float, height: float, parts: Sequence[str]) -> bytes:
    # On white: Prefect's pages are light or dark.
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" {_FONT} fill="{_INK}">'
        f'<rect width="100%" height="100%" rx="4" fill="#fff"/>{"".join(parts)}</svg>'
    ).encode()


def draw_line(
    title: str, points: Sequence[tuple[str, float]], *, width: int = 520, height: int = 150
) -> bytes:
    """Draw values of successive versions as a line.

    Args:
        title: Title of the chart.
        points: Label and finite value of each version, oldest first; at least one.
        width: Width in pixels.
        height: Height in pixels.

    Returns:
        The picture as SVG.
    """
    values = [value for _, value in points]
    low, high = min(values), max(values)
    left, right, top, bottom = 84, width - 40, 34, height - 34
    # Halves first: the difference of two large numbers may be no number.
    span = high / 2 - low / 2
    step = (right - left) / max(1, len(points) - 1)

    def place(number: int, value: float) -> tuple[float, float]:
        share = (value / 2 - low / 2) / span if span else 0.5
        return (left + number * step if len(points) > 1 else (left + right) / 2), bottom - share * (
            bottom - top
        )

    spots = [place(number, value) for number, value in enumerate(values)]
    parts = [f'<text x="10" y="17" font-weight="600">{_text(title, 70)}</text>']
    for y, value in {top: high, bottom: low}.items() if high > low else {(top + bottom) / 2: low}.items():
        parts.append(f'<path d="M{left} {y}H{right}" stroke="{_GREY}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{_number(value)}</text>')
    for (x, y), (u, v) in pairwise(spots):
        parts.append(f'<path d="M{x:.1f} {y:.1f}L{u:.1f} {v:.1f}" stroke="{_BLUE}" stroke-width="2"/>')
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{_BLUE}"/>' for x, y in spots]
    # Labels must not overlap: about 70 pixels each.
    every = max(1, -(-len(points) * 70 // (right - left)))
    for number, (label, _) in enumerate(points):
        if (len(points) - 1 - number) % every == 0:
            parts.append(
                f'<text x="{spots[number][0]:.1f}" y="{height - 12}" text-anchor="middle">{_text(label, 11)}</text>'
            )
    return _svg(width, height, parts)


@dataclass(frozen=True)
class Histogram:
    """Counts of equal intervals.

    Attributes:
        title: Its title.
        counts: Count of each interval; at least one.
        low: Text of the lowest value.
        high: Text of the highest value.
    """

    title: str
    counts: Sequence[int]
    low: str
    high: str


def draw_histograms(histograms: Sequence[Histogram], *, width: int = 260, height: int = 96) -> bytes:
    """Draw histograms as bars, two in a row.

    Args:
        histograms: The histograms; at least one.
        width: Width of each in pixels.
        height: Height of each in pixels.

    Returns:
        The picture as SVG.
    """
    parts = []
    for number, histogram in enumerate(histograms):
        down, right = divmod(number, 2)
        parts.append(f'<g transform="translate({right * width} {down * height})">')
        parts += [*_bars(histogram, width, height), "</g>"]
    return _svg(min(len(histograms), 2) * width, -(-len(histograms) // 2) * height, parts)


def _bars(histogram: Histogram, width: int, height: int) -> list[str]:
    left, right, top, bottom = 10, width - 10, 24, height - 20
    bar = (right - left) / len(histogram.counts)
    most = max((*histogram.counts, 1))
    parts = [f'<text x="{left}" y="16" font-weight="600">{_text(histogram.title, 36)}</text>']
    for number, count in enumerate(histogram.counts):
        if count:
            high = max((bottom - top) * count / most, 1)
            parts.append(
                f'<rect x="{left + number * bar + 0.5:.1f}" y="{bottom - high:.1f}" '
                f'width="{max(bar - 1, 0.5):.1f}" height="{high:.1f}" fill="{_BLUE}"/>'
            )
    parts.append(f'<path d="M{left} {bottom}H{right}" stroke="{_GREY}"/>')
    parts.append(f'<text x="{left}" y="{height - 6}">{_text(histogram.low, 18)}</text>')
    parts.append(f'<text x="{right}" y="{height - 6}" text-anchor="end">{_text(histogram.high, 18)}</text>')
    return parts


def draw_graph(needs: Mapping[str, Sequence[str]], *, stages: Collection[str] = ()) -> bytes | None:
    """Draw a graph without cycles from the left to the right, or from the top if that is too wide for a card.

    Args:
        needs: Nodes that each node needs; each of them is a key.
        stages: Nodes in the colour of stages, besides those whose names begin with ``stage``.

    Returns:
        The picture as SVG; None for no node, or for more than a card can show.
    """
    if not needs or len(needs) > _NODES:
        return None
    column: dict[str, int] = {}
    waiting = list(needs)
    while waiting:
        ready = [node for node in waiting if all(other in column for other in needs[node])]
        if not ready:
            return None
        for node in ready:
            column[node] = max((column[other] + 1 for other in needs[node]), default=0)
        waiting = [node for node in waiting if node not in column]
    # A node without needs stands beside its first user, so that no long line crosses the picture.
    for node in needs:
        users = [column[user] for user, needed in needs.items() if node in needed]
        if not needs[node] and users:
            column[node] = min(users) - 1
    columns: list[list[str]] = [[] for _ in range(max(column.values()) + 1)]
    for node in needs:
        columns[column[node]].append(node)
    # Beside what they need, and sources beside their first user, so that few lines cross.
    order = {node: number for number, node in enumerate(needs)}
    columns[0].sort(
        key=lambda node: min((order[u] for u, needed in needs.items() if node in needed), default=-1)
    )
    row: dict[str, int] = {}
    for nodes in columns:
        nodes.sort(key=lambda node: sum(row.get(n, 0) for n in needs[node]) / max(1, len(needs[node])))
        row |= {node: number for number, node in enumerate(nodes)}
    places, width, height = _across(columns)
    down = width > _WIDE
    if down:
        places, width, height = _down(columns)
    parts = []
    for node, needed in needs.items():
        x, y, wide = places[node]
        for other in needed:
            u, v, other_wide = places[other]
            bend = _GAP / 2
            if down:
                start, end = (u + other_wide / 2, v + _HIGH), (x + wide / 2, y)
                one, two = (start[0], start[1] + bend), (end[0], end[1] - bend)
            else:
                start, end = (u + other_wide, v + _HIGH / 2), (x, y + _HIGH / 2)
                one, two = (start[0] + bend, start[1]), (end[0] - bend, end[1])
            line = " ".join(f"{a:.1f} {b:.1f}" for a, b in (one, two, end))
            parts.append(f'<path d="M{start[0]:.1f} {start[1]:.1f}C{line}" fill="none" stroke="#71717a"/>')
    for node, (x, y, wide) in places.items():
        fill = _fill("stage " if node in stages else node)
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{_HIGH}" rx="4" fill="{fill}" '
            f'stroke="#a1a1aa"/><text x="{x + wide / 2:.1f}" y="{y + 16:.1f}" text-anchor="middle">'
            f"{_text(node, 30)}</text>"
        )
    return _svg(width, height, parts)


_Places = dict[str, tuple[float, float, float]]


def _node_width(node: str) -> float:
    return _letters(_short(node, 30)) * _LETTER + 16


def _across(columns: Sequence[Sequence[str]]) -> tuple[_Places, float, float]:
    """Place the nodes in columns; return left, top and width of each, and the size of the picture."""
    places: _Places = {}
    x = 10.0
    for nodes in columns:
        wide = max(map(_node_width, nodes), default=0.0)
        places |= {node: (x, 10.0 + number * _ROW, wide) for number, node in enumerate(nodes)}
        x += wide + _GAP
    return places, x - _GAP + 10, max(map(len, columns)) * _ROW + 10


def _down(columns: Sequence[Sequence[str]]) -> tuple[_Places, float, float]:
    """Place the nodes in rows, as `_across` does in columns. A row that is too wide for a card takes several lines."""
    rows = [_lines(nodes) for nodes in columns]
    widest = max(_line_width(line) for lines in rows for line in lines)
    places: _Places = {}
    y = 10.0
    for lines in rows:
        for line in lines:
            x = 10.0 + (widest - _line_width(line)) / 2
            for node in line:
                places[node] = (x, y, _node_width(node))
                x += _node_width(node) + _BESIDE
            y += _HIGH + _BESIDE
        y += _GAP - _BESIDE
    return places, widest + 20, y - _GAP + 10


def _lines(nodes: Sequence[str]) -> list[list[str]]:
    """Break the nodes of a row into lines that a card has room for."""
    lines: list[list[str]] = [[]]
    for node in nodes:
        if lines[-1] and _line_width([*lines[-1], node]) > _WIDE - 20:
            lines.append([])
        lines[-1].append(node)
    return lines


def _line_width(nodes: Sequence[str]) -> float:
    return sum(_node_width(node) + _BESIDE for node in nodes) - _BESIDE


def _fill(node: str) -> str:
    """Return the colour of a node: stages, services and all others."""
    return {"stage": "#dbeafe", "service": "#dcfce7"}.get(node.partition(" ")[0], "#f4f4f5")
