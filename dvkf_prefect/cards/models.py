"""Cards of models: versions, events, lineage, mirrors, published versions and their collection."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from dvkf_prefect.cards.card import Card, artifact_key
from dvkf_prefect.cards.charts import draw_graph
from dvkf_prefect.cards.markdown import (
    ROWS,
    Markup,
    address,
    block,
    code,
    count_text,
    escape,
    link,
    markdown_table,
    size_text,
    time_text,
)
from dvkf_prefect.cards.metrics import change_text, draw_values, value_text
from dvkf_prefect.cards.pictures import Picture, show_pictures
from dvkf_prefect.models.lineage import fact_text
from dvkf_prefect.models.tags import EVENTS

if TYPE_CHECKING:
    from dvkf_prefect.kubeflow.registry.mirror import MirrorReport
    from dvkf_prefect.models.lineage import Lineage
    from dvkf_prefect.models.publishing import Publication
    from dvkf_prefect.models.tags import TagEvent
    from dvkf_prefect.models.unpublishing import Unpublished
    from dvkf_prefect.models.version import ModelVersion
    from dvkf_prefect.pipeline.report.dag import Drawing

_CHARTS = 4
# End of the label of a file: the start of its digest.
_OUTPUT = re.compile(r" \([0-9a-f]{8}\)$")


def model_card(
    versions: Sequence[ModelVersion],
    model: str,
    name: str,
    *,
    said: str = "",
    lineages: Sequence[Lineage] = (),
    runs: Mapping[str, tuple[str, str]] | None = None,
    limit: int = ROWS,
) -> Card:
    """Show the versions of a model, highest first, with their stages; of the highest also metrics, data and places.

    Args:
        versions: Versions from the highest to the lowest.
        model: Name of the model.
        name: Short name of the repository.
        said: Sentence on the latest change, for the description.
        lineages: Lineages of the first versions, in the same order.
        runs: Names and addresses of the flow runs, by ID.
        limit: Maximum number of versions.
    """
    rows = [
        (
            v.version,
            ", ".join(v.stages),
            f"{v.created:%Y-%m-%d}",
            v.author,
            code(v.rev[:10]),
            v.message,
        )
        for v in versions
    ]
    columns = ("version", "stages", "registered", "by", "commit", "message")
    held = [f"{escape(stage)} is {escape(v.version)}" for v in versions for stage in v.stages]
    description = f"**{escape(model)}** of **{escape(name)}**: {count_text(len(versions), 'version')}"
    if versions:
        description += f", the highest {escape(versions[0].version)}"
    description += "".join(f"; {text}" for text in held[:5]) + "."
    if said:
        description = f"{escape(said)} {description}"
    parts = _newest_parts(lineages, runs or {}, limit) if lineages else []
    parts.append(f"### Versions\n\n{markdown_table(columns, rows, limit=limit)}")
    return Card(artifact_key("model", name, model), description, "\n\n".join(parts))


def _newest_parts(lineages: Sequence[Lineage], runs: Mapping[str, tuple[str, str]], limit: int) -> list[str]:
    """Return the parts on the highest version: where it comes from, where it is, and its metrics."""
    newest = lineages[0]
    version = newest.version
    facts: list[tuple[str, object]] = [
        (
            "file",
            Markup(
                f"{escape(version.path or 'none')} {code((version.digest or '')[:12])}, {size_text(version.size)}"
            ),
        ),
        ("commit", code(version.rev[:10])),
    ]
    facts += [
        ("data", Markup(f"{escape(item.path)} {code(item.digest[:12])}"))
        for item in newest.inputs
        if item.kind == "data"
    ]
    facts += _run_rows(newest, runs)
    facts += [(str(fact["kind"]), fact_text(fact)) for fact in newest.facts if fact["kind"] != "service"]
    facts += [("service", address(service.url)) for service in newest.services]
    parts = [
        markdown_table(("", f"{version.name} {version.version}"), facts, limit=limit),
    ]
    if newest.metrics:
        before = lineages[1].metrics if len(lineages) > 1 else {}
        columns = (
            "metric",
            lineages[1].version.version if len(lineages) > 1 else "before",
            version.version,
            "change",
        )
        rows = [
            (key, value_text(before.get(key)), value_text(value), _change(before.get(key), value))
            for key, value in newest.metrics.items()
        ]
        parts.append(f"### Metrics\n\n{markdown_table(columns, rows, limit=limit)}")
        drawn = []
        for key in list(newest.metrics)[:_CHARTS]:
            course = [(each.version.version, each.metrics.get(key)) for each in reversed(lineages)]
            drawn += [picture] if (picture := draw_values(key, course)) else []
        parts += show_pictures(drawn, titles=False)
    return parts


def _run_rows(lineage: Lineage, runs: Mapping[str, tuple[str, str]]) -> list[tuple[str, Markup]]:
    """Return the runs that made a version, by the keys of their git trailers: ``Prefect-Flow-Run``."""
    return [
        (
            key.removeprefix("Prefect-").replace("-", " ").lower(),
            link(*runs[value]) if value in runs else code(value),
        )
        for key, value in lineage.runs.items()
    ]


def _change(old: object, new: object) -> str:
    numbers = [v for v in (old, new) if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return change_text(numbers[1] - numbers[0]) if len(numbers) == 2 else ""


def history_card(
    events: Sequence[TagEvent], model: str | None, name: str, *, said: str = "", limit: int = ROWS
) -> Card:
    """Show events of the registry.

    Args:
        events: The events, newest first.
        model: Name of the model; None for all models.
        name: Short name of the repository.
        said: Sentence on the latest change, for the description.
        limit: Maximum number of events.
    """
    rows = [
        (
            time_text(event.created),
            *((event.model,) if model is None else ()),
            EVENTS[event.action],
            event.version or "",
            event.stage or "",
            event.author,
            code(event.rev[:10]),
            event.message,
        )
        for event in events
    ]
    several = ("model",) if model is None else ()
    columns = ("time", *several, "event", "version", "stage", "by", "commit", "message")
    what = f"**{escape(model)}** of **{escape(name)}**" if model else f"Models of **{escape(name)}**"
    description = f"{what}: {count_text(len(events), 'event')}."
    if said:
        description = f"{escape(said)} {description}"
    return Card(
        artifact_key("events", name, model or ""), description, markdown_table(columns, rows, limit=limit)
    )


def lineage_card(
    lineages: Sequence[Lineage],
    asked: str,
    name: str,
    *,
    graph: Drawing | None = None,
    runs: Mapping[str, tuple[str, str]] | None = None,
    limit: int = ROWS,
) -> Card:
    """Show the lineage of versions: their inputs, parameters, metrics, runs and services.

    Args:
        lineages: The lineages.
        asked: The model or data asked for.
        name: Short name of the repository.
        graph: The graph, see `draw_lineage`; one that is too large for a picture is shown as text.
        runs: Names and addresses of the flow runs, by ID.
        limit: Maximum number of rows of a version.
    """
    parts = []
    for lineage in lineages:
        version = lineage.version
        rows: list[tuple[str, str]] = [("commit", code(version.rev[:10]))]
        rows += [
            (item.kind, Markup(f"{escape(item.path)} {code(item.digest[:12])}")) for item in lineage.inputs
        ]
        rows += [(f"parameter {key}", code(value)) for key, value in _leaves(lineage.params)]
        rows += [(f"metric {key}", value_text(value)) for key, value in lineage.metrics.items()]
        rows += _run_rows(lineage, runs or {})
        rows += [("service", address(service.url)) for service in lineage.services]
        table = markdown_table(("", "value"), rows, limit=limit)
        parts.append(f"## {escape(version.name)} {escape(version.version)}\n\n{table}")
    if graph is not None:
        picture = draw_graph(_leading(graph) if len(lineages) > 1 else graph.needs)
        parts.insert(
            0, Picture(f"Lineage of {asked}", picture).markdown() if picture else block(graph.text())
        )
    services = sum(len(lineage.services) for lineage in lineages)
    description = (
        f"Lineage of **{escape(asked)}** in **{escape(name)}**: {count_text(len(lineages), 'version')}, "
        f"{count_text(services, 'live service')}."
    )
    return Card(
        artifact_key("lineage", name, asked), description, markdown="\n\n".join(parts) or "No version."
    )


def _leading(graph: Drawing) -> dict[str, tuple[str, ...]]:
    """Return the graph without outputs that no version has, such as metrics: of several versions they hide the rest."""
    users = graph.users()
    return {
        node: needed
        for node, needed in graph.needs.items()
        if users[node] or not (needed and _OUTPUT.search(node))
    }


def _leaves(values: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    """Yield the single values of parameters by their dotted names: a stage may take a whole group."""
    for key, value in values.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def mirror_card(report: MirrorReport, name: str, *, limit: int = ROWS) -> Card:
    """Show the records of a mirror, those that changed first.

    Args:
        report: Result of the mirror.
        name: Short name of the repository.
        limit: Maximum number of records.
    """
    order = ("created", "updated", "unchanged")
    records = sorted(report.records, key=lambda record: order.index(record.action))
    rows = [(record.name, record.id, record.action) for record in records]
    parts = [markdown_table(("record", "id", "state"), rows, limit=limit)]
    parts += [f"- {escape(text)}" for text in (*report.pulled, *report.conflicts)]
    changed = sum(record.action != "unchanged" for record in records)
    description = (
        f"Mirror of **{escape(name)}** at {escape(report.host)}: {count_text(len(records), 'record')}, "
        f"{changed} changed."
    )
    return Card(artifact_key("mirror", name, report.host), description, markdown="\n\n".join(parts))


def unpublished_card(found: Unpublished, name: str, *, limit: int = ROWS) -> Card:
    """Show a collection of published versions: each with its verdict and the reason for it.

    Args:
        found: The collection.
        name: Short name of the repository.
        limit: Maximum number of versions.
    """
    rows = [
        (
            each.model,
            each.version,
            "removed" if each.removed else "unused" if each.unused else "kept",
            each.reason,
            size_text(each.size),
        )
        for each in sorted(found.versions, key=lambda each: not each.unused)
    ]
    doubt = f"Everything is kept: {escape(found.doubt)}.\n\n" if found.doubt else ""
    return Card(
        artifact_key("unpublished", name),
        f"**{escape(name)}**: {escape(found)}.",
        markdown=doubt
        + f"Size of the unused versions: {size_text(found.size)}\n\n"
        + markdown_table(("model", "version", "verdict", "reason", "size"), rows, limit=limit),
    )


def _source(source: str | None, path: str) -> str:
    """Return where a published file is from. The source of a model of one file is empty."""
    return "made for the runtime" if source is None else source or path


def publication_card(publication: Publication, name: str, *, limit: int = ROWS) -> Card:
    """Show a published version: its address, the runtimes that load it, and its files.

    Args:
        publication: The publication.
        name: Short name of the repository.
        limit: Maximum number of files.
    """
    manifest = publication.manifest
    loaded = [
        (row.runtime, ", ".join(manifest.runtimes[row.runtime]), ", ".join(row.files[:5]))
        for row in publication.loaded
    ]
    files = [
        (file.path, size_text(file.size), code(file.digest[:12]), _source(file.source, manifest.path))
        for file in manifest.files
    ]
    markdown = "\n\n".join(
        (
            f"Address for a service: {code(manifest.uri)}",
            markdown_table(("runtime", "protocols", "loads"), loaded, limit=limit),
            markdown_table(("file", "size", "digest", "source"), files, limit=limit),
        )
    )
    return Card(
        artifact_key("published", name, manifest.model),
        f"**{escape(name)}**: {escape(publication)}.",
        markdown=markdown,
    )
