"""Cards of models: versions, events, lineage, mirrors, published versions and their collection."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from dvkf_prefect.cards.card import Card, artifact_key
from dvkf_prefect.cards.markdown import (
    ROWS,
    Markup,
    address,
    block,
    code,
    count_text,
    escape,
    markdown_table,
    size_text,
)

if TYPE_CHECKING:
    from dvkf_prefect.kubeflow.registry.mirror import MirrorReport
    from dvkf_prefect.models.lineage import Lineage
    from dvkf_prefect.models.publishing import Publication
    from dvkf_prefect.models.tags import TagEvent
    from dvkf_prefect.models.unpublishing import Unpublished
    from dvkf_prefect.models.version import ModelVersion


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
    rows = tuple(
        {
            "time": f"{event.created:%Y-%m-%d %H:%M:%S %Z}",
            "model": escape(event.model),
            "event": escape(event.as_dict()["event"]),
            "version": escape(event.version or ""),
            "stage": escape(event.stage or ""),
            "by": escape(event.author),
            "commit": escape(event.rev[:10]),
            "message": escape(event.message),
        }
        for event in events[:limit]
    )
    what = f"**{escape(model)}** of **{escape(name)}**" if model else f"Models of **{escape(name)}**"
    description = f"{what}: {count_text(len(events), 'event')}."
    if said:
        description = f"{escape(said)} {description}"
    return Card(artifact_key("events", name, model or ""), description, table=rows)


def lineage_card(
    lineages: Sequence[Lineage], asked: str, name: str, *, graph: str = "", limit: int = ROWS
) -> Card:
    """Show the lineage of versions: their inputs, parameters, metrics, runs and services.

    Args:
        lineages: The lineages.
        asked: The model or data asked for.
        name: Short name of the repository.
        graph: The graph as text, see `draw_lineage`.
        limit: Maximum number of rows of a version.
    """
    parts = []
    for lineage in lineages:
        version = lineage.version
        rows: list[tuple[str, str]] = [("commit", code(version.rev[:10]))]
        rows += [
            (item.kind, Markup(f"{escape(item.path)} {code(item.digest[:12])}")) for item in lineage.inputs
        ]
        rows += [(f"parameter {key}", code(value)) for key, value in lineage.params.items()]
        rows += [(f"metric {key}", code(value)) for key, value in lineage.metrics.items()]
        rows += [(key, code(value)) for key, value in lineage.runs.items()]
        rows += [("service", address(service.url)) for service in lineage.services]
        table = markdown_table(("what", "value"), rows, limit=limit)
        parts.append(f"## {escape(version.name)} {escape(version.version)}\n\n{table}")
    if graph:
        parts.append(block(graph))
    services = sum(len(lineage.services) for lineage in lineages)
    description = (
        f"Lineage of **{escape(asked)}** in **{escape(name)}**: {count_text(len(lineages), 'version')}, "
        f"{count_text(services, 'live service')}."
    )
    return Card(
        artifact_key("lineage", name, asked), description, markdown="\n\n".join(parts) or "No version."
    )


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
        (file.path, size_text(file.size), code(file.digest[:12]), file.source or "made for it")
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
