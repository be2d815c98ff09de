"""Reproduction of stages: run the changed ones, restore known results, skip the rest."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.repository.turns import turn
from dvkf_prefect.errors import DvkfError, StageCancelledError, StageFailedError
from dvkf_prefect.formats.dvclock import make_entry
from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.pipeline.plan.decide import Expansion, Rules, StageDecision, decide
from dvkf_prefect.pipeline.plan.snapshot import Inputs, Snapshot
from dvkf_prefect.pipeline.plan.why import Decision
from dvkf_prefect.pipeline.run.batch import (
    Batch,
    Followers,
    Member,
    Outcome,
    can_join,
    items_read,
    unchanged,
    with_known,
)
from dvkf_prefect.pipeline.run.dry_run import chosen
from dvkf_prefect.pipeline.run.dvc_files import SourceEvent, is_source, late_sources, read_by, settle
from dvkf_prefect.pipeline.run.events import OnError, ReproResult, StageEvent
from dvkf_prefect.pipeline.run.inputs import bring_inputs, check_inputs, make_spec, pull_inputs, pull_runs
from dvkf_prefect.pipeline.run.outputs import (
    contents_of,
    is_away,
    keep_changed,
    put_outputs,
    record,
    refer_outputs,
    settle_outputs,
    take_outputs,
)
from dvkf_prefect.pipeline.run.stages_lock import StagesLock
from dvkf_prefect.pipeline.run.undeclared import hint_at_undeclared, warn_of_undeclared
from dvkf_prefect.pipeline.step.runner import (
    BatchRunner,
    Interruptible,
    Runner,
    StageRun,
    is_lenient,
    kept_on_failure,
    runs_in_place,
)
from dvkf_prefect.pipeline.step.spec import StepContent, StepResult

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor


def repro(
    repo: Repository,
    targets: Sequence[str] = (),
    *,
    runner: Runner,
    force: bool = False,
    single_item: bool = False,
    expansion: Expansion | None = None,
    rules: Rules | None = None,
    on_error: OnError = "keep-going",
    commit: bool = True,
    jobs: int = 2,
    raise_failures: bool = True,
    confirm: Callable[[Stage], bool] | None = None,
    on_event: Callable[[StageEvent], None] | None = None,
    on_source: Callable[[SourceEvent], None] | None = None,
) -> ReproResult:
    """Bring stages up to date; independent stages run at the same time.

    After each stage its outputs are written into the workspace, and its entry into the run cache and dvc.lock. The
    repository is locked only then, not while commands run. A batch runner gets all stages that run at once.

    Args:
        repo: The repository.
        targets: Stages, groups of them, dvc.yaml files, folders with one, outputs or `.dvc` files, relative to the
            root. Their upstream stages are included. All stages if empty.
        runner: Runner that executes the stages.
        force: Run stages even if nothing changed.
        single_item: Leave out the upstream stages of the targets.
        expansion: Expansion of the targets; replaces ``single_item``.
        rules: Rules of the decisions, and the option to pull data; replaces ``force``.
        on_error: Reaction to a failed stage. ``keep-going`` leaves out its downstream stages and finishes all others.
            ``fail`` starts no more stages. ``ignore`` continues as if it had succeeded.
        commit: False records the outputs, but stores them neither in the cache nor in the run cache.
        jobs: Number of stages that run at once; a batch runner decides for itself.
        raise_failures: False returns failed stages in the result instead of raising the first one's error.
        confirm: Called before a stage runs or is restored; False makes the stage fail.
        on_event: Called with each stage's start and end, in this thread.
        on_source: Called with each `.dvc` file that stages read, in this thread.

    Returns:
        Decisions and outcomes of all stages.

    Raises:
        StageError: A stage failed; the first one, raised after the others have ended.
        StageNotFoundError: A target is none of these.
        StageGraphError: The stages do not form a graph.
        ParseError: A file does not follow its format.
        LockedError: Another process held the repository, or had the workspace alone, for too long.

    Example:
        >>> from dvkf_prefect.pipeline.step.runner import LocalRunner
        >>> with LocalRunner() as runner:
        ...     result = repro(Repo.open("path/to/repository"), ["train"], runner=runner, on_event=print)
    """
    job = _Repro(
        repo,
        runner,
        expansion=expansion or Expansion(single_item=single_item),
        rules=rules or Rules(force=force),
        on_error=on_error,
        commit=commit,
        jobs=jobs,
        confirm=confirm,
        on_event=on_event or (lambda event: None),
        on_source=on_source or (lambda event: None),
    )
    with turn(repo.turn_file):
        result = job.run(targets)
    if raise_failures and result.failed and on_error != "ignore":
        error = job.errors[result.failed[0]]
        error.blocked = result.blocked
        raise error
    return result


class _Repro:
    """One call of `repro`; the scheduling and all writing happen in the caller's thread."""

    def __init__(
        self,
        repo: Repository,
        runner: Runner,
        *,
        expansion: Expansion,
        rules: Rules,
        on_error: OnError,
        commit: bool,
        jobs: int,
        confirm: Callable[[Stage], bool] | None,
        on_event: Callable[[StageEvent], None],
        on_source: Callable[[SourceEvent], None],
    ) -> None:
        self._repo = repo
        self._runner = runner
        # True if the stages' outputs stay on the remote.
        self._by_reference = isinstance(runner, BatchRunner) and not runner.fetches
        # Created on demand: importing it takes longer than a run without changes.
        self._pool: ThreadPoolExecutor | None = None
        self._expansion = expansion
        self._rules = rules
        self._on_error = on_error
        self._commit = commit
        self._jobs = max(jobs, 1)
        self._confirm = confirm
        self._on_event = on_event
        self._on_source = on_source
        self._decisions: dict[str, Decision] = {}
        self._forced: set[str] = set()
        self._ended = 0
        self._late: set[str] = set()  # outputs of imports that follow stages' outputs, until they are due
        # Stages of the batch that is being recorded, and stages stopped once because others of their batch failed.
        self._together: set[str] = set()
        self._ended_along: set[str] = set()
        self._running: dict[Future[StepResult], tuple[Stage, StageDecision, StageRun]] = {}
        self._started: dict[str, int] = {}
        # Stages that ran beside others; their undeclared writes cannot be distinguished.
        self._crowded: set[str] = set()
        self._stages_lock = StagesLock(repo)
        self.errors: dict[str, DvkfError] = {}

    def run(self, targets: Sequence[str]) -> ReproResult:
        """Bring the stages up to date; failures are collected in ``errors``."""
        if self._rules.pull and self._rules.run_cache:
            pull_runs(self._repo)
        self._snapshot = Snapshot(self._repo, self._repo.remote() if self._by_reference else None)
        stages = chosen(self._snapshot, targets, self._expansion)
        self._order = [stage.address for stage in stages]
        self._place = {address: i for i, address in enumerate(self._order)}
        # New entries of a dvc.lock follow the graph's order, as in DVC, regardless of which stage ends first.
        self._fresh = {
            (stage.file, stage.name): self._place[stage.address]
            for stage in stages
            if self._snapshot.entry(stage) is None
        }
        self._sources = sources = [target for target in targets if is_source(target)]
        if not self._expansion.single_item or sources:
            self._late = late_sources(self._snapshot, stages)
            self._settle_sources(stages, sources)
        graph, place = self._snapshot.graph, self._place
        needs = {a: {other for other in graph.needs(a) if other in place} for a in self._order}
        self._waits_for = {address: len(needed) for address, needed in needs.items()}
        self._users: dict[str, list[str]] = {address: [] for address in self._order}
        for address, needed in needs.items():
            for other in needed:
                self._users[other].append(address)
        # A heap, not a queue: with one job at a time, stages run in DVC's order.
        self._free = [self._place[a] for a in self._order if not needs[a]]
        if isinstance(self._runner, BatchRunner):
            while members := self._gather():
                self._run_batch(members, self._runner)
            return self._result()
        try:
            self._advance()
            while self._running:
                from concurrent.futures import FIRST_COMPLETED, wait

                for future in wait(self._running, return_when=FIRST_COMPLETED).done:
                    self._end(future)
                self._advance()
        except KeyboardInterrupt:
            self._interrupt()
            raise
        finally:
            for _, _, run in self._running.values():
                run.cancel()
            if self._pool is not None:
                self._pool.shutdown(wait=True)
            self._stages_lock.drop_all()
        return self._result()

    def _interrupt(self) -> None:
        """Let commands end as on Ctrl-C and record those that succeed. A second Ctrl-C stops them."""
        runs = {future: run for future, (_, _, run) in self._running.items()}
        for run in runs.values():
            if isinstance(run, Interruptible):
                run.interrupt()
            else:
                run.cancel()
        from concurrent.futures import as_completed

        for future in as_completed(runs):
            self._end(future)

    def _result(self) -> ReproResult:
        if self._late and not self.errors:
            # Those that no stage read are only due if they were targets.
            due = {self._snapshot.outputs[path].source for path in self._late}
            self._late = set()
            self._settle_sources([], [source for source in self._sources if source in due])
        made = [self._decisions[address] for address in self._order if address in self._decisions]
        done = [decision for decision in made if decision.stage not in self.errors]
        return ReproResult(
            decisions=tuple(made),
            ran=tuple(d.stage for d in done if d.action == "run"),
            skipped=tuple(d.stage for d in done if d.action == "skip"),
            restored=tuple(d.stage for d in done if d.action == "restore"),
            failed=tuple(d.stage for d in made if d.stage in self.errors),
            blocked=tuple(address for address in self._order if address not in self._decisions),
        )

    def _advance(self) -> None:
        """Start or settle stages whose upstream stages are done, in order, up to the number of jobs."""
        while self._free and len(self._running) < self._jobs:
            if self.errors and self._on_error == "fail":
                return
            stage = self._snapshot.graph.stages[self._order[heapq.heappop(self._free)]]
            try:
                choice = self._decide(stage)
            except DvkfError as error:  # its inputs cannot be determined; other stages may not need them
                decision = Decision(stage.address, "run", (), stage.cmd)
                self._decisions[stage.address] = decision
                self._fail(stage, StageDecision(decision, Inputs({}, (), {})), error)
                continue
            self._decisions[stage.address] = choice.decision
            try:
                if choice.decision.action == "run":
                    self._start(stage, choice)
                else:
                    self._settle(stage, choice)
            except DvkfError as error:
                self._fail(stage, choice, error)

    def _settle_sources(self, stages: Sequence[Stage], sources: Sequence[str] = ()) -> None:
        settle(self._snapshot, stages, sources, rules=self._rules, on_source=self._on_source, late=self._late)

    def _decide(self, stage: Stage) -> StageDecision:
        if due := read_by(stage, self._late):
            self._late -= due
            self._settle_sources([stage])
        if self._rules.pull:
            pull_inputs(self._snapshot, stage)
        forced = stage.address in self._forced
        if self._by_reference:  # data on the remote counts as available, and stays there
            rules = replace(self._rules, pull=True)
            return decide(self._snapshot, stage, rules, forced=forced)
        return decide(self._snapshot, stage, self._rules, forced=forced, dry=False)

    # -- batches ---------------------------------------------------------------------------------------------------

    def _gather(self) -> dict[str, Member]:
        """Decide on all free stages; return those that run, together with those that wait for them."""
        members: dict[str, Member] = {}
        ahead = self._snapshot
        while self._free:
            if self.errors and self._on_error == "fail":
                for address in members:
                    del self._decisions[address]
                return {}
            stage = self._snapshot.graph.stages[self._order[heapq.heappop(self._free)]]
            waits_for = frozenset(a for a in self._snapshot.graph.needs(stage.address) if a in members)
            alone = bool(read_by(stage, self._late))
            if waits_for and (alone or not can_join(stage, (members[a].stage for a in members))):
                continue
            if waits_for:
                choice = decide(ahead, stage, self._rules, forced=self._rules.force_downstream)
            else:
                choice = self._decide(stage)
            if choice.decision.action != "run" and waits_for:
                continue  # reconsidered once its inputs are known
            self._decisions[stage.address] = choice.decision
            try:
                if choice.decision.action == "run":
                    members[stage.address] = self._member(stage, choice, waits_for)
                else:
                    self._settle(stage, choice)
            except DvkfError as error:
                self._fail(stage, choice, error)
                continue
            if stage.address in members:
                ahead = ahead.ahead() if ahead is self._snapshot else ahead
                ahead.plan(stage, None)
            for user in self._users[stage.address]:
                needed = [a for a in self._snapshot.graph.needs(user) if a in members]
                if 0 < self._waits_for[user] == len(needed) and self._place[user] not in self._free:
                    heapq.heappush(self._free, self._place[user])
        return members

    def _member(self, stage: Stage, choice: StageDecision, waits_for: frozenset[str]) -> Member:
        self._ask(stage)
        check_inputs(stage, choice.inputs, ahead=bool(waits_for))
        lenient = is_lenient(self._runner, stage)
        spec = make_spec(
            self._repo, self._snapshot, stage, choice.inputs, commit=self._commit, lenient=lenient
        )
        if waits_for and not (self._rules.force or self._rules.force_downstream):
            spec = with_known(spec, stage, choice, self._snapshot.entry(stage))
        return Member(stage, choice, spec, waits_for)

    def _run_batch(self, members: Mapping[str, Member], runner: BatchRunner) -> None:
        """Run stages together; record each as it ends. The runner finds the run that a killed process left."""

        def start(member: Member) -> None:
            self._say(StageEvent(member.stage.address, "start", member.choice.decision.reasons))

        recorded: set[str] = set()

        def end(member: Member, outcome: Outcome) -> None:
            if not isinstance(outcome, StageCancelledError):
                recorded.add(member.stage.address)
                self._end_of_member(member, outcome)

        self._together = set(members)
        batch = Batch(runner, members, on_start=start, on_end=end)
        try:
            batch.run()
        finally:
            for address in batch.outcomes.keys() - recorded:  # ended after an interrupt
                end(members[address], batch.outcomes[address])
            self._settle_stopped(batch, members)

    def _end_of_member(self, member: Member, outcome: Outcome) -> None:
        try:
            if isinstance(outcome, StageFailedError):
                raise hint_at_undeclared(self._repo, member.stage, outcome)
            if isinstance(outcome, DvkfError):
                raise outcome
            with kept_on_failure(self._runner, member.stage.address):
                self._take(member, outcome)
        except DvkfError as error:
            self._fail(member.stage, member.choice, error)

    def _settle_stopped(self, batch: Batch, members: Mapping[str, Member]) -> None:
        """Decide on stages that were stopped, or did not end: they get one more attempt after others' failure."""
        again = []
        for address, member in members.items():
            outcome = batch.outcomes.get(address)
            if outcome is None or isinstance(outcome, StageCancelledError):
                del self._decisions[address]
                if batch.blocked(address) or (batch.failed and address not in self._ended_along):
                    again.append(address)
                    self._ended_along.add(address)
                elif outcome is not None:
                    self._decisions[address] = member.choice.decision
                    self._fail(member.stage, member.choice, outcome)
        self._together = set()
        for address in again:
            if not self._waits_for[address]:
                heapq.heappush(self._free, self._place[address])

    def _take(self, member: Member, result: StepResult) -> None:
        """Record a stage that succeeded."""
        stage, choice = member.stage, member.choice
        if result.restored:
            choice = unchanged(choice)
            self._decisions[stage.address] = choice.decision
            why = choice.decision.reasons
            self._say(StageEvent(stage.address, "restore" if why else "skip", why))
        items = items_read(member, result)
        choice = replace(choice, inputs=replace(choice.inputs, items=items))
        self._finish(stage, choice, result.outs, side_dir=result.side_dir)
        if not result.restored:
            reasons, tail, warnings = choice.decision.reasons, result.log_tail, result.warnings
            self._say(
                StageEvent(stage.address, "done", reasons, result.seconds, log_tail=tail, warnings=warnings)
            )
        self._done(stage, changed=not result.restored)

    # -- single stages ---------------------------------------------------------------------------------------------

    def _ask(self, stage: Stage) -> None:
        if self._confirm is not None and not self._confirm(stage):
            raise StageCancelledError(f"stage '{stage.address}': reproduction aborted by the user")

    def _start(self, stage: Stage, choice: StageDecision) -> None:
        self._ask(stage)
        in_place = runs_in_place(self._runner, stage)
        check_inputs(stage, choice.inputs)
        if in_place:
            bring_inputs(self._snapshot, stage)
            self._stages_lock.add(stage)
        try:
            if in_place:
                keep_changed(self._snapshot, stage)
            spec = make_spec(
                self._repo,
                self._snapshot,
                stage,
                choice.inputs,
                commit=self._commit,
                in_place=in_place,
                lenient=is_lenient(self._runner, stage),
                linked=True,
            )
            self._say(StageEvent(stage.address, "start", choice.decision.reasons))
            self._started[stage.address] = time.time_ns()
            if self._running:
                self._crowded.update(
                    {stage.address}, (other.address for other, _, _ in self._running.values())
                )
            run = self._runner.start(spec)
        except BaseException:
            self._stages_lock.drop(stage)
            raise
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(self._jobs, thread_name_prefix="dvkf-stage")
        self._running[self._pool.submit(run.wait)] = (stage, choice, run)

    def _settle(self, stage: Stage, choice: StageDecision) -> None:
        """Restore a stage, or skip it."""
        reasons = choice.decision.reasons
        restored = choice.decision.action == "restore"
        if restored and choice.entry is not None:
            self._ask(stage)
            self._finish(stage, choice, contents_of(stage, choice.entry))
        elif reasons:
            self._record_frozen(stage, choice)
        kind: Literal["restore", "skip"] = "restore" if restored else "skip"
        self._say(StageEvent(stage.address, kind, reasons, frozen=stage.frozen))
        self._done(stage, changed=restored)

    def _say(self, event: StageEvent) -> None:
        self._ended += event.kind != "start"
        self._on_event(replace(event, ended=self._ended, total=len(self._order)))

    def _done(self, stage: Stage, *, changed: bool) -> None:
        for user in self._users[stage.address]:
            self._waits_for[user] -= 1
            if not self._waits_for[user] and user not in self._together:
                heapq.heappush(self._free, self._place[user])
            if changed and self._rules.force_downstream:
                self._forced.add(user)

    def _record_frozen(self, stage: Stage, choice: StageDecision) -> None:
        """Record the changes of a frozen stage, which never runs.

        Missing outputs are a failure, as in DVC; they are restored only if data may be pulled.
        """
        may_come = self._rules.pull or self._by_reference
        if (
            may_come
            and choice.entry is not None
            and not any(self._snapshot.look(out.path).digest for out in stage.outs if out.cached)
        ):
            self._finish(stage, choice, contents_of(stage, choice.entry))
            return
        check_inputs(stage, choice.inputs)
        with self._repo.lock(write=[out.path for out in stage.outs]):
            outs = take_outputs(self._repo, stage, old=self._snapshot.entry(stage), commit=self._commit)
            entry = make_entry(stage.command, choice.inputs.items, choice.inputs.params, outs)
            record(self._repo, stage, entry, before=self._followers(stage), save_run=self._commit)
        self._snapshot.forget(out.path for out in stage.outs)

    def _end(self, future: Future[StepResult]) -> None:
        stage, choice, _ = self._running.pop(future)
        in_place = runs_in_place(self._runner, stage)
        try:
            result = future.result()
            if in_place:
                warnings = warn_of_undeclared(
                    self._repo,
                    stage,
                    outputs=self._snapshot.outputs,
                    since=self._started[stage.address],
                    alone=stage.address not in self._crowded,
                )
                result = replace(result, warnings=(*result.warnings, *warnings))
            if in_place and not result.restored:
                self._finish_in_place(stage, choice, result.outs)
            else:
                self._finish(stage, choice, result.outs, side_dir=result.side_dir)
        except StageFailedError as error:
            hinted = error if in_place else hint_at_undeclared(self._repo, stage, error)
            self._fail(stage, choice, hinted)
        except DvkfError as error:
            self._fail(stage, choice, error)
        else:
            reasons, tail = choice.decision.reasons, result.log_tail
            self._say(
                StageEvent(
                    stage.address, "done", reasons, result.seconds, log_tail=tail, warnings=result.warnings
                )
            )
            self._done(stage, changed=True)
        finally:
            if in_place:
                self._snapshot.forget_all()
                self._stages_lock.drop(stage)

    def _finish_in_place(self, stage: Stage, choice: StageDecision, contents: Sequence[StepContent]) -> None:
        """Record a run whose outputs are in the workspace; inputs are recorded in their current state, as in DVC."""
        self._snapshot.forget_all()
        with self._repo.lock(write=[out.path for out in stage.outs]):
            known = self._snapshot.entry(stage)
            outs = settle_outputs(self._repo, stage, contents, old=known, commit=self._commit)
            inputs = self._snapshot.inputs(stage, known)
            check_inputs(stage, inputs)
            entry = make_entry(stage.command, inputs.items, inputs.params, outs)
            record(self._repo, stage, entry, before=self._followers(stage), save_run=self._commit)

    def _finish(
        self, stage: Stage, choice: StageDecision, contents: Sequence[StepContent], *, side_dir: str = ""
    ) -> None:
        """Store a run's outputs, then record it: outputs, run cache, dvc.lock."""
        with self._repo.lock(write=[out.path for out in stage.outs]):
            try:
                away = self._by_reference and self._commit and is_away(self._snapshot, stage, contents)
                if away:
                    outs = refer_outputs(self._repo, stage, contents, side_dir)
                else:
                    outs = put_outputs(
                        self._repo,
                        stage,
                        contents,
                        side_dir,
                        old=self._snapshot.entry(stage),
                        commit=self._commit,
                    )
                inputs = choice.inputs
                entry = make_entry(stage.command, inputs.items, inputs.params, outs)
                before = self._followers(stage)
                record(self._repo, stage, entry, before=before, save_run=self._commit)
            finally:
                if side_dir:
                    import shutil  # slow to import

                    shutil.rmtree(Path(side_dir).parent, ignore_errors=True)
        self._snapshot.forget(out.path for out in stage.outs)
        if away:
            self._snapshot.plan(stage, entry)

    def _followers(self, stage: Stage) -> Container[str]:
        return Followers(self._fresh, stage.file, self._place[stage.address])

    def _fail(self, stage: Stage, choice: StageDecision, error: DvkfError) -> None:
        self.errors[stage.address] = error
        tail = error.log_tail if isinstance(error, StageFailedError) else ""
        self._say(
            StageEvent(stage.address, "fail", choice.decision.reasons, log_tail=tail, message=str(error))
        )
        if self._on_error == "ignore":
            self._done(stage, changed=False)
