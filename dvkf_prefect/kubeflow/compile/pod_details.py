"""Parts of a pod's settings that few stages need: node affinity, users, fields of the pod, and ephemeral volumes.

Each is checked as Kubernetes checks it, because KFP's driver passes it on unchecked. Sources: Kubernetes'
``pkg/apis/core/validation`` and KFP 2.17's ``v2/driver/k8s.go``, which ends the driver's process at a size that it
cannot read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, StrictBool

from dvkf_prefect.kubeflow.compile.pod_values import (
    Items,
    Label,
    LabelKey,
    Mount,
    Name,
    Pairs,
    Size,
    Value,
    VolumeName,
)
from dvkf_prefect.pipeline.step.meta import SettingError, checked, matching, record

_INTEGER = re.compile(r"-?[0-9]{1,18}")
_MOST_ID = 2**31 - 1
_KEYED = r"metadata\.(labels|annotations)\['[^']+'\]"
_PLAIN = (
    "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName",
    "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs",
)  # fmt: skip
FieldPath = Annotated[
    str,
    matching(
        "|".join([*map(re.escape, _PLAIN), _KEYED]),
        f"a field that Kubernetes gives to containers: {', '.join(_PLAIN)}, metadata.labels['KEY'] or "
        "metadata.annotations['KEY']",
    ),
]


def _weight(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100:
        raise ValueError(value)
    return value


def _identity(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_ID:
        raise ValueError(value)
    return value


_Weight = Annotated[int, checked(_weight, "a whole number from 1 to 100")]
_Identity = Annotated[int, checked(_identity, f"a whole number from 0 to {_MOST_ID}")]


@dataclass(frozen=True, slots=True)
class NodeRequirement:
    """A condition on a label of a node.

    Attributes:
        key: Key of the label.
        operator: ``In`` and ``NotIn`` compare with several values, ``Gt`` and ``Lt`` with one number, ``Exists`` and
            ``DoesNotExist`` with none.
        values: Values to compare with.
    """

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: Items[Label] = ()


@dataclass(frozen=True, slots=True)
class NodeAffinity:
    """A group of conditions on the nodes of a pod, which all must hold.

    Attributes:
        labels: Conditions on labels of the node.
        node: Name of the node.
        weight: Preference for such nodes, 1 to 100. None if the pod may run on no others. Of several groups without a
            weight one must hold.
    """

    labels: Items[
        Annotated[NodeRequirement, record(NodeRequirement), AfterValidator(lambda r: _check(r))]
    ] = ()
    node: Name | None = None
    weight: _Weight | None = None


@dataclass(frozen=True, slots=True)
class SecurityContext:
    """User of a stage's container.

    Attributes:
        user: Numeric user; None for that of the image. The server's administrator may set another.
        group: Numeric group; None for that of the image.
        non_root: True refuses to start the container as root.
    """

    user: _Identity | None = None
    group: _Identity | None = None
    non_root: StrictBool | None = None


@dataclass(frozen=True, slots=True)
class EphemeralVolume:
    """A volume that Kubernetes makes for the pod, and removes with it.

    Attributes:
        name: Name of the volume in the pod.
        mount: Mount path.
        size: Requested size.
        storage_class: Class of the storage; None for the cluster's default.
        access_modes: Access modes of its claim.
        labels: Labels of its claim.
        annotations: Annotations of its claim.
    """

    name: VolumeName
    mount: Mount
    size: Size
    storage_class: Name | None = None
    access_modes: Items[Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]] = (
        "ReadWriteOnce",
    )
    labels: Pairs[LabelKey, Label] = field(default_factory=dict)
    annotations: Pairs[LabelKey, Value] = field(default_factory=dict)


def _check(requirement: NodeRequirement) -> NodeRequirement:
    operator, values = requirement.operator, requirement.values
    if operator in ("In", "NotIn") and not values:
        raise SettingError(("values",), f"`{operator}` compares with at least one value. Name the values.")
    if operator in ("Exists", "DoesNotExist") and values:
        raise SettingError(("values",), f"`{operator}` compares with no value. Remove them, or use `In`.")
    if operator in ("Gt", "Lt") and not (len(values) == 1 and _INTEGER.fullmatch(values[0])):
        raise SettingError(("values",), f"`{operator}` compares with one whole number, not {list(values)!r}")
    return requirement


def _check_affinity(affinity: NodeAffinity) -> NodeAffinity:
    if not affinity.labels and not affinity.node:
        raise SettingError((), "expected `labels: [{key, operator, values}]`, or `node: NAME`")
    return affinity


def _check_security(security: SecurityContext) -> SecurityContext:
    if security == SecurityContext():
        raise SettingError((), "expected `user`, `group` or `non_root`")
    if security.user == 0 and security.non_root:
        raise SettingError(("user",), "0 is root, which `non_root` refuses. Name another user.")
    return security


def _check_ephemeral(volume: EphemeralVolume) -> EphemeralVolume:
    if not volume.access_modes:
        raise SettingError(("access_modes",), "an access mode is missing. Name one, such as ReadWriteOnce.")
    if "ReadWriteOncePod" in volume.access_modes and len(volume.access_modes) > 1:
        raise SettingError(
            ("access_modes",), "Kubernetes takes ReadWriteOncePod without other modes. Name it alone."
        )
    return volume


Affinities = Items[Annotated[NodeAffinity, record(NodeAffinity), AfterValidator(_check_affinity)]]
Security = Annotated[SecurityContext, record(SecurityContext), AfterValidator(_check_security)]
EphemeralVolumes = Items[
    Annotated[EphemeralVolume, record(EphemeralVolume), AfterValidator(_check_ephemeral)]
]


# Settings of pods that no server acts on, with the next step.
_AFFINITY = (
    "the servers of Kubeflow Pipelines up to 2.17 take pod affinity and ignore it. Use `node_affinity`, "
    "`node_selector` or `tolerations`."
)
_PRIORITY = (
    "Kubeflow Pipelines has no setting for the priority of pods. Use nodes of their own (`node_selector`, "
    "`tolerations`)."
)
_WITHOUT_EFFECT = {
    "pod_affinity": _AFFINITY,
    "pod_anti_affinity": _AFFINITY,
    "priority": _PRIORITY,
    "priority_class": _PRIORITY,
    "init_containers": "the servers of Kubeflow Pipelines up to 2.17 have no init containers. Prepare the image "
    "instead.",
}


def _refuse(value: Any) -> Any:
    for name in value if isinstance(value, dict) else ():
        if name in _WITHOUT_EFFECT:
            raise SettingError((name,), _WITHOUT_EFFECT[name])
    return value


REFUSE_WITHOUT_EFFECT = BeforeValidator(_refuse)
"""Annotation that refuses settings of pods which Kubeflow Pipelines does not have or ignores."""


def apply_details(
    task: Any,
    *,
    affinities: tuple[NodeAffinity, ...],
    security: SecurityContext | None,
    fields: dict[str, str],
    volumes: tuple[EphemeralVolume, ...],
) -> None:
    """Apply the settings to a KFP task.

    Args:
        task: A ``kfp.dsl.PipelineTask``.
        affinities: Conditions on its nodes.
        security: User of its container; None for the image's.
        fields: Fields of the pod by variable.
        volumes: Ephemeral volumes.
    """
    from kfp import kubernetes

    for affinity in affinities:
        kubernetes.add_node_affinity(
            task,
            match_expressions=[
                {"key": each.key, "operator": each.operator, "values": list(each.values)}
                for each in affinity.labels
            ],
            # Kubernetes compares a field with one value.
            match_fields=[{"key": "metadata.name", "operator": "In", "values": [affinity.node]}]
            if affinity.node
            else [],
            weight=affinity.weight,
        )
    if security is not None:
        kubernetes.set_security_context(
            task,
            run_as_user=security.user,
            run_as_group=security.group,
            run_as_non_root=security.non_root,
        )
    for variable, path in fields.items():
        kubernetes.use_field_path_as_env(task, variable, path)
    for volume in volumes:
        # The SDK sends no class as the cluster's default one.
        kubernetes.add_ephemeral_volume(
            task,
            volume.name,
            volume.mount,
            list(volume.access_modes),
            volume.size,
            volume.storage_class,
            dict(volume.labels),
            dict(volume.annotations),
        )
