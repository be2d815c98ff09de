"""Cards for Prefect's pages: pure functions from results to markdown and tables.

A card becomes an artifact. Its key is stable: all cards of one dataset, model, pipeline or stage form a timeline. The
list of artifacts shows only the newest description, so each description is complete. Outside text is escaped, and long
lists are cut with a count of the remaining rows.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from shlex import quote
from typing import TYPE_CHECKING

from dvkf_prefect.text import printable, slug

if TYPE_CHECKING:
    from dvkf_prefect.data.transfer.transfer import Transfer
    from dvkf_prefect.data.verbs.diff import Diff, DiffEntry
    from dvkf_prefect.formats.outputs import DataVersion
    from dvkf_prefect.models.version import ModelVersion
    from dvkf_prefect.pipeline.report.metrics import MetricChange
    from dvkf_prefect.serving.endpoint import Endpoint

ROWS = 20
_CELL = 200
_KEY = 120
_MARK = 10
_WORD = re.compile(r"[a-z0-9]+")
_WORDS = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
# Keys that end like a key with a digest.
_MARKED = re.compile(rf"-[0-9a-f]{{{_MARK}}}$")
_ADDRESS = re.compile(r"https?://[\w.:\[\]-]+(?:/[\w.~%/-]*)?", re.ASCII)


@dataclass(frozen=True)
class Card:
    """Content of a Prefect artifact.

    Attributes:
        key: Key of the timeline, of ``[a-z0-9-]``.
        description: Markdown for the list and the head of the page.
        markdown: Body in markdown; empty for a table.
        table: Rows of a table in order; empty for markdown.
    """

    key: str
    description: str
    markdown: str = ""
    table: tuple[Mapping[str, object], ...] = ()


def artifact_key(kind: str, *names: str) -> str:
    """Return the key of a timeline. Different names never share a key.

    Plain names stay readable. A plain name has words of lower-case letters and digits with single dashes; for data, it
    is a path of such words below ``data/``. A label before it ends with two dashes, or with the word ``data`` of such a
    path. All other names are normalised and get a short digest of the original.

    Args:
        kind: Kind of the card: ``data``, ``model``, ``metrics``, ...
        names: Names from the outermost to the innermost, such as label and path; empty ones are ignored.

    Example:
        >>> artifact_key("data", "", "data/digits/train")
        'data-digits-train'
        >>> artifact_key("model", "shop", "price-of-oil")
        'model-shop--price-of-oil'
        >>> artifact_key("data", "", "data/Train.csv")
        'data-train-csv-992c8fd0ac'
    """
    given = [name for name in names if name]
    plain = _plain_key(kind, given)
    if plain is not None and len(plain) <= _KEY and not _MARKED.search(plain):
        return plain
    words = "-".join(word for name in given if (word := slug(name)))
    start = words if f"{words}-".startswith(f"{kind}-") else f"{kind}-{words}"
    digest = hashlib.sha256("\0".join((kind, *given)).encode(errors="surrogateescape")).hexdigest()[:_MARK]
    return f"{start[: _KEY - _MARK - 1].strip('-')}-{digest}"


def _plain_key(kind: str, names: Sequence[str]) -> str | None:
    """Return a readable key that only these names have; None if they need a digest."""
    *labels, name = names or ("",)
    if len(labels) > 1 or not all(_WORDS.fullmatch(label) for label in labels):
        return None
    if kind != "data":
        if not _WORDS.fullmatch(name) or f"{'--'.join(names)}-".startswith(f"{kind}-"):
            return None
        return f"{kind}-{'--'.join(names)}"
    words = name.split("/")
    # The second "data" of a key begins the path, so neither a label nor a path without a label may contain one.
    if words[0] != "data" or not all(_WORD.fullmatch(word) for word in words):
        return None
    if any("data" in label.split("-") for label in labels) or (not labels and "data" in words[1:]):
        return None
    return "-".join(("data", *labels, *words) if labels else words)


def escape(value: object) -> str:
    r"""Escape a value for markdown: one line of limited length, without markup or links.

    Example:
        >>> escape("a|b <c>")
        'a\\|b &lt;c&gt;'
    """
    text = printable(" ".join(str(value).split()))
    if len(text) > _CELL:
        text = text[: _CELL - 1] + "…"
    text = re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(text, quote=False))
    # Markdown turns a bare address into a link.
    text = text.replace("://", ":&#47;&#47;")
    return re.sub(r"\b(www)\.", r"\1&#46;", text, flags=re.IGNORECASE)


def code(value: object) -> str:
    """Return a value as inline code of markdown: one line of limited length.

    Example:
        >>> code("a`b")
        "`a'b`"
    """
    return f"`{printable(' '.join(str(value).split())).replace('`', chr(39))[:_CELL]}`"


def plain(markdown: str) -> str:
    """Return the text of a card's description for a log: without marks of markdown and escapes.

    Example:
        >>> plain(f"**{escape('a_b')}** is at {code('4f')}")
        'a_b is at 4f'
    """
    text = re.sub(r"(?<!\\)(\*\*|`)", "", markdown)
    return html.unescape(re.sub(r"\\([\\`*_\[\]|~])", r"\1", text))


def link(text: str, url: str) -> str:
    """Return a markdown link; escaped text if the url is no plain web address.

    Example:
        >>> link("docs", "https://example.org/a"), link("x", "javascript:alert(1)")
        ('[docs](https://example.org/a)', 'x')
    """
    return f"[{escape(text)}]({url})" if _ADDRESS.fullmatch(url) else escape(text)


def _address(url: str) -> str:
    return url if _ADDRESS.fullmatch(url) else escape(url)


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


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, limit: int = ROWS) -> str:
    """Return a markdown table of the first rows, with a count of the remaining ones.

    Args:
        columns: Headers of the columns.
        rows: Cells by row; they are escaped.
        limit: Maximum number of rows.
    """
    rows = list(rows)
    lines = ["| " + " | ".join(map(escape, columns)) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(map(escape, row)) + " |" for row in rows[:limit]]
    text = "\n".join(lines)
    if len(rows) > limit:
        text += f"\n\nand {len(rows) - limit:,} more"
    return text


# -- data --------------------------------------------------------------------------------------------------------------


def data_card(
    version: DataVersion, name: str, history: Sequence[DataVersion] = (), *, limit: int = ROWS
) -> Card:
    """Show a version of an output above earlier committed versions.

    Args:
        version: The version.
        name: Short name of the repository.
        history: Earlier versions, newest first.
        limit: Maximum number of versions.
    """
    # If the newest commit holds this version, its row also shows the commit.
    known = bool(history) and history[0].digest == version.digest
    rows = list(history) if known else [version, *history]
    table = tuple(
        {
            "digest": escape(old.digest),
            "files": f"{old.nfiles:,}",
            "size": size_text(old.size),
            "commit": escape(old.rev[:10]) if old.rev else "not committed",
        }
        for old in rows[:limit]
    )
    description = (
        f"**{escape(version.path)}** of **{escape(name)}** is at version {code(version.digest[:12])}: "
        f"{count_text(version.nfiles, 'file')}, {size_text(version.size)}, {_at(rows[0].rev)}."
    )
    if len(rows) > 1:
        description += (
            f" The version before, {code(rows[1].digest[:12])}, has {count_text(rows[1].nfiles, 'file')} and "
            f"{size_text(rows[1].size)}."
        )
    return Card(artifact_key("data", name, version.path), description, table=table)


def _at(rev: str | None) -> str:
    return f"at commit {code(rev[:10])}" if rev else "not committed"


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


# -- metrics ---------------------------------------------------------------------------------------------------------


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


# -- models ------------------------------------------------------------------------------------------------------------


def model_card(
    versions: Sequence[ModelVersion], model: str, name: str, *, said: str = "", limit: int = ROWS
) -> Card:
    """Show the versions of a model, highest first, with their stages.

    Args:
        versions: Versions from the highest to the lowest.
        model: Name of the model.
        name: Short name of the repository.
        said: Sentence on the latest change, for the description.
        limit: Maximum number of versions.
    """
    table = tuple(
        {
            "version": escape(v.version),
            "stages": ", ".join(map(escape, v.stages)),
            "registered": _moment(v.created),
            "by": escape(v.author),
            "commit": escape(v.rev[:10]),
            "size": size_text(v.size),
            "digest": escape((v.digest or "")[:12]),
            "message": escape(v.message),
        }
        for v in versions[:limit]
    )
    held = [f"{escape(stage)} is {escape(v.version)}" for v in versions for stage in v.stages]
    description = f"**{escape(model)}** of **{escape(name)}**: {count_text(len(versions), 'version')}"
    if versions:
        description += f", the highest {escape(versions[0].version)}"
    description += "".join(f"; {text}" for text in held[:5]) + "."
    if said:
        description = f"{escape(said)} {description}"
    return Card(artifact_key("model", name, model), description, table=table)


def _moment(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S %Z").strip()


def endpoint_card(endpoint: Endpoint, name: str, version: ModelVersion | None = None) -> Card:
    """Show the address of a served model, and a request for predictions.

    Args:
        endpoint: The running endpoint.
        name: Short name of the repository.
        version: The registered version that it serves.
    """
    base = f"{endpoint.url}/v2/models/{endpoint.model}"
    ask = f"{endpoint.url}/v1/models/{endpoint.model}:predict"
    stages = f" ({', '.join(escape(s) for s in version.stages)})" if version and version.stages else ""
    rows = [
        ("model", endpoint.model),
        ("repository", name),
        (
            "version",
            f"{endpoint.version}{f' ({chr(44).join(version.stages)})' if version and version.stages else ''}",
        ),
        ("digest", endpoint.digest),
    ]
    if version:
        rows.append(("commit", version.rev[:10]))
    body = "\n\n".join(
        [
            f"## {escape(endpoint.model)} {escape(endpoint.version)}{stages}",
            f"{link(endpoint.url, f'{endpoint.url}/v2')} · {link('metadata', base)} · {link('ready', f'{base}/ready')}",
            markdown_table(rows[0], rows[1:]),
            "Send a request by the V1 protocol:",
            block(f"curl {quote(ask)} -d '{{\"instances\": [[…]]}}'", "sh"),
        ]
    )
    description = (
        f"**{escape(endpoint.model)}** {escape(endpoint.version)}{stages} of **{escape(name)}** "
        f"answers at {_address(endpoint.url)}"
    )
    return Card(artifact_key("endpoint", name, endpoint.model), description, markdown=body)


def predictions_card(
    endpoint: Endpoint, name: str, predictions: Sequence[object], *, limit: int = ROWS
) -> Card:
    """Show the predictions of a served model.

    Args:
        endpoint: The endpoint that answered.
        name: Short name of the repository.
        predictions: Predictions, one per row.
        limit: Maximum number of predictions.
    """
    shown = ", ".join(escape(value) for value in predictions[:10])
    more = ", …" if len(predictions) > 10 else ""
    description = (
        f"**{escape(endpoint.model)}** {escape(endpoint.version)} of **{escape(name)}** predicted "
        f"{count_text(len(predictions), 'row')}: {shown}{more}"
    )
    rows = list(enumerate(predictions))
    table = markdown_table(("row", "prediction"), rows, limit=limit)
    return Card(artifact_key("predictions", name, endpoint.model), description, markdown=table)
