"""Decision on each stage: run it, skip it, or restore the outputs of an equal run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import DvkfError
from dvkf_prefect.formats.dvclock import Entry, content_of, make_entry
from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.formats.objects import LEGACY
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.pipeline.plan.runcache import RunCache, can_restore
from dvkf_prefect.pipeline.plan.selection import choose
from dvkf_prefect.pipeline.plan.signature import input_key
from dvkf_prefect.pipeline.plan.snapshot import Inputs, Snapshot
from dvkf_prefect.pipeline.plan.why import Action, Decision, Reason, reasons_for

_ABSENT = ("is missing", "is not in the cache")


@dataclass(frozen=True, slots=True)
class Expansion:
    """Expansion of targets to stages.

    Attributes:
        single_item: Select only the targets, not their upstream stages.
        pipeline: Select everything connected with the targets.
        downstream: Select the targets and their downstream stages instead of the upstream ones.
        recursive: Let a folder select all stages defined in it and its subfolders.
        glob: Treat names of stages as patterns.
    """

    single_item: bool = False
    pipeline: bool = False
    downstream: bool = False
    recursive: bool = False
    glob: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules of a decision, named as DVC's options.

    Attributes:
        force: Run stages even if nothing changed, without the run cache.
        force_downstream: Run all stages downstream of a stage that ran.
        run_cache: Restore the outputs of an equal run.
        pull: Fetch missing data from the remote.
        allow_missing: Ignore missing data as a reason to run.
    """

    force: bool = False
    force_downstream: bool = False
    run_cache: bool = True
    pull: bool = False
    allow_missing: bool = False


@dataclass(frozen=True)
class StageDecision:
    """A decision with its basis.

    Attributes:
        decision: The decision.
        inputs: Current inputs of the stage.
        entry: The run whose outputs are restored; for a skip with reasons, the last run.
    """

    decision: Decision
    inputs: Inputs
    entry: Entry | None = None


def selected(snapshot: Snapshot, targets: Sequence[str], expansion: Expansion) -> list[Stage]:
    """Return the selected stages, in the order of the graph.

    Args:
        snapshot: State of the workspace.
        targets: See `dvkf_prefect.pipeline.plan.selection.choose`; all stages if empty.
        expansion: Expansion of the targets.

    Raises:
        StageNotFoundError: A target selects no stage.
    """
    graph = snapshot.graph
    if not targets:
        return graph.order(None)
    wanted = set(choose(snapshot.repo, graph, targets, recursive=expansion.recursive, glob=expansion.glob))
    if expansion.pipeline or expansion.downstream:
        users: dict[str, list[str]] = {address: [] for address in graph.stages}
        for address in graph.stages:
            for other in graph.needs(address):
                users[other].append(address)
        queue, wanted = list(wanted), set()
        while queue:
            address = queue.pop()
            if address not in wanted:
                wanted.add(address)
                queue += users[address]
                if expansion.pipeline:
                    queue += graph.needs(address)
        return graph.order(wanted, alone=True)
    return graph.order(wanted, alone=expansion.single_item)


def decide(
    snapshot: Snapshot,
    stage: Stage,
    rules: Rules,
    *,
    forced: bool = False,
    dry: bool = True,
    on_disk: bool = False,
) -> StageDecision:
    """Decide on one stage, after the stages that it needs.

    Args:
        snapshot: State of the workspace.
        stage: The stage.
        rules: Rules of the decision.
        forced: Run it in any case.
        dry: Only query the remote; if False, fetch the data that the decision depends on.
        on_disk: Require its inputs in the workspace, see `Snapshot.inputs`.
    """
    entry = snapshot.entry(stage)
    inputs = snapshot.inputs(stage, entry, on_disk=on_disk)
    reasons = reasons_for(snapshot, stage, entry, inputs)
    forced = forced or rules.force

    def made(action: Action, why: tuple[Reason, ...], run: Entry | None = None) -> StageDecision:
        return StageDecision(Decision(stage.address, action, why, stage.cmd), inputs, run)

    if rules.allow_missing and entry is not None and not forced:
        reasons = tuple(reason for reason in reasons if not _is_absence(reason))
    if stage.frozen:
        return made("skip", reasons or ((Reason("forced", stage.address),) if forced else ()), entry)
    if forced:
        return made("run", reasons or (Reason("forced", stage.address),))
    if not reasons:
        return made("skip", (), entry)
    known = _known_run(snapshot, stage, entry, inputs, reasons, rules, dry=dry)
    return made("restore" if known else "run", reasons, known)


def _is_absence(reason: Reason) -> bool:
    return reason.kind in ("dependency", "output") and reason.note in _ABSENT and reason.old is not None


def _known_run(
    snapshot: Snapshot,
    stage: Stage,
    entry: Entry | None,
    inputs: Inputs,
    reasons: Sequence[Reason],
    rules: Rules,
    *,
    dry: bool,
) -> Entry | None:
    """Return a run with the same inputs whose outputs are all available, or None."""
    # The next run continues from the current content of a persistent output.
    only_outputs = all(reason.kind == "output" for reason in reasons) and not any(
        out.persist and snapshot.look(out.path).digest for out in stage.outs
    )
    if (
        entry is not None
        and only_outputs
        and _is_known(stage, entry, reasons, rules)
        and _can_have(snapshot, stage, entry, pull=rules.pull, dry=dry)
    ):
        return entry
    if not inputs.known or not rules.run_cache:
        return None
    wanted = make_entry(
        stage.command, inputs.items, inputs.params, [{"path": out.name} for out in stage.outs]
    )
    if not can_restore(stage, wanted):
        return None
    run = RunCache(snapshot.repo.cache.root).find(input_key(wanted))
    if run is None or not _can_have(snapshot, stage, run, pull=rules.pull, dry=dry):
        return None
    return run


def _is_known(stage: Stage, entry: Entry, reasons: Sequence[Reason], rules: Rules) -> bool:
    """Return True if the last run's outputs may be restored; as in DVC, only stages with inputs have known runs.

    Outputs that are unchanged in the workspace and missing only from the cache are cached again, whatever the stage
    reads.
    """
    if can_restore(stage, entry) or (rules.pull and all(map(_is_absence, reasons))):
        return True
    return all(reason.note == "is not in the cache" for reason in reasons)


def _can_have(snapshot: Snapshot, stage: Stage, entry: Entry, *, pull: bool, dry: bool) -> bool:
    """Return True if all outputs of a run are in the cache or the workspace, or with ``pull`` on the remote."""
    recorded = {item["path"]: item for item in entry.get("outs", ())}
    away: list[Output] = []
    for out in stage.outs:
        item = recorded.get(out.name)
        digest = item.get("md5") if item else None
        if item is None or not digest:
            return False
        hash_name = item.get("hash", LEGACY)
        if snapshot.is_cached(digest, hash_name) or snapshot.look(out.path, hash_name).digest == digest:
            continue
        if not pull:
            return False
        away.append(_output(stage, out.path, item, out.remote))
    if not away:
        return True
    return bring(snapshot.repo, away, dry=dry)


def _output(stage: Stage, path: str, item: dict[str, Any], remote: str | None) -> Output:
    return Output(path, content_of(item), remote=remote, source=stage.file, stage=stage.name)


def bring(repo: Repository, outputs: Sequence[Output], *, dry: bool = False) -> bool:
    """Fetch outputs into the cache from their remotes; return True if all of them are there.

    Args:
        repo: The repository.
        outputs: The outputs to fetch.
        dry: Only check if the remotes have them.
    """
    from dvkf_prefect.data.transfer.plan import plan_fetch
    from dvkf_prefect.data.transfer.transfer import fetch

    groups: dict[str | None, list[Output]] = {}
    for output in outputs:
        groups.setdefault(output.remote, []).append(output)
    try:
        for name, group in groups.items():
            remote = repo.remote(name)
            if dry:
                if plan_fetch(group, repo.cache, remote, check=True).failures:
                    return False
                continue
            with repo.lock():
                fetch(group, repo.cache, remote)
    except DvkfError:
        return False
    return True
