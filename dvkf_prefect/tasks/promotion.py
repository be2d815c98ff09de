"""Tasks that promote a model and roll it back, as one act each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run

from dvkf_prefect.blocks import DvcRepository, KubeflowModelRegistry, find_block
from dvkf_prefect.cards import comparison_card, promotion_card
from dvkf_prefect.errors import DvkfError, ModelNotFoundError
from dvkf_prefect.models.gates import AnyGate, parse_gate
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.version import ModelVersion
from dvkf_prefect.promotion.act import Acting, RunState
from dvkf_prefect.promotion.comparison import VersionComparison, compare_with_champion
from dvkf_prefect.promotion.journal import Journal, Record
from dvkf_prefect.promotion.promote import Approval, Promotion, promote
from dvkf_prefect.promotion.rollback import Rollback, roll_back
from dvkf_prefect.settings import DvkfSettings
from dvkf_prefect.tasks._artifacts import publish
from dvkf_prefect.tasks._events import announce_model
from dvkf_prefect.tasks._git import run_trailers
from dvkf_prefect.tasks._logging import run_logger
from dvkf_prefect.tasks._models import publish_model
from dvkf_prefect.tasks._names import run_name
from dvkf_prefect.tasks._servers import AnyServer, find_server


@task(task_run_name=run_name("promote {name} to {stage}"), cache_policy=NO_CACHE)
def promote_model(
    repository: DvcRepository | str,
    name: str,
    version: str,
    stage: str,
    *,
    server: AnyServer | str | None = None,
    registry: KubeflowModelRegistry | str | None = None,
    gates: Sequence[AnyGate | str | Mapping[str, Any]] = (),
    canary: int | None = None,
    watch: float = 0.0,
    publish_to: str = "",
    reason: str = "",
    approval: Approval | None = None,
    wait: bool = False,
    share: bool | None = None,
) -> ModelVersion:
    """Promote a registered version of a model to a model stage, such as prod, and serve it.

    The steps are gates, approval, stage, publication, canary, service and mirror, each recorded. A call after a kill
    continues them. Without a server, the stage alone is changed.

    Args:
        repository: The repository.
        name: The model's name.
        version: The version, or ``latest``, which continues a promotion that was interrupted.
        stage: The model's stage, in GTO's sense.
        server: The model server, on this machine or on a cluster; None to serve nothing.
        registry: The Kubeflow Model Registry to mirror the model in; None for none.
        gates: Gates, see `dvkf_prefect.models.gates`.
        canary: Part of the traffic for the version before it gets all, 0 to 99; None for no canary.
        watch: Seconds for which the canary gets its traffic before gates judge it.
        publish_to: Place to publish the version to; empty for none.
        reason: Reason, for the tag and the journal.
        approval: The answer; None for the approval of git's user.
        wait: Stop after the gates, to ask for approval, unless it is given.
        share: Push journal, tags and facts to git's ``origin`` at each step; None to do so for a git URL, whose clone
            other workers do not see.

    Returns:
        The version, with its stages.

    Raises:
        ModelNotFoundError: The version is not registered.
        PromotionError: A gate or the approval refused it, or it does not serve. What was before stands.
        LockedError: Another process promotes the model to this stage.

    Example:
        ``promote_model(DvcRepository.load("local"), "digits", "v1.0.0", "prod", server="local", canary=10)``
    """
    repository = find_block(DvcRepository, repository, "repository")
    models = ModelRegistry(repository.open())
    promotion = Promotion(
        _acting(models, name, server, registry, reason, repository.is_cloned if share is None else share),
        gates=tuple(parse_gate(gate) for gate in gates),
        approve=(lambda _: approval) if wait or approval else None,
        percent=canary,
        watch=watch,
        publish_to=publish_to,
    )
    before = _holder(models, name, stage)
    try:
        record = promote(models, name, version, stage, promotion)
    except DvkfError:
        _show_last(repository, models, name, stage)
        raise
    # It returns an open record only to wait for the approval.
    _show(repository, record, waits=record.open)
    promoted = models.show(name, record.version)
    said = (
        f"{promoted.version} of {name} waits for approval to be {stage}."
        if record.open
        else f"{promoted.version} of {name} is {stage} now."
    )
    publish_model(repository, models, name, said)
    if stage in promoted.stages and before != promoted.version:
        announce_model(repository.name, promoted, "promoted", stage=stage)
    return promoted


@task(task_run_name=run_name("roll back {stage} of {name}"), cache_policy=NO_CACHE)
def rollback_model(
    repository: DvcRepository | str,
    name: str,
    stage: str,
    *,
    server: AnyServer | str | None = None,
    registry: KubeflowModelRegistry | str | None = None,
    to: str = "",
    data: bool = False,
    reason: str = "",
    share: bool | None = None,
) -> ModelVersion:
    """Serve the version that had a model stage before, and assign the stage to it.

    Serving is changed first, then the stage, the data and the mirror. A call after a kill continues them. A promotion
    that was interrupted is undone. A call of another flow run continues that of one that did not complete. Each other
    run goes one version further back, unless it names the version.

    Args:
        repository: The repository.
        name: The model's name.
        stage: The model's stage, such as prod.
        server: The model server; None to change the stage alone.
        registry: The Kubeflow Model Registry to mirror the model in; None for none.
        to: Version to return to, which had the stage before; empty for the one before the current one.
        data: Check out the data that the version learned from, too.
        reason: Reason, for the tag and the journal.
        share: Push journal, tags and facts to git's ``origin`` at each step; None to do so for a git URL, whose clone
            other workers do not see.

    Returns:
        The version that has the stage now; the one that lost it if no version had it before.

    Raises:
        ModelNotFoundError: No earlier version had the stage.
        ServingError: The version before does not serve. The stage is as it was.
        LockedError: Another process promotes the model to this stage.

    Example:
        ``rollback_model(DvcRepository.load("local"), "digits", "prod", server="local", reason="Wrong sevens")``
    """
    repository = find_block(DvcRepository, repository, "repository")
    models = ModelRegistry(repository.open())
    rollback = Rollback(
        _acting(models, name, server, registry, reason, repository.is_cloned if share is None else share),
        data=data,
        to=to,
        report=lambda record: _show(repository, record),
    )
    try:
        record = roll_back(models, name, stage, rollback)
    except DvkfError:
        _show_last(repository, models, name, stage)
        raise
    version = models.show(name, record.version or "latest")
    publish_model(
        repository, models, name, f"Rolled {stage} of {name} back to {record.version or 'no version'}."
    )
    if record.version:
        announce_model(repository.name, version, "rolled-back", stage=stage)
    return version


@task(task_run_name=run_name("compare {name} {version} with {stage}"), cache_policy=NO_CACHE)
def compare_versions(
    repository: DvcRepository | str, name: str, version: str, stage: str
) -> VersionComparison:
    """Compare a registered version of a model with the one that holds a stage: parameters, metrics, data and code.

    Args:
        repository: The repository.
        name: The model's name.
        version: The version, or ``latest``.
        stage: The model's stage, such as prod.

    Returns:
        The values that differ.

    Raises:
        ModelNotFoundError: The version is not registered.

    Example:
        ``compare_versions(DvcRepository.load("local"), "digits", "latest", "prod").differences``
    """
    repository = find_block(DvcRepository, repository, "repository")
    models = ModelRegistry(repository.open())
    candidate = models.show(name, version)
    holder = _holder(models, name, stage)
    champion = models.show(name, holder) if holder else None
    comparison = compare_with_champion(models, candidate, champion)
    run_logger().info("%s", comparison)
    publish(comparison_card(comparison, repository.name, limit=DvkfSettings().card_rows))
    return comparison


def _holder(models: ModelRegistry, name: str, stage: str) -> str:
    try:
        return models.show(name, f"#{stage}").version
    except ModelNotFoundError:
        return ""


def _acting(
    models: ModelRegistry,
    name: str,
    server: AnyServer | str | None,
    registry: KubeflowModelRegistry | str | None,
    reason: str,
    share: bool,
) -> Acting:
    acting = Acting(
        place=find_server(server) if server else None,
        why=reason,
        run=flow_run.get_id() or "",
        run_state=_run_state,
        shared=share,
        trailers=run_trailers(),
    )
    if not registry:
        return acting
    block = find_block(KubeflowModelRegistry, registry, "registry")
    return replace(acting, mirror=lambda: block.mirror(models, [name]))


def _run_state(run: str) -> RunState:
    """Return the state of a flow run; empty for one that Prefect does not know."""
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(run)).state
    except (ValueError, ObjectNotFound):
        return ""
    if state is None or not state.is_final():
        return "running"
    return "completed" if state.is_completed() else "ended"


def _show(repository: DvcRepository, record: Record, *, waits: bool = False) -> None:
    if record.state == "mirroring":
        run_logger().warning("%s. The next run mirrors it.", record.problem)
    elif record.problem:
        run_logger().warning("%s: %s", record.what, record.problem)
    publish(promotion_card(record, repository.name, waits=waits))


def _show_last(repository: DvcRepository, models: ModelRegistry, name: str, stage: str) -> None:
    """Publish the card of a promotion that failed."""
    record = Journal(models.git, name, stage).read()
    if record is not None:
        publish(promotion_card(record, repository.name))
