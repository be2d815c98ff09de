"""Versions that the services of a cluster run now, by the annotations that a deployment writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dvkf_prefect.errors import DvkfError, ServingError
from dvkf_prefect.kube.client import kube_client
from dvkf_prefect.kube.objects import KubeError, KubeObjects
from dvkf_prefect.serving.kserve.canaries import running_canary
from dvkf_prefect.serving.kserve.services import annotations_of
from dvkf_prefect.serving.kserve.spec import API, CANARY_OF, MODEL, VERSION

PREFIX = "kserve:"


@dataclass(frozen=True)
class LiveVersion:
    """A version in a service.

    Attributes:
        model: Name of the model.
        version: The version.
        service: Name of the InferenceService; of a canary behind a graph, that of the stable version.
        url: Its address; empty before it has one.
    """

    model: str
    version: str
    service: str
    url: str


def live_versions(where: str) -> tuple[LiveVersion, ...]:
    """Return the versions that the services of a place run now, stable ones and canaries; asked once.

    Args:
        where: ``kserve:CONTEXT/NAMESPACE``, as a deployment notes it; the context may be empty.

    Raises:
        ServingError: There is no login, or the API server refused or does not answer.
    """
    from kubernetes.config import ConfigException  # type: ignore[import-untyped]

    context, _, namespace = where.removeprefix(PREFIX).rpartition("/")
    try:
        kube = KubeObjects(kube_client(context=context or None))
        found = kube.get(f"/apis/{API}/namespaces/{namespace}/inferenceservices").get("items") or ()
    except (ConfigException, KubeError, DvkfError) as error:
        raise ServingError(
            f"the services of {where} cannot be looked up: {str(error).rstrip('.')}. Correct the kubeconfig, or ask "
            "for the right to `list` inferenceservices."
        ) from error
    return tuple(live for service in found for live in _versions(service))


def _versions(service: Mapping[str, Any]) -> list[LiveVersion]:
    annotations = annotations_of(service)
    if MODEL not in annotations:
        return []
    canary = running_canary(service)
    versions = [canary.stable, canary.version] if canary else [annotations.get(VERSION, "")]
    url = str((service.get("status") or {}).get("url") or "")
    name = annotations.get(CANARY_OF, service["metadata"]["name"])
    return [LiveVersion(annotations[MODEL], version, name, url) for version in versions]
