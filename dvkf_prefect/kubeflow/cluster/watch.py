"""Watch of one pipeline run until its end: states, results, pods that do not start, cancellation."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dvkf_prefect.data.remotes.remote import Remote
from dvkf_prefect.errors import (
    DvkfError,
    MissingObjectError,
    RemoteUnreachableError,
    RunnerError,
    StageCancelledError,
)
from dvkf_prefect.kubeflow.cluster.api import ENDED, KfpApi
from dvkf_prefect.kubeflow.cluster.pods import PodProblem, Pods
from dvkf_prefect.kubeflow.exchange.runs import RESULT, read_log, run_place
from dvkf_prefect.pipeline.step.spec import StepResult

RUN_LIMIT = 7 * 86400.0
"""Maximum duration of a run, in seconds.

The files it needs beside the remote's objects may be collected a day later (`dvkf_prefect.data.upkeep.gc.RUN_AGE`).
"""
_PODS_EVERY = 10.0  # seconds
# Seconds to wait for results after a run's end: object stores and the server's view of tasks may lag.
_LAG = 5.0
_TERMINATE_PATIENCE = 60.0
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """State change of a stage on the cluster.

    Attributes:
        stage: Address of the stage.
        state: KFP's state: PENDING, RUNNING, SUCCEEDED, FAILED, …; or WAITING if its pod does not start.
        message: Details of the state.
        run_id: Id of the KFP run.
        url: URL of the run in KFP's UI.
    """

    stage: str
    state: str
    message: str
    run_id: str
    url: str

    def __str__(self) -> str:
        return f"Stage '{self.stage}': {self.state.lower()} on Kubeflow" + (
            f", {self.message}" if self.message else ""
        )


@dataclass(frozen=True, slots=True)
class Patience:
    """Timeouts, in seconds.

    Attributes:
        poll_from: Interval between two polls of a run after a change.
        poll_to: Interval between two polls of a run without changes for a long time.
        run: Maximum duration of a run, at most `RUN_LIMIT`; then it is terminated.
        cancel: Wait for a terminated run's end.
        start: Wait for a pod whose image cannot be pulled, or whose container cannot be created.
        schedule: Wait for a pod that fits on no node.
    """

    poll_from: float = 2.0
    poll_to: float = 30.0
    run: float = RUN_LIMIT
    cancel: float = 120.0
    start: float = 300.0
    schedule: float = 1800.0


class _InterruptedError(Exception):
    """A cancellation ended the wait between two attempts."""


class Watch:
    """Thread that watches a run.

    Args:
        api: The API.
        run_id: Id of the run on the server.
        key: Key of its results on the remote.
        tasks: Task name of each stage.
        needs: Predecessors of each stage.
        remote: Remote with the results.
        patience: Timeouts of the run.
        pods: Access to the pods in Kubernetes; None for no queries.
        tell: Called with each change, in the thread.
    """

    def __init__(
        self,
        api: KfpApi,
        run_id: str,
        key: str,
        *,
        tasks: Mapping[str, str],
        needs: Mapping[str, Sequence[str]],
        remote: Remote,
        patience: Patience,
        pods: Pods | None,
        tell: Callable[[TaskEvent], None],
    ) -> None:
        self.run_id = run_id
        self.url = f"{api.host}/#/runs/details/{run_id}"
        self._key = key
        self._tasks = tasks
        self._needs = needs
        self._remote = remote
        self._patience = patience
        self._pods = pods
        self._tell = tell
        self._cancelled = threading.Event()
        self._api = api.having(sleep=self._pause)
        self._steady = api.having(patience=_TERMINATE_PATIENCE)
        self._changed = threading.Condition()
        self._outcomes: dict[str, StepResult | DvkfError] = {}
        self._states: dict[str, str] = {}
        self._stuck: dict[str, tuple[str, float]] = {}
        self._why = ""
        self._asked_pods = time.monotonic()
        self._thread = threading.Thread(target=self._work, name=f"kfp-{run_id[:8]}", daemon=True)
        self._thread.start()

    def outcome(self, stage: str, timeout: float | None) -> StepResult | DvkfError:
        """Return the outcome of a stage.

        Args:
            stage: Address of the stage.
            timeout: Seconds to wait; None for as long as the run may take.

        Raises:
            TimeoutError: The stage still runs.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: stage in self._outcomes, timeout):
                raise TimeoutError(f"stage '{stage}' still runs after {timeout:g} s (run {self.run_id})")
            return self._outcomes[stage]

    def cancel(self) -> None:
        """Terminate the run; return at once."""
        self._cancelled.set()

    def join(self) -> None:
        """Wait for the end of the thread, which ends soon after `cancel`."""
        self._thread.join(self._patience.cancel + 2 * _TERMINATE_PATIENCE + _LAG)

    @property
    def done(self) -> bool:
        """True if the outcome of every stage is known."""
        with self._changed:
            return len(self._outcomes) == len(self._tasks)

    # -- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            try:
                self._follow()
            except _InterruptedError:
                self._end("it was cancelled")
        except DvkfError as error:
            self._close(
                RunnerError(
                    f"the run {self.run_id} cannot be followed any more, and may go on: {error}. Start it again to "
                    f"go on following it, or look at {self.url}"
                )
            )
        except BaseException as error:
            self._close(RunnerError(f"following the run {self.run_id} failed: {error!r}"))
            raise

    def _pause(self, seconds: float) -> None:
        if self._cancelled.wait(seconds):
            raise _InterruptedError

    def _follow(self) -> None:
        """Watch the run to its end; terminate it after its maximum duration."""
        deadline = time.monotonic() + min(self._patience.run, RUN_LIMIT)
        delay = self._patience.poll_from
        while True:
            ended, changed = self._look(self._api)
            if ended:
                return
            if time.monotonic() > deadline:
                self._end(f"it did not end in {self._patience.run:.0f} s")
                return
            if fatal := self._look_at_pods():
                self._end(fatal)
                return
            delay = self._patience.poll_from if changed else min(delay * 1.5, self._patience.poll_to)
            self._pause(min(delay, max(0.0, deadline - time.monotonic()) + 0.01))

    def _end(self, why: str) -> None:
        """Terminate the run and wait until it has ended."""
        self._why = why
        self._steady.terminate(self.run_id)
        deadline = time.monotonic() + self._patience.cancel
        delay = self._patience.poll_from / 4
        while not self._look(self._steady)[0]:
            if time.monotonic() > deadline:
                self._close(
                    self._stopped(
                        "", f"; it did not confirm that in {self._patience.cancel:.0f} s: {self.url}"
                    )
                )
                return
            time.sleep(delay)
            delay = min(delay * 1.5, self._patience.poll_to)

    def _look(self, api: KfpApi) -> tuple[bool, bool]:
        """Poll the run once; return True if it has ended, and True if anything changed."""
        run = api.run(self.run_id)
        if run is None:
            raise RunnerError("it is not there any more; was it deleted?")
        state = str(run.get("state", ""))
        changed = self._mirror(run)
        ended = state in ENDED
        changed = self._collect(run, state) or changed
        if ended and not self.done:
            # A pod's last files may not be visible at once.
            end = time.monotonic() + _LAG
            while not self.done and time.monotonic() < end and self._awaited():
                time.sleep(0.2)
                self._collect(run, state)
            self._settle(run, state)
        return ended, changed

    def _mirror(self, run: Mapping[str, Any]) -> bool:
        """Report tasks whose state changed."""
        changed = False
        by_name = {task: stage for stage, task in self._tasks.items()} | {s: s for s in self._tasks}
        for detail in (run.get("run_details") or {}).get("task_details") or ():
            stage = by_name.get(str(detail.get("display_name", "")))
            state = str(detail.get("state", ""))
            if stage is None or not state or self._states.get(stage) == state:
                continue
            self._states[stage] = state
            changed = True
            error = (detail.get("error") or {}).get("message", "")
            self._say(stage, state, str(error))
        return changed

    def _say(self, stage: str, state: str, message: str) -> None:
        try:
            self._tell(TaskEvent(stage, state, message, self.run_id, self.url))
        except Exception:
            _logger.exception("the listener of run %s failed", self.run_id)

    def _open(self) -> list[str]:
        with self._changed:
            return [stage for stage in self._tasks if stage not in self._outcomes]

    def _awaited(self) -> bool:
        """Return True if a result may still arrive: of a task reported as successful."""
        return any(self._states.get(stage, "SUCCEEDED") == "SUCCEEDED" for stage in self._open())

    def _collect(self, run: Mapping[str, Any], state: str) -> bool:
        """Collect the available results of ended tasks."""
        changed = False
        for stage in self._open():
            if state not in ENDED and self._states.get(stage) not in ENDED:
                continue
            result = self._result(stage)
            stopped = bool(self._why) or state in ("CANCELING", "CANCELED")
            if result is not None:
                # A stopped pod reports a failure of its own.
                self._put(stage, self._stopped(stage) if stopped and result.failed else result)
                changed = True
            elif self._states.get(stage) == "FAILED":
                self._put(stage, self._stopped(stage) if stopped else self._lost(stage, run))
                changed = True
        return changed

    def _result(self, stage: str) -> StepResult | None:
        place = run_place(self._key, self._tasks[stage], RESULT)
        end = time.monotonic() + _TERMINATE_PATIENCE
        wait = 0.5
        while True:
            try:
                return StepResult.from_json(self._remote.storage.read(place))
            except MissingObjectError:
                return None
            except (ValueError, TypeError) as error:
                raise RunnerError(f"{place} on {self._remote} is no result of a stage ({error})") from error
            except RemoteUnreachableError:
                if time.monotonic() + wait > end:
                    raise
            time.sleep(wait)
            wait *= 2

    def _settle(self, run: Mapping[str, Any], state: str) -> None:
        """Assign an outcome to every stage of an ended run."""
        for stage in self._open():
            task = self._states.get(stage, "")
            if state == "SUCCEEDED" and task in ("", "SUCCEEDED"):
                place = run_place(self._key, self._tasks[stage], RESULT)
                self._put(
                    stage,
                    RunnerError(
                        f"stage '{stage}' succeeded in run {self.run_id}, but its result is not at {place} of "
                        f"{self._remote}; does the pod write to the same remote?"
                    ),
                )
            elif state == "CANCELED" or self._why:
                self._put(stage, self._stopped(stage))
            elif task in ("RUNNING", "FAILED") or (task == "" and not self._blocked_by(stage)):
                self._put(stage, self._lost(stage, run))
            else:
                failed = self._blocked_by(stage)
                because = f"'{failed}', which it needs, failed" if failed else f"the run {state.lower()}"
                self._put(stage, StageCancelledError(f"stage '{stage}' was not run, because {because}"))

    def _blocked_by(self, stage: str) -> str:
        """Return a failed direct or indirect predecessor of a stage; "" if there is none."""
        seen: set[str] = set()
        stack = list(self._needs.get(stage, ()))
        while stack:
            other = stack.pop()
            outcome = self._outcomes.get(other)
            if isinstance(outcome, DvkfError) or (outcome is not None and outcome.failed):
                return other
            if other not in seen:
                seen.add(other)
                stack.extend(self._needs.get(other, ()))
        return ""

    def _stopped(self, stage: str, more: str = "") -> DvkfError:
        if self._why and not self._cancelled.is_set():
            return RunnerError(f"the run {self.run_id} was terminated: {self._why}{more}")
        what = f"stage '{stage}'" if stage else f"the run {self.run_id}"
        return StageCancelledError(f"{what} was stopped before its end{more}")

    def _lost(self, stage: str, run: Mapping[str, Any]) -> DvkfError:
        """Return the known details of a stage whose pod ended without a result."""
        task = self._tasks[stage]
        said = [p.message for p in (self._pods.problems(self.run_id) if self._pods else ()) if p.task == task]
        if error := (run.get("error") or {}).get("message"):
            said.append(str(error))
        log = self._log(stage, run).strip()
        return RunnerError(
            f"stage '{stage}' failed on the cluster without a result (run {self.run_id}, task {task})"
            + (f": {'; '.join(said)}" if said else "")
            + (f". The end of its log:\n{log}" if log else f". Its pod left no log; see {self.url}")
        )

    def _log(self, stage: str, run: Mapping[str, Any]) -> str:
        """Return the last lines of a stage's log: from the remote, else from its pod, else from Argo."""
        task = self._tasks[stage]
        with suppress(DvkfError):
            if text := read_log(self._remote.storage, self._key, task):
                return text
        name = ""
        if self._pods:
            if text := self._pods.log(self.run_id, task):
                return text
            name = self._pods.name(self.run_id, task)
        for detail in (run.get("run_details") or {}).get("task_details") or ():
            if detail.get("display_name") in (task, stage):
                children = [child.get("pod_name", "") for child in detail.get("child_tasks") or ()]
                name = name or next((n for n in [detail.get("pod_name", ""), *children] if n), "")
        return self._steady.node_log(self.run_id, name) if name else ""

    def _put(self, stage: str, outcome: StepResult | DvkfError) -> None:
        with self._changed:
            self._outcomes.setdefault(stage, outcome)
            self._changed.notify_all()

    def _close(self, error: DvkfError) -> None:
        for stage in self._open():
            self._put(stage, error)

    # -- pods that do not start --------------------------------------------------------------------------------------

    def _look_at_pods(self) -> str:
        """Report pods that do not start; return the reason to terminate the run, or ""."""
        if self._pods is None or time.monotonic() - self._asked_pods < min(
            _PODS_EVERY, self._patience.start / 2
        ):
            return ""
        self._asked_pods = now = time.monotonic()
        by_task = {task: stage for stage, task in self._tasks.items()}
        problems: dict[str, PodProblem] = {p.pod: p for p in self._pods.problems(self.run_id)}
        self._stuck = {pod: known for pod, known in self._stuck.items() if pod in problems}
        for pod, problem in problems.items():
            if problem.kind == "ended":
                continue
            kind, since = self._stuck.get(pod, ("", now))
            stage = by_task.get(problem.task, problem.task)
            if kind != problem.kind:
                self._say(stage, "WAITING", f"its pod does not start: {problem.message}")
            self._stuck[pod] = (problem.kind, since)
            limit = self._patience.start if problem.kind == "image" else self._patience.schedule
            if now - since >= limit:
                return f"the pod of stage '{stage}' did not start in {limit:.0f} s: {problem.message}"
        return ""
