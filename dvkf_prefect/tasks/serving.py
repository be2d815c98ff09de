"""Tasks on services of models: canaries with their gates, and removal."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from dvkf_prefect.blocks import DvcRepository, find_block
from dvkf_prefect.cards import canary_card, endpoint_card, gates_card
from dvkf_prefect.errors import GateError
from dvkf_prefect.models.gates import AnyGate, Finding, parse_gate
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.promotion.places import ServingState
from dvkf_prefect.serving.endpoint import Endpoint
from dvkf_prefect.serving.gating import GateCheck
from dvkf_prefect.serving.gating import judge_canary as judge
from dvkf_prefect.serving.kserve.canaries import Canary
from dvkf_prefect.tasks._artifacts import publish
from dvkf_prefect.tasks._logging import run_logger
from dvkf_prefect.tasks._names import run_name
from dvkf_prefect.tasks._servers import AnyServer, find_server


@task(task_run_name=run_name("start a canary of {name}"), cache_policy=NO_CACHE)
def start_canary(
    repository: DvcRepository | str,
    server: AnyServer | str,
    name: str,
    which: str = "latest",
    *,
    percent: int = 10,
    gates: Sequence[AnyGate | str] = (),
) -> Canary | Endpoint:
    """Give a registered version of a model a part of the traffic; end it if a gate refuses it.

    Args:
        repository: The repository.
        server: The model server, on this machine or on a cluster.
        name: The model's name.
        which: A version, ``latest``, or ``#`` and a stage, such as ``#staging``.
        percent: Part of the traffic, 0 to 99; 0 starts it without traffic.
        gates: Gates, such as ``metric:accuracy>=champion-0.01`` or ``smoke``, see `dvkf_prefect.models.gates`.

    Returns:
        The running canary; on this machine, the endpoint that has it.

    Raises:
        ConfigError: A text is not a gate.
        GateError: A gate refused the version, and the one before it has all traffic.
        ModelNotFoundError: There is no such version.
        ModelError: The version has no file, or is not published for the cluster.
        ServingError: The server cannot split traffic, or the version does not serve. Then the one before it has all.

    Example:
        ``start_canary(DvcRepository.load("local"), KServeModelServer.load("cluster"), "digits", percent=10)``
    """
    repository = find_block(DvcRepository, repository, "repository")
    server = find_server(server)
    registry = ModelRegistry(repository.open())
    version = registry.show(name, which)
    check = GateCheck(registry, version, [parse_gate(gate) for gate in gates])
    try:
        canary = server.start_canary(registry, version, percent, check=check)
    finally:
        _show(check.findings, repository.name, name, version.version)
    run_logger().info("%s", canary)
    if isinstance(canary, Canary):
        state = ServingState(canary.stable, canary.version, canary.percent, canary.url)
    else:
        state = ServingState(canary.version, canary.canary, canary.percent, canary.url)
    publish(canary_card(state, name, repository.name))
    return canary


@task(task_run_name=run_name("judge the canary of {name}"), cache_policy=NO_CACHE)
def judge_canary(
    repository: DvcRepository | str,
    server: AnyServer | str,
    name: str,
    gates: Sequence[AnyGate | str],
) -> tuple[Finding, ...]:
    """Judge the running canary of a model by gates; end it if one refuses it.

    Args:
        repository: Repository of the model.
        server: The model server, on this machine or on a cluster.
        name: The model's name.
        gates: Gates, such as ``prometheus:errors<1%,p99<200ms``, see `dvkf_prefect.models.gates`.

    Returns:
        The findings of all gates.

    Raises:
        ConfigError: A text is not a gate.
        GateError: A gate refused the version, and the one before it has all traffic.
        ServingError: There is no canary, or it could not be ended.

    Example:
        ``judge_canary(DvcRepository.load("local"), KServeModelServer.load("cluster"), "digits", ["smoke"])``
    """
    repository = find_block(DvcRepository, repository, "repository")
    server = find_server(server)
    state = server.state(name)
    version = state.canary if state else ""
    try:
        findings = judge(server, ModelRegistry(repository.open()), name, gates)
    except GateError as error:
        publish(gates_card(name, version, repository.name, error.findings))
        raise
    _show(findings, repository.name, name, version)
    return findings


def _show(findings: Sequence[Finding], repository: str, name: str, version: str) -> None:
    """Log findings and publish their card; nothing without any."""
    for finding in findings:
        run_logger().info("%s", finding)
    if findings:
        publish(gates_card(name, version, repository, [finding.as_dict() for finding in findings]))


@task(task_run_name=run_name("promote the canary of {name}"), cache_policy=NO_CACHE)
def promote_canary(repository: DvcRepository | str, server: AnyServer | str, name: str) -> Endpoint:
    """Give the canary of a model all traffic.

    Args:
        repository: Repository of the model, for the card of its endpoint. It is not opened.
        server: The model server, on this machine or on a cluster.
        name: The model's name.

    Returns:
        The endpoint.

    Raises:
        ServingError: There is no canary, or it does not serve.

    Example:
        ``promote_canary(DvcRepository.load("local"), KServeModelServer.load("cluster"), "digits")``
    """
    repository = find_block(DvcRepository, repository, "repository")
    server = find_server(server)
    endpoint = server.promote_canary(name)
    run_logger().info("%s %s has all traffic", name, endpoint.version)
    publish(endpoint_card(endpoint, repository.name))
    return endpoint


@task(task_run_name=run_name("abort the canary of {name}"), cache_policy=NO_CACHE)
def abort_canary(repository: DvcRepository | str, server: AnyServer | str, name: str) -> Endpoint:
    """End the canary of a model; the version before it has all traffic.

    Args:
        repository: Repository of the model, for the card of its endpoint. It is not opened.
        server: The model server, on this machine or on a cluster.
        name: The model's name.

    Returns:
        The endpoint of the version before it.

    Raises:
        ServingError: There is no canary, or the version before it does not serve.

    Example:
        ``abort_canary(DvcRepository.load("local"), KServeModelServer.load("cluster"), "digits")``
    """
    repository = find_block(DvcRepository, repository, "repository")
    server = find_server(server)
    endpoint = server.abort_canary(name)
    run_logger().info("the canary is ended; %s %s has all traffic", name, endpoint.version)
    publish(endpoint_card(endpoint, repository.name))
    return endpoint


@task(task_run_name=run_name("undeploy {name}"), cache_policy=NO_CACHE)
def undeploy_model(server: AnyServer | str, name: str) -> bool:
    """Remove the service of a model.

    Args:
        server: The model server, on this machine or on a cluster.
        name: The model's name.

    Returns:
        True if there was one.

    Raises:
        ServingError: The service belongs to something else, or does not go.

    Example:
        ``undeploy_model(ModelServer.load("local"), "digits")``
    """
    removed = find_server(server).undeploy(name)
    run_logger().info("%s", f"{name} is not served any more" if removed else f"{name} was not served")
    return removed
