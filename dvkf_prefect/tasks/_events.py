"""Prefect events of new data and of models, for automations.

| event | resource | labels |
|---|---|---|
| ``dvkf.dataset.pushed`` | ``dvkf.dataset.REPOSITORY/PATH`` | ``dvkf.repository``, ``dvkf.path``, ``dvkf.digest`` |
| ``dvkf.model.registered`` | ``dvkf.model.REPOSITORY/NAME`` | ``dvkf.repository``, ``dvkf.model``, ``dvkf.version`` |
| ``dvkf.model.promoted`` | the same | also ``dvkf.stage`` |
| ``dvkf.model.rolled-back`` | the same | also ``dvkf.stage`` |
| ``dvkf.model.deployed`` | the same | also ``dvkf.server`` |

Prefect adds the flow run, the deployment and its tags as related resources.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from prefect.events import emit_event

from dvkf_prefect.cards import PUSHED, dataset_id
from dvkf_prefect.formats.outputs import DataVersion
from dvkf_prefect.models.version import ModelVersion


def announce_pushed(repository: str, versions: Iterable[DataVersion], remote: str) -> None:
    """Emit ``dvkf.dataset.pushed`` for versions that arrived on a remote.

    Args:
        repository: Short name of the repository.
        versions: The versions.
        remote: Name of the remote.
    """
    for version in versions:
        resource, payload = pushed_event(repository, version)
        emit_event(PUSHED, resource, payload={**payload, "remote": remote})


def pushed_event(repository: str, version: DataVersion) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the resource and the payload of ``dvkf.dataset.pushed``.

    Args:
        repository: Short name of the repository.
        version: The version.
    """
    resource = {
        "prefect.resource.id": dataset_id(repository, version.path),
        "prefect.resource.name": version.path,
        "dvkf.repository": repository,
        "dvkf.path": version.path,
        "dvkf.digest": version.digest,
    }
    payload = {
        "path": version.path,
        "digest": version.digest,
        "size": version.size,
        "nfiles": version.nfiles,
    }
    return resource, payload


def announce_model(
    repository: str,
    version: ModelVersion,
    act: Literal["registered", "promoted", "rolled-back", "deployed"],
    *,
    stage: str = "",
    server: str = "",
    url: str = "",
) -> None:
    """Emit an event about a version of a model.

    Args:
        repository: Short name of the repository.
        version: The version.
        act: What happened to it.
        stage: The model stage that it got.
        server: Place of the server that serves it.
        url: Address of the server.
    """
    labels = {"dvkf.stage": stage, "dvkf.server": server}
    emit_event(
        f"dvkf.model.{act}",
        {
            "prefect.resource.id": f"dvkf.model.{repository}/{version.name}",
            "prefect.resource.name": version.name,
            "dvkf.repository": repository,
            "dvkf.model": version.name,
            "dvkf.version": version.version,
            **{name: value for name, value in labels.items() if value},
        },
        payload={
            "model": version.name,
            "version": version.version,
            "commit": version.rev,
            "path": version.path,
            "digest": version.digest,
            **({"stage": stage} if stage else {}),
            **({"url": url} if url else {}),
        },
    )
