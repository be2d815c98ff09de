"""Specification of an InferenceService: the predictor of each format, and names that fit.

The runtime and the protocol are always named. Without them KServe chooses by a priority, and the choice decides the
names of files and outputs (kserve 0.20, ``pkg/apis/serving/v1beta1/predictor_model.go``). The old form,
``predictor.sklearn``, is rewritten by the webhook, so every later apply would differ
(``inference_service_defaults.go:231``).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dvkf_prefect.errors import ConfigError
from dvkf_prefect.models.layouts import FORMATS
from dvkf_prefect.text import slug

PREFIX = "dvkf-prefect.readthedocs.io/"
MARK = f"{PREFIX}deployment"
"""Annotation of a predictor with a digest of its specification. Pods, Deployments and revisions inherit it."""
MODEL, VERSION, DIGEST = f"{PREFIX}model", f"{PREFIX}version", f"{PREFIX}digest"
SERVED_AS = f"{PREFIX}served-as"
"""Annotation of a predictor with the name of the model in its URLs, if it is not that of the service."""
PREVIOUS = f"{PREFIX}previous"
"""Annotation of a Knative canary with the specification before it, as JSON."""
CANARY_OF = f"{PREFIX}canary-of"
"""Annotation of the predictor of a canary behind a graph: name of the service that it may replace."""
API, KIND = "serving.kserve.io/v1beta1", "InferenceService"
MODE = "serving.kserve.io/deploymentMode"
CONTAINER = "kserve-container"
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
# A label `isvc.<service>-<canary>-predictor` and a host `<service>-predictor-<namespace>` have 63 characters at most.
# A canary's name has 8, and a dash.
_CANARY = 8
_LONGEST = 47 - _CANARY - 1
_LONGEST_WITH_NAMESPACE = 51 - _CANARY - 1


@dataclass(frozen=True)
class ServiceSettings:
    """Settings of a service, apart from its model.

    Attributes:
        format: Format of the model, see `dvkf_prefect.models.layouts.FORMATS`; ``custom`` is a container of its own.
        runtime: Runtime in place of the format's usual one.
        protocol: ``v1`` or ``v2``; empty for the first one of the format.
        runtime_version: Tag of the runtime's image. Without it, an upgrade of KServe restarts the service.
        image: Image of a custom container.
        port: Port of a custom container.
        env: Variables of the container.
        args: Arguments of the container.
        service_account: Service account of the pods; empty for the one made for the remote.
        cpu: CPUs, such as ``2`` or ``500m``.
        memory: Memory, such as ``4Gi``.
        gpu: Number of GPUs.
        gpu_resource: Name of the GPU resource.
        min_replicas: Smallest number of pods; 0 lets Knative stop all.
        max_replicas: Largest number of pods.
        scale_metric: ``concurrency`` or ``rps`` of Knative, ``cpu`` or ``memory`` of mode Standard.
        scale_target: Value of the metric for each pod.
        concurrency: Largest number of requests in one container, of Knative.
        request_timeout: Seconds for a request.
        start_timeout: Seconds for the start of a Knative revision; its default is 600.
        recreate: Stop the old pods first, for a GPU that has no spare. Needs mode Standard.
        node_selector: Labels of the nodes.
        tolerations: Tolerations of the pods, as Kubernetes' values.
        mode: ``Standard`` or ``Knative``; empty for the default of the cluster.
        served_as: Name of the model in its URLs, as in Triton's folders; empty for the name of the service.
        split: ``graph`` to split the requests of canaries by an InferenceGraph; empty for KServe's own way.
    """

    format: str = "sklearn"
    runtime: str = ""
    protocol: str = ""
    runtime_version: str = ""
    image: str = ""
    port: int = 8080
    env: Mapping[str, str] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    service_account: str = ""
    cpu: str = ""
    memory: str = ""
    gpu: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    min_replicas: int | None = None
    max_replicas: int | None = None
    scale_metric: str = ""
    scale_target: int | None = None
    concurrency: int | None = None
    request_timeout: int | None = None
    start_timeout: int | None = None
    recreate: bool = False
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    mode: str = ""
    served_as: str = ""
    split: str = ""

    @property
    def used_protocol(self) -> str:
        """Protocol of the service."""
        if self.protocol or self.format not in FORMATS or self.format == "custom":
            return self.protocol or "v1"
        return _usual(self.format)[1][0]

    @property
    def used_runtime(self) -> str:
        """Runtime of the service; empty for a container of its own."""
        if self.runtime or self.format not in FORMATS or self.format == "custom":
            return self.runtime
        return _usual(self.format)[0]

    def predictor(self, uri: str, account: str = "") -> dict[str, Any]:
        """Return the predictor without annotations.

        Args:
            uri: Address of the model's folder; empty for a model that the container brings itself.
            account: Service account for the model's files, unless another one is set.

        Raises:
            ConfigError: The settings do not fit together.
        """
        found: dict[str, Any] = {
            "serviceAccountName": self.service_account or account or None,
            "minReplicas": self.min_replicas,
            "maxReplicas": self.max_replicas,
            "scaleMetric": self.scale_metric or None,
            "scaleTarget": self.scale_target,
            "containerConcurrency": self.concurrency,
            "timeout": self.request_timeout,
            "nodeSelector": dict(self.node_selector) or None,
            "tolerations": [dict(each) for each in self.tolerations] or None,
            "deploymentStrategy": {"type": "Recreate"} if self.recreate else None,
        }
        if self.recreate and self.mode != "Standard":
            raise ConfigError("recreate: KServe accepts it in mode Standard alone. Set the mode to Standard.")
        if self.format == "custom":
            found["containers"] = [self._container(uri)]
        else:
            found["model"] = self._model(uri)
        return {key: value for key, value in found.items() if value is not None}

    def _model(self, uri: str) -> dict[str, Any]:
        known = FORMATS.get(self.format)
        if known is None:
            raise ConfigError(
                f"format '{self.format}' is not one that KServe's runtimes serve. Use one of {', '.join(FORMATS)}."
            )
        runtime, protocol = self.used_runtime, self.used_protocol
        spoken = known.runtimes.get(runtime, (protocol,))
        if protocol not in spoken:
            raise ConfigError(
                f"{runtime} does not speak {protocol}. Use {' or '.join(spoken)}, or name another runtime."
            )
        found: dict[str, Any] = {
            "modelFormat": {"name": known.kind},
            "runtime": runtime,
            "protocolVersion": protocol,
            "runtimeVersion": self.runtime_version or None,
            "storageUri": folder_uri(uri) or None,
            "env": _variables(self.env) or None,
            "args": list(self.args) or None,
            "resources": self._resources() or None,
        }
        return {key: value for key, value in found.items() if value is not None}

    def _container(self, uri: str) -> dict[str, Any]:
        if not self.image:
            raise ConfigError("format custom: a container needs an image. Set the image.")
        # The pod's webhook replaces the variable by the path of the downloaded folder.
        env = {**({"STORAGE_URI": folder_uri(uri)} if uri else {}), **self.env}
        found: dict[str, Any] = {
            "name": CONTAINER,
            "image": self.image,
            "ports": [{"containerPort": self.port, "protocol": "TCP"}],
            "env": _variables(env) or None,
            "args": list(self.args) or None,
            "resources": self._resources() or None,
        }
        return {key: value for key, value in found.items() if value is not None}

    def _resources(self) -> dict[str, Any]:
        limits = {key: value for key, value in (("cpu", self.cpu), ("memory", self.memory)) if value}
        requests = dict(limits)
        if self.gpu:
            limits[self.gpu_resource] = str(self.gpu)
        return {"limits": limits, **({"requests": requests} if requests else {})} if limits else {}


def _usual(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the first runtime of a format, and its protocols."""
    return next(iter(FORMATS[name].runtimes.items()))


def _variables(env: Mapping[str, str]) -> list[dict[str, str]]:
    for name in env:
        if name == "PYTHONPATH":
            raise ConfigError("variable PYTHONPATH: KServe refuses it. Put the code into the image.")
    return [{"name": name, "value": value} for name, value in env.items()]


def folder_uri(uri: str) -> str:
    """Return the address of a folder, ending in ``/``; a claim of a volume is unchanged.

    The initializer lists by a prefix of text: ``…/v1`` would also fetch ``…/v10``.
    """
    return f"{uri.rstrip('/')}/" if uri and not uri.startswith(("pvc://", "hf://", "oci")) else uri


def annotated(
    predictor: Mapping[str, Any],
    *,
    model: str,
    version: str,
    digest: str,
    start_timeout: int | None = None,
    served_as: str = "",
) -> dict[str, Any]:
    """Return a predictor with annotations that name its version, and its mark.

    Args:
        predictor: The predictor.
        model: Name of the model.
        version: Its version.
        digest: Digest of its content.
        start_timeout: Seconds for the start of a Knative revision.
        served_as: Name of the model in its URLs; empty for the name of the service.
    """
    annotations = {MODEL: model, VERSION: version, DIGEST: digest}
    if served_as:
        annotations[SERVED_AS] = served_as
    if start_timeout:
        annotations["serving.knative.dev/progress-deadline"] = f"{start_timeout}s"
    found = {**predictor, "annotations": annotations}
    return {**found, "annotations": {**annotations, MARK: mark_of(found)}}


def mark_of(predictor: Mapping[str, Any]) -> str:
    """Return the mark of a predictor: a digest of what decides about its pods.

    Args:
        predictor: The predictor, with annotations.
    """
    scale = ("name", "canaryTrafficPercent", "minReplicas", "maxReplicas", "scaleMetric", "scaleTarget")
    kept = {key: value for key, value in predictor.items() if key not in scale}
    kept["annotations"] = {
        key: value for key, value in predictor.get("annotations", {}).items() if key not in (MARK, PREVIOUS)
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def service_name(model: str, namespace: str) -> str:
    """Return the name of a model's service: a name that KServe can use for all objects of the service.

    Args:
        model: Name of the model.
        namespace: Namespace of the service.

    Example:
        >>> service_name("vision:Traffic_Signs", "ml")
        'vision-traffic-signs'
    """
    name = slug(model) or "model"
    name = name if name[0].isalpha() else f"m-{name}"
    most = _longest(namespace)
    if len(name) > most >= 12:
        name = f"{name[: most - 7].rstrip('-')}-{hashlib.sha256(model.encode()).hexdigest()[:6]}"
    check_name(name, namespace)
    return name


def check_name(name: str, namespace: str, *, canary: bool = False) -> None:
    """Check the name of a service; KServe accepts longer ones and then reports only events.

    Args:
        name: Name of the service.
        namespace: Its namespace.
        canary: True for a service that may be a canary, whose name is longer.

    Raises:
        ConfigError: The name is too long, or has other characters.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"'{name}' cannot be the name of a service. Use lower-case letters, digits and dashes, a letter first."
        )
    most = _longest(namespace) + (_CANARY + 1) * canary
    if len(name) > most:
        raise ConfigError(
            f"'{name}' in namespace '{namespace}' is too long for KServe: at most {most} characters. "
            "Use a shorter name or namespace."
        )


def _longest(namespace: str) -> int:
    return min(_LONGEST, _LONGEST_WITH_NAMESPACE - len(namespace))


def canary_name(mark: str) -> str:
    """Return the name of a canary of mode Standard, of 8 characters."""
    return f"c{mark[: _CANARY - 1]}"


def service(
    name: str, namespace: str, spec: Mapping[str, Any], *, mode: str = "", old_names: bool = False
) -> dict[str, Any]:
    """Return an InferenceService to apply.

    Its own metadata never changes: all of it is copied to the pods, so a change would restart them
    (kserve 0.20, ``predictor.go:498``).

    Args:
        name: Name of the service.
        namespace: Its namespace.
        spec: Its specification.
        mode: Mode to ask for; empty for the default of the cluster.
        old_names: True for KServe 0.15, which has other names of the modes.
    """
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "labels": {"app.kubernetes.io/managed-by": "dvkf"},
    }
    if mode:
        old = {"Standard": "RawDeployment", "Knative": "Serverless"}
        metadata["annotations"] = {MODE: old[mode] if old_names else mode}
    return {"apiVersion": API, "kind": KIND, "metadata": metadata, "spec": dict(spec)}
