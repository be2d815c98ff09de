"""Inputs of a stage: specification, checkout and checks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import DvkfError, MissingObjectError, OutputInGitError, StageError, TransferError
from dvkf_prefect.formats.dvclock import content_of
from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.formats.objects import MD5, Content
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.pipeline.plan.snapshot import UNKNOWN, Inputs, Snapshot
from dvkf_prefect.pipeline.step.distributed import read_distributed
from dvkf_prefect.pipeline.step.spec import PLOT_OPTIONS, StepContent, StepMeta, StepOutput, StepSpec
from dvkf_prefect.urls import without_secrets


def make_spec(
    repo: Repository,
    snapshot: Snapshot,
    stage: Stage,
    inputs: Inputs,
    *,
    commit: bool = True,
    in_place: bool = False,
    lenient: bool = False,
    linked: bool = False,
) -> StepSpec:
    """Return the specification of a stage's run.

    Args:
        repo: The repository.
        snapshot: State of the workspace.
        stage: The stage.
        inputs: Inputs of the stage; an unknown one gets an empty digest.
        commit: False keeps all outputs out of the repository's cache.
        in_place: True runs it in the workspace.
        lenient: True lets it write more than its outputs in a work folder.
        linked: True if the stage runs on a machine that can link to the cache.

    Raises:
        OutputInGitError: Git tracks one of its outputs.
    """
    check_git(repo, stage)
    distributed = read_distributed(stage.meta, stage.file, stage.address)
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
            distributed=distributed,
        )
    for dep in stage.deps:
        if dep.external and not ("://" in dep.name or dep.name.startswith("/")):
            raise StageError(
                f"stage '{stage.address}' runs in a temporary folder, where the relative path '{dep.name}' "
                "does not lead outside the repository. Give an absolute path, or run the stage in the "
                "workspace."
            )
    outs = []
    for out in stage.outs:
        previous, isexec = None, False
        if out.persist and snapshot.look(out.path).digest:
            stored = repo.workspace.take(out.path)
            previous, isexec = stored.digest, stored.isexec
        elif (
            out.persist and out.cached and snapshot.away is not None
        ):  # the last content is only on the remote
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
        models=stage.models,
        distributed=distributed,
        plots={
            out.path: {key: out.options[key] for key in PLOT_OPTIONS if key in out.options}
            for out in stage.outs
            if out.kind == "plot"
        },
        meta=StepMeta(stage.meta, stage.file, (*stage.place, "meta")),
    )


def _dependencies(snapshot: Snapshot, stage: Stage, inputs: Inputs) -> tuple[StepContent, ...]:
    items = {item["path"]: item for item in inputs.items}
    deps = {}
    for dep in stage.deps:
        if dep.external:
            continue  # the command reads it directly, a dataset by the version in dvc.lock
        item = items.get(dep.name)
        if item is None:
            deps[dep.path] = StepContent(dep.path, Content(""))
            continue
        # The digest of a DVC 2.x entry is not of the raw bytes. It is valid only while the workspace still has the
        # content.
        content = content_of(item) if item.get("hash") == MD5 else snapshot.look(dep.path).content
        deps[dep.path] = StepContent(dep.path, content or Content(""))
    return tuple(deps.values())


def _parameters(stage: Stage, inputs: Inputs) -> dict[str, Mapping[str, Any]]:
    return {
        stage.params_path(file): inputs.params[file] if keys else {"": inputs.params[file]}
        for file, keys in stage.params.items()
    }


def _cache_config(repo: Repository) -> dict[str, str]:
    """Return the settings of the cache's folder and its links; none of them is a secret."""
    settings = {"dir": str(repo.cache.root)}
    for name in ("type", "shared"):
        if value := repo.config.get("cache", name):
            settings[name] = str(value)
    return settings


def bring_inputs(snapshot: Snapshot, stage: Stage) -> None:
    """Check out tracked inputs of a stage that are missing from the workspace.

    Args:
        snapshot: State of the workspace.
        stage: The stage.

    Raises:
        StageError: The cache lacks an input.
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
                if output.path in snapshot.not_pulled:
                    failed = snapshot.not_pulled[output.path]
                    raise StageError(
                        f"stage '{stage.address}': its dependency '{output.path}' could not be pulled: {failed}"
                    ) from failed
                raise StageError(
                    f"stage '{stage.address}': its dependency '{output.path}' is neither in the workspace "
                    f"nor complete in the cache. Run `dvkf pull`. ({error})"
                ) from error
    snapshot.forget(absent)


def pull_runs(repo: Repository) -> None:
    """Pull the run cache from the default remote; failures are logged and ignored.

    Args:
        repo: The repository.
    """
    from dvkf_prefect.data.transfer.run_cache import move_runs, plan_runs

    try:
        remote = repo.remote()
        runs = plan_runs(repo.cache, remote, push=False)
        with repo.lock():
            move_runs(runs, repo.cache, remote, push=False, progress=repo.progress)
    except DvkfError as error:
        import logging

        logging.getLogger(__name__).warning("could not pull the run cache: %s", error)


def pull_inputs(snapshot: Snapshot, stage: Stage) -> None:
    """Pull tracked inputs of a stage that are neither in the workspace nor in the cache.

    Args:
        snapshot: State of the workspace.
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
            from dvkf_prefect.data.verbs.pull import pull

            # An input that only a comparison needs may stay away; `bring_inputs` refuses one that the stage reads.
            try:
                pull(snapshot.repo, [output.path])
            except DvkfError as error:
                snapshot.not_pulled[output.path] = error
            snapshot.forget([output.path])


def check_inputs(stage: Stage, inputs: Inputs, *, ahead: bool = False) -> None:
    """Refuse to run a stage that lacks an input.

    Args:
        stage: The stage.
        inputs: Inputs of the stage.
        ahead: True if the stage waits for others; their future outputs are not missing.

    Raises:
        StageError: An input is missing.
    """
    for dep in stage.deps:
        if dep.dataset is not None and inputs.datasets.get(dep.name) is None:
            raise StageError(
                f"stage '{stage.address}': dvc.lock has no version of its dataset '{dep.name}'. Run "
                f"`dvc dataset update {dep.dataset}`."
            )
    unknown = [name for name, stored in inputs.deps.items() if stored is UNKNOWN]
    if unknown and not ahead:
        raise StageError(
            f"stage '{stage.address}' depends on the folder {', '.join(unknown)}, and outputs of other "
            "stages inside it are only on the remote. Depend on those outputs instead, or fetch the outputs "
            "of stages (fetch)."
        )
    check_readable(stage, inputs)
    missing = [without_secrets(name) for name, stored in inputs.deps.items() if stored is None]
    if missing:
        raise StageError(
            f"stage '{stage.address}': missing dependencies: {', '.join(missing)} (no recorded version). "
            "Create them, or run `dvkf pull`."
        )
    check_params_there(stage, inputs)


def check_readable(stage: Stage, inputs: Inputs) -> None:
    """Refuse a stage with an input that no manifest can describe.

    Raises:
        StageError: An input cannot be read.
    """
    for name, said in inputs.wrong.items():
        raise StageError(f"stage '{stage.address}': its dependency '{name}' cannot be read: {said}")


def check_params_there(stage: Stage, inputs: Inputs) -> None:
    """Refuse a stage with missing parameters.

    Raises:
        StageError: A parameter is missing.
    """
    if inputs.missing_params:
        raise StageError(
            f"stage '{stage.address}': missing parameters: {', '.join(inputs.missing_params)}. Add them, or "
            "remove them from `params`."
        )


def check_git(repo: Repository, stage: Stage) -> None:
    """Refuse to overwrite outputs that git tracks: changes in git and in the cache would diverge unnoticed."""
    cached = [str(repo.root / out.path) for out in stage.outs if out.cached]
    if repo.git is None or not cached:
        return
    top = repo.git.root.resolve()
    tracked = repo.git.tracked([Path(path).relative_to(top).as_posix() for path in cached])
    if tracked:
        raise OutputInGitError(
            f"stage '{stage.address}': git tracks its output '{tracked[0]}'. Run "
            f"`git rm -r --cached '{tracked[0]}'`, or set `cache: false` for the output."
        )
