"""Tasks on registered models and model servers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from dvkf_prefect.blocks import DvcRepository, KubeflowModelRegistry, find_block
from dvkf_prefect.cards import (
    count_text,
    endpoint_card,
    history_card,
    lineage_card,
    mirror_card,
    plain,
    predictions_card,
)
from dvkf_prefect.errors import DvkfError
from dvkf_prefect.kubeflow.registry.mirror import MirrorReport
from dvkf_prefect.models import trace
from dvkf_prefect.models.lineage import Lineage, draw_lineage
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.tags import TagEvent
from dvkf_prefect.models.version import ModelVersion
from dvkf_prefect.openlineage.sending import send_deployed, send_registered
from dvkf_prefect.serving.endpoint import Endpoint
from dvkf_prefect.serving.whereabouts import with_services
from dvkf_prefect.settings import DvkfSettings
from dvkf_prefect.tasks._artifacts import publish, run_links
from dvkf_prefect.tasks._assets import Assets
from dvkf_prefect.tasks._events import announce_model
from dvkf_prefect.tasks._git import parent_run, run_trailers
from dvkf_prefect.tasks._logging import run_logger
from dvkf_prefect.tasks._models import publish_model
from dvkf_prefect.tasks._names import run_name
from dvkf_prefect.tasks._progress import ArtifactProgress
from dvkf_prefect.tasks._servers import AnyServer, find_server


@task(task_run_name=run_name("register {name}"), cache_policy=NO_CACHE)
def register_model(
    repository: DvcRepository | str,
    name: str,
    *,
    version: str | None = None,
    rev: str = "HEAD",
    message: str = "",
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
    repository = find_block(DvcRepository, repository, "repository")
    registry = ModelRegistry(repository.open())
    if version is None and (same := registry.find_same(name, rev)) is not None:
        publish_model(repository, registry, name, f"{name} has not changed since {same.version}.")
        return same
    registered = registry.register(name, version=version, rev=rev, message=message, trailers=run_trailers())
    send_registered(registry.repo, registered, parent=parent_run())
    publish_model(repository, registry, name, f"Registered {registered.version} of {name}.")
    announce_model(repository.name, registered, "registered")
    Assets(repository, registry.repo).registered(registered)
    return registered


@task(task_run_name=run_name("unassign {stage} of {name}"), cache_policy=NO_CACHE)
def unassign_model(
    repository: DvcRepository | str, name: str, version: str, stage: str, *, message: str = ""
) -> ModelVersion:
    """Remove a model stage from a version; the version assigned before it, if any, holds the stage again.

    Args:
        repository: The repository.
        name: The model's name.
        version: The version, ``latest``, or ``#`` and a stage.
        stage: The model's stage, such as prod.
        message: Message of the tag.

    Returns:
        The version, with its other stages.

    Raises:
        ModelNotFoundError: The version is not registered, or not in that stage.

    Example:
        ``unassign_model(DvcRepository.load("local"), "digits", "v1.0.0", "staging")``
    """
    repository = find_block(DvcRepository, repository, "repository")
    registry = ModelRegistry(repository.open())
    left = registry.unassign(name, version, stage, message=message, trailers=run_trailers())
    publish_model(repository, registry, name, f"{left.version} of {name} is no longer {stage}.")
    return left


@task(task_run_name=run_name("deregister {version} of {name}"), cache_policy=NO_CACHE)
def deregister_model(
    repository: DvcRepository | str, name: str, version: str, *, message: str = ""
) -> ModelVersion:
    """Withdraw a version of a model; its tags stay, and its number is not used again.

    Args:
        repository: The repository.
        name: The model's name.
        version: The version.
        message: Message of the tag.

    Returns:
        The withdrawn version.

    Raises:
        ModelNotFoundError: The version is not registered.
        ModelError: The version was already withdrawn.

    Example:
        ``deregister_model(DvcRepository.load("local"), "digits", "v1.0.0", message="Trained on wrong labels")``
    """
    repository = find_block(DvcRepository, repository, "repository")
    registry = ModelRegistry(repository.open())
    withdrawn = registry.deregister(name, version, message=message, trailers=run_trailers())
    publish_model(repository, registry, name, f"Withdrew {version} of {name}.")
    return withdrawn


@task(task_run_name=run_name("deprecate {name}"), cache_policy=NO_CACHE)
def deprecate_model(repository: DvcRepository | str, name: str, *, message: str = "") -> None:
    """Deprecate a model; it is hidden until a version is registered or assigned again.

    Args:
        repository: The repository.
        name: The model's name.
        message: Message of the tag.

    Raises:
        ModelNotFoundError: No model of that name is registered.
        ModelError: The model is already deprecated.

    Example:
        ``deprecate_model(DvcRepository.load("local"), "digits", message="Replaced by letters")``
    """
    repository = find_block(DvcRepository, repository, "repository")
    registry = ModelRegistry(repository.open())
    registry.deprecate(name, message=message, trailers=run_trailers())
    run_logger().info("%s", said := f"Deprecated {name}.")
    limit = DvkfSettings().card_rows
    publish(history_card(registry.history(name), name, repository.name, said=said, limit=limit))


@task(task_run_name=run_name("show {name}"), cache_policy=NO_CACHE)
def show_model(repository: DvcRepository | str, name: str, which: str = "latest") -> ModelVersion:
    """Return one version of a model.

    Args:
        repository: The repository.
        name: The model's name.
        which: A version, ``latest``, or ``#`` and a stage, such as ``#prod``.

    Returns:
        The version, with its commit, digest and stages.

    Raises:
        ModelNotFoundError: There is no such version.

    Example:
        ``show_model(DvcRepository.load("local"), "digits", "#prod").digest``
    """
    repository = find_block(DvcRepository, repository, "repository")
    registry = ModelRegistry(repository.open())
    version = registry.show(name, which)
    publish_model(repository, registry, name, f"{which} of {name} is {version.version}.")
    return version


@task(task_run_name=run_name("list model events"), cache_policy=NO_CACHE)
def list_model_events(
    repository: DvcRepository | str, name: str | None = None, *, ascending: bool = False
) -> tuple[TagEvent, ...]:
    """Return the events of one or all models, as ``gto history`` lists them.

    Args:
        repository: The repository.
        name: The model's name; None for all models.
        ascending: Return the oldest event first, in place of the newest.

    Returns:
        The events: registrations, assignments and their ends, with commit, author and message.

    Raises:
        ModelNotFoundError: No model of that name is registered.

    Example:
        ``list_model_events(DvcRepository.load("local"), "digits")``
    """
    repository = find_block(DvcRepository, repository, "repository")
    events = tuple(ModelRegistry(repository.open()).history(name, ascending=ascending))
    run_logger().info("%d events", len(events))
    publish(history_card(events, name, repository.name, limit=DvkfSettings().card_rows))
    return events


@task(task_run_name=run_name("check {ref}"), cache_policy=NO_CACHE)
def check_model_ref(repository: DvcRepository | str, ref: str) -> TagEvent | None:
    """Return the event that a git tag records, for flows that a pushed tag starts.

    Args:
        repository: The repository.
        ref: Name of a tag, or ``refs/tags/`` and the name.

    Returns:
        The event; None if there is no such tag, or if it is none of the registry's.

    Example:
        ``check_model_ref(DvcRepository.load("local"), "refs/tags/digits#prod#3")``
    """
    repository = find_block(DvcRepository, repository, "repository")
    event = ModelRegistry(repository.open()).check_ref(ref)
    run_logger().info("%s", event or f"{ref} is not a tag of the registry")
    return event


@task(task_run_name=run_name("deploy {name}"), cache_policy=NO_CACHE)
def deploy_model(
    repository: DvcRepository | str, server: AnyServer | str, name: str, which: str = "latest"
) -> Endpoint:
    """Serve a registered version of a model in place of the one that is served now.

    Args:
        repository: The repository.
        server: The model server, on this machine or on a cluster.
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
    repository = find_block(DvcRepository, repository, "repository")
    server = find_server(server)
    registry = ModelRegistry(repository.open().using(progress=ArtifactProgress(repository.name)))
    version = registry.show(name, which)
    endpoint = server.deploy(registry, version)
    run_logger().info("%s %s answers at %s", name, version.version, endpoint.url)
    try:
        registry.note(version, "service", {"where": server.where, "url": endpoint.url})
    except DvkfError as error:  # the model is served all the same
        run_logger().warning("the service was not noted for the lineage of %s: %s", version.version, error)
    send_deployed(registry.repo, version, server.where, parent=parent_run())
    publish(endpoint_card(endpoint, repository.name, version))
    announce_model(repository.name, version, "deployed", server=server.where, url=endpoint.url)
    Assets(repository, registry.repo).read_model(version)
    return endpoint


def _publish_lineage(repository: DvcRepository, found: list[Lineage], asked: str) -> tuple[Lineage, ...]:
    found = with_services(found)
    run_logger().info("%s in the lineage of %s", count_text(len(found), "version"), asked)
    card = lineage_card(
        found,
        asked,
        repository.name,
        graph=draw_lineage(found),
        runs=run_links(found),
        limit=DvkfSettings().card_rows,
    )
    publish(card)
    return tuple(found)


@task(task_run_name=run_name("mirror models of {repository.name}"), cache_policy=NO_CACHE)
def mirror_models(
    repository: DvcRepository | str, registry: KubeflowModelRegistry | str, models: Sequence[str] = ()
) -> MirrorReport:
    """Mirror registered models in a Kubeflow Model Registry; an interrupted mirror is completed by the next one.

    Args:
        repository: The repository.
        registry: The Kubeflow Model Registry.
        models: Names of the models; all if empty.

    Returns:
        Records that were created, updated or right already, and changes copied to git.

    Raises:
        ModelNotFoundError: A model is not registered in git.
        ModelError: A name does not fit into the registry, or belongs to another repository.
        RegistryError: The registry refused a call or did not answer.

    Example:
        ``mirror_models(DvcRepository.load("local"), KubeflowModelRegistry.load("cluster"), ["digits"])``
    """
    repository = find_block(DvcRepository, repository, "repository")
    registry = find_block(KubeflowModelRegistry, registry, "registry")
    report = registry.mirror(ModelRegistry(repository.open()), models)
    run_logger().info("%s", report)
    publish(mirror_card(report, repository.name, limit=DvkfSettings().card_rows))
    return report


@task(task_run_name=run_name("trace {name}"), cache_policy=NO_CACHE)
def trace_model(repository: DvcRepository | str, name: str, which: str = "latest") -> Lineage:
    """Return the lineage of a registered version: data, code, parameters, metrics, runs and services.

    Args:
        repository: The repository.
        name: The model's name.
        which: A version, ``latest``, or ``#`` and a stage, such as ``#prod``.

    Returns:
        The lineage, with the services that run the version now.

    Raises:
        ModelNotFoundError: There is no such version.

    Example:
        ``trace_model(DvcRepository.load("local"), "digits", "#prod").inputs``
    """
    repository = find_block(DvcRepository, repository, "repository")
    registry = ModelRegistry(repository.open())
    version = registry.show(name, which)
    lineage = trace.trace_version(registry, version)
    return _publish_lineage(repository, [lineage], f"{name} {version.version}")[0]


@task(task_run_name=run_name("trace {path}"), cache_policy=NO_CACHE)
def trace_data(repository: DvcRepository | str, path: str, *, rev: str | None = None) -> tuple[Lineage, ...]:
    """Return the lineage of the versions that learned from a file or folder.

    Args:
        repository: The repository.
        path: The file or folder, relative to the repository's root.
        rev: Revision of its content; None for any content of that path.

    Returns:
        The lineages, with the services that run the versions now.

    Raises:
        ModelNotFoundError: The revision has no such path.
        GitError: There is no such revision.

    Example:
        ``trace_data(DvcRepository.load("local"), "data/train/7.png", rev="HEAD")``
    """
    repository = find_block(DvcRepository, repository, "repository")
    found = trace.trace_data(ModelRegistry(repository.open()), path, rev)
    return _publish_lineage(repository, found, path)


@task(task_run_name=run_name("request predictions of {name}"), cache_policy=NO_CACHE)
def request_predictions(
    repository: DvcRepository | str, server: AnyServer | str, name: str, instances: Sequence[object]
) -> tuple[Any, ...]:
    """Request predictions of a served model by the V1 protocol.

    Args:
        repository: Repository of the model, for the timeline of its predictions. It is not opened.
        server: The model server.
        name: The model's name.
        instances: Rows, shape ``[rows, features]``.

    Returns:
        One prediction per row.

    Raises:
        PredictionError: The model rejects the rows.
        ServingError: The model is not served, or its server does not answer.

    Example:
        ``request_predictions(DvcRepository.load("local"), ModelServer.load("local"), "digits", [[0.0] * 64])``
    """
    repository = find_block(DvcRepository, repository, "repository")
    server = find_server(server)
    endpoint = server.endpoint(name)
    found: Any = endpoint.predict(instances, timeout=server.timeout)
    predictions = tuple(found.to_numpy().tolist() if hasattr(found, "to_numpy") else found)
    card = predictions_card(endpoint, repository.name, predictions, limit=DvkfSettings().card_rows)
    publish(card)
    run_logger().info("%s", plain(card.description))
    return predictions
