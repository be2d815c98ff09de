"""Task run of a stage: attempts, mirrored logs, and a result persisted under the stage's signature."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.results import get_result_store
from prefect.states import Cancelled, Completed, Failed
from prefect.transactions import get_transaction
from prefect.types import DateTime
from pydantic import TypeAdapter

from dvkf_prefect.errors import (
    DvkfError,
    RemoteUnreachableError,
    RunnerError,
    StageCancelledError,
    StageFailedError,
    TransferError,
)
from dvkf_prefect.formats.dvclock import make_entry
from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.kubeflow.cluster.api import ENDED
from dvkf_prefect.kubeflow.cluster.watch import TaskEvent
from dvkf_prefect.pipeline.plan.runcache import can_restore
from dvkf_prefect.pipeline.plan.signature import input_key
from dvkf_prefect.pipeline.run.events import StageEvent
from dvkf_prefect.pipeline.run.undeclared import hint_at_undeclared
from dvkf_prefect.pipeline.step.runner import StageRun
from dvkf_prefect.pipeline.step.spec import StepContent, StepResult, StepSpec
from dvkf_prefect.tasks._logging import run_logger
from dvkf_prefect.tasks.stages.log import LogFollower, Mask, shown_lines

if TYPE_CHECKING:
    from dvkf_prefect.pipeline.plan.snapshot import Snapshot
    from dvkf_prefect.repo import Repo
    from dvkf_prefect.tasks.stages.options import StageOptions

# Seconds between two reads of a stage's log.
_POLL = 0.25
# Seconds that a stage gets to end after its timeout.
GRACE = 60.0
# Errors that a retry may fix.
_PASSING = (StageFailedError, RunnerError, RemoteUnreachableError, TransferError)
_TIME: TypeAdapter[DateTime] = TypeAdapter(DateTime)
# Last lines of a pod's log that are compared with the end of the stage's output.
_RECENT = 200
# Exit codes of the shell: command not executable, command not found.
_NO_COMMAND = (126, 127)


class StageSignature(CachePolicy):
    """Cache policy by a stage's signature: command, parameters, and digests of dependencies.

    A persisted result is used only while all its outputs are available; otherwise the stage runs.
    """

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """Return the key; Prefect calls this.

        Args:
            task_ctx: The task run.
            inputs: Parameters of the task run.
            flow_parameters: Parameters of the flow run.
            kwargs: Further arguments of later Prefect versions.
        """
        call: StageCall = inputs["stage"]
        return call.key(task_ctx)


@task(name="stage", cache_policy=NO_CACHE, persist_result=False)
def run_stage(stage: StageCall) -> Any:
    """Run a stage, or follow it on a cluster."""
    return stage.run()


# One task for all such stages: Prefect reads the source of the function for each copy of a task.
@task(name="stage", task_run_name="{stage.name}", cache_policy=NO_CACHE, persist_result=False)
def mark_stage(stage: StageMark) -> State[Any]:
    """Show the outcome of a stage that does not run."""
    return stage.run()


@dataclass(frozen=True, slots=True)
class StageContext:
    """Shared context of all task runs of one pipeline run.

    Attributes:
        repo: The repository.
        snapshot: The stages of the repository.
        mask: Mask that replaces secrets in texts.
        reuse: Take results that Prefect persisted for equal runs.
        cancelled: Set when the whole pipeline run is cancelled.
    """

    repo: Repo
    snapshot: Snapshot
    mask: Mask
    reuse: bool
    cancelled: threading.Event


class StageCall:
    """Task run of one stage, with all its attempts.

    Attributes:
        result: Result of the stage; None until it succeeded.
        error: Error of the last attempt.
        failed: True if the command failed in any attempt.
        lines: Messages of the runner and lines of its log that are not in the task run's log yet.
        stopped: Set when this stage is cancelled.
        started: Set when the stage's pod has started on a cluster.
        times: Start and end of the stage on a cluster, as far as they are known.
    """

    def __init__(
        self,
        context: StageContext,
        options: StageOptions,
        spec: StepSpec,
        stage: Stage | None,
        log: Path | None,
        begin: Callable[[], StageRun],
        *,
        batched: bool,
        has_ended: Callable[[], bool] = lambda: True,
    ) -> None:
        self.started = threading.Event()
        self.times: list[datetime | None] = [None, None]
        self._has_ended = has_ended
        self._logged: deque[str] = deque(maxlen=_RECENT)
        self.spec = spec
        self.options = options
        self.result: StepResult | None = None
        self.error: DvkfError | None = None
        self.failed = False
        self.lines: deque[str] = deque(maxlen=2000)
        self.stopped = threading.Event()
        self._context = context
        self._stage = stage
        self._log = log
        self._begin = begin
        self._batched = batched
        self._tries = 0
        self._run: StageRun | None = None
        self._lock = threading.Lock()

    @property
    def cancelled(self) -> bool:
        """True if this stage, or the whole pipeline run, is cancelled."""
        return self.stopped.is_set() or self._context.cancelled.is_set()

    def cancel(self) -> None:
        """Cancel the stage."""
        self.stopped.set()
        with self._lock:
            run = self._run
        if run is not None:
            run.cancel()

    def take(self, event: TaskEvent) -> None:
        """Take an event of the stage's task on a cluster. Safe in any thread.

        Args:
            event: The event.
        """
        if event.state == "LOG":
            lines = shown_lines(event.message, self._context.mask)
            self._logged.extend(line for record in lines for line in record.split("\n"))
            self.lines.extend(lines)
        elif event.state == "STARTED":
            end = self.times[1]
            self.times[:] = event.at, end if end and event.at and end >= event.at else None
            self.started.set()
        else:
            if event.state in ENDED:
                self.times[1] = event.at
            waits = event.state in ("PENDING", "WAITING") and event.url
            self.lines.append(f"{event} ({event.url})" if waits else str(event))

    def wait_for_pod(self) -> None:
        """Wait until the stage's pod has started on the cluster, or its outcome is known.

        Prefect calls this before the task run is Running, so that it is Pending as long as its pod is.
        """
        while not (self.cancelled or self._has_ended() or self.started.wait(_POLL)):
            pass

    # -- the task run ------------------------------------------------------------------------------------------------

    def run(self) -> Any:
        """Run one attempt, mirror its log, and return the final state."""
        self._tries += 1
        self.error = None
        self._set_end(None)
        logger = run_logger()
        if self._log is not None:
            # The log of the previous attempt would be read, and its length skipped, before a new one is written.
            self._log.unlink(missing_ok=True)
        follower = LogFollower(self._log, self._context.mask) if self._log is not None else None

        def mirror(*, last: bool = False) -> None:
            while self.lines:
                logger.info("%s", self._context.mask(self.lines.popleft()))
            if follower is not None:
                for text in follower.read(last=last):
                    logger.info("%s", text)

        try:
            self._pause()
            result = self._follow(mirror)
        except DvkfError as error:
            self.error = self._masked(error)
            self.failed = self.failed or isinstance(error, StageFailedError)
            mirror(last=True)
            _keep_nothing()
            first = str(self.error).partition(" The end of its log:")[0]
            if not self.may_retry() or self._tries > self.options.retries:
                self._set_end(self.times[1])
            if isinstance(error, StageCancelledError) and (self.cancelled or not self.may_retry()):
                return Cancelled(message=first)
            tail = error.log_tail if isinstance(error, StageFailedError) else ""
            self._show_tail(follower, tail)
            logger.error("%s", first)
            return Failed(message=first)
        self.result = dataclasses.replace(result, log_tail=self._context.mask(result.log_tail))
        mirror(last=True)
        self._show_tail(follower, result.log_tail)
        self._set_end(self.times[1])
        if result.restored:
            _keep_nothing()
            return Completed(name="Restored", message="inputs match a previous run; its outputs were reused")
        return _kept(self.result)

    def _pause(self) -> None:
        delay = self.options.delay(self._tries - 1) if self._tries > 1 else 0.0
        end = time.monotonic() + delay
        if delay:
            run_logger().info("Waiting %g s before try %d", delay, self._tries)
        while not self.cancelled and (left := end - time.monotonic()) > 0:
            self.stopped.wait(min(left, _POLL))

    def _follow(self, mirror: Callable[[], None]) -> StepResult:
        with self._lock:
            if self.cancelled:
                raise StageCancelledError(f"stage '{self.spec.stage}' was cancelled before it started")
            run = self._run = self._begin()
        timeout = self.options.timeout_seconds
        deadline = time.monotonic() + timeout if timeout is not None else None
        while True:
            try:
                return run.wait(_POLL)
            except TimeoutError as error:
                if isinstance(error, DvkfError):
                    raise
            mirror()
            if deadline is not None and time.monotonic() > deadline:
                run.cancel()
                with suppress(DvkfError, TimeoutError):
                    run.wait(GRACE)
                raise RunnerError(
                    f"stage '{self.spec.stage}' exceeded its timeout_seconds, {timeout:g}, and was cancelled"
                )

    def _masked(self, error: DvkfError) -> DvkfError:
        mask = self._context.mask
        if isinstance(error, StageFailedError):
            return StageFailedError(error.stage, error.command, error.status, mask(error.log_tail))
        if type(error) is RunnerError:  # the message may hold the end of a pod's log
            return RunnerError(mask(str(error)))
        return error

    def _show_tail(self, follower: LogFollower | None, tail: str) -> None:
        """Log the end of the output if it was not followed completely."""
        if tail.strip() and (follower is None or follower.cut or not follower.lines_read):
            logger = run_logger()
            lines = self._context.mask(tail).rstrip().splitlines()
            # Lines that came from the pod while it ran are not repeated.
            shown = [i for i, line in enumerate(lines) if line.rstrip() and line.rstrip() in self._logged]
            for line in lines[shown[-1] + 1 if shown else 0 :]:
                logger.info("%s", line)

    def _set_end(self, end: datetime | None) -> None:
        """Give the task run the times of its stage on the cluster, in place of those at which they were seen.

        Prefect keeps an end that is set before the final state.
        """
        context = TaskRunContext.get()
        start = self.times[0]
        if context is None or start is None:
            return
        run = context.task_run
        begun = run.start_time
        run.start_time = _TIME.validate_python(start)
        run.end_time = _TIME.validate_python(max(start, end)) if end is not None else None
        if end is not None and begun is not None:
            # Prefect adds the time since it was Running.
            run.total_run_time += (max(start, end) - start) - (datetime.now(timezone.utc) - begun)

    def may_retry(self) -> bool:
        """Return True if a retry may fix the last failure."""
        error = self.error
        if self.cancelled or error is None:
            return False
        if isinstance(error, StageCancelledError):  # it ended together with another stage that failed
            return self._batched and self._tries <= self.options.retries
        if isinstance(error, StageFailedError):
            if error.status in _NO_COMMAND:
                return False
            if self._stage is None or self.spec.in_place:
                return True
            return hint_at_undeclared(self._context.repo, self._stage, error) is error
        return isinstance(error, _PASSING)

    # -- persisted results -------------------------------------------------------------------------------------------

    @property
    def policy(self) -> CachePolicy:
        """Cache policy of the result."""
        return StageSignature() if self._signature() is not None else NO_CACHE

    def _signature(self) -> str | None:
        """Return the stage's signature, or None if equal inputs do not guarantee equal outputs."""
        stage, spec = self._stage, self.spec
        digests = {dep.path: dep.digest for dep in spec.deps}
        if stage is None or spec.env or not all(out.cached or out.kind != "out" for out in spec.outs):
            return None
        if any(not digests.get(dep.path) for dep in stage.deps):
            return None
        deps = [{"path": dep.name, "hash": "md5", "md5": digests[dep.path]} for dep in stage.deps]
        params = {file: dict(spec.params.get(stage.params_path(file), {})) for file in stage.params}
        entry = make_entry(stage.command, deps, params, [{"path": out.name} for out in stage.outs])
        if not can_restore(stage, entry):
            return None
        return f"{stage.wdir}:{input_key(entry)}"

    def key(self, context: TaskRunContext) -> str | None:
        """Return the key of the first usable result, or else a new key.

        Args:
            context: The task run.
        """
        signature = self._signature()
        if signature is None:
            return None
        store = get_result_store()
        for number in count():
            key = f"dvkf-stage-{_digest(signature)}-{number}"
            if not store.exists(key):
                return key
            known = _read(store.read(key).result, self.spec)
            if known is not None and self._is_cached(known):
                if self._context.reuse:
                    self.result = dataclasses.replace(known, restored=True, seconds=0.0)
                return key
        return None

    def _is_cached(self, known: StepResult) -> bool:
        paths = [out.path for out in known.outs]
        if sorted(paths) != sorted(out.path for out in self.spec.outs):
            return False
        return all(self._context.snapshot.is_cached(out.digest) for out in known.outs)


class StageMark:
    """Task run of a stage that is unchanged, restored, failed before its start, or was not reached."""

    def __init__(self, event: StageEvent, mask: Mask, *, reached: bool = True) -> None:
        self._event = event
        self._reached = reached
        self._mask = mask

    @property
    def name(self) -> str:
        """Name of the task run: the address of the stage."""
        return self._event.stage

    def run(self) -> State[Any]:
        """Return the state for the outcome of the stage."""
        event = self._event
        if not self._reached:
            return Cancelled(name="NotReached", message=self._mask(event.message))
        message = self._mask("; ".join(map(str, event.reasons)) or "nothing changed")
        if event.kind == "fail":
            run_logger().error("%s", self._mask(event.message))
            return Failed(message=self._mask(event.message))
        if event.kind == "restore":
            return Completed(name="Restored", message=f"Restored from the cache: {message}")
        return Completed(name="Skipped", message=f"{'Frozen: ' if event.frozen else ''}{message}")


def may_retry_of(call: StageCall) -> Callable[[Task[..., Any], TaskRun, State[Any]], bool]:
    """Return the retry condition of a task run. Prefect accepts plain functions only."""

    def may_retry(made: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
        return call.may_retry()

    return may_retry


def _keep_nothing() -> None:
    """Prevent Prefect from persisting the result of a failed attempt."""
    transaction = get_transaction()
    if transaction is not None:
        transaction.write_on_commit = False


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _kept(result: StepResult) -> dict[str, Any]:
    """Return the persisted form of a result: its outputs, without printed text."""
    return {"outs": [out.as_output() for out in result.outs], "seconds": result.seconds}


def _read(kept: Any, spec: StepSpec) -> StepResult | None:
    """Parse the persisted form of a result; None if it is invalid."""
    try:
        outs = tuple(StepContent.from_dict(out) for out in kept["outs"])
        return StepResult(spec.stage, outs=outs, seconds=float(kept["seconds"]))
    except (KeyError, TypeError, ValueError):
        return None
