"""Tasks on published versions of models."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from dvkf_prefect.blocks import DvcRepository, find_block
from dvkf_prefect.cards import publication_card
from dvkf_prefect.errors import ConfigError
from dvkf_prefect.models.publishing import Publication, publish_version
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.settings import DvkfSettings
from dvkf_prefect.tasks._artifacts import publish
from dvkf_prefect.tasks._logging import run_logger
from dvkf_prefect.tasks._names import run_name


def _place(repository: DvcRepository, to: str | None) -> str:
    place = to or repository.models_url
    if not place:
        raise ConfigError(
            f"no place for the models of {repository.name}. Set models_url of the block, or pass `to`."
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
    place = _place(repository, to)
    publication = publish_version(
        registry, registry.show(name, which), place, as_format=as_format, allow_empty=allow_empty
    )
    run_logger().info("%s", publication)
    publish(publication_card(publication, repository.name, limit=DvkfSettings().card_rows))
    return publication
