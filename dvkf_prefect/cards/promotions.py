"""Cards of promotions: a candidate beside the version that serves, and the steps of a promotion or rollback."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dvkf_prefect.cards.card import Card, artifact_key
from dvkf_prefect.cards.markdown import ROWS, code, count_text, escape, markdown_table, time_text
from dvkf_prefect.cards.metrics import value_text

if TYPE_CHECKING:
    from dvkf_prefect.promotion.comparison import VersionComparison
    from dvkf_prefect.promotion.journal import Record


def comparison_card(comparison: VersionComparison, name: str, *, limit: int = ROWS) -> Card:
    """Show the values in which a candidate differs from the version that serves.

    Args:
        comparison: The comparison.
        name: Short name of the repository.
        limit: Maximum number of values.
    """
    candidate, champion = comparison.candidate, comparison.champion
    before = champion.version if champion else "no version"
    rows = [
        (
            each.kind,
            each.name,
            *(
                code(str(value)[:12]) if each.kind in ("data", "code") and value else value_text(value)
                for value in (each.champion, each.candidate)
            ),
        )
        for each in comparison.differences
    ]
    description = (
        f"**{escape(candidate.name)}** of **{escape(name)}**: {escape(candidate.version)} beside {escape(before)}. "
        f"{count_text(len(comparison.differences), 'value')} changed, {comparison.equal} equal."
    )
    table = (
        markdown_table(("kind", "name", before, candidate.version), rows, limit=limit)
        if rows
        else ("Parameters, metrics, data and code are equal.")
    )
    return Card(artifact_key("candidate", name, candidate.name), description, table)


def promotion_card(record: Record, name: str, *, waits: bool = False) -> Card:
    """Show a promotion or rollback: its steps, who began it and why, and what was before.

    Args:
        record: The record.
        name: Short name of the repository.
        waits: True if a promotion waits for approval.
    """
    facts: list[tuple[str, object]] = [
        ("begun", f"{time_text(record.began)} by {record.who}"),
        ("reason", record.why),
        (f"{record.stage} before", record.was or "no version"),
        ("served before", record.served or "no version"),
        ("model server", code(record.where)),
        ("entry of the journal", code(record.id)),
    ]
    steps = [(time_text(step.at), step.name, step.said) for step in record.steps]
    state = "waits for approval" if waits else record.state
    description = f"{escape(record.what)} of **{escape(name)}**: {escape(state)}."
    description = description[:1].upper() + description[1:]
    parts = [f"Reason of its end: {escape(record.problem)}"] if record.problem else []
    parts.append(markdown_table(("", record.model), [fact for fact in facts if fact[1]]))
    parts.append(markdown_table(("time", "step", "result"), steps) if steps else "No step has ended yet.")
    return Card(artifact_key("promotion", name, record.model, record.stage), description, "\n\n".join(parts))
