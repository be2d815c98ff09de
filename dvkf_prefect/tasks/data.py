"""Tasks on versions of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from dvkf_prefect.blocks import DvcRepository
from dvkf_prefect.cards import data_card, diff_card, transfer_text
from dvkf_prefect.data.git.clones import push
from dvkf_prefect.data.repo import Repo
from dvkf_prefect.data.transfer.transfer import Transfer
from dvkf_prefect.data.verbs.diff import Diff
from dvkf_prefect.errors import RemoteUnreachableError
from dvkf_prefect.formats.outputs import DataVersion
from dvkf_prefect.settings import DvkfSettings
from dvkf_prefect.tasks._artifacts import ArtifactProgress, publish
from dvkf_prefect.tasks._git import (
    changed_documents,
    committed_versions,
    need_git,
    run_trailers,
    with_trailers,
)
from dvkf_prefect.tasks._logging import run_logger

if TYPE_CHECKING:
    import pandas as pd


def _is_unreachable(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Return True if the task failed because the remote did not answer."""
    return isinstance(state.result(raise_on_failure=False), RemoteUnreachableError)


def _versions(repo: Repo, targets: Sequence[str]) -> tuple[DataVersion, ...]:
    return tuple(repo.version(output.path) for output in repo.outputs(targets) if output.digest)


def _publish_versions(repository: DvcRepository, repo: Repo, versions: Sequence[DataVersion]) -> None:
    rows = DvkfSettings().card_rows
    for version in versions[:rows]:
        history = committed_versions(repo, version.path, limit=rows)
        publish(data_card(version, history, label=repository.label or "", limit=rows))


@task(task_run_name="checkout {repository.name}", cache_policy=NO_CACHE)
def checkout_data(
    repository: DvcRepository, targets: Sequence[str] = (), *, force: bool = False
) -> tuple[DataVersion, ...]:
    """Check out the recorded versions of outputs from the cache into the workspace.

    Args:
        repository: The repository.
        targets: Outputs, `.dvc` files or stages; all outputs if empty.
        force: Overwrite changes that are not in the cache.

    Returns:
        The checked-out versions.

    Raises:
        OutputChangedError: Uncached content would be lost, and ``force`` is False.
        MissingObjectError: An object is not in the cache. Pull it first.

    Example:
        ``checkout_data(DvcRepository.load("local"), ["data/train"])``
    """
    logger = run_logger()
    repo = repository.open()
    done = repo.checkout(targets, force=force)
    logger.info(
        "checked out: %d added, %d modified, %d deleted",
        len(done.added),
        len(done.modified),
        len(done.deleted),
    )
    versions = _versions(repo, targets)
    _publish_versions(repository, repo, versions)
    return versions


@task(
    task_run_name="pull {repository.name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=_is_unreachable,
)
def pull_data(
    repository: DvcRepository, targets: Sequence[str] = (), *, force: bool = False
) -> tuple[DataVersion, ...]:
    """Download data from the remote and check it out; every object is verified.

    Args:
        repository: The repository.
        targets: Outputs, `.dvc` files or stages; all outputs if empty.
        force: Overwrite changes that are not in the cache.

    Returns:
        The versions in the workspace.

    Raises:
        TransferError: Objects are missing on the remote, or damaged. All others were downloaded.
        RemoteError: The remote cannot be used. The task is retried if the remote did not answer.

    Example:
        ``pull_data(DvcRepository.load("local"))``
    """
    logger = run_logger()
    repo = repository.open()
    pulled = repo.pull(targets, force=force, progress=ArtifactProgress(repository.name))
    logger.info("%s", transfer_text("fetched", pulled.transfer))
    versions = _versions(repo, targets)
    _publish_versions(repository, repo, versions)
    return versions


@task(task_run_name="add to {repository.name}", cache_policy=NO_CACHE)
def add_data(repository: DvcRepository, targets: Sequence[str]) -> tuple[DataVersion, ...]:
    """Track files or directories of the workspace, or record the new content of tracked ones.

    Args:
        repository: The repository.
        targets: Files or directories, relative to the repository.

    Returns:
        The new versions.

    Raises:
        OutputError: A target does not exist, overlaps another output, or is tracked by git.

    Example:
        ``add_data(DvcRepository.load("local"), ["data/train"])``
    """
    logger = run_logger()
    repo = repository.open()
    progress = ArtifactProgress(repository.name)
    versions = tuple(repo.add([repo.root / target for target in targets], progress=progress))
    for version in versions:
        logger.info("added %s", version)
    _publish_versions(repository, repo, versions)
    return versions


@task(task_run_name="write {path}", cache_policy=NO_CACHE)
def write_data(
    repository: DvcRepository,
    frame: pd.DataFrame,
    path: str,
    *,
    index: bool = False,
    read_options: Mapping[str, Any] | None = None,
    force: bool = False,
) -> DataVersion:
    """Write a table to a file of the workspace and track it. Equal tables give equal versions.

    Args:
        repository: The repository.
        frame: The table.
        path: The file, relative to the repository. Its extension is the format, see `write_frame`. In a tracked
            directory, the file becomes a part of that directory.
        index: Also write the frame's index.
        read_options: Options for reading the table back unchanged, such as ``{"dtype": {"zip": "str"}}``.
        force: Replace a file that is not in the cache.

    Returns:
        The new version.

    Raises:
        OutputChangedError: Uncached content would be lost, and ``force`` is False.
        OutputError: The path cannot be tracked, its extension is no known format, or the format cannot store the table.

    Example:
        ``write_data(DvcRepository.load("local"), frame, "data/train/2024-05.csv.gz")``
    """
    from dvkf_prefect.data.tables.frames import write_frame

    repo = repository.open()
    version = write_frame(repo, frame, path, index=index, read_options=read_options, force=force)
    run_logger().info("wrote %d rows: %s", len(frame), version)
    _publish_versions(repository, repo, (version,))
    return version


@task(
    task_run_name="push {repository.name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=_is_unreachable,
)
def push_data(repository: DvcRepository, targets: Sequence[str] = ()) -> Transfer:
    """Upload data from the cache to the remote, files before the manifests of their directories.

    Args:
        repository: The repository.
        targets: Outputs, `.dvc` files or stages; all outputs if empty.

    Returns:
        Counts of uploaded and present objects.

    Raises:
        TransferError: Objects are missing, or their upload failed. All others were uploaded.
        RemoteError: The remote cannot be used. The task is retried if the remote did not answer.

    Example:
        ``push_data(DvcRepository.load("local"))``
    """
    repo = repository.open()
    transfer = repo.push(targets, progress=ArtifactProgress(repository.name))
    run_logger().info("%s", transfer_text("pushed", transfer))
    return transfer


@task(task_run_name="diff {repository.name}", cache_policy=NO_CACHE)
def diff_data(
    repository: DvcRepository, a: str = "HEAD", b: str | None = None, targets: Sequence[str] = ()
) -> Diff:
    """Compare two versions of the data, file by file.

    Args:
        repository: The repository.
        a: The older revision.
        b: The newer revision; None for the workspace.
        targets: Outputs or paths inside them; all outputs if empty.

    Returns:
        Added, deleted, modified and renamed paths.

    Raises:
        GitError: A revision does not exist.

    Example:
        ``diff_data(DvcRepository.load("local"), "HEAD^", "HEAD")``
    """
    repo = repository.open()
    diff = repo.diff(a, b, targets)
    git = need_git(repo)
    commits = (git.resolve(a), git.resolve(b) if b is not None else "")
    card = diff_card(diff, repository.name, commits=commits, limit=DvkfSettings().card_rows)
    publish(card)
    run_logger().info("%s", card.description)
    return diff


@task(task_run_name="commit {repository.name}", cache_policy=NO_CACHE)
def commit_results(repository: DvcRepository, message: str) -> str | None:
    """Commit the files that describe results: ``.dvc`` files, dvc.lock, ignore files, metrics kept in git.

    A trailer of the commit, ``Prefect-Flow-Run``, has the ID of the run. Other changes in the work tree stay
    uncommitted.

    Args:
        repository: The repository.
        message: The commit's message.

    Returns:
        The new commit; None if nothing changed.

    Raises:
        GitError: Git refused, for example because user.name is not set.

    Example:
        ``commit_results(DvcRepository.load("local"), "Train on the data of today")``
    """
    logger = run_logger()
    repo = repository.open()
    git = need_git(repo)
    paths = changed_documents(repo)
    commit = git.commit(paths, with_trailers(message, run_trailers())) if paths else None
    if commit is None:
        logger.info("nothing to commit")
    else:
        logger.info(
            "commit %s: %s", commit[:10], ", ".join(paths[:10]) + (" and more" if len(paths) > 10 else "")
        )
    return commit


@task(task_run_name="push commits of {repository.name}", cache_policy=NO_CACHE)
def push_commits(repository: DvcRepository) -> tuple[str, ...]:
    """Push the branch and the tags of registered models to git's remote ``origin``.

    Args:
        repository: The repository.

    Returns:
        Names of the pushed branch and tags; empty without a remote ``origin``.

    Raises:
        GitError: The origin refused the push, or no branch is checked out.

    Example:
        ``push_commits(DvcRepository.load("digits"))``
    """
    git = need_git(repository.open())
    pushed = push(git.root, timeout=DvkfSettings().git_timeout)
    run_logger().info(
        "%s", f"pushed {' and '.join(pushed)}" if pushed else "git has no origin; nothing to push to"
    )
    return pushed
