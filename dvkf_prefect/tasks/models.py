"""Tasks on registered models and their servers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from dvkf_prefect.blocks import DvcRepository, ModelServer
from dvkf_prefect.cards import endpoint_card, model_card, predictions_card
from dvkf_prefect.models.registry import ModelRegistry, ModelVersion
from dvkf_prefect.serving.endpoint import Endpoint
from dvkf_prefect.settings import DvkfSettings
from dvkf_prefect.tasks._artifacts import publish
from dvkf_prefect.tasks._git import run_trailers
from dvkf_prefect.tasks._logging import run_logger


def _publish_model(repository: DvcRepository, registry: ModelRegistry, name: str, said: str) -> None:
    run_logger().info("%s", said)
    card = model_card(
        registry.list(name), name, label=repository.label or "", said=said, limit=DvkfSettings().card_rows
    )
    publish(card)


@task(task_run_name="register {name}", cache_policy=NO_CACHE)
def register_model(
    repository: DvcRepository, name: str, *, version: str | None = None, rev: str = "HEAD", message: str = ""
) -> ModelVersion:
    """Register a model as it is in a commit, by an annotated git tag.

    A model whose highest version has the same content is not registered again, unless a version is named.

    Args:
        repository: The repository.
        name: The model's name under ``artifacts:`` in dvc.yaml.
        version: Its version, such as ``v1.2.0``; the next one if None.
        rev: The commit that holds the model.
        message: The tag's message.

    Returns:
        The version that holds the content: the new one, or the one that did already.

    Raises:
        ModelNotFoundError: No model of that name is declared in the commit.
        ModelError: The version exists, or the name does not follow the grammar.

    Example:
        ``register_model(DvcRepository.load("local"), "digits")``
    """
    registry = ModelRegistry(repository.open())
    if version is None and (same := registry.find_same(name, rev)) is not None:
        _publish_model(repository, registry, name, f"{name} has not changed since {same.version}.")
        return same
    registered = registry.register(name, version=version, rev=rev, message=message, trailers=run_trailers())
    _publish_model(repository, registry, name, f"Registered {registered.version} of {name}.")
    return registered


@task(task_run_name="promote {name} to {stage}", cache_policy=NO_CACHE)
def promote_model(repository: DvcRepository, name: str, version: str, stage: str) -> ModelVersion:
    """Give a stage, such as prod, to a registered version of a model.

    Args:
        repository: The repository.
        name: The model's name.
        version: The version, or ``latest``.
        stage: The stage.

    Returns:
        The version that holds the stage now.

    Raises:
        ModelNotFoundError: The version is not registered.

    Example:
        ``promote_model(DvcRepository.load("local"), "digits", "v1.0.0", "prod")``
    """
    registry = ModelRegistry(repository.open())
    wanted = registry.show(name, version)
    if stage in wanted.stages:
        _publish_model(repository, registry, name, f"{wanted.version} of {name} is {stage} already.")
        return wanted
    assigned = registry.assign(name, wanted.version, stage, trailers=run_trailers())
    _publish_model(repository, registry, name, f"{assigned.version} of {name} is {stage} now.")
    return assigned


@task(task_run_name="roll back {stage} of {name}", cache_policy=NO_CACHE)
def rollback_model(repository: DvcRepository, name: str, stage: str) -> ModelVersion:
    """Give a stage of a model back to the version that held it before.

    Args:
        repository: The repository.
        name: The model's name.
        stage: The stage, such as prod.

    Returns:
        The version that holds the stage now.

    Raises:
        ModelNotFoundError: No version held the stage before.

    Example:
        ``rollback_model(DvcRepository.load("local"), "digits", "prod")``
    """
    registry = ModelRegistry(repository.open())
    version = registry.rollback(name, stage, trailers=run_trailers())
    _publish_model(repository, registry, name, f"Rolled {stage} of {name} back to {version.version}.")
    return version


@task(task_run_name="deploy {name}", cache_policy=NO_CACHE)
def deploy_model(
    repository: DvcRepository, server: ModelServer, name: str, which: str = "latest"
) -> Endpoint:
    """Serve a registered version of a model; it takes over from the one that is served now.

    Args:
        repository: The repository.
        server: Where it is served.
        name: The model's name.
        which: A version, ``latest``, or ``#`` and a stage, such as ``#prod``.

    Returns:
        Where it answers.

    Raises:
        ModelNotFoundError: There is no such version.
        ModelDigestError: The model's file is not the version's digest; it was not loaded.
        ServingError: The server did not start; the version before is still served.

    Example:
        ``deploy_model(DvcRepository.load("local"), ModelServer.load("local"), "digits", "#prod")``
    """
    registry = ModelRegistry(repository.open())
    version = registry.show(name, which)
    endpoint = server.deploy(registry, version)
    run_logger().info("%s %s answers at %s", name, version.version, endpoint.url)
    publish(endpoint_card(endpoint, version))
    return endpoint


@task(task_run_name="request predictions of {name}", cache_policy=NO_CACHE)
def request_predictions(server: ModelServer, name: str, instances: Sequence[object]) -> tuple[Any, ...]:
    """Ask a served model, by the V1 protocol.

    Args:
        server: Where it is served.
        name: The model's name.
        instances: Rows, shape ``[rows, features]``.

    Returns:
        One prediction for each row.

    Raises:
        PredictionError: The rows do not fit the model.
        ServingError: The model is not served, or its server does not answer.

    Example:
        ``request_predictions(ModelServer.load("local"), "digits", [[0.0] * 64])``
    """
    endpoint = server.endpoint(name)
    predictions = tuple(endpoint.predict(instances, timeout=server.timeout))
    card = predictions_card(endpoint, predictions, limit=DvkfSettings().card_rows)
    publish(card)
    run_logger().info("%s", card.description)
    return predictions
