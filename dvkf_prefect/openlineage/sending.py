"""Acts of this package as OpenLineage events; without a receiver nothing is imported for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dvkf_prefect.openlineage.receiver import is_configured

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository
    from dvkf_prefect.models.version import ModelVersion
    from dvkf_prefect.pipeline.run.events import StageEvent


def watch_stages(
    repo: Repository, on_event: Callable[[StageEvent], None], *, parent: tuple[str, str] | None = None
) -> Callable[[StageEvent], None]:
    """Return a receiver of stages' events that also sends them as OpenLineage events.

    Args:
        repo: The repository.
        on_event: Receiver that is called first.
        parent: Id (a UUID) and name of the run that the stages belong to, such as a flow run.

    Returns:
        ``on_event`` itself if no receiver is configured.
    """
    if not is_configured():
        return on_event
    from dvkf_prefect.openlineage.events import LineageEvents

    events = LineageEvents(repo, parent=parent)

    def both(event: StageEvent) -> None:
        on_event(event)
        events.stage(event)

    return both


def send_registered(
    repo: Repository, version: ModelVersion, *, parent: tuple[str, str] | None = None
) -> None:
    """Send the registration of a version; nothing without a receiver.

    Args:
        repo: The repository.
        version: The version.
        parent: Id (a UUID) and name of the run that registered it, such as a flow run.
    """
    if is_configured():
        from dvkf_prefect.openlineage.events import LineageEvents

        LineageEvents(repo, parent=parent).registered(version)


def send_deployed(
    repo: Repository, version: ModelVersion, where: str, *, parent: tuple[str, str] | None = None
) -> None:
    """Send the deployment of a version; nothing without a receiver.

    Args:
        repo: The repository.
        version: The version.
        where: Place of the service, as noted on the version's tag.
        parent: Id (a UUID) and name of the run that deployed it, such as a flow run.
    """
    if is_configured():
        from dvkf_prefect.openlineage.events import LineageEvents

        LineageEvents(repo, parent=parent).deployed(version, where)
