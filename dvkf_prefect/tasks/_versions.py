"""Cards of versions of data: one on the timeline of an output for each new version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from prefect.client.schemas.filters import ArtifactCollectionFilter, ArtifactCollectionFilterKey
from prefect.client.schemas.objects import ArtifactCollection
from prefect.context import SyncClientContext
from prefect.runtime import flow_run

from dvkf_prefect.blocks import DvcRepository
from dvkf_prefect.cards import Card, artifact_key, data_card
from dvkf_prefect.cards.data import UNCOMMITTED
from dvkf_prefect.data.git.commits import read_commits
from dvkf_prefect.data.tables.frame_profile import FrameProfile
from dvkf_prefect.errors import DvkfError
from dvkf_prefect.formats.outputs import DataVersion
from dvkf_prefect.repo import Repo
from dvkf_prefect.settings import DvkfSettings
from dvkf_prefect.tasks._artifacts import publish, run_link, update_artifact
from dvkf_prefect.tasks._git import committed_versions
from dvkf_prefect.tasks._logging import run_logger

# Keys in the metadata of an artifact.
_DIGEST = "dvkf.digest"
_RUN = "dvkf.flow-run"
_EARLIER = "dvkf.earlier"
REPOSITORY = "dvkf.repository"
"""Key of the repository's address in the metadata of an artifact."""
# Starts of the digests of earlier versions that a card knows, and their length. Prefect cuts a value at 500 characters.
_KNOWN = 45
_START = 10


def recorded_versions(repo: Repo, targets: Sequence[str] = ()) -> tuple[DataVersion, ...]:
    """Return the recorded versions of outputs.

    Args:
        repo: The repository.
        targets: Outputs, `.dvc` files or stages; all outputs if empty.
    """
    return tuple(repo.version_of(output) for output in repo.outputs(targets) if output.digest)


def other_repository(repository: DvcRepository, metadata: Mapping[str, str] | None) -> str:
    """Return the address of another repository of the same name that made an artifact; "" if this one did.

    Args:
        repository: The repository's block.
        metadata: Metadata of the artifact.
    """
    other, own = (metadata or {}).get(REPOSITORY, ""), repository.address
    return other if own and other != own else ""


def publish_versions(
    repository: DvcRepository,
    repo: Repo,
    versions: Iterable[DataVersion],
    *,
    task_runs: Mapping[str, UUID | None] | None = None,
    made: bool = True,
) -> None:
    """Publish a card for each version, except for the last published version of its output.

    Prefect keeps the digests of a card's version and of those before it with the card. One request reads those of all
    outputs. A warning tells that another repository of the same name has the same timelines.

    Args:
        repository: The repository's block.
        repo: The repository.
        versions: The versions; only the first ones get cards, see `DvkfSettings`.
        task_runs: Task runs that made the versions, by path; the current one by default.
        made: The versions were made just now. One that was pulled or restored gets a card only if it never had one,
            so pulls of two branches in turn publish nothing.
    """
    rows = DvkfSettings().card_rows
    shown = list(versions)[:rows]
    name, address = repository.name, repository.address
    last = _last_cards(name, [version.path for version in shown])
    others = {path: other_repository(repository, card.metadata_) for path, card in last.items()}
    for other in sorted({*others.values()} - {""}):
        run_logger().warning(
            "another repository named '%s', %s, has the same cards. Set the label of the block.", name, other
        )
    for version in shown:
        card = None if others.get(version.path) else last.get(version.path)
        known = (card.metadata_ if card is not None else None) or {}
        earlier = known.get(_EARLIER, "").split()
        if card is not None and _lags(card, repo, version):
            _show_again(name, repo, version, card)
        if known.get(_DIGEST) == version.digest or (not made and version.digest[:_START] in earlier):
            continue
        run = flow_run.get_id() or ""
        shown_card = _card(name, repo, version, flow=run, profile=_profile(repo, version))
        metadata = {_DIGEST: version.digest, _RUN: run} | ({REPOSITORY: address} if address else {})
        if _DIGEST in known:
            before = [start for start in earlier if start != known[_DIGEST][:_START]]
            metadata[_EARLIER] = " ".join([known[_DIGEST][:_START], *before][:_KNOWN])
        publish(shown_card, task_run=(task_runs or {}).get(version.path), metadata=metadata)


def show_commit(repository: DvcRepository, repo: Repo, documents: Iterable[str]) -> None:
    """Show a new commit on the cards of the versions that it records. The cards change in place.

    Args:
        repository: The repository's block.
        repo: The repository.
        documents: Committed files, relative to the root.
    """
    rows = DvkfSettings().card_rows
    committed = set(documents)
    locks = {path.removesuffix("dvc.lock") + "dvc.yaml" for path in committed if path.endswith("dvc.lock")}
    outputs = [o for o in repo.outputs() if o.digest and o.cached and o.source in committed | locks][:rows]
    name = repository.name
    last = _last_cards(name, [output.path for output in outputs])
    for output in outputs:
        card = last.get(output.path)
        if card is None or (card.metadata_ or {}).get(_DIGEST) != output.digest:
            continue
        if other_repository(repository, card.metadata_):
            continue
        _show_again(name, repo, repo.version_of(output), card)


def _lags(card: ArtifactCollection, repo: Repo, version: DataVersion) -> bool:
    """Return True if a card says that no commit holds its version, and one does by now, made by hand."""
    if (card.metadata_ or {}).get(_DIGEST) != version.digest or UNCOMMITTED not in (card.description or ""):
        return False
    return any(old.digest == version.digest for old in committed_versions(repo, version.path, limit=1))


def _show_again(name: str, repo: Repo, version: DataVersion, card: ArtifactCollection) -> None:
    """Update the last card of a version in place."""
    run = (card.metadata_ or {}).get(_RUN, "")
    made = _card(name, repo, version, flow=run, profile=_profile(repo, version))
    update_artifact(card.latest_id, made.markdown, made.description)


def _card(name: str, repo: Repo, version: DataVersion, *, flow: str, profile: FrameProfile | None) -> Card:
    rows = DvkfSettings().card_rows
    history = committed_versions(repo, version.path, limit=rows)
    revs = [old.rev for old in history if old.rev]
    return data_card(
        version,
        name,
        history,
        commits=read_commits(repo.git, revs) if repo.git is not None else {},
        profile=profile,
        run=run_link(flow),
        limit=rows,
    )


def _profile(repo: Repo, version: DataVersion) -> FrameProfile | None:
    """Return the profile of a version in the workspace; None if it is no table, or a large one."""
    from dvkf_prefect.data.tables.frame_profile import profile_frame
    from dvkf_prefect.data.tables.frames import format_of, read_frame

    settings = DvkfSettings()
    if version.digest.endswith(".dir") or version.size > settings.card_table_size:
        return None
    try:
        format_of(version.path)
        return profile_frame(read_frame(repo, version.path), sample=settings.card_sample)
    except (DvkfError, OSError):
        # Other content with such a name, as JSON that is no list of records.
        return None


def _last_cards(name: str, paths: Sequence[str]) -> dict[str, ArtifactCollection]:
    """Return the newest card of each output, by path."""
    if not paths:
        return {}
    keys = {artifact_key("data", name, path): path for path in paths}
    wanted = ArtifactCollectionFilter(key=ArtifactCollectionFilterKey(any_=list(keys)))
    with SyncClientContext.get_or_create() as context:
        found = context.client.read_latest_artifacts(artifact_filter=wanted)
    return {keys[card.key]: card for card in found}
