"""Outputs of stages: move them between runs, cache and workspace, and record them."""

from __future__ import annotations

import posixpath
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.git import gitignore
from dvkf_prefect.data.repository import legacy
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.workspace.memory import Memory
from dvkf_prefect.data.workspace.workspace import Workspace
from dvkf_prefect.errors import OutputNotFoundError
from dvkf_prefect.files import read_description
from dvkf_prefect.formats.dvclock import Entry, Item, content_of, item_of, lock_file, write_entry
from dvkf_prefect.formats.dvcyaml import Stage, StageOutput
from dvkf_prefect.formats.objects import LEGACY, MD5, Content
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.pipeline.plan.runcache import RunCache, can_save
from dvkf_prefect.pipeline.plan.snapshot import Snapshot
from dvkf_prefect.pipeline.run.inputs import check_git
from dvkf_prefect.pipeline.step.spec import StepContent


def keep_changed(snapshot: Snapshot, stage: Stage) -> None:
    """Cache manually changed outputs that a stage's run is about to remove, so that they can be restored.

    Args:
        snapshot: State of the workspace.
        stage: The stage.
    """
    repo = snapshot.repo
    for out in stage.outs:
        if out.persist:
            continue
        found = snapshot.look(out.path)
        if found.digest is None:
            continue
        recorded = snapshot.outputs.get(out.path) or Output(out.path, None)
        if repo.workspace.lost_by(replace(recorded, content=None), found):
            repo.workspace.take(out.path)


def settle_outputs(
    repo: Repository,
    stage: Stage,
    contents: Sequence[StepContent],
    *,
    old: Entry | None = None,
    commit: bool = True,
) -> list[Item]:
    """Add the workspace's outputs of a run to `.gitignore`, and ensure that the cache still has them.

    Args:
        repo: The repository; locked by the caller.
        stage: The stage.
        contents: Outputs of the run.
        old: Entry of the last run in dvc.lock.
        commit: True if the cache must have them.

    Returns:
        The outputs as an entry holds them.
    """
    by_path = {content.path: content for content in contents}
    items = []
    for out in stage.outs:
        found = by_path[out.path]
        _ignore(repo, out)
        if commit and out.cached and _absent(repo, found.content):
            # Between the run and this lock, a garbage collection by dvc, which only knows dvc.lock, may have removed
            # objects.
            repo.workspace.take(out.path)
        items.append(_legacy_item(repo, out, old, commit=commit) or item_of(out.name, found.content))
    return items


def contents_of(stage: Stage, entry: Entry) -> tuple[StepContent, ...]:
    """Return the outputs recorded in an entry, by the stage's paths.

    Args:
        stage: The stage.
        entry: Entry of one of its runs.
    """
    recorded = {item["path"]: item for item in entry.get("outs", ())}
    return tuple(StepContent(out.path, content_of(recorded[out.name])) for out in stage.outs)


def put_outputs(
    repo: Repository,
    stage: Stage,
    contents: Sequence[StepContent],
    side_dir: str = "",
    *,
    old: Entry | None = None,
    commit: bool = True,
) -> list[Item]:
    """Write a run's outputs into the workspace.

    Workspace content that is stored nowhere else is cached first, so a changed output can be restored.

    Args:
        repo: The repository; locked by the caller.
        stage: The stage.
        contents: Outputs of the run, in the order of the stage's outputs.
        side_dir: Root of the cache with the outputs that stay out of the repository's; "" if there are none.
        old: Entry of the last run in dvc.lock.
        commit: False keeps all of them out of the repository's cache.

    Returns:
        The outputs as an entry holds them.

    Raises:
        TransferError: An object is missing or damaged.
        DiskFullError: The disk is full.
    """
    by_path = {content.path: content for content in contents}
    items: list[Item] = []
    for out in stage.outs:
        found = by_path[out.path]
        _put(repo, stage, found, "" if out.cached and commit else side_dir)
        content = found.content
        absent = out.cached and commit and (content.hash_name != MD5 or _absent(repo, content))
        if absent:
            repo.workspace.take(out.path)
        items.append(_settle(repo, out, old, commit=commit))
    return items


def refer_outputs(
    repo: Repository, stage: Stage, contents: Sequence[StepContent], side_dir: str = ""
) -> list[Item]:
    """Record a run's outputs that stay on the remote; only uncached ones are written into the workspace.

    Args:
        repo: The repository; locked by the caller.
        stage: The stage.
        contents: Outputs of the run.
        side_dir: Root of the cache with the outputs that stay out of the repository's.

    Returns:
        The outputs as an entry holds them.

    Raises:
        TransferError: An object is missing or damaged.
        DiskFullError: The disk is full.
    """
    by_path = {content.path: content for content in contents}
    items: list[Item] = []
    for out in stage.outs:
        content = by_path[out.path]
        if out.cached:
            _ignore(repo, out)
        elif side_dir:
            _put(repo, stage, content, side_dir)
        items.append(item_of(out.name, content.content))
    return items


def _put(repo: Repository, stage: Stage, written: StepContent, side_dir: str) -> None:
    """Write one output into the workspace, from the repository's cache or from the side cache."""
    content = written.content
    output = Output(written.path, content, source=stage.file)
    found = repo.workspace.look(written.path, hash_name=content.hash_name)
    if found.digest != content.digest or found.isexec != content.isexec:
        if repo.workspace.lost_by(output, found):
            repo.workspace.take(written.path)
        place = _beside(repo, Path(side_dir)) if side_dir else repo.workspace
        place.put(output, found)


def _absent(repo: Repository, content: Content) -> bool:
    """Return True if the cache lacks any part of a content."""
    digests = {content.digest}
    if content.is_dir and repo.cache.exists(content.digest):
        digests.update(repo.cache.read_tree(content.digest).digests)
    return bool(repo.cache.missing(digests))


def _beside(repo: Repository, side: Path) -> Workspace:
    return Workspace(repo.root, Cache(side), Memory(repo.tmp_dir / "memory"), repo.ignore)


def take_outputs(
    repo: Repository, stage: Stage, *, old: Entry | None = None, commit: bool = True
) -> list[Item]:
    """Cache a stage's outputs in their current state in the workspace.

    Args:
        repo: The repository; locked by the caller.
        stage: The stage.
        old: Entry of the last run in dvc.lock.
        commit: False only records them.

    Returns:
        The outputs as an entry holds them.

    Raises:
        OutputNotFoundError: An output is missing.
        OutputInGitError: Git tracks an output.
    """
    check_git(repo, stage)
    items = []
    for out in stage.outs:
        if repo.workspace.look(out.path).digest is None:
            raise OutputNotFoundError(
                f"stage '{stage.address}': its output '{out.name}' is not in the workspace. Run the stage, "
                "or `dvkf checkout`."
            )
        if out.cached and commit:
            repo.workspace.take(out.path)
        items.append(_settle(repo, out, old, commit=commit))
    return items


def _settle(repo: Repository, out: StageOutput, old: Entry | None, *, commit: bool) -> Item:
    """Add an output to `.gitignore`; return its current state in the workspace."""
    _ignore(repo, out)
    item = _legacy_item(repo, out, old, commit=commit)
    return item or item_of(out.name, repo.workspace.look(out.path).existing())


def _legacy_item(repo: Repository, out: StageOutput, old: Entry | None, *, commit: bool) -> Item | None:
    """Return the record of DVC 2.x for an output that is unchanged since; None if it changed.

    Args:
        repo: The repository; locked by the caller.
        out: The output; its current state in the workspace is compared.
        old: Entry of the last run in dvc.lock.
        commit: True if the cache must have it.
    """
    for item in (old or {}).get("outs", ()):
        if item["path"] == out.name and item.get("hash", LEGACY) == LEGACY:
            found = legacy.unchanged(repo, out.path, item.get("md5"), LEGACY)
            if found is not None:
                return item_of(out.name, legacy.keep(repo, out.path, found, commit=commit and out.cached))
    return None


def _ignore(repo: Repository, out: StageOutput) -> None:
    path = repo.root / out.path
    if out.cached and repo.git is not None and not _is_ignored(repo, path):
        path.parent.mkdir(
            parents=True, exist_ok=True
        )  # the folder may not exist if no output was written there
        if gitignore.ignore(path):
            repo.stage([posixpath.join(posixpath.dirname(out.path), ".gitignore")])


def _is_ignored(repo: Repository, path: Path) -> bool:
    """Return True if git ignores an output; git is only queried if the .gitignore beside it has no such line."""
    try:
        lines = read_description(path.parent / ".gitignore").decode(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        lines = []
    return gitignore.pattern_for(path.name) in lines or (
        repo.git is not None and repo.git.is_ignored(str(path))
    )


def record(
    repo: Repository,
    stage: Stage,
    entry: Entry,
    *,
    before: Container[str] = (),
    save_run: bool = True,
) -> None:
    """Record a run in the run cache, then in dvc.lock.

    Args:
        repo: The repository; locked by the caller.
        stage: The stage.
        entry: Its run; the outputs are in the cache and in the workspace.
        before: See `dvkf_prefect.formats.dvclock.write_entry`.
        save_run: False leaves the run cache unchanged.

    Raises:
        DiskFullError: The disk is full.
    """
    if save_run and can_save(stage, entry):
        for out in stage.outs:
            if not out.cached:  # a run cache entry needs these outputs in the cache, too, as in DVC
                repo.workspace.take(out.path)
        RunCache(repo.cache.root).save(entry)
    lock = lock_file(stage.file)
    write_entry(repo.root / lock, stage.name, entry, before=before)
    repo.stage([lock])


def is_away(snapshot: Snapshot, stage: Stage, contents: Sequence[StepContent]) -> bool:
    """Return True if the cache lacks content of an output that it should hold."""
    cached = {out.path for out in stage.outs if out.cached}
    return not all(
        snapshot.is_cached(content.digest, content.content.hash_name)
        for content in contents
        if content.path in cached
    )
