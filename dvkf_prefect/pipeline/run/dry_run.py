"""Dry runs of `repro`: each stage is judged by the current state, as in DVC's ``repro --dry``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import DvkfError, StageError
from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.pipeline.plan.decide import Expansion, Rules, decide, selected
from dvkf_prefect.pipeline.plan.snapshot import Snapshot
from dvkf_prefect.pipeline.plan.why import Decision
from dvkf_prefect.pipeline.run.dvc_files import SourceEvent, add_users, is_source, settle
from dvkf_prefect.pipeline.run.events import ReproResult
from dvkf_prefect.pipeline.run.inputs import check_params_there, check_readable

__all__ = ["chosen", "plan", "rehearse"]


def plan(
    repo: Repository,
    targets: Sequence[str] = (),
    *,
    force: bool = False,
    single_item: bool = False,
    expansion: Expansion | None = None,
    rules: Rules | None = None,
    snapshot: Snapshot | None = None,
) -> list[Decision]:
    """Return what `repro` would do, without running it (only the stat cache changes).

    Args:
        repo: The repository.
        targets: Stages, groups of them, dvc.yaml files, folders with one, outputs or `.dvc` files, relative to the
            root. Their upstream stages are included. All stages if empty.
        force: Run stages even if nothing changed.
        single_item: Leave out the upstream stages of the targets.
        expansion: Expansion of the targets; replaces ``single_item``.
        rules: Rules of the decisions; replaces ``force``.
        snapshot: State of the workspace that only looks; read anew if None.

    Returns:
        A decision for each stage, in the order of the graph. Each is judged by the current state, as in DVC. So a
        stage after one that runs is skipped, unless its inputs have already changed.

    Raises:
        StageNotFoundError: A target is none of these.
        StageGraphError: The stages do not form a graph.
        ParseError: A file does not follow its format.

    Example:
        >>> for decision in plan(Repo.open("path/to/repository")):
        ...     print(decision)
    """
    snapshot = snapshot or Snapshot(repo, only_looks=True)
    rules = rules or Rules(force=force)
    decisions = []
    forced: set[str] = set()
    for stage in chosen(snapshot, targets, expansion or Expansion(single_item=single_item)):
        choice = decide(
            snapshot, stage, rules, forced=not forced.isdisjoint(snapshot.graph.needs(stage.address))
        )
        decisions.append(choice.decision)
        if rules.force_downstream and choice.decision.action != "skip":
            forced.add(stage.address)
    return decisions


def rehearse(
    repo: Repository,
    targets: Sequence[str],
    *,
    expansion: Expansion,
    rules: Rules,
    on_error: Literal["fail", "keep-going", "ignore"],
    on_decision: Callable[[Stage, Decision], None],
    on_failure: Callable[[Stage, DvkfError], None],
    on_source: Callable[[SourceEvent], None],
) -> ReproResult:
    """Return what ``repro`` would do, as ``repro --dry`` does: nothing is run or written.

    Unlike for `plan`, inputs must be in the workspace, unless the rules let them be missing or pulled.

    Args:
        repo: The repository.
        targets: As for `repro`.
        expansion: As for `repro`.
        rules: As for `repro`.
        on_error: As for `repro`.
        on_decision: Called with each stage that has a decision.
        on_failure: Called with each stage that lacks an input.
        on_source: Called with each `.dvc` file that stages read, and its planned action.

    Returns:
        The decisions, and the stages that failed or were blocked.

    Raises:
        StageNotFoundError: A target is none of these.
        StageGraphError: The stages do not form a graph.
        ParseError: A file does not follow its format.
    """
    snapshot = Snapshot(repo, only_looks=True)
    stages = chosen(snapshot, targets, expansion)
    sources = [target for target in targets if is_source(target)]
    if not expansion.single_item or sources:
        settle(snapshot, stages, sources, rules=rules, on_source=on_source, dry=True)
    made: list[Decision] = []
    failed: list[str] = []
    blocked: list[str] = []
    forced: set[str] = set()
    strict = not (rules.allow_missing or rules.pull)
    for stage in stages:
        needs = set(snapshot.graph.needs(stage.address))
        if (failed and on_error == "fail") or (
            on_error != "ignore" and not needs.isdisjoint([*failed, *blocked])
        ):
            blocked.append(stage.address)
            continue
        force = rules.force or not forced.isdisjoint(needs)
        try:
            choice = decide(snapshot, stage, rules, forced=force, on_disk=strict)
        except DvkfError as error:
            made.append(Decision(stage.address, "run", (), stage.cmd))
            failed.append(stage.address)
            on_failure(stage, error)
            continue
        made.append(choice.decision)
        try:
            if not (rules.pull or force) and choice.decision.action != "skip":
                _check_there(snapshot, stage)
        except StageError as error:
            failed.append(stage.address)
            on_failure(stage, error)
            continue
        on_decision(stage, choice.decision)
        if rules.force_downstream and choice.decision.action != "skip":
            forced.add(stage.address)
    done = [decision for decision in made if decision.stage not in failed]
    by_action = {
        action: tuple(decision.stage for decision in done if decision.action == action)
        for action in ("run", "skip", "restore")
    }
    return ReproResult(
        decisions=tuple(made),
        ran=by_action["run"],
        skipped=by_action["skip"],
        restored=by_action["restore"],
        failed=tuple(failed),
        blocked=tuple(blocked),
    )


def _check_there(snapshot: Snapshot, stage: Stage) -> None:
    """Refuse a stage that lacks inputs, for which DVC cannot look up a known run.

    Raises:
        StageError: An input is missing.
    """
    if stage.runs_always or not stage.outs:
        return  # DVC has no known runs of these
    inputs = snapshot.inputs(stage, snapshot.entry(stage), on_disk=True)
    check_readable(stage, inputs)
    missing = [name for name, stored in inputs.deps.items() if stored is None]
    if missing:
        raise StageError(
            f"stage '{stage.address}': missing dependencies in the workspace: {', '.join(missing)}. Run the "
            "stages that write them, or run `dvkf pull`."
        )
    if any(stage.params.values()):
        check_params_there(stage, inputs)


def chosen(snapshot: Snapshot, targets: Sequence[str], expansion: Expansion) -> list[Stage]:
    """Return the selected stages; if the expansion includes downstream stages, also the readers of `.dvc` files."""
    named = [target for target in targets if not is_source(target)]
    if len(named) < len(targets):
        if expansion.downstream or expansion.pipeline:
            named += add_users(snapshot, [target for target in targets if is_source(target)])
        if not named:
            return []
    return selected(snapshot, named, expansion)
