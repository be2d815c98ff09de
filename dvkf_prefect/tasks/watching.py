"""Tasks that announce versions on the remote: those that others pushed, and those of a flow after its commit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from prefect.context import SyncClientContext
from prefect.events.schemas.events import Event, RelatedResource, Resource
from prefect.runtime import flow_run

from dvkf_prefect.blocks import DvcRepository, find_block
from dvkf_prefect.cards import PUSHED, artifact_key, dataset_id, escape
from dvkf_prefect.data.git.history import outputs_of
from dvkf_prefect.errors import ConfigError, GitError
from dvkf_prefect.formats.outputs import DataVersion, Output
from dvkf_prefect.pipeline.run.documents import need_git, prefix_of
from dvkf_prefect.repo import Repo
from dvkf_prefect.tasks._artifacts import create_artifact
from dvkf_prefect.tasks._assets import Assets
from dvkf_prefect.tasks._events import pushed_event
from dvkf_prefect.tasks._logging import run_logger
from dvkf_prefect.tasks._names import listed, run_name
from dvkf_prefect.tasks._versions import REPOSITORY, other_repository


@task(task_run_name=run_name("watch {repository.name}"), cache_policy=NO_CACHE)
def watch_data(repository: DvcRepository | str) -> tuple[DataVersion, ...]:
    """Emit ``dvkf.dataset.pushed`` for each version that is new in git and whole on the remote.

    The task reads the last commit of the block's branch, and looks up the digests of its outputs on the remote. A
    version whose data is still on its way waits for a later run. The first run only records the versions that it finds.

    The seen versions are the rows of an artifact on the server. The id of an event follows from the output, the
    digest and the event before it, so the server drops an event that is sent again: by a second watcher, or after a
    kill between the event and the artifact. A version that `push_data` announced is not announced again.

    Args:
        repository: The repository. With a git URL, the block's clone is updated first.

    Returns:
        The announced versions.

    Raises:
        GitError: Git failed, or the branch has no commit.
        ConfigError: Another repository of the same name is watched.
        RemoteError: The remote cannot be used.

    Example:
        ``watch_data(DvcRepository.load("local"))``
    """
    repository = find_block(DvcRepository, repository, "repository")
    logger = run_logger()
    repo = repository.open()
    git = need_git(repo)
    commit = git.head()
    if commit is None:
        raise GitError(f"{repo.root} has no commit. Commit the `.dvc` files of its data.")
    key = artifact_key("watch", repository.name, repository.rev or "")
    seen = _seen(key, repository)
    known = seen or {}
    found = [output for output in outputs_of(git, commit, prefix_of(repo)) if _is_data(output)]
    changed = [output for output in found if known.get(output.path, {}).get("digest") != output.digest]
    arrived = _arrived(repo, changed)
    announced: list[DataVersion] = []
    rows = dict(known)
    last = _last_events(repository.name, [output.path for output in arrived]) if seen is not None else {}
    for output in arrived:
        version = DataVersion(
            str(repo.root), commit, output.path, output.digest or "", output.size or 0, output.nfiles or 1
        )
        before = last.get(output.path)
        event = str(before["id"]) if before else known.get(output.path, {}).get("event", "")
        if seen is not None and (before is None or before["resource"].get("dvkf.digest") != output.digest):
            event = _announce(repository.name, version, event)
            announced.append(version)
            logger.info("new on the remote: %s", version)
        rows[output.path] = {
            "path": output.path,
            "digest": output.digest or "",
            "commit": commit,
            "event": event,
        }
    waiting = len(changed) - len(arrived)
    if waiting:
        logger.info("%d versions of %s are not on the remote yet", waiting, commit[:10])
    if seen is None or rows != known:
        said = (
            f"{len(announced)} new versions in **{escape(repository.name)}**, {waiting} not on the remote yet"
        )
        address = repository.address
        create_artifact(
            "table",
            key,
            said,
            json.dumps([rows[path] for path in sorted(rows)]),
            metadata={REPOSITORY: address} if address else None,
        )
    return tuple(announced)


@task(task_run_name=run_name("announce {repository.name}"), cache_policy=NO_CACHE)
def announce_data(
    repository: DvcRepository | str, targets: str | Sequence[str] = ()
) -> tuple[DataVersion, ...]:
    """Emit ``dvkf.dataset.pushed`` for the recorded versions that are on the remote and were not the last announced.

    A flow calls it after `push_data` with ``announce=False``, and after its commits, so a run that the event starts
    finds both. A version that a killed run pushed is announced by the next run. Its event has the same id each time,
    so the server keeps one.

    Args:
        repository: The repository.
        targets: Outputs, `.dvc` files or stages; all outputs if empty.

    Returns:
        The announced versions, each with the last commit if that records it.

    Raises:
        RemoteError: The remote cannot be used.

    Example:
        ``announce_data(DvcRepository.load("local"), "data/train")``
    """
    repository = find_block(DvcRepository, repository, "repository")
    repo = repository.open()
    commit = repo.git.head() if repo.git else None
    found = outputs_of(repo.git, commit, repo.git_prefix) if repo.git and commit else ()
    committed = {output.path: output.digest for output in found}
    arrived = _arrived(repo, [output for output in repo.outputs(listed(targets)) if _is_data(output)])
    last = _last_events(repository.name, [output.path for output in arrived])
    announced: list[DataVersion] = []
    for output in arrived:
        before = last.get(output.path)
        if before is not None and before["resource"].get("dvkf.digest") == output.digest:
            continue
        version = repo.version_of(output, commit if committed.get(output.path) == output.digest else None)
        _announce(repository.name, version, str(before["id"]) if before else "")
        announced.append(version)
        run_logger().info("announced %s", version)
    Assets(repository, repo).written(announced)
    return tuple(announced)


def _is_data(output: Output) -> bool:
    return output.digest is not None and output.cached and output.pushed


def _arrived(repo: Repo, outputs: Iterable[Output]) -> list[Output]:
    """Return the outputs whose object is on its remote; that of a directory is uploaded after its files."""
    groups: dict[tuple[str | None, str], list[Output]] = {}
    for output in outputs:
        if output.content is not None:
            groups.setdefault((output.remote, output.content.hash_name), []).append(output)
    arrived: list[Output] = []
    for (remote, hash_name), group in groups.items():
        missing = repo.remote(remote).missing([each.digest for each in group if each.digest], hash_name)
        arrived += [output for output in group if output.digest not in missing]
    return arrived


def _seen(key: str, repository: DvcRepository) -> dict[str, Mapping[str, str]] | None:
    """Return the rows of the last artifact by path; None before the first run.

    Raises:
        ConfigError: Another repository of the same name is watched.
    """
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    with SyncClientContext.get_or_create() as context:
        found = context.client.read_artifacts(artifact_filter=wanted, sort=ArtifactSort.CREATED_DESC, limit=1)
    if not found:
        return None
    if other := other_repository(repository, found[0].metadata_):
        raise ConfigError(
            f"another repository named '{repository.name}' is watched: {other}. Set the label of the block."
        )
    data: Any = found[0].data
    return {row["path"]: row for row in (json.loads(data) if isinstance(data, str) else data)}


def _last_events(repository: str, paths: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return the newest event about each output that the server still has, by path."""
    last: dict[str, Mapping[str, Any]] = {}
    with SyncClientContext.get_or_create() as context:
        for path in paths:
            wanted = {"event": {"name": [PUSHED]}, "resource": {"id": [dataset_id(repository, path)]}}
            answer = context.client.request(
                "POST", "/events/filter", json={"filter": {**wanted, "order": "DESC"}, "limit": 1}
            )
            for event in answer.raise_for_status().json()["events"]:
                last[path] = event
    return last


def _announce(repository: str, version: DataVersion, before: str) -> str:
    """Send the event of a version, and return its id once the server has it."""
    resource, payload = pushed_event(repository, version)
    run = flow_run.get_id()
    related = {"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"}
    name = f"{resource['prefect.resource.id']}#{version.digest}#{before}"
    event = Event(
        event=PUSHED,
        resource=Resource(resource),
        related=[RelatedResource(related)] if run else [],
        payload={**payload, "revision": version.rev},
        id=uuid5(NAMESPACE_URL, name),
    )
    # Prefect's `emit_event` returns before the event is sent, and the artifact would be ahead of it.
    with SyncClientContext.get_or_create() as context:
        context.client.request("POST", "/events", json=[event.model_dump(mode="json")]).raise_for_status()
    return str(event.id)
