"""Bring stages up to date: run what has to run, restore what is known, skip the rest."""

from __future__ import annotations

import posixpath
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dvkf_prefect.data.repo import Repo
from dvkf_prefect.errors import DvkfError, StageError, StageFailedError, StageNotFoundError
from dvkf_prefect.pipeline.lock import Entry, make_entry
from dvkf_prefect.pipeline.record import contents_of, make_spec, put_outputs, record, take_outputs
from dvkf_prefect.pipeline.runcache import RunCache, can_restore
from dvkf_prefect.pipeline.runner import Runner, StageRun
from dvkf_prefect.pipeline.signature import input_key
from dvkf_prefect.pipeline.snapshot import UNKNOWN, Inputs, Snapshot
from dvkf_prefect.pipeline.spec import WORK, StepContent, StepResult
from dvkf_prefect.pipeline.stages import Stage
from dvkf_prefect.pipeline.why import Decision, Reason, reasons_for


@dataclass(frozen=True, slots=True)
class StageEvent:
    """Something that happened to a stage.

    Attributes:
        stage: Its address.
        kind: ``start``, ``skip``, ``restore``, ``done`` or ``fail``.
        reasons: Why it ran or was restored.
        seconds: How long its commands ran.
        log_tail: The end of what they printed.
        message: What went wrong, for ``fail``.
    """

    stage: str
    kind: Literal["start", "skip", "restore", "done", "fail"]
    reasons: tuple[Reason, ...] = ()
    seconds: float = 0.0
    log_tail: str = ""
    message: str = ""

    def __str__(self) -> str:
        why = "; ".join(map(str, self.reasons)) or "nothing changed"
        match self.kind:
            case "start":
                return f"Stage '{self.stage}': running, because {why}"
            case "skip":
                return f"Stage '{self.stage}': skipped, {why}"
            case "restore":
                return f"Stage '{self.stage}': restored from the cache, because {why}"
            case "done":
                return f"Stage '{self.stage}': done in {self.seconds:.1f} s"
            case _:
                return f"Stage '{self.stage}': failed"


@dataclass(frozen=True, slots=True)
class ReproResult:
    """What was done, each in the order of the graph.

    Attributes:
        decisions: One for each stage that was come to.
        ran: Addresses of stages that ran.
        skipped: Those that nothing changed for.
        restored: Those whose outputs came from the cache.
        failed: Those that failed.
        blocked: Those that were not come to because one that they need failed.
    """

    decisions: tuple[Decision, ...] = ()
    ran: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Choice:
    decision: Decision
    inputs: Inputs
    entry: Entry | None = None
    """The run whose outputs are restored; for a skip with reasons, the last one."""


def plan(
    repo: Repo, targets: Sequence[str] = (), *, force: bool = False, single_item: bool = False
) -> list[Decision]:
    """Tell what `repro` would do; nothing is run or written but what a look remembers.

    Args:
        repo: The repository.
        targets: Stages, dvc.yaml files or outputs, with what they need; all stages if empty.
        force: Run stages for which nothing changed, too.
        single_item: Leave out what the targets need.

    Returns:
        A decision for each stage, in the order of the graph. A stage after one that runs is said to run, too; it
        will be skipped if what it reads comes out the same.

    Raises:
        StageNotFoundError: A target is none of them.
        StageGraphError: The stages do not form a graph.
        ParseError: A file does not say what its format allows.

    Example:
        >>> for decision in plan(Repo.open("path/to/repository")):
        ...     print(decision)
    """
    snapshot = Snapshot(repo)
    decisions = []
    for stage in _selected(snapshot, targets, single_item):
        choice = _decide(snapshot, stage, force=force)
        decisions.append(choice.decision)
        if choice.decision.action != "skip":
            snapshot.plan(stage, choice.entry if choice.decision.action == "restore" else None)
    return decisions


def repro(
    repo: Repo,
    targets: Sequence[str] = (),
    *,
    runner: Runner,
    force: bool = False,
    single_item: bool = False,
    jobs: int = 2,
    raise_failures: bool = True,
    on_event: Callable[[StageEvent], None] | None = None,
) -> ReproResult:
    """Bring stages up to date; those that do not need each other run at the same time.

    After each stage its outputs are put into the workspace, and its entry into the run cache and dvc.lock. The
    repository is locked only then, not while commands run. When a stage fails, those that need it are not run
    and all others are finished.

    Args:
        repo: The repository.
        targets: Stages, dvc.yaml files or outputs, with what they need; all stages if empty.
        runner: Where stages execute.
        force: Run stages for which nothing changed, too.
        single_item: Leave out what the targets need.
        jobs: How many stages run at once.
        raise_failures: False returns failed stages in the result instead of raising the first one's error.
        on_event: Told of each stage's start and end, in this thread.

    Returns:
        What was done with each stage, and why.

    Raises:
        StageError: A stage failed; the first one, after the others have ended.
        StageNotFoundError: A target is none of them.
        StageGraphError: The stages do not form a graph.
        ParseError: A file does not say what its format allows.
        LockedError: Another process held the repository for too long.

    Example:
        >>> from dvkf_prefect.pipeline.runner import LocalRunner
        >>> with LocalRunner() as runner:
        ...     result = repro(Repo.open("path/to/repository"), ["train"], runner=runner, on_event=print)
    """
    job = _Repro(repo, runner, force=force, jobs=jobs, tell=on_event or (lambda event: None))
    result = job.run(targets, single_item=single_item)
    if raise_failures and result.failed:
        raise job.errors[result.failed[0]]
    return result


def commit_stages(repo: Repo, targets: Sequence[str] = ()) -> list[str]:
    """Record stages as they are in the workspace now, without running them.

    Args:
        repo: The repository.
        targets: Only these; what is not a stage is passed over. All stages if empty.

    Returns:
        The addresses of those that changed.

    Raises:
        StageError: A dependency or parameter of a changed stage is missing.
        OutputNotFoundError: An output of a changed stage is missing.
    """
    snapshot = Snapshot(repo)
    wanted: set[str] = set()
    for target in targets:
        with suppress(StageNotFoundError):
            wanted.update(snapshot.graph.find(target))
    recorded = []
    for stage in snapshot.graph.order(wanted if targets else None, alone=True):
        entry = snapshot.entry(stage)
        inputs = snapshot.inputs(stage, entry)
        reasons = reasons_for(snapshot, stage, entry, inputs)
        if any(reason.kind != "always" for reason in reasons):
            _check_inputs(stage, inputs)
            with repo.lock(write=[out.path for out in stage.outs]):
                outs = take_outputs(repo, stage)
                record(repo, stage, make_entry(stage, inputs.items, inputs.params, outs))
            snapshot.forget(out.path for out in stage.outs)
            recorded.append(stage.address)
    return recorded


def _selected(snapshot: Snapshot, targets: Sequence[str], single_item: bool) -> list[Stage]:
    wanted = {address for target in targets for address in snapshot.graph.find(target)}
    return snapshot.graph.order(wanted if targets else None, alone=single_item)


def _decide(snapshot: Snapshot, stage: Stage, *, force: bool) -> _Choice:
    entry = snapshot.entry(stage)
    inputs = snapshot.inputs(stage, entry)
    reasons = reasons_for(snapshot, stage, entry, inputs)
    if stage.frozen:
        return _Choice(Decision(stage.address, "skip", reasons), inputs, entry)
    if force:
        return _Choice(Decision(stage.address, "run", reasons or (Reason("forced", stage.address),)), inputs)
    if not reasons:
        return _Choice(Decision(stage.address, "skip"), inputs, entry)
    known = _known_run(snapshot, stage, entry, inputs, reasons)
    action: Literal["restore", "run"] = "restore" if known else "run"
    return _Choice(Decision(stage.address, action, reasons), inputs, known)


def _known_run(
    snapshot: Snapshot, stage: Stage, entry: Entry | None, inputs: Inputs, reasons: Iterable[Reason]
) -> Entry | None:
    """Return a run with the same inputs whose outputs can all be had here, or None."""
    if entry is not None and all(reason.kind == "output" for reason in reasons):
        recorded = {item["path"]: item for item in entry.get("outs", ())}
        if all(
            out.name in recorded and _can_have(snapshot, out.path, recorded[out.name]) for out in stage.outs
        ):
            return entry
    if not inputs.known:
        return None
    wanted = make_entry(stage, inputs.items, inputs.params, [{"path": out.name} for out in stage.outs])
    if not can_restore(stage, wanted):
        return None
    run = RunCache(snapshot.repo.cache.root).find(input_key(wanted))
    if run is None:
        return None
    recorded = {item["path"]: item for item in run["outs"]}
    complete = all(
        out.name in recorded and _can_have(snapshot, out.path, recorded[out.name]) for out in stage.outs
    )
    return run if complete else None


def _can_have(snapshot: Snapshot, path: str, item: dict[str, str]) -> bool:
    digest = item.get("md5")
    if not digest:
        return False
    hash_name = item.get("hash", "md5-dos2unix")
    return snapshot.is_cached(digest, hash_name) or snapshot.look(path, hash_name).digest == digest


def _check_inputs(stage: Stage, inputs: Inputs) -> None:
    for dep in stage.deps:
        if dep.external:
            raise StageError(
                f"stage '{stage.address}' depends on '{dep.name}', which lies outside the repository: a step "
                "gets its dependencies by digest; bring it in with `dvc import-url` and depend on the copy"
            )
    missing = [name for name, stored in inputs.deps.items() if stored is None or stored is UNKNOWN]
    if missing:
        raise StageError(
            f"stage '{stage.address}': its dependencies {', '.join(missing)} do not exist, and nothing tells what "
            "they were; write them, or bring them with `dvkf pull`"
        )
    if inputs.missing_params:
        raise StageError(
            f"stage '{stage.address}': the parameters {', '.join(inputs.missing_params)} do not exist; add them, "
            "or take them out of `params`"
        )


class _Repro:
    """One call of `repro`; the scheduling and all writing happen in the caller's thread."""

    def __init__(
        self, repo: Repo, runner: Runner, *, force: bool, jobs: int, tell: Callable[[StageEvent], None]
    ) -> None:
        self._repo = repo
        self._runner = runner
        self._force = force
        self._jobs = max(jobs, 1)
        self._tell = tell
        self._snapshot = Snapshot(repo)
        self._decisions: dict[str, Decision] = {}
        self._finished: set[str] = set()
        self._ready: list[tuple[Stage, _Choice]] = []
        self._running: dict[Future[StepResult], tuple[Stage, _Choice, StageRun]] = {}
        self.errors: dict[str, DvkfError] = {}

    def run(self, targets: Sequence[str], *, single_item: bool) -> ReproResult:
        """Bring the stages up to date; failures end up in ``errors``."""
        stages = _selected(self._snapshot, targets, single_item)
        self._order = [stage.address for stage in stages]
        self._place = {address: i for i, address in enumerate(self._order)}
        # What is new to a dvc.lock goes in in the graph's order, as DVC has it, whoever ends first.
        self._fresh = {stage.address for stage in stages if self._snapshot.entry(stage) is None}
        if not single_item:
            self._settle_sources(stages)
        waiting = {a: set(self._snapshot.graph.needs(a)).intersection(self._order) for a in self._order}
        pool = ThreadPoolExecutor(self._jobs, thread_name_prefix="dvkf-stage")
        try:
            self._advance(waiting, pool)
            while self._running:
                for future in wait(self._running, return_when=FIRST_COMPLETED).done:
                    self._end(future)
                self._advance(waiting, pool)
        finally:
            for _, _, run in self._running.values():
                run.cancel()
            pool.shutdown(wait=True)
        return self._result(tuple(waiting))

    def _result(self, blocked: tuple[str, ...]) -> ReproResult:
        made = [self._decisions[address] for address in self._order if address in self._decisions]
        done = [decision for decision in made if decision.stage not in self.errors]
        return ReproResult(
            decisions=tuple(made),
            ran=tuple(d.stage for d in done if d.action == "run"),
            skipped=tuple(d.stage for d in done if d.action == "skip"),
            restored=tuple(d.stage for d in done if d.action == "restore"),
            failed=tuple(d.stage for d in made if d.stage in self.errors),
            blocked=blocked,
        )

    def _settle_sources(self, stages: Sequence[Stage]) -> None:
        """Record tracked data that changed, and bring back what is gone, as DVC's repro does with `.dvc` files."""
        read = {dep.path for stage in stages if not stage.frozen for dep in stage.deps if not dep.external}
        folders = {path[:i] for path in read for i, letter in enumerate(path) if letter == "/"}
        for output in list(self._snapshot.outputs.values()):
            above = {output.path[:i] for i, letter in enumerate(output.path) if letter == "/"}
            if output.stage or not output.digest or not output.cached:
                continue
            if output.path not in read and output.path not in folders and not above & read:
                continue
            found = self._snapshot.look(output.path, output.hash_name)
            if found.digest is None:
                if self._snapshot.is_cached(output.digest, output.hash_name):
                    self._repo.checkout([output.path])
            elif found.digest != output.digest:
                self._repo.commit([output.path])
            else:
                continue
            self._snapshot.forget([output.path])

    def _advance(self, waiting: dict[str, set[str]], pool: ThreadPoolExecutor) -> None:
        """Decide on every stage whose needs are done, and start those that must run while there is room."""
        while free := [address for address, needs in waiting.items() if needs <= self._finished]:
            for address in free:
                del waiting[address]
                self._come_to(self._snapshot.graph.stages[address])
        # First come is not first served: with one job at a time, stages run in the order DVC runs them.
        self._ready.sort(key=lambda item: self._place[item[0].address])
        while self._ready and len(self._running) < self._jobs:
            stage, choice = self._ready.pop(0)
            try:
                _check_inputs(stage, choice.inputs)
                spec = make_spec(self._repo, self._snapshot, stage, choice.inputs)
                self._tell(StageEvent(stage.address, "start", choice.decision.reasons))
                run = self._runner.start(spec)
            except DvkfError as error:
                self._fail(stage, choice, error)
                continue
            self._running[pool.submit(run.wait)] = (stage, choice, run)

    def _come_to(self, stage: Stage) -> None:
        choice = _decide(self._snapshot, stage, force=self._force)
        decision = choice.decision
        self._decisions[stage.address] = decision
        if decision.action == "run":
            self._ready.append((stage, choice))
            return
        try:
            if decision.action == "restore" and choice.entry is not None:
                self._finish(stage, choice, contents_of(stage, choice.entry))
            elif decision.reasons:
                self._record_frozen(stage, choice)
        except DvkfError as error:
            self._fail(stage, choice, error)
            return
        self._tell(StageEvent(stage.address, decision.action, decision.reasons))
        self._finished.add(stage.address)

    def _record_frozen(self, stage: Stage, choice: _Choice) -> None:
        """A frozen stage never runs: outputs that are gone come back, what else differs is recorded as it is."""
        if choice.entry is not None and not any(
            self._snapshot.look(out.path).digest for out in stage.outs if out.cached
        ):
            self._finish(stage, choice, contents_of(stage, choice.entry))
            return
        _check_inputs(stage, choice.inputs)
        with self._repo.lock(write=[out.path for out in stage.outs]):
            entry = make_entry(
                stage, choice.inputs.items, choice.inputs.params, take_outputs(self._repo, stage)
            )
            record(self._repo, stage, entry, before=self._followers(stage))
        self._snapshot.forget(out.path for out in stage.outs)

    def _end(self, future: Future[StepResult]) -> None:
        stage, choice, _ = self._running.pop(future)
        try:
            result = future.result()
            self._finish(stage, choice, result.outs, side_dir=result.side_dir)
        except StageFailedError as error:
            self._fail(stage, choice, hint_at_undeclared(self._repo, stage, error))
        except DvkfError as error:
            self._fail(stage, choice, error)
        else:
            self._tell(
                StageEvent(
                    stage.address, "done", choice.decision.reasons, result.seconds, log_tail=result.log_tail
                )
            )
            self._finished.add(stage.address)

    def _finish(
        self, stage: Stage, choice: _Choice, contents: Sequence[StepContent], *, side_dir: str = ""
    ) -> None:
        """Put a run's outputs where they belong, then record it: outputs, run cache, dvc.lock."""
        with self._repo.lock(write=[out.path for out in stage.outs]):
            try:
                outs = put_outputs(self._repo, stage, contents, side_dir)
                inputs = choice.inputs
                record(
                    self._repo,
                    stage,
                    make_entry(stage, inputs.items, inputs.params, outs),
                    before=self._followers(stage),
                )
            finally:
                if side_dir:
                    shutil.rmtree(Path(side_dir).parent, ignore_errors=True)
        self._snapshot.forget(out.path for out in stage.outs)

    def _followers(self, stage: Stage) -> list[str]:
        later = self._order[self._place[stage.address] + 1 :]
        return [self._snapshot.graph.stages[a].name for a in later if a in self._fresh]

    def _fail(self, stage: Stage, choice: _Choice, error: DvkfError) -> None:
        self.errors[stage.address] = error
        tail = error.log_tail if isinstance(error, StageFailedError) else ""
        self._tell(
            StageEvent(stage.address, "fail", choice.decision.reasons, log_tail=tail, message=str(error))
        )


def hint_at_undeclared(repo: Repo, stage: Stage, error: StageFailedError) -> StageFailedError:
    """Add to a failed command's log which files of the repository it names but the stage does not declare.

    Args:
        repo: The repository.
        stage: The stage.
        error: How it failed.
    """
    if not re.search(r"no such file|not found|can't open|cannot open|no module named", error.log_tail, re.I):
        return error
    declared = {dep.path for dep in stage.deps} | {out.path for out in stage.outs}
    declared |= {stage.params_path(file) for file in stage.params}
    named: set[str] = set()
    for word in re.findall(r"[\w.+/@-]+", f"{error.command}\n{error.log_tail}"):
        name = word.rpartition(f"/{WORK}/")[2] if word.startswith("/") else posixpath.join(stage.wdir, word)
        for path in (posixpath.normpath(name), posixpath.normpath(name).replace(".", "/") + ".py"):
            covered = any(path == d or path.startswith(d + "/") or d.startswith(path + "/") for d in declared)
            if not covered and not path.startswith(("..", "/")) and (repo.root / path).is_file():
                named.add(path)
    if not named:
        return error
    names = ", ".join(f"'{name}'" for name in sorted(named)[:5])
    hint = (
        f"A stage sees only what it declares: {names} is in the repository but not in the deps of "
        f"'{stage.address}'."
    )
    return StageFailedError(
        error.stage, error.command, error.status, f"{error.log_tail.rstrip()}\n{hint}\n".lstrip()
    )
