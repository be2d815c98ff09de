"""Cards of metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dvkf_prefect.cards.card import Card, artifact_key
from dvkf_prefect.cards.markdown import code, escape

if TYPE_CHECKING:
    from dvkf_prefect.pipeline.report.metrics import MetricChange


def metrics_card(changes: Sequence[MetricChange], name: str, *, before: str = "", limit: int = 100) -> Card:
    """Show metrics beside those of the previous version.

    Args:
        changes: Changes, one per metric.
        name: Short name of the repository.
        before: Commit of the previous version; empty without one.
        limit: Maximum number of metrics.
    """
    table = tuple(
        {
            "metric": escape(row.name),
            "old": _cell(row.old),
            "new": _cell(row.new),
            "change": f"{row.change:+.6g}" if row.change is not None else "",
            "file": escape(row.path),
        }
        for row in changes[:limit]
    )
    shown = []
    for row in changes[:5]:
        if row.old is None or row.old == row.new:
            shown.append(f"{escape(row.name)} **{_cell(row.new)}**")
        else:
            change = f" ({row.change:+.4g})" if row.change is not None else ""
            shown.append(f"{escape(row.name)} {_cell(row.old)} → **{_cell(row.new)}**{change}")
    more = f", and {len(changes) - 5:,} more" if len(changes) > 5 else ""
    against = f", against commit {code(before[:10])}" if before else ""
    description = f"**{escape(name)}**: {', '.join(shown) or 'no metrics'}{more}{against}."
    return Card(artifact_key("metrics", name), description, table=table)


def _cell(value: object) -> object:
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:.6g}" if isinstance(value, float) else f"{value}"
    return escape(value)
