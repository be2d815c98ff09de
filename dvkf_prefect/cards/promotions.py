"""Cards of promotions: a candidate beside the version that serves, and the steps of a promotion or rollback."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dvkf_prefect.cards.card import Card, artifact_key
from dvkf_prefect.cards.markdown import ROWS, code, count_text, escape, markdown_table
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
    table = markdown_table(("kind", "name", before, candidate.version), rows, limit=limit)
    return Card(artifact_key("candidate", name, candidate.name), description, table)


def promotion_card(record: Record, name: str) -> Card:
    """Show a promotion or rollback: its steps, who began it and why, and what was before.

    Args:
        record: The record.
        name: Short name of the repository.
    """
    facts = [
        ("by", record.who),
        ("reason", record.why),
        ("stage before", record.was or "no version"),
        ("served before", record.served or "no version"),
        ("place", record.where or "none"),
        ("journal", record.id),
    ]
    if record.problem:
        facts.append(("problem", record.problem))
    steps = [(step.at, step.name, step.said) for step in record.steps]
    description = f"{escape(record.what)} of **{escape(name)}**: {escape(record.state)}."
    description = description[:1].upper() + description[1:]
    parts = (markdown_table(("", ""), facts), markdown_table(("time", "step", "result"), steps))
    return Card(artifact_key("promotion", name, record.model, record.stage), description, "\n\n".join(parts))
