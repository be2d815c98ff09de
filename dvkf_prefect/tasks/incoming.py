"""Tasks that bring files into a dataset: checked by a schema, added, and removed from their inbox."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from dvkf_prefect.blocks import DvcRepository, find_block
from dvkf_prefect.cards import incoming_card
from dvkf_prefect.data.quality import incoming as verbs
from dvkf_prefect.data.quality.incoming import Existing, Incoming
from dvkf_prefect.data.quality.reports import FOLDER
from dvkf_prefect.formats.outputs import DataVersion
from dvkf_prefect.settings import DvkfSettings
from dvkf_prefect.tasks._artifacts import publish
from dvkf_prefect.tasks._logging import run_logger
from dvkf_prefect.tasks._names import run_name
from dvkf_prefect.tasks._progress import ArtifactProgress
from dvkf_prefect.tasks._versions import publish_versions
from dvkf_prefect.urls import public_url


@task(task_run_name=run_name("check files for {dataset}"), cache_policy=NO_CACHE)
def check_incoming(
    repository: DvcRepository | str,
    inbox: str,
    dataset: str,
    table_schema: str,
    *,
    reports: str = FOLDER,
    quarantine: str | None = None,
    existing: Existing = "quarantine",
    settle_seconds: float = 10.0,
    dry_run: bool = False,
) -> Incoming:
    """Check the files of an inbox by a schema of pandera, and move those that fail into quarantine.

    Each file in quarantine has its report beside it. Equal bytes are checked once under a schema: the reports are
    tracked beside the data, see `quality_reports`.

    Args:
        repository: The repository.
        inbox: Folder with the files, or a url such as ``s3://bucket/incoming`` or ``remote://NAME/incoming``. A
            relative path starts at the repository's root.
        dataset: Directory of the dataset, relative to the root. It may be new.
        table_schema: ``FILE.yaml``, ``FILE.json``, ``FILE.py:NAME`` or ``MODULE:NAME``.
        reports: Directory of the reports, relative to the root.
        quarantine: Folder or url for files that fail; one beside the inbox by default.
        existing: Handling of a file whose path in the dataset has other content: ``quarantine`` or ``replace``.
        settle_seconds: Seconds since the last change of a file, before which it is left for a later run.
        dry_run: Write and move nothing.

    Returns:
        The files with their verdicts.

    Raises:
        ConfigError: The schema is wrong, or pandera is not installed.
        OutputError: The dataset cannot take files, the inbox does not exist, or folders overlap.
        RemoteError: The inbox cannot be used; or the remote, and reports or the dataset's manifest are only there.

    Example:
        ``check_incoming("local", "incoming", "data/users", "schemas/users.yaml").refused``
    """
    repository = find_block(DvcRepository, repository, "repository")
    found = verbs.check_incoming(
        repository.open(),
        inbox,
        dataset,
        table_schema,
        reports=reports,
        quarantine=quarantine,
        existing=existing,
        settle=settle_seconds,
        dry_run=dry_run,
    )
    logger = run_logger()
    limit = DvkfSettings().card_rows
    for file in found.refused[:limit]:
        logger.warning("%s", file)
    logger.info("%s", found)
    if found.files or found.waiting or found.skipped:
        publish(incoming_card(found, repository.name, limit=limit))
    return found


@task(task_run_name=run_name("add files to {incoming.dataset}"), cache_policy=NO_CACHE)
def add_incoming(repository: DvcRepository | str, incoming: Incoming) -> tuple[DataVersion, ...]:
    """Add the files that passed to the dataset, and their reports to the directory of reports.

    The files stay in the inbox until `clear_incoming`, so that a later run continues after a kill.

    Args:
        repository: The repository.
        incoming: Result of `check_incoming`.

    Returns:
        The versions of the dataset and of the reports.

    Raises:
        OutputError: The dataset cannot take files, or a file of the inbox changed after its check.
        OutputChangedError: The workspace has other content at a file's path, and it is in no cache.

    Example:
        ``add_incoming("local", check_incoming("local", "incoming", "data/users", "schemas/users.yaml"))``
    """
    repository = find_block(DvcRepository, repository, "repository")
    repo = repository.open().using(progress=ArtifactProgress(repository.name))
    versions = verbs.add_incoming(repo, incoming)
    for version in versions:
        run_logger().info("recorded %s", version)
    publish_versions(repository, repo, versions)
    return versions


@task(task_run_name=run_name("clear inbox of {incoming.dataset}"), cache_policy=NO_CACHE)
def clear_incoming(repository: DvcRepository | str, incoming: Incoming) -> tuple[str, ...]:
    """Remove the files from the inbox that the dataset has. Call it when the data is where it has to be.

    A file stays if it changed after its check, or if the recorded version of the dataset lacks it.

    Args:
        repository: The repository.
        incoming: Result of `check_incoming`, after `add_incoming`.

    Returns:
        Paths of the removed files, relative to the inbox.

    Raises:
        OutputError: The check was a dry run.

    Example:
        ``clear_incoming("local", incoming)``
    """
    repository = find_block(DvcRepository, repository, "repository")
    removed = verbs.clear_incoming(repository.open(), incoming)
    run_logger().info("%d files removed from %s", len(removed), public_url(incoming.inbox))
    return removed
