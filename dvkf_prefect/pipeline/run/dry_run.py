"""What `repro` would do: each stage judged by what is there now, as DVC's ``repro --dry`` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from dvkf_prefect.data.repo import Repo
from dvkf_prefect.errors import DvkfError, StageError
from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.pipeline.plan.decide import Rules, Scope, decide, selected
from dvkf_prefect.pipeline.plan.snapshot import Snapshot
from dvkf_prefect.pipeline.plan.why import Decision
from dvkf_prefect.pipeline.run.dvc_files import SourceEvent, add_users, is_source, settle
from dvkf_prefect.pipeline.run.events import ReproResult
from dvkf_prefect.pipeline.run.inputs import check_params_there, check_readable

__all__ = ["chosen", "plan", "rehearse"]


def plan(
    repo: Repo,
    targets: Sequence[str] = (),
    *,
    force: bool = False,
    single_item: bool = False,
    scope: Scope | None = None,
    rules: Rules | None = None,
) -> list[Decision]:
    """Tell what `repro` would do; nothing is run or written but what a look remembers.

    Args:
        repo: The repository.
        targets: Stages, groups of them, dvc.yaml files, folders with one, outputs or `.dvc` files, relative to the
            root, with what they need; all stages if empty.
        force: Run stages for which nothing changed, too.
        single_item: Leave out what the targets need.
        scope: What else is meant by the targets, or what not; takes the place of ``single_item``.
        rules: How to decide; takes the place of ``force``.

    Returns:
        A decision for each stage, in the order of the graph. Each is judged by what is here now, as DVC does: a stage
        after one that runs is skipped, unless something that it reads has changed already.

    Raises:
        StageNotFoundError: A target is none of them.
        StageGraphError: The stages do not form a graph.
        ParseError: A file does not say what its format allows.

    Example:
        >>> for decision in plan(Repo.open("path/to/repository")):
        ...     print(decision)
    """
    snapshot = Snapshot(repo, only_looks=True)
    rules = rules or Rules(force=force)
    decisions = []
    forced: set[str] = set()
    for stage in chosen(snapshot, targets, scope or Scope(single_item=single_item)):
        choice = decide(
            snapshot, stage, rules, forced=not forced.isdisjoint(snapshot.graph.needs(stage.address))
        )
        decisions.append(choice.decision)
        if rules.force_downstream and choice.decision.action != "skip":
            forced.add(stage.address)
    return decisions


def rehearse(
    repo: Repo,
    targets: Sequence[str],
    *,
    scope: Scope,
    rules: Rules,
    on_error: Literal["fail", "keep-going", "ignore"],
    on_decision: Callable[[Stage, Decision], None],
    on_failure: Callable[[Stage, DvkfError], None],
    on_source: Callable[[SourceEvent], None],
) -> ReproResult:
    """Tell what ``repro`` would do, as ``repro --dry`` does: nothing is run or written.

    Unlike for `plan`, what stages read has to lie in the workspace, unless it may be missing or come from a remote.

    Args:
        repo: The repository.
        targets: As for `repro`.
        scope: As for `repro`.
        rules: As for `repro`.
        on_error: As for `repro`.
        on_decision: Told of each stage that can be judged.
        on_failure: Told of each stage that lacks what it reads.
        on_source: Told of each `.dvc` file that stages read, and of what would be done with it.

    Returns:
        The decisions, and the stages that failed or were not come to.

    Raises:
        StageNotFoundError: A target is none of them.
        StageGraphError: The stages do not form a graph.
        ParseError: A file does not say what its format allows.
    """
    snapshot = Snapshot(repo, only_looks=True)
    stages = chosen(snapshot, targets, scope)
    sources = [target for target in targets if is_source(target)]
    if not scope.single_item or sources:
        settle(snapshot, stages, sources, rules=rules, tell=on_source, dry=True)
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
    """Refuse a stage for which DVC cannot look up a known run, since it lacks what it reads.

    Raises:
        StageError: It lacks something.
    """
    if stage.runs_always or not stage.outs:
        return  # DVC knows no runs of these
    inputs = snapshot.inputs(stage, snapshot.entry(stage), on_disk=True)
    check_readable(stage, inputs)
    missing = [name for name, stored in inputs.deps.items() if stored is None]
    if missing:
        raise StageError(
            f"stage '{stage.address}': its dependencies {', '.join(missing)} do not exist in the workspace. Run the "
            "stages that write them, or bring them with `dvkf pull`."
        )
    if any(stage.params.values()):
        check_params_there(stage, inputs)


def chosen(snapshot: Snapshot, targets: Sequence[str], scope: Scope) -> list[Stage]:
    """Return the stages that targets mean; of `.dvc` files those that read them, where it goes downstream."""
    named = [target for target in targets if not is_source(target)]
    if len(named) < len(targets):
        if scope.downstream or scope.pipeline:
            named += add_users(snapshot, [target for target in targets if is_source(target)])
        if not named:
            return []
    return selected(snapshot, named, scope)
