"""Settings of pods: the fields that a server knows and acts on, and the pods that Kubernetes refuses.

Sources: kubernetes_platform/proto/kubernetes_executor_config.proto, v2/driver/k8s.go and v2/compiler/argocompiler of
the tags 2.5.0, 2.14.0, 2.15.0, 2.16.0 and 2.17.0; Kubernetes' pkg/apis/core/validation.
"""

from __future__ import annotations

import re
from typing import Any

# Fields of KubernetesExecutorConfig in 2.5.0, and the release in which others appeared.
_KNOWN = {
    "secretAsEnv", "secretAsVolume", "pvcMount", "nodeSelector", "podMetadata", "imagePullSecret", "configMapAsEnv",
    "configMapAsVolume", "tolerations", "activeDeadlineSeconds", "fieldPathAsEnv", "genericEphemeralVolume",
    "imagePullPolicy", "emptyDirMounts", "podAffinity", "nodeAffinity", "enabledSharedMemory",
}  # fmt: skip
_SINCE = {"securityContext": (2, 16), "initContainers": (2, 18)}
_PARTS = {
    ("pvcMount", "subPath"): (2, 16), ("secretAsEnv", "optional"): (2, 15), ("configMapAsEnv", "optional"): (2, 15),
    ("nodeAffinity", "nodeAffinityJson"): (2, 14),
}  # fmt: skip
# Known fields that the driver does not read before a release; (99, 0) for none so far.
_IGNORED = {"nodeAffinity": (2, 14), "podAffinity": (99, 0), "enabledSharedMemory": (99, 0)}
WORKSPACE = "/kfp-workspace"
# apimachinery: pkg/api/resource, and validation of DNS labels.
_QUANTITY = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)?")
_VOLUME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
# core/validation: validEnvDownwardAPIFieldPathExpressions, and keys of labels and annotations.
_FIELDS = re.compile(
    r"metadata\.(name|namespace|uid)|spec\.(nodeName|serviceAccountName)|status\.(hostIPs?|podIPs?)"
    r"|metadata\.(labels|annotations)\['[^']+'\]"
)
_COUNTS = {"In": range(1, 1000), "NotIn": range(1, 1000), "Exists": range(1), "DoesNotExist": range(1)}
_COUNTS |= {"Gt": range(1, 2), "Lt": range(1, 2)}
_MODES = {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"}


def unknown_field(config: dict, version: tuple[int, int]) -> str:
    """Return the first field that a server of this version does not know; "" if it knows all."""
    for name, value in config.items():
        if name not in _KNOWN and _SINCE.get(name, (99, 0)) > version:
            return name
        for item in value if isinstance(value, list) else [value]:
            for part in item if isinstance(item, dict) else ():
                if _PARTS.get((name, part), (0, 0)) > version:
                    return part
    return ""


def refused_field(config: dict, version: tuple[int, int]) -> str:
    """Return the field for which a pipeline is refused; "" if there is none.

    2.14 and later parse the configuration strictly (argocompiler/container.go:285). In 2.5 the compiler ignores the
    error of its own strict parser, and the driver's parser accepts unknown fields (common/util/json.go:73).
    """
    return unknown_field(config, version) if version >= (2, 14) else ""


def metadata(config: dict, version: tuple[int, int]) -> dict:
    """Return the labels and annotations of a pod: none in 2.5 after an unknown field (container.go:445-447)."""
    return {} if unknown_field(config, version) else config.get("podMetadata", {})


def ignored_fields(config: dict, version: tuple[int, int]) -> list[str]:
    """Return the fields that have no effect on a server of this version."""
    unread = [name for name in config if _IGNORED.get(name, (0, 0)) > version]
    return unread + ([field] if version < (2, 14) and (field := unknown_field(config, version)) else [])


def pipeline_problem(platform: dict, version: tuple[int, int]) -> str:
    """Return the reason for which the server refuses a pipeline's own configuration.

    Source: argocompiler/argo.go, GetWorkspacePVC. 2.5 does not know ``pipelineConfig`` (template/v2_template.go:214).
    """
    config = platform.get("platforms", {}).get("kubernetes", {}).get("pipelineConfig")
    if config is None:
        return ""
    if version < (2, 14):
        return 'unknown field "pipelineConfig"'
    workspace = config.get("workspace")
    if workspace is None:
        return ""
    patch = workspace.get("kubernetes", {}).get("pvcSpecPatch", {})
    if not workspace.get("size"):
        return "workspace size is required but not specified"
    if not _QUANTITY.fullmatch(workspace["size"]):
        return "invalid size value for workspace PVC"
    if patch.get("storageClassName") == "":
        return "workspace PVC spec storageClassName must be omitted or set to a non-empty value"
    if not patch.get("accessModes"):  # of servers whose administrator set no default
        return "workspace PVC spec must specify accessModes"
    return ""


def mounts_workspace(platform: dict, version: tuple[int, int]) -> bool:
    """Return True if pods get the run's volume. 2.14 makes the claim only; its driver knows no workspace."""
    config = platform.get("platforms", {}).get("kubernetes", {}).get("pipelineConfig", {})
    return version >= (2, 15) and "workspace" in config


def driver_problem(
    container: dict, config: dict, version: tuple[int, int], *, workspace: bool = False
) -> str:
    """Return the reason for which a task's driver fails."""
    for item in (i for value in config.values() if workspace and isinstance(value, list) for i in value):
        if str(item.get("mountPath", "")).startswith(WORKSPACE):  # driver.go: validateVolumeMounts
            return f"user volume mount at {item['mountPath']} conflicts with workspace mount at {WORKSPACE}"
    for name, value in container.get("resources", {}).items():
        if name.startswith("resource") and not _QUANTITY.fullmatch(str(value)):
            return f"quantities must match the regular expression (resource {value!r})"
    sizes = [item.get("size") for item in config.get("genericEphemeralVolume", ())]
    sizes += [item.get("sizeLimit", "0") for item in config.get("emptyDirMounts", ())]
    for size in sizes:
        if not _QUANTITY.fullmatch(str(size)):
            return f"panic: cannot parse '{size}'"  # k8s.go: MustParse
    security = config.get("securityContext", {}) if version >= (2, 16) else {}
    if int(security.get("runAsUser", 1)) == 0 and security.get("runAsNonRoot"):
        return "runAsUser=0 (root) is not allowed: runAsNonRoot is true; use a non-root UID instead"
    return ""


def pod_problem(config: dict, claims: Any, version: tuple[int, int] = (2, 17)) -> str:
    """Return the reason for which Kubernetes refuses a pod; "" if it does not.

    Source: v2/driver/k8s.go:300-320 (a volume is called like its secret) and :1155-1168 (like its claim).
    """
    ephemeral = config.get("genericEphemeralVolume", ())
    volumes = [_name(item, "secretName") for item in config.get("secretAsVolume", ())]
    volumes += [_name(item, "configMapName") for item in config.get("configMapAsVolume", ())]
    volumes += [_name(item, "pvcName") for item in config.get("pvcMount", ())]
    volumes += [item["volumeName"] for item in (*ephemeral, *config.get("emptyDirMounts", ()))]
    for i, name in enumerate(volumes):
        if not _VOLUME.fullmatch(name):
            return f"spec.volumes[{i}].name: Invalid value: {name!r}: must be a DNS-1123 label"
        if name in volumes[:i]:
            return f"spec.volumes[{i}].name: Duplicate value: {name!r}"
    mounts = ("secretAsVolume", "configMapAsVolume", "pvcMount", "genericEphemeralVolume", "emptyDirMounts")
    paths = [item["mountPath"].rstrip("/") for key in mounts for item in config.get(key, ())]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            return f"spec.containers[0].volumeMounts[{i}].mountPath: Invalid value: {path!r}: must be unique"
    for i, toleration in enumerate(config.get("tolerations", ())):
        if toleration.get("tolerationSeconds") and toleration.get("effect") != "NoExecute":
            return f"spec.tolerations[{i}].effect: Invalid value: must be 'NoExecute' when tolerationSeconds is set"
    for item in ephemeral:
        modes = set(item.get("accessModes", ()))
        if not modes or modes - _MODES or (len(modes) > 1 and "ReadWriteOncePod" in modes):
            return f"spec.volumes[0].ephemeral.volumeClaimTemplate.spec.accessModes: Invalid value: {sorted(modes)}"
    for item in config.get("fieldPathAsEnv", ()):
        if not _FIELDS.fullmatch(item["fieldPath"]):
            return f"spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: {item['fieldPath']!r}"
    if version >= _IGNORED["nodeAffinity"] and (problem := _affinity_problem(config.get("nodeAffinity", ()))):
        return f"spec.affinity.nodeAffinity: {problem}"
    identity = config.get("securityContext", {})
    for key in ("runAsUser", "runAsGroup"):
        if not 0 <= int(identity.get(key, 0)) < 1 << 31:
            return (
                f"spec.containers[0].securityContext.{key}: Invalid value: must be between 0 and 2147483647"
            )
    if claims is not None:
        for item in config.get("pvcMount", ()):
            if (name := _name(item, "pvcName")) not in claims:
                return f'persistentvolumeclaim "{name}" not found'
    return ""


def _affinity_problem(terms: Any) -> str:
    """core/validation: ValidateNodeSelectorRequirement and ValidateNodeFieldSelectorRequirement."""
    for term in terms:
        if not 1 <= term.get("weight", 1) <= 100:
            return f"weight: Invalid value: {term['weight']}: must be in the range 1-100"
        for item in term.get("matchExpressions", ()):
            values = item.get("values", [])
            if len(values) not in _COUNTS.get(item.get("operator"), range(0)):
                return f"values: Required value: for operator {item.get('operator')}, not {values}"
            if item["operator"] in ("Gt", "Lt") and not re.fullmatch(r"-?\d+", values[0]):
                return f"values[0]: Invalid value: {values[0]!r}: must be an integer"
        for item in term.get("matchFields", ()):
            if item.get("key") != "metadata.name" or item.get("operator") not in ("In", "NotIn"):
                return f"matchFields: Invalid value: {item}"
            if len(item.get("values", ())) != 1:
                return "matchFields: Required value: must be only one value"
    return ""


def _name(item: dict, key: str) -> str:
    if key in item:
        return str(item[key])
    constant = next(v["runtimeValue"]["constant"] for k, v in item.items() if k.endswith("NameParameter"))
    return str(constant)


def secret_of(item: dict) -> str:
    return _name(item, "secretName")
