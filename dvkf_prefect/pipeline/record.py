"""Between the repository and a stage's run: what the run needs, and where its outputs end up."""

from __future__ import annotations

import posixpath
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from dvkf_prefect.data import gitignore, legacy
from dvkf_prefect.data.digest import Memory
from dvkf_prefect.data.outputs import Output
from dvkf_prefect.data.repo import Repo
from dvkf_prefect.data.store import LEGACY, MD5, Cache, Stored
from dvkf_prefect.data.workspace import Workspace
from dvkf_prefect.errors import (
    DvkfError,
    MissingObjectError,
    OutputInGitError,
    OutputNotFoundError,
    StageError,
    TransferError,
)
from dvkf_prefect.files import read_description
from dvkf_prefect.pipeline.lock import Entry, Item, item_of, lock_file, stored_of, write_entry
from dvkf_prefect.pipeline.runcache import RunCache, can_save
from dvkf_prefect.pipeline.snapshot import UNKNOWN, Inputs, Snapshot
from dvkf_prefect.pipeline.spec import StepContent, StepDependency, StepOutput, StepSpec
from dvkf_prefect.pipeline.stages import Stage, StageOutput
from dvkf_prefect.urls import without_secrets


def make_spec(
    repo: Repo,
    snapshot: Snapshot,
    stage: Stage,
    inputs: Inputs,
    *,
    commit: bool = True,
    in_place: bool = False,
    lenient: bool = False,
    linked: bool = False,
) -> StepSpec:
    """Return what a stage's run needs.

    Args:
        repo: The repository.
        snapshot: What is there.
        stage: The stage.
        inputs: What it reads; what is not known yet gets an empty digest.
        commit: False keeps all that it writes out of the repository's cache.
        in_place: Whether it runs in the workspace.
        lenient: Whether it may write more than its outputs elsewhere.
        linked: Whether it runs where it can link to the cache.

    Raises:
        OutputInGitError: Git tracks one of its outputs.
    """
    _check_git(repo, stage)
    if in_place:
        return StepSpec(
            stage=stage.address,
            cmd=stage.cmd,
            cache_dir=str(repo.cache.root),
            wdir=stage.wdir,
            deps=_dependencies(snapshot, stage, inputs),
            params=_parameters(stage, inputs),
            outs=tuple(
                StepOutput(out.path, out.cached and commit, out.kind, persist=out.persist)
                for out in stage.outs
            ),
            workspace=str(repo.root),
            in_place=True,
            cache_config=_cache_config(repo),
        )
    for dep in stage.deps:
        if dep.external and not ("://" in dep.name or dep.name.startswith("/")):
            raise StageError(
                f"stage '{stage.address}' runs in a folder of its own, where '{dep.name}' does not lead out of the "
                "repository. Give an absolute path, or run it in the workspace."
            )
    outs = []
    for out in stage.outs:
        previous, isexec = None, False
        if out.persist and snapshot.look(out.path).digest:
            stored = repo.workspace.take(out.path)
            previous, isexec = stored.digest, stored.isexec
        elif out.persist and out.cached and snapshot.away is not None:  # nobody brought it here
            kept = snapshot.outputs.get(out.path)
            if kept is not None and kept.digest and kept.hash_name == MD5:
                previous, isexec = kept.digest, kept.isexec
        outs.append(
            StepOutput(out.path, out.cached and commit, out.kind, previous, isexec, persist=out.persist)
        )
    return StepSpec(
        stage=stage.address,
        cmd=stage.cmd,
        cache_dir=str(repo.cache.root),
        wdir=stage.wdir,
        deps=_dependencies(snapshot, stage, inputs),
        params=_parameters(stage, inputs),
        outs=tuple(outs),
        workspace=str(repo.root),
        lenient=lenient,
        cache_config=_cache_config(repo) if linked else {},
    )


def _dependencies(snapshot: Snapshot, stage: Stage, inputs: Inputs) -> tuple[StepDependency, ...]:
    items = {item["path"]: item for item in inputs.items}
    deps = {}
    for dep in stage.deps:
        if dep.external:
            continue  # the command gets it by itself, a dataset by the version in dvc.lock
        item = items.get(dep.name)
        if item is None:
            deps[dep.path] = StepDependency(dep.path, "")
            continue
        # The digest of a DVC 2.x entry is not that of the bytes; it is only kept while the workspace still has it.
        stored = stored_of(item) if item.get("hash") == MD5 else snapshot.look(dep.path).stored()
        deps[dep.path] = StepDependency(dep.path, stored.digest, stored.size, stored.isexec)
    return tuple(deps.values())


def _parameters(stage: Stage, inputs: Inputs) -> dict[str, Mapping[str, Any]]:
    return {
        stage.params_path(file): inputs.params[file] if keys else {"": inputs.params[file]}
        for file, keys in stage.params.items()
    }


def _cache_config(repo: Repo) -> dict[str, str]:
    """Return the settings that tell where outputs go and how they are linked; none of them is a secret."""
    settings = {"dir": str(repo.cache.root)}
    for name in ("type", "shared"):
        if value := repo.config.get("cache", name):
            settings[name] = str(value)
    return settings


def bring_inputs(snapshot: Snapshot, stage: Stage) -> None:
    """Check out what a stage reads and is tracked, but not in the workspace.

    Args:
        snapshot: What is there.
        stage: The stage.

    Raises:
        StageError: The cache lacks it.
    """
    repo = snapshot.repo
    absent: dict[str, Output] = {}
    for dep in stage.deps:
        if dep.external or snapshot.look(dep.path).digest is not None:
            continue
        output = snapshot.tracked(dep.path)
        if output is not None and output.digest and not (repo.root / output.path).exists():
            absent[output.path] = output
    if not absent:
        return
    with repo.lock(write=list(absent)):
        for output in absent.values():
            try:
                repo.workspace.put(output, repo.workspace.look(output.path, hash_name=output.hash_name))
            except (TransferError, MissingObjectError) as error:
                raise StageError(
                    f"stage '{stage.address}': its dependency '{output.path}' is neither in the workspace nor whole "
                    f"in the cache. Bring it with `dvkf pull`. ({error})"
                ) from error
    snapshot.forget(absent)


def keep_changed(snapshot: Snapshot, stage: Stage) -> None:
    """Store outputs that were changed by hand, which a stage's run is about to remove, so that they can be had again.

    Args:
        snapshot: What is there.
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
        if repo.workspace.lost_by(replace(recorded, digest=None), found):
            repo.workspace.take(out.path)


def settle_outputs(
    repo: Repo,
    stage: Stage,
    contents: Sequence[StepContent],
    *,
    old: Entry | None = None,
    commit: bool = True,
) -> list[Item]:
    """Keep the outputs of a run in the workspace out of git, and see that the cache has them still.

    Args:
        repo: The repository; locked by the caller.
        stage: The stage.
        contents: What the run wrote.
        old: What dvc.lock has of the last run.
        commit: Whether the cache must have them.

    Returns:
        The outputs as an entry holds them.
    """
    by_path = {content.path: content for content in contents}
    items = []
    for out in stage.outs:
        content = by_path[out.path]
        _ignore(repo, out)
        if commit and out.cached and _absent(repo, content):
            # A collection by the real dvc, which goes by dvc.lock alone, may have come between the run and this lock.
            repo.workspace.take(out.path)
        stored = Stored(content.digest, content.size, content.nfiles, content.isexec)
        items.append(_legacy_item(repo, out, old, commit=commit) or item_of(out.name, stored))
    return items


def pull_runs(repo: Repo) -> None:
    """Bring the run cache of the default remote; a repository without one goes on without.

    Args:
        repo: The repository.
    """
    from dvkf_prefect.data.runs import move_runs, plan_runs

    try:
        remote = repo.remote()
        runs = plan_runs(repo.cache, remote, push=False)
        with repo.lock():
            move_runs(runs, repo.cache, remote, push=False)
    except DvkfError as error:
        import logging

        logging.getLogger(__name__).warning("the run cache was not pulled: %s", error)


def pull_inputs(snapshot: Snapshot, stage: Stage) -> None:
    """Bring what a stage reads and is tracked, but neither in the workspace nor in the cache.

    Args:
        snapshot: What is there.
        stage: The stage.
    """
    if stage.frozen:
        return
    for dep in stage.deps:
        if dep.external or snapshot.look(dep.path).digest is not None:
            continue
        output = snapshot.tracked(dep.path)
        if output is None or not output.digest:
            continue
        if not snapshot.is_cached(output.digest, output.hash_name):
            with suppress(DvkfError):  # what is missing after all is said before it runs
                snapshot.repo.pull([output.path])
            snapshot.forget([output.path])


def check_inputs(stage: Stage, inputs: Inputs, *, ahead: bool = False) -> None:
    """Refuse to run a stage that lacks what it reads.

    Args:
        stage: The stage.
        inputs: What it reads.
        ahead: Whether it waits for others; what those will write is no lack.

    Raises:
        StageError: It lacks something.
    """
    for dep in stage.deps:
        if dep.dataset is not None and inputs.datasets.get(dep.name) is None:
            raise StageError(
                f"stage '{stage.address}' depends on the dataset '{dep.name}', whose version is not in dvc.lock; "
                f"run `dvc dataset update {dep.dataset}`"
            )
    unknown = [name for name, stored in inputs.deps.items() if stored is UNKNOWN]
    if unknown and not ahead:
        raise StageError(
            f"stage '{stage.address}' depends on the folder {', '.join(unknown)}, parts of which other stages wrote, "
            "and these stay on the remote: make the outputs themselves its dependencies, or have what stages write "
            "brought here (fetch)"
        )
    check_readable(stage, inputs)
    missing = [without_secrets(name) for name, stored in inputs.deps.items() if stored is None]
    if missing:
        raise StageError(
            f"stage '{stage.address}': its dependencies {', '.join(missing)} do not exist, and nothing tells what "
            "they were; write them, or bring them with `dvkf pull`"
        )
    check_params_there(stage, inputs)


def check_readable(stage: Stage, inputs: Inputs) -> None:
    """Refuse a stage that reads what no manifest can hold.

    Raises:
        StageError: It does.
    """
    for name, said in inputs.wrong.items():
        raise StageError(f"stage '{stage.address}': its dependency '{name}' cannot be read: {said}")


def check_params_there(stage: Stage, inputs: Inputs) -> None:
    """Refuse a stage whose parameters are not all there.

    Raises:
        StageError: They are not.
    """
    if inputs.missing_params:
        raise StageError(
            f"stage '{stage.address}': the parameters {', '.join(inputs.missing_params)} do not exist; add them, "
            "or take them out of `params`"
        )


def _check_git(repo: Repo, stage: Stage) -> None:
    """Refuse to write over what git tracks: nobody would see that it changed twice."""
    cached = [str(repo.root / out.path) for out in stage.outs if out.cached]
    if repo.git is None or not cached:
        return
    top = repo.git.root.resolve()
    tracked = repo.git.tracked([Path(path).relative_to(top).as_posix() for path in cached])
    if tracked:
        raise OutputInGitError(
            f"stage '{stage.address}': git tracks its output '{tracked[0]}'; stop that first: "
            f"`git rm -r --cached '{tracked[0]}'`, or give the output `cache: false`"
        )


def contents_of(stage: Stage, entry: Entry) -> tuple[StepContent, ...]:
    """Return the outputs that an entry recorded, by the stage's paths.

    Args:
        stage: The stage.
        entry: One of its runs.
    """
    recorded = {item["path"]: item for item in entry.get("outs", ())}
    contents = []
    for out in stage.outs:
        item = recorded[out.name]
        stored = stored_of(item)
        contents.append(
            StepContent(
                out.path, stored.digest, stored.size, stored.nfiles, stored.isexec, item.get("hash", LEGACY)
            )
        )
    return tuple(contents)


def put_outputs(
    repo: Repo,
    stage: Stage,
    contents: Sequence[StepContent],
    side_dir: str = "",
    *,
    old: Entry | None = None,
    commit: bool = True,
) -> list[Item]:
    """Make the workspace hold a run's outputs.

    What lies there and is nowhere else goes into the cache first, so that a changed output can be had again.

    Args:
        repo: The repository; locked by the caller.
        stage: The stage.
        contents: What the run wrote, in the order of the stage's outputs.
        side_dir: The root of the cache that holds those which stay out of the repository's; "" if all are in that.
        old: What dvc.lock has of the last run.
        commit: False keeps all of them out of the repository's cache.

    Returns:
        The outputs as an entry holds them.

    Raises:
        TransferError: An object is missing or damaged.
        DiskFullError: There is no room.
    """
    by_path = {content.path: content for content in contents}
    items: list[Item] = []
    for out in stage.outs:
        content = by_path[out.path]
        _put(repo, stage, content, "" if out.cached and commit else side_dir)
        absent = out.cached and commit and (content.hash_name != MD5 or _absent(repo, content))
        if absent:
            repo.workspace.take(out.path)
        items.append(_settle(repo, out, old, commit=commit))
    return items


def refer_outputs(
    repo: Repo, stage: Stage, contents: Sequence[StepContent], side_dir: str = ""
) -> list[Item]:
    """Record a run's outputs, which stay on the remote; only those that git keeps go into the workspace.

    Args:
        repo: The repository; locked by the caller.
        stage: The stage.
        contents: What the run wrote.
        side_dir: The root of the cache that holds those which stay out of the repository's.

    Returns:
        The outputs as an entry holds them.

    Raises:
        TransferError: An object is missing or damaged.
        DiskFullError: There is no room.
    """
    by_path = {content.path: content for content in contents}
    items: list[Item] = []
    for out in stage.outs:
        content = by_path[out.path]
        if out.cached:
            _ignore(repo, out)
        elif side_dir:
            _put(repo, stage, content, side_dir)
        stored = Stored(content.digest, content.size, content.nfiles, content.isexec)
        items.append(item_of(out.name, stored))
    return items


def _put(repo: Repo, stage: Stage, content: StepContent, side_dir: str) -> None:
    """Make the workspace hold one output, from the cache or from the one beside it."""
    output = Output(
        path=content.path,
        digest=content.digest,
        isexec=content.isexec,
        hash_name=content.hash_name,
        source=stage.file,
    )
    found = repo.workspace.look(content.path, hash_name=content.hash_name)
    if found.digest != content.digest or found.isexec != content.isexec:
        if repo.workspace.lost_by(output, found):
            repo.workspace.take(content.path)
        place = _beside(repo, Path(side_dir)) if side_dir else repo.workspace
        place.put(output, found)


def _absent(repo: Repo, content: StepContent) -> bool:
    """Tell whether the cache lacks any of a content."""
    digests = {content.digest}
    if content.nfiles is not None and repo.cache.exists(content.digest):
        digests.update(repo.cache.read_tree(content.digest).digests)
    return bool(repo.cache.missing(digests))


def _beside(repo: Repo, side: Path) -> Workspace:
    return Workspace(repo.root, Cache(side), Memory(repo.tmp_dir / "memory"), repo.ignore)


def take_outputs(repo: Repo, stage: Stage, *, old: Entry | None = None, commit: bool = True) -> list[Item]:
    """Store a stage's outputs as they lie in the workspace.

    Args:
        repo: The repository; locked by the caller.
        stage: The stage.
        old: What dvc.lock has of the last run.
        commit: False only records them.

    Returns:
        The outputs as an entry holds them.

    Raises:
        OutputNotFoundError: One is not there.
        OutputInGitError: Git tracks one.
    """
    _check_git(repo, stage)
    items = []
    for out in stage.outs:
        if repo.workspace.look(out.path).digest is None:
            raise OutputNotFoundError(
                f"stage '{stage.address}': its output '{out.name}' is not in the workspace; run the stage, "
                "or bring it back with `dvkf checkout`"
            )
        if out.cached and commit:
            repo.workspace.take(out.path)
        items.append(_settle(repo, out, old, commit=commit))
    return items


def _settle(repo: Repo, out: StageOutput, old: Entry | None, *, commit: bool) -> Item:
    """Keep an output out of git; return it as it lies in the workspace."""
    _ignore(repo, out)
    item = _legacy_item(repo, out, old, commit=commit)
    return item or item_of(out.name, repo.workspace.look(out.path).stored())


def _legacy_item(repo: Repo, out: StageOutput, old: Entry | None, *, commit: bool) -> Item | None:
    """Return an output that DVC 2.x recorded as it recorded it, if it is the same; None if not.

    Args:
        repo: The repository; locked by the caller.
        out: The output, as it lies in the workspace.
        old: What dvc.lock has of the last run.
        commit: Whether the cache must have it.
    """
    for item in (old or {}).get("outs", ()):
        if item["path"] == out.name and item.get("hash", LEGACY) == LEGACY:
            found = legacy.unchanged(repo, out.path, item.get("md5"), LEGACY)
            if found is not None:
                kept = item_of(out.name, legacy.keep(repo, out.path, found, commit=commit and out.cached))
                del kept["hash"]
                return kept
    return None


def _ignore(repo: Repo, out: StageOutput) -> None:
    path = repo.root / out.path
    if out.cached and repo.git is not None and not _is_ignored(repo, path):
        path.parent.mkdir(parents=True, exist_ok=True)  # it may be that nothing was brought there
        gitignore.ignore(path)


def _is_ignored(repo: Repo, path: Path) -> bool:
    """Tell whether git leaves an output out; git is only asked where the file beside it does not say so."""
    try:
        lines = read_description(path.parent / ".gitignore").decode(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        lines = []
    return gitignore.pattern_for(path.name) in lines or (
        repo.git is not None and repo.git.is_ignored(str(path))
    )


def record(
    repo: Repo,
    stage: Stage,
    entry: Entry,
    *,
    before: Container[str] = (),
    save_run: bool = True,
) -> None:
    """Remember a run in the run cache, then in dvc.lock.

    Args:
        repo: The repository; locked by the caller.
        stage: The stage.
        entry: Its run; its outputs are in the cache and in the workspace.
        before: See `dvkf_prefect.pipeline.lock.write_entry`.
        save_run: False leaves the run cache as it is.

    Raises:
        DiskFullError: There is no room.
    """
    if save_run and can_save(stage, entry):
        for out in stage.outs:
            if not out.cached:  # the run cache answers for it too, as DVC's does
                repo.workspace.take(out.path)
        RunCache(repo.cache.root).save(entry)
    lock = lock_file(stage.file)
    write_entry(repo.root / lock, stage.name, entry, before=before)
    ignored = [posixpath.join(posixpath.dirname(out.path), ".gitignore") for out in stage.outs if out.cached]
    repo.stage([lock, *ignored])
