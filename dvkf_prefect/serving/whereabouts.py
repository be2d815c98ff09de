"""Services that run a registered version now, found by the facts that deployments note on its tag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dvkf_prefect.models.lineage import Lineage, Service
from dvkf_prefect.serving.local import LocalServing


def with_services(lineages: Sequence[Lineage]) -> list[Lineage]:
    """Return lineages with the services that run their versions now.

    A local service is looked up in the state folder that its deployment noted, so only on the same machine.

    Args:
        lineages: The lineages.
    """
    return [replace(lineage, services=_services(lineage)) for lineage in lineages]


def _services(lineage: Lineage) -> tuple[Service, ...]:
    found = []
    for fact in lineage.facts:
        if fact["kind"] != "service" or not Path(folder := str(fact.get("where", ""))).is_dir():
            continue
        endpoint = LocalServing(folder).get(lineage.version.name)
        if endpoint is not None and endpoint.version == lineage.version.version:
            found.append(Service(endpoint.model, endpoint.url))
    return tuple(found)
