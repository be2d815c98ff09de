"""The kinds that the API serves: built-in ones without a schema of their values, custom ones by their CRDs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .fields import with_metadata
from .schema import Cause, Schema, cause, expand

# apimachinery pkg/util/validation: IsDNS1123Subdomain, IsDNS1123Label.
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_NAME_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_NAMED = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": {}}
_CONTAINERS = {
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["name"],
    "items": {"properties": {"env": _NAMED}},
}
_POD = {"properties": {"containers": _CONTAINERS, "initContainers": _CONTAINERS, "volumes": _NAMED}}
_TEMPLATE = {"properties": {"template": {"properties": {"spec": _POD}}}}

Check = Callable[[dict, "dict | None"], list[Cause]]


@dataclass
class Resource:
    """A kind and its paths.

    Attributes:
        status: True if its status is a subresource of its own.
        schema: Schema of a custom resource; None for a built-in one.
        lists: Merge keys of a built-in one, as a schema.
        selectable: Fields of field selectors, besides name and namespace.
        check: Returns what is wrong with an object, besides its schema.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    status: bool = True
    schema: Schema | None = None
    lists: dict = field(default_factory=dict)
    selectable: tuple[str, ...] = ()
    check: Check | None = None

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def full(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def merge_schema(self) -> dict:
        return with_metadata(self.schema.root if self.schema else self.lists)


def _needs(*places: str) -> Check:
    def check(obj: dict, old: dict | None) -> list[Cause]:
        found = []
        for place in places:
            value: Any = obj
            for part in place.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if not value:
                found.append(cause(place, "Required value", "FieldValueRequired"))
        return found

    return check


def _pod(obj: dict, old: dict | None) -> list[Cause]:
    found = _needs("spec.containers")(obj, old)
    if old is not None:
        # kubernetes pkg/apis/core/validation: of a pod's specification only images, tolerations and deadlines change.
        def fixed(pod: dict) -> dict:
            spec = {k: v for k, v in pod["spec"].items() if k not in ("activeDeadlineSeconds", "tolerations")}
            spec["containers"] = [{**c, "image": ""} for c in spec.get("containers", ())]
            return spec

        if fixed(obj) != fixed(old):
            said = "Forbidden: pod updates may not change fields other than `spec.containers[*].image`"
            found.append(cause("spec", said, "FieldValueForbidden"))
    return found


def _secret(obj: dict, old: dict | None) -> list[Cause]:
    if old is not None and old.get("type", "Opaque") != obj.get("type", "Opaque"):
        return [cause("type", f'Invalid value: "{obj.get("type")}": field is immutable')]
    if old is not None and old.get("immutable") and old.get("data") != obj.get("data"):
        return [cause("data", "Forbidden: field is immutable when `immutable` is set", "FieldValueForbidden")]
    return []


BUILT_IN = (
    Resource("", "v1", "namespaces", "Namespace", namespaced=False),
    Resource(
        "", "v1", "pods", "Pod", lists={"properties": {"spec": _POD}}, check=_pod,
        selectable=("spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName", "status.phase", "status.podIP"),
    ),
    Resource(
        "", "v1", "events", "Event", status=False,
        selectable=("involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid",
                    "reason", "type", "source", "reportingComponent"),
    ),
    Resource("", "v1", "secrets", "Secret", status=False, check=_secret, selectable=("type",)),
    Resource("", "v1", "configmaps", "ConfigMap", status=False),
    Resource(
        "", "v1", "serviceaccounts", "ServiceAccount", status=False,
        lists={"properties": {"secrets": _NAMED, "imagePullSecrets": _NAMED}},
    ),
    Resource("", "v1", "services", "Service"),
    Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
    Resource(
        "apps", "v1", "deployments", "Deployment", lists={"properties": {"spec": _TEMPLATE}},
        check=_needs("spec.selector", "spec.template.spec.containers"),
    ),
    Resource("apps", "v1", "replicasets", "ReplicaSet", lists={"properties": {"spec": _TEMPLATE}},
             check=_needs("spec.selector")),
)  # fmt: skip


def kserve() -> Resource:
    """Return InferenceService of KServe 0.20, by the full CRD of the project.

    The file holds its schema without descriptions; equal parts are stored once. Source: kserve/kserve,
    config/crd/full/serving.kserve.io_inferenceservices.yaml, Apache-2.0, August 2026.
    """
    document = json.loads((Path(__file__).parent / "inferenceservice.schema.json").read_text())
    return Resource(
        "serving.kserve.io",
        "v1beta1",
        "inferenceservices",
        "InferenceService",
        schema=Schema(expand(document)),
    )


def metadata_causes(obj: dict) -> list[Cause]:
    """Return what is wrong with an object's names and labels.

    Source: apimachinery pkg/api/validation/objectmeta.go.
    """
    found = []
    name = obj["metadata"].get("name", "")
    if not name:
        found.append(
            cause("metadata.name", "Required value: name or generateName is required", "FieldValueRequired")
        )
    elif not _SUBDOMAIN.fullmatch(name) or len(name) > 253:
        found.append(cause("metadata.name", f"Invalid value: {json.dumps(name)}: {_NAME_TEXT}"))
    for key, value in obj["metadata"].get("labels", {}).items():
        if not _LABEL_VALUE.fullmatch(value) or len(value) > 63:
            said = (
                "must be no more than 63 characters"
                if len(value) > 63
                else "a valid label must be an empty string or…"
            )
            found.append(cause("metadata.labels", f"Invalid value: {json.dumps(value)}: {said}"))
        if len(key.rpartition("/")[2]) > 63:
            said = "name part must be no more than 63 characters"
            found.append(cause("metadata.labels", f"Invalid value: {json.dumps(key)}: {said}"))
    return found
