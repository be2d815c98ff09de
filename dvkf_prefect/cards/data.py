"""Cards of data: versions, differences and transfers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dvkf_prefect.cards.card import Card, artifact_key
from dvkf_prefect.cards.charts import Histogram, draw_histograms
from dvkf_prefect.cards.markdown import (
    ROWS,
    Markup,
    code,
    count_text,
    escape,
    link,
    markdown_table,
    size_text,
    time_text,
)
from dvkf_prefect.cards.pictures import Picture, show_pictures
from dvkf_prefect.text import printable

if TYPE_CHECKING:
    from dvkf_prefect.data.git.commits import Commit
    from dvkf_prefect.data.tables.frame_profile import FrameProfile
    from dvkf_prefect.data.transfer.transfer import Transfer
    from dvkf_prefect.data.verbs.diff import Diff, DiffEntry
    from dvkf_prefect.formats.outputs import DataVersion


UNCOMMITTED = "not committed"
"""Words on a version that no commit holds."""


def data_card(
    version: DataVersion,
    name: str,
    history: Sequence[DataVersion] = (),
    *,
    commits: Mapping[str, Commit] | None = None,
    profile: FrameProfile | None = None,
    run: tuple[str, str] = ("", ""),
    limit: int = ROWS,
) -> Card:
    """Show a version of an output with its origin and columns, above earlier committed versions.

    Args:
        version: The version.
        name: Short name of the repository.
        history: Earlier versions, newest first.
        commits: Commits of the versions, by hash.
        profile: Profile of a table.
        run: Name and address of the flow run that made the version; empty if unknown.
        limit: Maximum number of versions, and of columns.
    """
    commits = commits or {}
    # If the newest commit holds this version, its row also shows the commit.
    known = bool(history) and history[0].digest == version.digest
    rows = list(history) if known else [version, *history]
    description = (
        f"**{escape(version.path)}** of **{escape(name)}** is at version {code(version.digest[:12])}: "
        f"{count_text(version.nfiles, 'file')}, {size_text(version.size)}, {_at(rows[0].rev)}."
    )
    if len(rows) > 1:
        description += (
            f" The version before, {code(rows[1].digest[:12])}, has {count_text(rows[1].nfiles, 'file')} and "
            f"{size_text(rows[1].size)}."
        )
    facts: list[tuple[str, object]] = [
        ("version", code(version.digest)),
        ("content", f"{count_text(version.nfiles, 'file')}, {size_text(version.size)}"),
    ]
    if profile is not None:
        facts.append(
            ("table", f"{count_text(profile.rows, 'row')}, {count_text(len(profile.columns), 'column')}")
        )
    commit = commits.get(rows[0].rev or "")
    facts.append(("commit", _commit_text(rows[0].rev, commit)))
    if commit is not None:
        facts += [("author", f"{commit.author}, {time_text(commit.time)}"), ("message", commit.subject)]
    if any(run):
        facts.append(("flow run", link(*run)))
    parts = [markdown_table(("", escape(version.path)), facts)]
    if profile is not None:
        parts += _profile_parts(profile, limit)
    versions = [
        (
            code(old.digest[:12]),
            f"{old.nfiles:,}",
            size_text(old.size),
            _commit_text(old.rev, at),
            at.author if at else "",
        )
        for old in rows
        for at in (commits.get(old.rev or ""),)
    ]
    table = markdown_table(("version", "files", "size", "commit", "author"), versions, limit=limit)
    parts.append(f"### Versions\n\n{table}")
    return Card(artifact_key("data", name, version.path), description, "\n\n".join(parts))


def _profile_parts(profile: FrameProfile, limit: int) -> list[str]:
    columns = [
        (
            column.name,
            column.dtype,
            _missing(column.missing, profile.rows),
            "" if column.distinct is None else f"{column.distinct:,}",
            "" if not column.low else column.low if one else f"{column.low} to {column.high}",
        )
        for column in profile.columns
        for one in (column.low == column.high,)
    ]
    table = markdown_table(("column", "type", "missing", "different", "range"), columns, limit=limit)
    parts = [f"### Columns\n\n{table}"]
    drawn = [
        Histogram(c.name, c.counts, c.low, c.high) for c in profile.columns if c.counts and c.low != c.high
    ][:limit]
    if drawn:
        titles = ", ".join(histogram.title for histogram in drawn)
        parts += show_pictures([Picture(f"Histograms of {titles}", draw_histograms(drawn))], titles=False)
    if profile.sample:
        names = [column.name for column in profile.columns]
        parts.append(f"### First rows\n\n{markdown_table(names, profile.sample, limit=limit)}")
    return parts


def _missing(count: int, rows: int) -> str:
    # A few missing values are no 0 %, and some known ones no 100 %.
    share = min(max(100 * count / max(rows, 1), 0.1), 100 if count == rows else 99.9)
    return f"{count:,} ({share:.3g} %)" if count else "0"


def _commit_text(rev: str | None, commit: Commit | None) -> Markup:
    if not rev:
        return Markup(UNCOMMITTED)
    return link(rev[:10], commit.url) if commit is not None and commit.url else code(rev[:10])


def _at(rev: str | None) -> str:
    return f"at commit {code(rev[:10])}" if rev else UNCOMMITTED


def diff_card(diff: Diff, name: str, *, commits: tuple[str, str] = ("", ""), limit: int = ROWS) -> Card:
    """Show the difference between two versions: counts, bytes, and the first paths of each kind.

    Args:
        diff: The difference.
        name: Short name of the repository.
        commits: Commits of the two sides; empty for the workspace.
        limit: Maximum number of paths of each kind.
    """
    kinds: list[tuple[str, tuple[DiffEntry, ...]]] = [
        ("added", diff.added),
        ("deleted", diff.deleted),
        ("modified", diff.modified),
        ("renamed", diff.renamed),
        ("not in cache", diff.not_in_cache),
    ]
    # The row of a directory itself ends with a slash; only its files are counted.
    files = {kind: [e for e in entries if not e.path.endswith("/")] for kind, entries in kinds}
    sides = f"{_side(diff.a, commits[0])} to {_side(diff.b or 'workspace', commits[1])}"
    counts = ", ".join(f"{len(found):,} {kind}" for kind, found in files.items() if found)
    if not diff:
        return Card(
            artifact_key("diff", name),
            f"**{escape(name)}**: nothing differs from {sides}.",
            markdown="Nothing differs.",
        )
    before = sum(e.old_size or 0 for entries in files.values() for e in entries)
    after = sum(e.new_size or 0 for entries in files.values() for e in entries)
    known = all(
        (e.old_size is not None or e.old_digest is None) and (e.new_size is not None or e.new_digest is None)
        for entries in files.values()
        for e in entries
    )
    change = f", {'+' if after >= before else '-'}{size_text(abs(after - before))}" if known else ""
    description = f"**{escape(name)}** from {sides}: {counts or 'a directory differs'}{change}."
    summary = []
    sections = []
    for kind, entries in kinds:
        found = files[kind]
        if found:
            old = [e.old_size for e in found if e.old_digest]
            new = [e.new_size for e in found if e.new_digest]
            summary.append((kind, f"{len(found):,}", _sum_text(old), _sum_text(new)))
            if kind == "modified":
                columns: tuple[str, ...] = ("path", "old size", "new size")
                rows: list[tuple[str, ...]] = [
                    (e.path, size_text(e.old_size), size_text(e.new_size)) for e in found
                ]
            else:
                columns = ("path", "size")
                rows = [
                    (
                        f"{e.old_path} → {e.path}" if e.old_path else e.path,
                        size_text(e.new_size if e.new_digest else e.old_size),
                    )
                    for e in found
                ]
            table = markdown_table(columns, rows, limit=limit)
            sections.append(f"### {kind.capitalize()}\n\n{table}")
        directories = [e.path for e in entries if e.path.endswith("/")]
        if directories and not found:
            shown = ", ".join(escape(path) for path in directories[:limit])
            sections.append(f"### {kind.capitalize()}\n\nDirectories: {shown}")
    head = markdown_table(("change", "files", "old size", "new size"), summary) if summary else ""
    body = "\n\n".join(part for part in (f"## Data of {escape(name)}, {sides}", head, *sections) if part)
    return Card(artifact_key("diff", name), description, markdown=body)


def _sum_text(sizes: Sequence[int | None]) -> str:
    known = [size for size in sizes if size is not None]
    if not sizes:
        return ""
    return size_text(sum(known)) if len(known) == len(sizes) else "unknown"


def _side(name: str, commit: str) -> str:
    shown = code(name)
    return f"{shown} ({code(commit[:10])})" if commit and not commit.startswith(name) else shown


def transfer_text(verb: str, transfer: Transfer) -> str:
    """Describe a transfer for a log or a card.

    Args:
        verb: Past participle of the verb: ``pushed``, ``fetched``.
        transfer: The transfer.
    """
    if not transfer.files:
        return f"nothing {verb}: {count_text(transfer.present, 'object')} already at the destination"
    return (
        f"{verb} {count_text(transfer.files, 'object')} ({size_text(transfer.size)}), "
        f"{transfer.present:,} already at the destination, remote '{printable(transfer.remote)}'"
    )
