"""Services that run a registered version now, found by the facts that deployments note on its tag."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dvkf_prefect.errors import ServingError
from dvkf_prefect.models.lineage import Lineage, Service
from dvkf_prefect.serving.kserve.live import PREFIX, LiveVersion, live_versions
from dvkf_prefect.serving.local import LocalServing

_logger = logging.getLogger(__name__)


def with_services(lineages: Sequence[Lineage], *, places: Sequence[str] = ()) -> list[Lineage]:
    """Return lineages with the services that run their versions now.

    A local service is looked up in the state folder that its deployment noted, so only on the same machine. A service
    of KServe is looked up on the cluster, by its annotations. A cluster that does not answer is left out, with a
    warning.

    Args:
        lineages: The lineages.
        places: Places on clusters to look at besides the noted ones, as ``kserve:CONTEXT/NAMESPACE``.
    """
    noted = [
        str(fact.get("where", "")) for each in lineages for fact in each.facts if fact["kind"] == "service"
    ]
    live: dict[str, tuple[LiveVersion, ...]] = {}
    for where in dict.fromkeys([*(each for each in noted if each.startswith(PREFIX)), *places]):
        try:
            live[where] = live_versions(where)
        except ServingError as error:
            _logger.warning("%s", error)
    return [
        replace(lineage, services=(*_local(lineage), *_on_clusters(lineage, live))) for lineage in lineages
    ]


def _local(lineage: Lineage) -> list[Service]:
    found = []
    for fact in lineage.facts:
        if fact["kind"] != "service" or not Path(folder := str(fact.get("where", ""))).is_dir():
            continue
        endpoint = LocalServing(folder).get(lineage.version.name)
        if endpoint is not None and endpoint.version == lineage.version.version:
            found.append(Service(endpoint.model, endpoint.url))
    return found


def _on_clusters(lineage: Lineage, live: dict[str, tuple[LiveVersion, ...]]) -> list[Service]:
    version = lineage.version
    return [
        Service(each.service, each.url, where)
        for where, found in live.items()
        for each in found
        if (each.model, each.version) == (version.name, version.version)
    ]
