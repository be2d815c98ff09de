"""Batches of stages, started together before all inputs are known, on a runner that passes content on by itself.

On a cluster a pipeline is one run. Its stages wait for each other there, and content is passed on by digest. So a
batch has the stages that certainly run, and those that wait for them.

A waiting stage may turn out to need no run, because its inputs are unchanged. So its specification names its last run
in dvc.lock (`StepSpec.known`). If the inputs match, the runner takes the outputs of that run. Older runs in the run
cache are not considered. There may be many, and the match is known only with the inputs. So a stage may run on a
cluster that would be restored locally; the record is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from dvkf_prefect.errors import DvkfError, StageCancelledError
from dvkf_prefect.formats.dvclock import Entry, Item, item_of
from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.formats.objects import MD5
from dvkf_prefect.paths import is_within
from dvkf_prefect.pipeline.plan.decide import StageDecision
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
        choice: The decision on the stage, with the known inputs.
        spec: Specification of its run.
        waits_for: Stages of the batch that it needs.
    """

    stage: Stage
    choice: StageDecision
    spec: StepSpec
    waits_for: frozenset[str]


def can_join(stage: Stage, members: Iterable[Stage]) -> bool:
    """Return True if a stage's inputs can be specified without reading what the rest of its batch writes.

    Args:
        stage: The stage.
        members: The other stages.
    """
    written = {out.path for member in members for out in member.outs}
    if any(path.startswith(dep.path + "/") or not dep.path for dep in stage.deps for path in written):
        return False  # a folder that contains outputs: the runner cannot compute its digest
    read = {stage.params_path(file) for file in stage.params}
    return not any(is_within(file, path) for file in read for path in written)


def known_run(stage: Stage, choice: StageDecision, entry: Entry | None) -> StepKnown | None:
    """Return the stage's last run, if its outputs may be taken in case the dependencies are unchanged.

    Args:
        stage: The stage.
        choice: The decision on it.
        entry: Its entry in dvc.lock.
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
    """Return the inputs of a run as an entry of dvc.lock holds them.

    Args:
        member: The stage.
        result: Result of its run.
    """
    known = {item["path"]: item for item in member.choice.inputs.items}
    found = {dep.path: dep for dep in result.deps}
    items = []
    for name, path in {dep.name: dep.path for dep in member.stage.deps}.items():
        if name in known:
            items.append(known[name])
        else:
            items.append(item_of(name, found[path].content))
    return tuple(items)


def unchanged(choice: StageDecision) -> StageDecision:
    """Return the decision on a stage whose inputs were those of its last run.

    Args:
        choice: The decision before its inputs were known.
    """
    unknown = all(reason.kind == "dependency" for reason in choice.decision.reasons)
    action: Literal["restore", "skip"] = "skip" if unknown else "restore"
    reasons = () if unknown else choice.decision.reasons
    return replace(choice, decision=replace(choice.decision, action=action, reasons=reasons))


class Batch:
    """One call of `BatchRunner.start_all` and its outcomes.

    Args:
        runner: Runner of the stages.
        members: The stages, by address, in the order of the graph.
        on_start: Called with a stage once all stages it waits for have succeeded.
        on_end: Called with a stage when it has ended.
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
        """Run the stages; ``outcomes`` then has each that ended, even after an interrupt.

        Raises:
            DvkfError: The stages could not be started.
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
        """True if a stage failed; a stopped stage does not count."""
        return any(
            isinstance(outcome, DvkfError) and not isinstance(outcome, StageCancelledError)
            for outcome in self.outcomes.values()
        )

    def blocked(self, address: str) -> bool:
        """Return True if a stage did not run because one that it needs failed or did not run."""
        return isinstance(self.outcomes.get(address), StageCancelledError) and any(
            isinstance(self.outcomes.get(other), DvkfError) for other in self._members[address].waits_for
        )


def _outcome(future: Future[StepResult]) -> Outcome:
    try:
        return future.result()
    except DvkfError as error:
        return error


def with_known(spec: StepSpec, stage: Stage, choice: StageDecision, entry: Entry | None) -> StepSpec:
    """Return a specification with the stage's last run, if its outputs may be taken; see `known_run`."""
    return replace(spec, known=known_run(stage, choice, entry))


class Followers:
    """Names of the stages that are new to a dvc.lock and follow a stage in the graph's order."""

    def __init__(self, fresh: dict[tuple[str, str], int], file: str, place: int) -> None:
        self._fresh = fresh
        self._file = file
        self._place = place

    def __contains__(self, name: object) -> bool:
        return self._fresh.get((self._file, str(name)), -1) > self._place
