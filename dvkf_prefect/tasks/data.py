"""Tasks on versions of data."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run, task_run
from prefect.tasks import Task

from dvkf_prefect.blocks import DvcRepository, find_block
from dvkf_prefect.cards import Card, artifact_key, diff_card, escape, plain, transfer_text
from dvkf_prefect.data.git.clones import push
from dvkf_prefect.data.git.unsaved import IGNORED
from dvkf_prefect.data.transfer.transfer import Transfer
from dvkf_prefect.data.verbs.diff import Diff
from dvkf_prefect.errors import GitError, RemoteUnreachableError
from dvkf_prefect.formats.outputs import DataVersion
from dvkf_prefect.models.intended import check_intended
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.pipeline.report.uncommitted import UncommittedInput, uncommitted_inputs
from dvkf_prefect.pipeline.run.documents import (
    changed_documents,
    describing_files,
    need_git,
    paths_from_top,
    paths_inside,
)
from dvkf_prefect.repo import Repo
from dvkf_prefect.settings import DvkfSettings
from dvkf_prefect.tasks._artifacts import publish
from dvkf_prefect.tasks._assets import Assets
from dvkf_prefect.tasks._events import announce_pushed
from dvkf_prefect.tasks._git import run_trailers, with_trailers
from dvkf_prefect.tasks._logging import run_logger
from dvkf_prefect.tasks._names import listed, run_name
from dvkf_prefect.tasks._progress import ArtifactProgress
from dvkf_prefect.tasks._versions import publish_versions, recorded_versions, show_commit

if TYPE_CHECKING:
    import pandas as pd

    from dvkf_prefect.data.tables.frame_diff import FrameDiff

Uncommitted = Literal["commit", "refuse", "mark"]
"""Handling of inputs that git's last commit does not have, see `commit_results`."""

_UNCOMMITTED = "Dvkf-Uncommitted"


def _is_unreachable(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Return True if the task failed because the remote did not answer."""
    return isinstance(state.result(raise_on_failure=False), RemoteUnreachableError)


@task(task_run_name=run_name("checkout {repository.name}"), cache_policy=NO_CACHE)
def checkout_data(
    repository: DvcRepository | str, targets: str | Sequence[str] = (), *, force: bool = False
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
    repository = find_block(DvcRepository, repository, "repository")
    logger = run_logger()
    repo = repository.open().using(progress=ArtifactProgress(repository.name))
    done = repo.checkout(listed(targets), force=force)
    logger.info(
        "checked out: %d added, %d modified, %d deleted",
        len(done.added),
        len(done.modified),
        len(done.deleted),
    )
    versions = recorded_versions(repo, listed(targets))
    Assets(repository, repo).read(versions)
    return versions


@task(
    task_run_name=run_name("pull {repository.name}"),
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=_is_unreachable,
)
def pull_data(
    repository: DvcRepository | str, targets: str | Sequence[str] = (), *, force: bool = False
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
    repository = find_block(DvcRepository, repository, "repository")
    logger = run_logger()
    repo = repository.open().using(progress=ArtifactProgress(repository.name))
    pulled = repo.pull(listed(targets), force=force)
    logger.info("%s", transfer_text("fetched", pulled.transfer))
    versions = recorded_versions(repo, listed(targets))
    publish_versions(repository, repo, versions, made=False)
    Assets(repository, repo).read(versions)
    return versions


@task(task_run_name=run_name("add to {repository.name}"), cache_policy=NO_CACHE)
def add_data(repository: DvcRepository | str, targets: str | Sequence[str]) -> tuple[DataVersion, ...]:
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
    repository = find_block(DvcRepository, repository, "repository")
    logger = run_logger()
    repo = repository.open().using(progress=ArtifactProgress(repository.name))
    versions = tuple(repo.add([repo.root / target for target in listed(targets)]))
    for version in versions:
        logger.info("added %s", version)
    publish_versions(repository, repo, versions)
    return versions


@task(task_run_name=run_name("write {path}"), cache_policy=NO_CACHE)
def write_data(
    repository: DvcRepository | str,
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
    repository = find_block(DvcRepository, repository, "repository")
    from dvkf_prefect.data.tables.frames import write_frame

    repo = repository.open()
    version = write_frame(repo, frame, path, index=index, read_options=read_options, force=force)
    run_logger().info("wrote %d rows: %s", len(frame), version)
    publish_versions(repository, repo, (version,))
    Assets(repository, repo).written((version,))
    return version


@task(
    task_run_name=run_name("push {repository.name}"),
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=_is_unreachable,
)
def push_data(
    repository: DvcRepository | str, targets: str | Sequence[str] = (), *, announce: bool = True
) -> Transfer:
    """Upload data from the cache to the remote, files before the manifests of their directories.

    Each version that the remote did not have is announced by the event ``dvkf.dataset.pushed``.

    Args:
        repository: The repository.
        targets: Outputs, `.dvc` files or stages; all outputs if empty.
        announce: Emit the events. False for a flow that calls `announce_data` after its commit.

    Returns:
        Counts of uploaded and present objects.

    Raises:
        TransferError: Objects are missing, or their upload failed. All others were uploaded.
        RemoteError: The remote cannot be used. The task is retried if the remote did not answer.

    Example:
        ``push_data(DvcRepository.load("local"))``
    """
    repository = find_block(DvcRepository, repository, "repository")
    repo = repository.open().using(progress=ArtifactProgress(repository.name))
    transfer = repo.push(listed(targets))
    run_logger().info("%s", transfer_text("pushed", transfer))
    if announce and transfer.arrived:
        arrived = [
            version
            for version in recorded_versions(repo, listed(targets))
            if version.digest in transfer.arrived
        ]
        announce_pushed(repository.name, arrived, transfer.remote)
        Assets(repository, repo).written(arrived)
    return transfer


@task(task_run_name=run_name("diff {repository.name}"), cache_policy=NO_CACHE)
def diff_data(
    repository: DvcRepository | str, a: str = "HEAD", b: str | None = None, targets: str | Sequence[str] = ()
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
    repository = find_block(DvcRepository, repository, "repository")
    repo = repository.open()
    diff = repo.diff(a, b, listed(targets))
    git = need_git(repo)
    commits = (git.resolve(a), git.resolve(b) if b is not None else "")
    card = diff_card(diff, repository.name, commits=commits, limit=DvkfSettings().card_rows)
    publish(card)
    run_logger().info("%s", plain(card.description))
    return diff


@task(task_run_name=run_name("compare {path}"), cache_policy=NO_CACHE)
def compare_table(
    repository: DvcRepository | str,
    path: str,
    a: str = "HEAD",
    b: str = "workspace",
    *,
    key: str | Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> FrameDiff:
    """Compare two versions of a table: rows, columns, types, numbers, texts and categories.

    Args:
        repository: The repository.
        path: File, or directory of parts of one table, relative to the root.
        a: The older revision; ``workspace`` for the workspace.
        b: The newer revision; ``workspace`` for the workspace.
        key: Column or columns that identify a row; None compares whole rows.
        columns: Limit to these columns and the key.

    Returns:
        The difference, see `diff_frames`.

    Raises:
        OutputError: The table cannot be read, lacks a column, or has several rows with one key.
        GitError: A revision does not exist.

    Example:
        ``compare_table(DvcRepository.load("local"), "data/users.csv", "HEAD^", "HEAD", key="id")``
    """
    from dvkf_prefect.data.tables.frame_diff import diff_frames

    repository = find_block(DvcRepository, repository, "repository")
    found = diff_frames(repository.open(), path, a, b, key=key, columns=columns)
    limit = DvkfSettings().card_rows
    key_of = artifact_key("table", repository.name, path)
    publish(
        Card(
            key_of, f"{escape(str(found))}, of **{escape(repository.name)}**", found.as_markdown(limit=limit)
        )
    )
    run_logger().info("%s", found)
    return found


@task(task_run_name=run_name("check commit to {repository.name}"), cache_policy=NO_CACHE)
def check_commit(
    repository: DvcRepository | str,
    *,
    uncommitted: Uncommitted = "commit",
    model: str | None = None,
    stage: str | None = None,
) -> None:
    """Check before a long run that `commit_results` can commit its results, and that its model can be registered.

    Args:
        repository: The repository.
        uncommitted: The option of `commit_results`. ``refuse`` also checks the inputs of stages that are still to run.
        model: Model to register after the run, by its name in dvc.yaml.
        stage: The model's stage to assign then, such as prod.

    Raises:
        GitError: There is no git repository, git has no user.name and user.email, or ``refuse`` applies.
        ModelNotFoundError: The workspace declares no such model.
        ModelError: The model's name or stage is not valid, or the commit would not have all that made the model.

    Example:
        ``check_commit(DvcRepository.load("local"), uncommitted="refuse")``
    """
    repository = find_block(DvcRepository, repository, "repository")
    repo = repository.open()
    author = need_git(repo).identity()
    found = uncommitted_inputs(repo, unrecorded=True) if uncommitted == "refuse" or model is not None else ()
    if uncommitted == "refuse":
        _refuse(repo, found)
    if model is not None:
        left_out = [each for each in found if each.obstacle or uncommitted == "mark"]
        check_intended(ModelRegistry(repo), model, stage=stage, left_out=left_out)
    run_logger().info("results will be committed as %s", author)


def _refuse(repo: Repo, found: Sequence[UncommittedInput]) -> None:
    if found:
        steps = "Commit them, or pass uncommitted='commit'."
        if any(each.obstacle == IGNORED for each in found):
            steps += " List files of a folder that its stages do not need in .dvcignore."
        raise GitError(f"uncommitted inputs of stages: {_listed(found)} in {repo.root}. {steps}")


def _listed(found: Sequence[UncommittedInput]) -> str:
    more = f"; and {len(found) - 10} more" if len(found) > 10 else ""
    return "; ".join(map(str, found[:10])) + more


@task(task_run_name=run_name("commit {repository.name}"), cache_policy=NO_CACHE)
def commit_results(
    repository: DvcRepository | str,
    message: str,
    *,
    uncommitted: Uncommitted = "commit",
    targets: str | Sequence[str] = (),
) -> str | None:
    """Commit the files that describe results: ``.dvc`` files, dvc.lock, ignore files, metrics kept in git.

    The code and the parameters that the recorded stages read belong to the results: with dvc.lock alone, the commit's
    own files would contradict it. A trailer of the commit, ``Prefect-Flow-Run``, has the ID of the run. Other changes
    in the work tree stay uncommitted.

    Args:
        repository: The repository.
        message: The commit's message.
        uncommitted: Handling of code and parameters that stages read and git's last commit does not have. ``commit``
            commits them too, and names those that git ignores, or that are in a submodule, in the trailer
            ``Dvkf-Uncommitted``. ``refuse`` raises an error. ``mark`` leaves them all out and names them there.
        targets: Outputs whose ``.dvc`` files, or dvc.lock and dvc.yaml, to commit, with the ignore files beside them;
            all results if empty.

    Returns:
        The new commit; None if nothing changed.

    Raises:
        GitError: Git refused, for example because user.name is not set. Or ``refuse`` applies, or with ``commit``, an
            input changed after its stage ran.

    Example:
        ``commit_results(DvcRepository.load("local"), "Train on the data of today")``
    """
    repository = find_block(DvcRepository, repository, "repository")
    logger = run_logger()
    repo = repository.open()
    git = need_git(repo)
    paths = changed_documents(repo)
    trailers = run_trailers()
    if targets:
        paths = describing_files(repo, listed(targets), paths)
    # With dvc.lock come the records of all stages.
    describes_stages = not targets or any(posixpath.basename(path) == "dvc.lock" for path in paths)
    inputs = uncommitted_inputs(repo) if describes_stages else ()
    if uncommitted == "refuse":
        _refuse(repo, inputs)
    elif uncommitted == "mark" and inputs:
        trailers[_UNCOMMITTED] = ", ".join(each.path for each in inputs)
    elif rewritten := [each for each in inputs if each.rewritten and not each.obstacle]:
        raise GitError(
            f"changed after its stage ran: {_listed(rewritten)} in {repo.root}. Run the stages again, or pass "
            "uncommitted='mark'."
        )
    else:
        paths = sorted({*paths, *paths_from_top(repo, [each.path for each in inputs if not each.obstacle])})
        if kept_out := [each for each in inputs if each.obstacle]:
            trailers[_UNCOMMITTED] = ", ".join(each.path for each in kept_out)
            logger.warning(
                "not in the commit, so models made from it cannot be registered: %s", _listed(kept_out)
            )
    commit = git.commit(paths, with_trailers(message, trailers)) if paths else None
    if commit is None:
        logger.info("nothing to commit")
    else:
        logger.info(
            "commit %s: %s", commit[:10], ", ".join(paths[:10]) + (" and more" if len(paths) > 10 else "")
        )
        if flow_run.get_id() or task_run.get_id():
            show_commit(repository, repo, paths_inside(repo, paths))
    return commit


@task(task_run_name=run_name("push commits of {repository.name}"), cache_policy=NO_CACHE)
def push_commits(repository: DvcRepository | str) -> tuple[str, ...]:
    """Push the branch, the tags of registered models and the notes on them to git's remote ``origin``.

    Notes that other clones pushed are merged first.

    Args:
        repository: The repository.

    Returns:
        Name of the pushed branch, ``tags``, and ``notes`` if there are any; empty without a remote ``origin``.

    Raises:
        GitError: The origin refused the push, or no branch is checked out.

    Example:
        ``push_commits(DvcRepository.load("digits"))``
    """
    repository = find_block(DvcRepository, repository, "repository")
    git = need_git(repository.open())
    pushed = push(git.root, timeout=DvkfSettings().git_timeout)
    run_logger().info(
        "%s", f"pushed {', '.join(pushed)}" if pushed else "git has no origin; nothing to push to"
    )
    return pushed
