"""Cards of a whole repository: its overview and its plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dvkf_prefect.cards.card import Card, artifact_key
from dvkf_prefect.cards.charts import draw_graph
from dvkf_prefect.cards.markdown import (
    ROWS,
    Markup,
    address,
    code,
    count_text,
    escape,
    markdown_table,
    size_text,
)
from dvkf_prefect.cards.metrics import value_text
from dvkf_prefect.cards.pictures import Picture, show_pictures

if TYPE_CHECKING:
    from dvkf_prefect.models.lineage import Lineage
    from dvkf_prefect.overview import Overview
    from dvkf_prefect.pipeline.report.plot_files import PlotImage

_METRICS = 2


def overview_card(overview: Overview, name: str, *, limit: int = ROWS) -> Card:
    """Show the data, stages, models, services and health of a repository.

    Args:
        overview: State of the repository.
        name: Short name of the repository.
        limit: Maximum number of rows of each part.
    """
    services = {service.url for each in overview.models for service in each.services}
    counts = [
        count_text(len(overview.data), "output")
        + _some(sum(version.path in overview.changed for version in overview.data), "changed"),
        count_text(len(overview.stages), "stage") + _some(len(overview.stale), "to run"),
        count_text(len({each.version.name for each in overview.models}), "model"),
        count_text(len(services), "service"),
    ]
    findings = overview.findings
    worst = "fail" if any(check.state == "fail" for check in findings) else "warn"
    health = f"{count_text(len(findings), 'finding')} ({worst})" if findings else "healthy"
    if overview.faults:
        health += f", {count_text(len(overview.faults), 'part')} not readable"
    parts = [_health_part(overview, limit)]
    if overview.stages:
        picture = draw_graph(_joined(overview), stages={each.stage for each in overview.stages})
        rows = [
            (
                each.stage,
                {"skip": "up to date", "run": "to run", "restore": "to restore"}[each.action],
                "; ".join(map(str, each.reasons)),
            )
            for each in sorted(overview.stages, key=lambda each: each.action == "skip")
        ]
        columns = ("stage", "state", "why") if overview.stale else ("stage", "state")
        table = markdown_table(columns, [row[: len(columns)] for row in rows], limit=limit)
        parts.append(f"### Stages\n\n{table}")
        if picture:
            parts.append(Picture(f"Stages of {name}", picture).markdown())
    if overview.data:
        data = [
            (
                version.path,
                code(version.digest[:12]),
                f"{version.nfiles:,}",
                size_text(version.size),
                overview.changed.get(version.path, "unchanged"),
            )
            for version in sorted(overview.data, key=lambda version: version.path not in overview.changed)
        ]
        table = markdown_table(("output", "version", "files", "size", "workspace"), data, limit=limit)
        parts.append(f"### Data\n\n{table}")
    if overview.models:
        heads = ("model", "version", "stages", "metrics", "services")
        table = markdown_table(heads, map(_model_row, overview.models), limit=limit)
        parts.append(f"### Models and services\n\n{table}")
    return Card(
        artifact_key("overview", name),
        f"**{escape(name)}**: {', '.join(counts)}; {health}.",
        "\n\n".join(parts),
    )


def _joined(overview: Overview) -> dict[str, tuple[str, ...]]:
    """Return the graph without data that no stage reads, which the table of data has, and data by its own path."""
    needs, users = overview.graph.needs, overview.graph.users()
    stages = {each.stage for each in overview.stages}
    names = {node: node if node in stages else node.removesuffix(".dvc") for node in needs}
    if len(set(names.values())) < len(names):
        names = {node: node for node in needs}
    return {
        names[node]: tuple(names[each] for each in needed)
        for node, needed in needs.items()
        if needed or users[node] or node in stages
    }


def _some(count: int, what: str) -> str:
    return f" ({count:,} {what})" if count else ""


def _model_row(lineage: Lineage) -> tuple[object, ...]:
    version = lineage.version
    metrics = [
        f"{key.rpartition(':')[2]} {value_text(value)}"
        for key, value in list(lineage.metrics.items())[:_METRICS]
    ]
    services = Markup(" ".join(address(service.url) for service in lineage.services))
    return (
        version.name,
        version.version,
        ", ".join(version.stages),
        ", ".join(metrics),
        services,
    )


def _health_part(overview: Overview, limit: int) -> str:
    rows = [("not readable", part, reason, "") for part, reason in overview.faults.items()]
    rows += [(check.state, check.name, check.found, check.next_step) for check in overview.findings]
    if not rows:
        return f"### Health\n\nAll {count_text(len(overview.checks), 'check')} passed."
    return f"### Health\n\n{markdown_table(('state', 'check', 'found', 'next step'), rows, limit=limit)}"


def plots_card(
    images: Sequence[PlotImage], name: str, *, revs: Sequence[str] = (), limit: int = ROWS
) -> Card:
    """Show the plots of a repository as pictures.

    Args:
        images: The drawn plots, and those that cannot be drawn.
        name: Short name of the repository.
        revs: Versions in the plots.
        limit: Maximum number of plots.
    """
    drawn = [Picture(image.name, image.data) for image in images if not image.error]
    faults = [(image.name, image.error) for image in images if image.error and not image.absent]
    absent = [image.name for image in images if image.absent]
    versions = f" of {', '.join(map(code, revs))}" if revs else ""
    parts = show_pictures(drawn[:limit])
    if len(drawn) > limit:
        parts.append(f"and {len(drawn) - limit:,} more")
    if absent:
        more = f", and {len(absent) - limit:,} more" if len(absent) > limit else ""
        parts.append(f"Without a file: {', '.join(map(escape, absent[:limit]))}{more}.")
    if faults:
        parts.append(f"### Not drawn\n\n{markdown_table(('plot', 'reason'), faults, limit=limit)}")
    description = f"**{escape(name)}**: {count_text(len(drawn), 'plot')}{versions}" + (
        f", {len(faults):,} not drawn." if faults else "."
    )
    return Card(artifact_key("plots", name), description, "\n\n".join(parts) or "No plots.")
