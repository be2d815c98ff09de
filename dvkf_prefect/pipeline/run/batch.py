"""Stages that are started together, before all that they read is known, on a runner that hands content on by itself.

On a cluster a pipeline run is one thing: its stages wait for each other there, and content goes from one to the next
by digest. So the stages that certainly run are joined by those that wait for them. Such a stage might turn out to need
no run, because what it reads comes out as before; its specification then names the run that is known
(`StepSpec.known`), and the runner takes that one's outputs. That run is the last one, in dvc.lock: of older
ones, in the run cache, there may be many for each stage, and which one fits is known only when what it reads is. So a
stage may run there that would be restored here; what is recorded is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dvkf_prefect.errors import DvkfError, StageCancelledError
from dvkf_prefect.formats.dvclock import Entry, Item, item_of, stored_of
from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.formats.objects import MD5
from dvkf_prefect.paths import is_within
from dvkf_prefect.pipeline.plan.decide import Choice
from dvkf_prefect.pipeline.run.outputs import contents_of
from dvkf_prefect.pipeline.step.runner import BatchRunner, StageRun
from dvkf_prefect.pipeline.step.spec import StepKnown, StepResult, StepSpec

if TYPE_CHECKING:
    from concurrent.futures import Future

Outcome = StepResult | DvkfError


@dataclass(frozen=True)
class Member:
    """A stage of a batch.

    Attributes:
        stage: The stage.
        choice: Why it runs, and what is known of what it reads.
        spec: Its run.
        waits_for: The stages of the batch that it needs.
    """

    stage: Stage
    choice: Choice
    spec: StepSpec
    waits_for: frozenset[str]


def can_join(stage: Stage, members: Iterable[Stage]) -> bool:
    """Tell whether a stage can be told what it reads without looking at what other stages of its batch write.

    Args:
        stage: The stage.
        members: The others.
    """
    written = {out.path for member in members for out in member.outs}
    if any(path.startswith(dep.path + "/") or not dep.path for dep in stage.deps for path in written):
        return False  # a folder of which outputs are parts: nobody else can tell its digest
    read = {stage.params_path(file) for file in stage.params}
    return not any(is_within(file, path) for file in read for path in written)


def known_run(stage: Stage, choice: Choice, entry: Entry | None) -> StepKnown | None:
    """Return the stage's last run, if it is to be taken should its dependencies come out as they were then.

    Args:
        stage: The stage.
        choice: The decision on it.
        entry: What dvc.lock has of it.
    """
    if entry is None or any(
        reason.kind not in ("dependency", "output") for reason in choice.decision.reasons
    ):
        return None
    items = [*entry.get("deps", ()), *entry.get("outs", ())]
    if any(dep.external for dep in stage.deps) or any(
        item.get("hash") != MD5 or not item.get("md5") for item in items
    ):
        return None
    recorded = {item["path"]: item["md5"] for item in entry.get("deps", ())}
    outs = {item["path"] for item in entry.get("outs", ())}
    if set(recorded) != {dep.name for dep in stage.deps} or outs != {out.name for out in stage.outs}:
        return None
    return StepKnown({dep.path: recorded[dep.name] for dep in stage.deps}, contents_of(stage, entry))


def items_read(member: Member, result: StepResult) -> tuple[Item, ...]:
    """Return what a stage read as an entry of dvc.lock holds it.

    Args:
        member: The stage.
        result: What the runner said of its run.
    """
    known = {item["path"]: item for item in member.choice.inputs.items}
    found = {dep.path: dep for dep in result.deps}
    items = []
    for name, path in {dep.name: dep.path for dep in member.stage.deps}.items():
        if name in known:
            items.append(known[name])
        else:
            dep = found[path]
            item = {"md5": dep.digest, "size": dep.size, "nfiles": dep.nfiles, "isexec": dep.isexec}
            items.append(item_of(name, stored_of(item)))
    return tuple(items)


class Batch:
    """One call of `BatchRunner.start_all` and what becomes of it.

    Args:
        runner: Where the stages run.
        members: The stages, by address, in the order of the graph.
        on_start: Told of a stage when all that it waits for has ended well.
        on_end: Told of a stage when it has ended.
    """

    def __init__(
        self,
        runner: BatchRunner,
        members: Mapping[str, Member],
        *,
        on_start: Callable[[Member], None],
        on_end: Callable[[Member, Outcome], None],
    ) -> None:
        self._runner = runner
        self._members = members
        self._on_start = on_start
        self._on_end = on_end
        self.outcomes: dict[str, Outcome] = {}

    def run(self) -> None:
        """Run the stages; ``outcomes`` has each that ended, also when this is interrupted.

        Raises:
            DvkfError: They could not be started.
        """
        from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

        edges: dict[str, Sequence[str]] = {a: sorted(m.waits_for) for a, m in self._members.items()}
        runs = self._runner.start_all([member.spec for member in self._members.values()], edges)
        for member in self._members.values():
            if not member.waits_for:
                self._on_start(member)
        pool = ThreadPoolExecutor(len(runs), thread_name_prefix="dvkf-stage")
        waiting: dict[Future[StepResult], str] = {pool.submit(runs[a].wait): a for a in self._members}
        try:
            while waiting:
                done = wait(waiting, return_when=FIRST_COMPLETED).done
                for future in sorted(done, key=lambda future: list(self._members).index(waiting[future])):
                    self._end(waiting.pop(future), future)
        except BaseException:
            self._stop(runs, waiting)
            raise
        finally:
            pool.shutdown(wait=True)

    def _stop(self, runs: Mapping[str, StageRun], waiting: Mapping[Future[StepResult], str]) -> None:
        for address in waiting.values():
            runs[address].cancel()
        for future, address in waiting.items():
            self.outcomes[address] = _outcome(future)

    def _end(self, address: str, future: Future[StepResult]) -> None:
        outcome = self.outcomes[address] = _outcome(future)
        self._on_end(self._members[address], outcome)
        if isinstance(outcome, DvkfError):
            return
        for member in self._members.values():
            free = all(isinstance(self.outcomes.get(other), StepResult) for other in member.waits_for)
            if address in member.waits_for and free and member.stage.address not in self.outcomes:
                self._on_start(member)

    @property
    def failed(self) -> bool:
        """Whether a stage failed, other than by being stopped."""
        return any(
            isinstance(outcome, DvkfError) and not isinstance(outcome, StageCancelledError)
            for outcome in self.outcomes.values()
        )

    def blocked(self, address: str) -> bool:
        """Tell whether a stage did not run because one that it needs failed or did not run."""
        return isinstance(self.outcomes.get(address), StageCancelledError) and any(
            isinstance(self.outcomes.get(other), DvkfError) for other in self._members[address].waits_for
        )


def _outcome(future: Future[StepResult]) -> Outcome:
    try:
        return future.result()
    except DvkfError as error:
        return error


def with_known(spec: StepSpec, stage: Stage, choice: Choice, entry: Entry | None) -> StepSpec:
    """Return a specification that names the stage's last run, if that may be taken; see `known_run`."""
    return replace(spec, known=known_run(stage, choice, entry))


class Followers:
    """The stages new to a dvc.lock that come after one in the graph's order, by name."""

    def __init__(self, fresh: dict[tuple[str, str], int], file: str, place: int) -> None:
        self._fresh = fresh
        self._file = file
        self._place = place

    def __contains__(self, name: object) -> bool:
        return self._fresh.get((self._file, str(name)), -1) > self._place
