"""Volume that the pods of one run share: outputs stay on it for later stages, which then download less.

The server makes a claim for each run and removes it with the run's workflow. Its driver mounts the volume in each pod
with a parameter that contains the mount path. Source: KFP 2.15's ``v2/driver/driver.go``, ``needsWorkspaceMount``, and
``v2/compiler/argocompiler/argo.go``, ``GetWorkspacePVC``. 2.14 makes the claim and mounts it nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import TypeAdapter

from dvkf_prefect.errors import ConfigError
from dvkf_prefect.kubeflow.compile.pod_settings import Placement
from dvkf_prefect.kubeflow.compile.pod_values import Name, Size
from dvkf_prefect.kubeflow.compile.versions import Version
from dvkf_prefect.pipeline.step.meta import SettingError, parse, record

WORKSPACE_PATH = "/kfp-workspace"
"""Mount path of the volume, as KFP's driver has it."""
WORKSPACE_SINCE: Version = (2, 15)
_VOLUME = "kfp-workspace"


@dataclass(frozen=True, slots=True)
class WorkspaceVolume:
    """Claim of the volume.

    Attributes:
        size: Requested size.
        access_mode: ``ReadWriteMany`` if pods run on several nodes at the same time. With ``ReadWriteOnce`` stages that
            run at the same time wait for each other, unless they are on one node.
        storage_class: Class of the storage; None for the cluster's default.
    """

    size: Size
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany"]
    storage_class: Name | None = None

    def config(self) -> Any:
        """Return the configuration of a KFP pipeline with this volume."""
        from kfp import dsl

        patch: dict[str, Any] = {"accessModes": [self.access_mode]}
        if self.storage_class:
            patch["storageClassName"] = self.storage_class
        claim = dsl.KubernetesWorkspaceConfig(pvcSpecPatch=patch)
        return dsl.PipelineConfig(workspace=dsl.WorkspaceConfig(self.size, claim))


_WORKSPACE: TypeAdapter[WorkspaceVolume] = TypeAdapter(Annotated[WorkspaceVolume, record(WorkspaceVolume)])


def parse_workspace(values: Mapping[str, Any]) -> WorkspaceVolume:
    """Parse the claim of a workspace.

    Raises:
        ConfigError: A key is unknown or a value wrong.

    Example:
        >>> parse_workspace({"size": "100Gi", "access_mode": "ReadWriteMany"}).size
        '100Gi'
    """
    try:
        return parse(_WORKSPACE, values)
    except SettingError as error:
        key = ".".join(map(str, error.place)) or "workspace"
        raise ConfigError(f"the workspace of runs, '{key}': {error.problem}") from None


def check_workspace(placements: Mapping[str, Placement], version: Version | None) -> None:
    """Refuse a workspace that the server or a pod cannot mount.

    Args:
        placements: Settings of the pods by stage.
        version: Version of the server; None if unknown.

    Raises:
        ConfigError: The server is too old, or a pod mounts something else there.
    """
    if version is not None and version < WORKSPACE_SINCE:
        raise ConfigError(
            f"the workspace of runs: the server has Kubeflow Pipelines {version[0]}.{version[1]}, which mounts it in "
            "no pod; 2.15 is needed. Remove `workspace`, or upgrade the server."
        )
    for stage, placement in placements.items():
        for _, name, path in placement.mounts():
            if path.startswith(WORKSPACE_PATH) or name == _VOLUME:
                raise ConfigError(
                    f"the pod of stage '{stage}' mounts '{name}' at '{path}', but the workspace of the run has the "
                    f"name '{_VOLUME}' and the paths that begin with {WORKSPACE_PATH}. Mount it elsewhere."
                )
