"""Tasks on published versions of models."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from dvkf_prefect.blocks import DvcRepository, KServeModelServer, find_block
from dvkf_prefect.cards import publication_card, unpublished_card
from dvkf_prefect.errors import ConfigError
from dvkf_prefect.models.publishing import Publication, publish_version
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.unpublishing import (
    GRACE,
    AskServices,
    PublishedVersion,
    Unpublished,
    collect_published,
    unpublish_version,
)
from dvkf_prefect.serving.kserve.uses import Uses
from dvkf_prefect.settings import DvkfSettings
from dvkf_prefect.tasks._artifacts import publish
from dvkf_prefect.tasks._logging import run_logger
from dvkf_prefect.tasks._names import run_name
from dvkf_prefect.tasks._progress import ArtifactProgress


def _place(repository: DvcRepository, to: str | None, option: str) -> str:
    place = to or repository.models_url
    if not place:
        raise ConfigError(
            f"no place for the models of {repository.name}. Set models_url of the block, or pass `{option}`."
        )
    return place


@task(task_run_name=run_name("publish {name}"), cache_policy=NO_CACHE)
def publish_model(
    repository: DvcRepository | str,
    name: str,
    which: str = "latest",
    *,
    to: str | None = None,
    as_format: str | None = None,
    allow_empty: bool = False,
) -> Publication:
    """Publish the files of a registered version in the layout that KServe's runtimes load.

    The remote's service copies the files itself if it can. A version that is published there already is verified and
    left unchanged. A publication that was interrupted is completed by the next one.

    Args:
        repository: The repository.
        name: The model's name.
        which: A version, ``latest``, or ``#`` and a stage, such as ``#prod``.
        to: The place: a folder, a URL, or ``remote://NAME/FOLDER``; the block's ``models_url`` if None.
        as_format: Format, such as ``sklearn`` or ``onnx``; None for the one that dvc.yaml declares or the files have.
        allow_empty: Publish empty files, which KServe 0.17 and later do not download.

    Returns:
        The publication: address for a service, format, runtimes that load it, and files.

    Raises:
        ModelNotFoundError: There is no such version.
        ModelError: The format is ambiguous, or a runtime would not load the files; the message gives the reason.
        ConfigError: There is no place, or it cannot be used.
        CorruptObjectError: A copy differs from its digest.
        RemoteError: The place or the remote refused, or did not answer.

    Example:
        ``publish_model(DvcRepository.load("local"), "digits", "#prod", to="s3://bucket/models").manifest.uri``
    """
    repository = find_block(DvcRepository, repository, "repository")
    registry = ModelRegistry(repository.open())
    place = _place(repository, to, "to")
    publication = publish_version(
        registry,
        registry.show(name, which),
        place,
        as_format=as_format,
        allow_empty=allow_empty,
        progress=ArtifactProgress(repository.name),
    )
    run_logger().info("%s", publication)
    publish(publication_card(publication, repository.name, limit=DvkfSettings().card_rows))
    return publication


@task(task_run_name=run_name("collect published models of {repository.name}"), cache_policy=NO_CACHE)
def collect_models(
    repository: DvcRepository | str,
    *,
    place: str | None = None,
    servers: Sequence[KServeModelServer | str] = (),
    all_namespaces: bool = False,
    grace: float = GRACE,
    dry_run: bool = True,
) -> Unpublished:
    """Remove the published versions of a place that no standing version, stage, service, revision or pod names.

    If services of a cluster were noted and the cluster is not asked, or does not answer, everything is kept.

    Args:
        repository: The repository.
        place: The place: a folder, a URL, or ``remote://NAME/FOLDER``; the block's ``models_url`` if None.
        servers: Servers on the clusters that serve models from the place.
        all_namespaces: Ask for the services of all namespaces, in place of those of the servers.
        grace: Hours to keep a version after its publication and its withdrawal.
        dry_run: Only report what would be removed.

    Returns:
        Each published folder with the reason to keep or to remove it.

    Raises:
        ConfigError: There is no place, or it cannot be used.
        RemoteError: The place refused, or did not answer.

    Example:
        ``collect_models(DvcRepository.load("local"), place="s3://bucket/models", servers=["cluster"])``
    """
    repository = find_block(DvcRepository, repository, "repository")
    found = collect_published(
        ModelRegistry(repository.open()),
        _place(repository, place, "place"),
        services=_asking(servers, all_namespaces),
        grace=grace,
        dry_run=dry_run,
    )
    if found.doubt:
        run_logger().warning("all published versions are kept: %s", found.doubt)
    run_logger().info("%s", found)
    publish(unpublished_card(found, repository.name, limit=DvkfSettings().card_rows))
    return found


@task(task_run_name=run_name("unpublish {name} {version}"), cache_policy=NO_CACHE)
def unpublish_model(
    repository: DvcRepository | str,
    name: str,
    version: str,
    *,
    place: str | None = None,
    servers: Sequence[KServeModelServer | str] = (),
    all_namespaces: bool = False,
    dry_run: bool = False,
) -> PublishedVersion:
    """Remove the published files of one version, registered or not, that neither a stage nor a service names.

    Args:
        repository: The repository.
        name: The model's name.
        version: The version.
        place: The place: a folder, a URL, or ``remote://NAME/FOLDER``; the block's ``models_url`` if None.
        servers: Servers on the clusters that serve models from the place.
        all_namespaces: Ask for the services of all namespaces, in place of those of the servers.
        dry_run: Only check.

    Raises:
        ModelNotFoundError: The version is not published there.
        ModelError: A stage or a service names it, or that cannot be known; the message gives the reason.
        ConfigError: There is no place, or it cannot be used.
        RemoteError: The place refused, or did not answer.

    Example:
        ``unpublish_model(DvcRepository.load("local"), "digits", "v1.0.0", place="s3://bucket/models")``
    """
    repository = find_block(DvcRepository, repository, "repository")
    found = unpublish_version(
        ModelRegistry(repository.open()),
        name,
        version,
        _place(repository, place, "place"),
        services=_asking(servers, all_namespaces),
        dry_run=dry_run,
    )
    run_logger().info("%s", found)
    return found


def _asking(servers: Sequence[KServeModelServer | str], all_namespaces: bool) -> AskServices | None:
    blocks = [find_block(KServeModelServer, server, "server") for server in servers]
    if not blocks:
        return None

    def ask() -> Uses:
        return sum((block.uses(() if all_namespaces else None) for block in blocks), Uses((), ()))

    return ask
