"""Published folders that the objects of a cluster name: services, revisions, Deployments and pods."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dvkf_prefect.errors import ServingError
from dvkf_prefect.kube.objects import KubeError, KubeObjects
from dvkf_prefect.serving.kserve.spec import MODEL, VERSION

# API and plural of each kind that names a folder (kserve 0.21, `pkg/apis/serving`). Only the first must exist.
_KINDS = (
    ("serving.kserve.io/v1beta1", "inferenceservices"),
    ("serving.kserve.io/v1alpha1", "trainedmodels"),
    ("serving.kserve.io/v1alpha1", "llminferenceservices"),
    ("serving.kserve.io/v1alpha1", "localmodelcaches"),
    ("serving.knative.dev/v1", "revisions"),
    ("apps/v1", "deployments"),
    ("v1", "pods"),
)
# Pods of KServe have this label (kserve 0.15 to 0.21, `pkg/constants`).
_PODS = "serving.kserve.io/inferenceservice"
_PAGE = "500"
_ENDED = ("Succeeded", "Failed")


@dataclass(frozen=True)
class Uses:
    """Objects of clusters that may name published folders.

    Attributes:
        objects: Name of each object, its values as JSON, and the versions that its annotations name.
        places: Contexts and namespaces that were asked; an empty namespace stands for all.
    """

    objects: tuple[tuple[str, str, frozenset[tuple[str, str]]], ...]
    places: tuple[tuple[str, str], ...]

    def naming(self, model: str, version: str, folder: str) -> str | None:
        """Return the object that names a version or its folder.

        Args:
            model: Name of the model.
            version: The version.
            folder: Folder of the version below its place, without a slash at its end.

        Returns:
            Kind, namespace and name; None if there is none. An address that ends like the folder counts, whatever its
            beginning, because one place has several addresses.
        """
        path = re.compile(rf"(?<![\w.-]){re.escape(folder)}(?![\w.+-])")
        for name, text, versions in self.objects:
            if (model, version) in versions or path.search(text):
                return name
        return None

    def covers(self, where: str) -> bool:
        """Return True if the services of a place were asked.

        Args:
            where: ``kserve:CONTEXT/NAMESPACE``, as noted on a tag.
        """
        context, _, namespace = where.removeprefix("kserve:").rpartition("/")
        return any(
            asked in ("", namespace) and (known == context or not (known and context))
            for known, asked in self.places
        )

    def __add__(self, other: Uses) -> Uses:
        return Uses(self.objects + other.objects, self.places + other.places)


def read_uses(kube: KubeObjects, namespaces: Sequence[str] = (), *, context: str = "") -> Uses:
    """Return the objects of a cluster that may name published folders.

    Args:
        kube: Kubernetes.
        namespaces: Namespaces to ask; all of the cluster if empty.
        context: Context of the kubeconfig, as the notes on tags name it.

    Raises:
        ServingError: KServe is not installed, or the API server refused a kind or does not answer.
    """
    found = []
    for namespace in namespaces or ("",):
        for api, plural in _KINDS:
            for item in _listed(kube, api, plural, namespace):
                metadata = item["metadata"]
                name = f"{plural} '{metadata['name']}' of namespace '{metadata.get('namespace', '')}'"
                values = {"annotations": metadata.get("annotations") or {}, "spec": item.get("spec") or {}}
                versions = frozenset(_versions(values))
                found.append((name, json.dumps(values, ensure_ascii=False), versions))
    return Uses(tuple(found), tuple((context, namespace) for namespace in namespaces or ("",)))


def _listed(kube: KubeObjects, api: str, plural: str, namespace: str) -> Iterator[Mapping[str, Any]]:
    base = "/api/v1" if api == "v1" else f"/apis/{api}"
    path = f"{base}/namespaces/{namespace}/{plural}" if namespace else f"{base}/{plural}"
    query = {"limit": _PAGE, **({"labelSelector": _PODS} if plural == "pods" else {})}
    while True:
        try:
            page = kube.get(path, **query)
        except KubeError as error:
            if error.status == 404 and (api, plural) != _KINDS[0]:
                return  # that part is not installed
            raise ServingError(
                f"{plural} {f'of namespace {namespace!r}' if namespace else 'of all namespaces'} cannot be listed: "
                f"{error.said.rstrip('.')}. Ask for `list` of {plural}, or name the namespaces."
            ) from error
        yield from (
            item for item in page.get("items") or () if (item.get("status") or {}).get("phase") not in _ENDED
        )
        if not (token := (page.get("metadata") or {}).get("continue")):
            return
        query["continue"] = token


def _versions(value: Any) -> Iterator[tuple[str, str]]:
    """Yield model and version of the annotations in a value, at any depth."""
    if isinstance(value, Mapping):
        if MODEL in value and VERSION in value:
            yield str(value[MODEL]), str(value[VERSION])
        for each in value.values():
            yield from _versions(each)
    elif isinstance(value, list):
        for each in value:
            yield from _versions(each)
