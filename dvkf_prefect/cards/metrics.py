"""Cards of metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dvkf_prefect.cards.card import Card, artifact_key
from dvkf_prefect.cards.charts import draw_line
from dvkf_prefect.cards.markdown import Markup, code, escape, markdown_table
from dvkf_prefect.cards.pictures import Picture, show_pictures

if TYPE_CHECKING:
    from dvkf_prefect.pipeline.report.metrics import MetricChange

_CHARTS = 6
# The difference of two larger numbers may be no number of the chart.
_LARGEST = 1e300


def metrics_card(
    changes: Sequence[MetricChange],
    name: str,
    *,
    before: str = "",
    history: Sequence[tuple[str, Mapping[str, Mapping[str, object]]]] = (),
    limit: int = 100,
) -> Card:
    """Show metrics beside those of the previous version, and their course over the last versions.

    Args:
        changes: Changes, one per metric.
        name: Short name of the repository.
        before: Commit of the previous version; empty without one.
        history: Label and metrics of the versions up to the newer one, oldest first; metrics by name by file.
        limit: Maximum number of metrics.
    """
    table = markdown_table(
        ("metric", "old", "new", "change", "file"),
        [
            (
                row.name,
                value_text(row.old),
                value_text(row.new),
                change_text(row.change),
                row.path,
            )
            for row in changes
        ],
        limit=limit,
    )
    shown = []
    for row in changes[:5]:
        if row.old is None or row.old == row.new:
            shown.append(f"{escape(row.name)} **{value_text(row.new)}**")
        else:
            change = f" ({change_text(row.change)})" if row.change else ""
            shown.append(f"{escape(row.name)} {value_text(row.old)} → **{value_text(row.new)}**{change}")
    more = f", and {len(changes) - 5:,} more" if len(changes) > 5 else ""
    compared = before and any(row.old is not None for row in changes)
    against = f", against commit {code(before[:10])}" if compared else ""
    description = f"**{escape(name)}**: {', '.join(shown) or 'no metrics'}{more}{against}."
    # Those that changed first.
    order = sorted(changes, key=lambda row: not row.change)
    drawn = []
    for row in order[:_CHARTS]:
        course = [(label, files.get(row.path, {}).get(row.name)) for label, files in history]
        drawn += [picture] if (picture := draw_values(row.name, course)) else []
    parts = [table if changes else "No metrics.", *show_pictures(drawn, titles=False)]
    return Card(artifact_key("metrics", name), description, "\n\n".join(parts))


def draw_values(name: str, values: Sequence[tuple[str, object]]) -> Picture | None:
    """Draw the course of a value; None for fewer than two different numbers.

    Args:
        name: Name of the value.
        values: Label and value of each version, oldest first; what is no finite number is left out.
    """
    points = [
        (label, float(value))
        for label, value in values
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST
    ]
    if len({value for _, value in points}) < 2:
        return None
    return Picture(f"{name} over {len(points)} versions", draw_line(name, points))


def value_text(value: object) -> Markup:
    """Return a metric as text for a table."""
    if isinstance(value, bool) or value is None:
        return Markup("" if value is None else str(value).lower())
    if isinstance(value, (int, float)):
        return Markup(number_text(value))
    return escape(value)


def number_text(value: float) -> str:
    """Format a number with at least six digits; a large one has no exponent.

    Example:
        >>> number_text(0.12345678), number_text(2469135.78), number_text(2000)
        ('0.123457', '2,469,136', '2,000')
    """
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 1e6 <= abs(value) < 1e15 else f"{value:,.6g}"


def change_text(change: float | None) -> str:
    """Format a difference with its sign; empty for none."""
    return f"{'+' if change > 0 else ''}{number_text(change)}" if change else ""
