"""Tasks on registered models and model servers."""

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
    """Register a commit's model by an annotated git tag.

    If the highest registered version has the same content, that version is returned, unless ``version`` is given.

    Args:
        repository: The repository.
        name: The model's name under ``artifacts:`` in dvc.yaml.
        version: New version, such as ``v1.2.0``; the next one if None.
        rev: Revision with the model.
        message: Message of the tag.

    Returns:
        The new version, or the earlier version with the same content.

    Raises:
        ModelNotFoundError: The commit declares no model of that name.
        ModelError: The version exists, or the name is invalid.

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
    """Assign a registered version of a model to a model stage, such as prod.

    Args:
        repository: The repository.
        name: The model's name.
        version: The version, or ``latest``.
        stage: The model's stage, in GTO's sense.

    Returns:
        The version, with its stages.

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
    """Assign a model stage to the version that had it before.

    Args:
        repository: The repository.
        name: The model's name.
        stage: The model's stage, such as prod.

    Returns:
        The version that has the stage now.

    Raises:
        ModelNotFoundError: No earlier version had the stage.

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
    """Serve a registered version of a model in place of the one that is served now.

    Args:
        repository: The repository.
        server: The model server.
        name: The model's name.
        which: A version, ``latest``, or ``#`` and a stage, such as ``#prod``.

    Returns:
        The running endpoint.

    Raises:
        ModelNotFoundError: There is no such version.
        ModelDigestError: The file does not match the version's digest. It was not loaded.
        ServingError: The server did not start. The previous version is still served.

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
    """Request predictions of a served model by the V1 protocol.

    Args:
        server: The model server.
        name: The model's name.
        instances: Rows, shape ``[rows, features]``.

    Returns:
        One prediction per row.

    Raises:
        PredictionError: The model rejects the rows.
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
