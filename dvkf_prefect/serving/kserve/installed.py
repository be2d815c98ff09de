"""Probe of the installed KServe: features by its CRD, and the mode of a service."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dvkf_prefect.errors import ServingError
from dvkf_prefect.kube.objects import KubeError, KubeObjects
from dvkf_prefect.serving.kserve.spec import API, MODE

_OLD_MODES = {"RawDeployment": "Standard", "Serverless": "Knative"}


@dataclass(frozen=True)
class Installed:
    """Features of an installed KServe.

    Attributes:
        canaries: True if the CRD has ``spec.canary``, since 0.20.
        new_modes: True for the modes' names of 0.16 and later.
        routes: True if the Gateway API is installed.
        default_mode: ``Standard`` or ``Knative``; empty if the configuration cannot be read.
    """

    canaries: bool
    new_modes: bool
    routes: bool
    default_mode: str = ""

    def __str__(self) -> str:
        since = "0.20 or later" if self.canaries else "0.16 to 0.19" if self.new_modes else "0.15 or earlier"
        return f"KServe {since}, default mode {self.default_mode or 'unknown'}"

    def asked_mode(self, mode: str) -> str:
        """Return the mode for the annotation of a new service; empty if the default is the same.

        KServe 0.19 never starts a service whose annotation says Knative (fixed in 0.20), so the default is left unsaid.
        """
        left_out = mode == "Knative" and self.new_modes and not self.canaries and self.default_mode == mode
        return "" if left_out else mode


def probe(kube: KubeObjects) -> Installed:
    """Return the features of the installed KServe.

    Args:
        kube: Kubernetes.

    Raises:
        ServingError: KServe is not installed, or the API server refused or does not answer.
    """
    try:
        document = kube.get(f"/openapi/v3/apis/{API}")
    except KubeError as error:
        if error.status == 404:
            raise ServingError(
                "KServe is not installed on this cluster: it has no serving.kserve.io/v1beta1. Install version 0.15 or "
                "later."
            ) from error
        raise ServingError(f"KServe cannot be examined: {error.said}") from error
    schemas = document.get("components", {}).get("schemas", {})
    root: Mapping[str, Any] = next((s for n, s in schemas.items() if n.endswith(".InferenceService")), {})
    spec = root.get("properties", {}).get("spec", {}).get("properties", {})
    predictor = spec.get("predictor", {}).get("properties", {})
    return Installed(
        "canary" in spec,
        # The minimal CRD has no fields; it is newer than the old names.
        "storageUris" in predictor or not predictor,
        _has_routes(kube),
        _default_mode(kube),
    )


def _has_routes(kube: KubeObjects) -> bool:
    try:
        groups = kube.get("/apis").get("groups", ())
    except KubeError:
        return False
    return any(group.get("name") == "gateway.networking.k8s.io" for group in groups)


def _default_mode(kube: KubeObjects) -> str:
    try:
        found = kube.get("/api/v1/namespaces/kserve/configmaps/inferenceservice-config")
        return mode_name(str(json.loads(found["data"]["deploy"]).get("defaultDeploymentMode", "")))
    except (KubeError, KeyError, TypeError, ValueError):
        return ""


def mode_name(mode: str) -> str:
    """Return the name of a mode since 0.16."""
    return _OLD_MODES.get(mode, mode)


def mode_of(service: Mapping[str, Any]) -> str:
    """Return the mode of a service: of its status, else of its annotation; empty before the first look of KServe.

    Args:
        service: The InferenceService.
    """
    status = service.get("status") or {}
    annotations = service["metadata"].get("annotations") or {}
    return mode_name(status.get("deploymentMode") or annotations.get(MODE, ""))
