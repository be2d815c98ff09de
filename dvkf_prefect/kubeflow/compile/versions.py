"""Settings of pods that need a certain version of Kubeflow Pipelines.

An older server may refuse the pipeline without a usable reason, or take the setting and ignore it. So each setting is
checked before the pipeline is sent. Source: ``kubernetes_executor_config.proto``, ``v2/driver/k8s.go`` and
``v2/compiler/argocompiler`` of the tags 2.5.0, 2.14.0, 2.14.4, 2.15.0, 2.16.0 and 2.17.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from dvkf_prefect.errors import ConfigError
from dvkf_prefect.kubeflow.compile.pod_settings import Placement

Version = tuple[int, int]


class Needed(NamedTuple):
    """A setting and the version that it needs.

    Attributes:
        setting: Keys of the setting, joined by dots.
        version: First version that acts on it.
        before: Behaviour of older servers.
        step: Next step for users of an older server.
    """

    setting: str
    version: Version
    before: str
    step: str


def needed_by(placement: Placement) -> Iterator[Needed]:
    """Yield the settings of a pod that not all servers act on.

    Args:
        placement: Settings of the pod.
    """
    if placement.node_affinity:
        yield Needed(
            "node_affinity", (2, 14), "older servers ignore it", "Use `node_selector` and `tolerations`"
        )
    for key in ("secrets", "config_maps"):
        for index, reference in enumerate(getattr(placement, key)):
            if reference.env and reference.optional:
                step = "Remove it, or mount the keys as files (`mount`)"
                yield Needed(f"{key}.{index}.optional", (2, 15), "older servers do not know it", step)
    if placement.security_context:
        step = "Set the user in the image"
        yield Needed("security_context", (2, 16), "older servers do not know it", step)
    for index, volume in enumerate(placement.volumes):
        if volume.sub_path:
            step = "Mount the whole volume"
            yield Needed(f"volumes.{index}.sub_path", (2, 16), "older servers do not know it", step)


def check_version(placements: Mapping[str, Placement], version: Version | None) -> None:
    """Refuse settings that a server does not know or ignores.

    Args:
        placements: Settings of the pods by stage.
        version: Version of the server; None if unknown, which accepts all settings.

    Raises:
        ConfigError: The server is too old for a setting.
    """
    if version is None:
        return
    for stage, placement in placements.items():
        for need in needed_by(placement):
            if version < need.version:
                raise ConfigError(
                    f"stage '{stage}', setting '{need.setting}' of its pod: the server has Kubeflow Pipelines "
                    f"{version[0]}.{version[1]}; {need.version[0]}.{need.version[1]} is needed, {need.before}. "
                    f"{need.step}, or upgrade the server."
                )
