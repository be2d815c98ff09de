"""Card of files on their way into a dataset: the accepted ones, and the failures of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dvkf_prefect.cards.card import Card, artifact_key
from dvkf_prefect.cards.markdown import ROWS, code, count_text, escape, markdown_table, size_text
from dvkf_prefect.urls import public_url

if TYPE_CHECKING:
    from dvkf_prefect.data.quality.incoming import Incoming, IncomingFile

# Maximum number of files whose failures are shown in full.
_SHOWN = 5


def incoming_card(found: Incoming, name: str, *, limit: int = ROWS) -> Card:
    """Show the files of an inbox after their check.

    Args:
        found: The files with their verdicts.
        name: Short name of the repository.
        limit: Maximum number of files, of failed checks and of sample rows.
    """
    accepted, refused = found.accepted, found.refused
    moved = "to move to quarantine" if found.dry_run else "in quarantine"
    said = (
        f"**{escape(name)}**: {count_text(len(accepted), 'file')} for {escape(found.dataset)}, "
        f"{len(refused):,} {moved}"
    )
    parts = [
        f"Schema {code(found.schema)}, inbox {code(public_url(found.inbox))}, quarantine {code(found.quarantine)}."
    ]
    if refused:
        failed = [
            (
                code(file.path),
                file.verdict,
                _rows(file),
                file.report.failed_rows if file.report else "",
                _reason(file),
            )
            for file in refused
        ]
        columns = ("file", "verdict", "rows", "failed rows", "reason")
        parts += ["### Refused", markdown_table(columns, failed, limit=limit)]
        parts += [text for file in refused[:_SHOWN] for text in _failures(file, limit)]
    if accepted:
        passed = [
            (
                code(file.path),
                _rows(file),
                size_text(file.content.size),
                code(file.digest[:12]),
                "checked" if file.checked else "checked before" if file.report else "in the dataset",
            )
            for file in accepted
        ]
        parts += [
            "### Accepted",
            markdown_table(("file", "rows", "size", "digest", "check"), passed, limit=limit),
        ]
    left = [(code(path), "changed lately") for path in found.waiting]
    left += [(code(path), "no regular file, or a name that DVC cannot track") for path in found.skipped]
    if left:
        parts += ["### Left in the inbox", markdown_table(("file", "reason"), left, limit=limit)]
    return Card(artifact_key("incoming", name, found.dataset), f"{said}.", "\n\n".join(parts))


def _rows(file: IncomingFile) -> str:
    return f"{file.report.rows:,}" if file.report and file.report.rows is not None else ""


def _failures(file: IncomingFile, limit: int) -> list[str]:
    """Return tables of the failed checks of a file, and of a sample of its rows."""
    report = file.report
    if report is None or report.passed:
        return []
    checks = [
        (
            each.column or "(table)",
            code(each.check),
            f"{each.count:,}",
            ", ".join(map(str, each.rows[:_SHOWN])),
            ", ".join(each.values),
        )
        for each in report.failed
    ]
    columns = ("column", "check", "failures", "first rows", "values")
    parts = [f"#### {code(file.path)}", markdown_table(columns, checks, limit=limit)]
    if report.sample:
        parts += ["First rows that failed, counted from 0:"]
        parts += [markdown_table(("row", *report.columns), report.sample, limit=limit)]
    return parts


def _reason(file: IncomingFile) -> str:
    """Return a reason short enough for a table; the failed checks have tables of their own."""
    report = file.report
    if report is None or report.passed:
        return file.reason
    columns = dict.fromkeys(f"'{each.column}'" if each.column else "the table" for each in report.failed)
    named, more = list(columns)[:_SHOWN], len(columns) - _SHOWN
    text = f"{count_text(len(report.failed), 'check')} of {', '.join(named)}"
    return f"{text} and {count_text(more, 'more column')}" if more > 0 else text
