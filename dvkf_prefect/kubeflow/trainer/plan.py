"""Plan of a distributed training: the settings of a stage as the template of its nodes.

The dispatcher makes it and the stage's pod reads it. It is part of the pipeline, so it names secrets and contains none.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dvkf_prefect.errors import ConfigError
from dvkf_prefect.kubeflow.compile.images import OWN_ENVIRONMENT, image_of
from dvkf_prefect.kubeflow.compile.pod_settings import NodeResources, Placement, Range, Trainer

NODE = "node"
_MODULE = "dvkf_prefect.kubeflow.pod.node"
_SIDECAR = "sidecar.istio.io/inject"
_SHARED_VOLUME, _SHARED_MEMORY = "dvkf-shm", "/dev/shm"  # noqa: S108 (of the pod, not of this machine)


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Nodes of a stage.

    Attributes:
        stage: Address of the stage, for messages.
        nodes: Number of nodes.
        processes: Number of processes on each.
        namespace: Namespace if the pod does not know its own.
        runtime: Runtime of the cluster; "" for one of the stage's own.
        pod: Metadata and specification of a node's pod, as Kubernetes' values; its only container is ``node``.
        timeout: Seconds until the nodes are ended; 0 for no limit.
        start: Seconds to wait for a node whose container cannot start.
        schedule: Seconds to wait for a node that fits nowhere.
    """

    stage: str
    nodes: int
    processes: int
    namespace: str
    runtime: str = ""
    pod: Mapping[str, Any] = field(default_factory=dict)
    timeout: int = 0
    start: float = 300.0
    schedule: float = 1800.0

    def to_values(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> TrainingPlan:
        """Read the values of `to_values`.

        Raises:
            TypeError: A field is missing or unknown.
        """
        return cls(**values)

    @property
    def container(self) -> Mapping[str, Any]:
        """The container of a node."""
        (container,) = self.pod["spec"]["containers"]
        return dict(container)


def plan_training(
    stage: str,
    placement: Placement,
    *,
    image: str,
    namespace: str,
    start: float = 300.0,
    schedule: float = 1800.0,
) -> TrainingPlan | None:
    """Return the plan of a stage's nodes; None for a stage without ``trainer``.

    Args:
        stage: Address of the stage.
        placement: Its settings, with those of the remote's secret.
        image: Image of stages that name none.
        namespace: Namespace of the run.
        start: Seconds to wait for a node whose container cannot start.
        schedule: Seconds to wait for a node that fits nowhere.

    Raises:
        ConfigError: A setting has no place in a training.
    """
    trainer = placement.trainer
    if trainer is None:
        return None
    if trainer.runtime:
        for key in ("image_pull_policy", "security_context"):
            if getattr(placement, key) is not None:
                raise ConfigError(
                    f"stage '{stage}': '{key}' cannot be set on a runtime of the cluster. Remove it, or leave out "
                    "`trainer: runtime` for a runtime of the stage's own."
                )
    return TrainingPlan(
        stage,
        trainer.nodes,
        trainer.processes,
        namespace,
        trainer.runtime or "",
        _pod(placement, trainer, image_of(placement, image)),
        placement.timeout or 0,
        start,
        schedule,
    )


def _pod(placement: Placement, trainer: Trainer, image: str) -> dict[str, Any]:
    volumes, mounts = _volumes(placement, trainer.resources)
    container = {
        "name": NODE,
        "image": image,
        "command": _command(placement.packages),
        "env": _environment(placement),
        "resources": _resources(trainer.resources),
        "volumeMounts": mounts,
        "imagePullPolicy": placement.image_pull_policy,
        "securityContext": _security(placement),
    }
    spec = {
        "containers": [_filled(container)],
        "volumes": volumes,
        "nodeSelector": dict(placement.node_selector),
        "tolerations": [
            _filled(
                {
                    "key": each.key,
                    "operator": each.operator,
                    "value": each.value,
                    "effect": each.effect,
                    "tolerationSeconds": each.seconds,
                }
            )
            for each in placement.tolerations
        ],
        "affinity": _affinity(placement),
        "imagePullSecrets": [{"name": name} for name in placement.image_pull_secrets],
        "serviceAccountName": placement.service_account,
    }
    # A mesh's sidecar would keep a node from ending, and its traffic from the other nodes.
    metadata = {
        "labels": {_SIDECAR: "false", **placement.labels},
        "annotations": dict(placement.annotations),
    }
    return {"metadata": _filled(metadata), "spec": _filled(spec)}


def _command(packages: tuple[str, ...]) -> list[str]:
    run = ["python3", "-m", _MODULE]
    if not packages:
        return run
    install = shlex.join(["python3", "-m", "pip", "install", "--quiet", *packages])
    return ["sh", "-c", OWN_ENVIRONMENT, "sh", "-c", f"{install} && exec {shlex.join(run)}"]


def _environment(placement: Placement) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in placement.env.items()]
    for kind, references in (("secretKeyRef", placement.secrets), ("configMapKeyRef", placement.config_maps)):
        for each in references:
            for key, name in each.env.items():
                reference = _filled({"name": each.name, "key": key, "optional": each.optional or None})
                found.append({"name": name, "valueFrom": {kind: reference}})
    for name, path in placement.pod_fields.items():
        found.append({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
    return found


def _resources(resources: NodeResources) -> dict[str, Any]:
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    amounts: tuple[tuple[str, Range[str] | None], ...] = (
        ("cpu", resources.cpu),
        ("memory", resources.memory),
    )
    for name, amount in amounts:
        if amount is not None and amount.request:
            requests[name] = amount.request
        if amount is not None and amount.limit:
            limits[name] = amount.limit
    if resources.gpu is not None and resources.gpu.count:
        limits[resources.gpu.type] = str(resources.gpu.count)
    return _filled({"requests": requests, "limits": limits})


def _volumes(
    placement: Placement, resources: NodeResources
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []

    def add(name: str, source: dict[str, Any], path: str, sub_path: str = "") -> None:
        volumes.append({"name": name, **source})
        mounts.append(_filled({"name": name, "mountPath": path, "subPath": sub_path}))

    for claim in placement.volumes:
        add(claim.claim, {"persistentVolumeClaim": {"claimName": claim.claim}}, claim.mount, claim.sub_path)
    for each in placement.secrets:
        if each.mount:
            source = _filled({"secretName": each.name, "optional": each.optional or None})
            add(each.name, {"secret": source}, each.mount)
    for each in placement.config_maps:
        if each.mount:
            source = _filled({"name": each.name, "optional": each.optional or None})
            add(each.name, {"configMap": source}, each.mount)
    for volume in placement.ephemeral_volumes:
        spec = {
            "accessModes": list(volume.access_modes),
            "resources": {"requests": {"storage": volume.size}},
            "storageClassName": volume.storage_class,
        }
        metadata = _filled({"labels": dict(volume.labels), "annotations": dict(volume.annotations)})
        template = _filled({"metadata": metadata, "spec": _filled(spec)})
        add(volume.name, {"ephemeral": {"volumeClaimTemplate": template}}, volume.mount)
    if resources.shared_memory:
        memory = {"emptyDir": {"medium": "Memory", "sizeLimit": resources.shared_memory}}
        add(_SHARED_VOLUME, memory, _SHARED_MEMORY)
    return volumes, mounts


def _affinity(placement: Placement) -> dict[str, Any]:
    required, preferred = [], []
    for each in placement.node_affinity:
        term = _filled(
            {
                "matchExpressions": [
                    _filled({"key": r.key, "operator": r.operator, "values": list(r.values)})
                    for r in each.labels
                ],
                "matchFields": [{"key": "metadata.name", "operator": "In", "values": [each.node]}]
                if each.node
                else [],
            }
        )
        if each.weight is None:
            required.append(term)
        else:
            preferred.append({"weight": each.weight, "preference": term})
    node = _filled(
        {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": required}
            if required
            else {},
            "preferredDuringSchedulingIgnoredDuringExecution": preferred,
        }
    )
    return _filled({"nodeAffinity": node})


def _security(placement: Placement) -> dict[str, Any]:
    security = placement.security_context
    if security is None:
        return {}
    return {
        key: value
        for key, value in (
            ("runAsUser", security.user),
            ("runAsGroup", security.group),
            ("runAsNonRoot", security.non_root),
        )
        if value is not None
    }


def _filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are neither None nor empty."""
    return {key: value for key, value in values.items() if value is not None and value not in ({}, [], "")}
