"""Watch of one pipeline run until its end: states, results, pods that do not start, cancellation."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from dvkf_prefect.errors import (
    DvkfError,
    MissingObjectError,
    RemoteUnreachableError,
    RunnerError,
    StageCancelledError,
)
from dvkf_prefect.kubeflow.cluster.api import ENDED, KfpApi
from dvkf_prefect.kubeflow.cluster.followed import FollowedRun
from dvkf_prefect.kubeflow.cluster.logs import RunLogs
from dvkf_prefect.kubeflow.cluster.patience import RUN_LIMIT, Patience
from dvkf_prefect.kubeflow.cluster.pods import PodProblem, PodView, kind_of
from dvkf_prefect.kubeflow.cluster.workflow import Workflow, time_of
from dvkf_prefect.kubeflow.exchange.interests import Interest
from dvkf_prefect.kubeflow.exchange.runs import RESULT, read_log
from dvkf_prefect.pipeline.step.spec import StepResult
from dvkf_prefect.pipeline.step.step import clean_log

_PODS_EVERY = 10.0  # seconds
# The workflow is a large answer, so it is read less often.
_WORKFLOW_EVERY = 30.0
_STARTS_EVERY = 10.0
_LOGS_EVERY = 3.0
# Seconds to wait for results after a run's end: object stores and the server's view of tasks may lag.
_LAG = 5.0
_TERMINATE_PATIENCE = 60.0
# States of a pod's phases.
_STATES = {"Pending": "PENDING", "Running": "RUNNING", "Succeeded": "SUCCEEDED"}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """State change of a stage on the cluster.

    Attributes:
        stage: Address of the stage.
        state: KFP's state, such as RUNNING; WAITING if its pod does not start; STARTED when it has; LOG for new lines.
        message: Details of the state, or the lines.
        run_id: Id of the KFP run.
        url: URL of the run in KFP's UI; "" if the UI's address is unknown.
        at: Time of the change on the cluster; None if unknown.
    """

    stage: str
    state: str
    message: str
    run_id: str
    url: str
    at: datetime | None = None

    def __str__(self) -> str:
        if self.state == "LOG":
            return self.message
        return f"Stage '{self.stage}': {self.state.lower()} on Kubeflow" + (
            f", {self.message}" if self.message else ""
        )


class _InterruptedError(Exception):
    """A cancellation ended the wait between two attempts."""


class Watch:
    """Thread that watches a run.

    Attributes:
        run_id: Id of the run on the server.
        url: Page of the run in Kubeflow's UI; "" if unknown.
        left: True if the run was cancelled or left here, but goes on.

    Args:
        run: The run.
        needs: Predecessors of each stage.
        patience: Timeouts of the run.
        tell: Called with each change, in threads of the watch; None for no events.
        interest: Interest in the run; None for a run that no other dispatcher may follow.
    """

    def __init__(
        self,
        run: FollowedRun,
        *,
        needs: Mapping[str, Sequence[str]],
        patience: Patience,
        tell: Callable[[TaskEvent], None] | None,
        interest: Interest | None = None,
    ) -> None:
        self.run_id = run_id = run.run_id
        self.url = run.url
        self.left = False
        self._run = run
        self._interest = interest
        self._page = run.url or f"run {run_id} in Kubeflow's UI"
        self._tasks = run.tasks
        self._needs = needs
        self._patience = patience
        self._pods = run.pods
        self._tell = tell
        self._cancelled = threading.Event()
        self._api = run.api.having(sleep=self._pause)
        self._steady = run.api.having(patience=_TERMINATE_PATIENCE)
        self._changed = threading.Condition()
        self._outcomes: dict[str, StepResult | DvkfError] = {}
        self._states: dict[str, str] = {}
        self._stuck: dict[str, tuple[str, float]] = {}
        self._why = ""
        self._canceling = False
        self._workflow: Workflow | None = None
        self._asked_pods = self._asked_workflow = time.monotonic()
        self._begun: set[str] = set()
        self._has_tasks = False
        self._is_blind = False
        self._leaving = False
        self._asked_starts = 0.0
        self._followed = threading.Event()
        self._logs = RunLogs(
            replace(run, api=run.api.having(patience=0.0)),
            lambda stage, lines: self._say(stage, "LOG", "\n".join(lines)),
        )
        self._thread = threading.Thread(target=self._work, name=f"kfp-{run_id[:8]}", daemon=True)
        self._thread.start()
        if tell is not None:
            threading.Thread(target=self._follow_logs, name=f"kfp-logs-{run_id[:8]}", daemon=True).start()

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
                raise TimeoutError(
                    f"stage '{stage}' is still running after {timeout:g} s (run {self.run_id})"
                )
            return self._outcomes[stage]

    def has_ended(self, stage: str) -> bool:
        """Return True if the outcome of a stage is known."""
        with self._changed:
            return stage in self._outcomes

    def cancel(self) -> None:
        """Terminate the run; return at once."""
        self._cancelled.set()

    def leave(self) -> None:
        """Stop watching, and let the run go on for the next start of its stages; return at once."""
        self._leaving = True
        self._cancelled.set()

    def join(self) -> None:
        """Wait for the end of the thread, which ends soon after `cancel`."""
        self._thread.join(self._patience.cancel + 2 * _TERMINATE_PATIENCE + _LAG)

    @property
    def done(self) -> bool:
        """True if the outcome of every stage is known."""
        with self._changed:
            return len(self._outcomes) == len(self._tasks)

    @property
    def failed(self) -> bool:
        """True if a stage failed."""
        with self._changed:
            return any(map(_is_failure, self._outcomes.values()))

    # -- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            try:
                self._follow()
            except _InterruptedError:
                on = "" if self._leaving else " for another dispatcher"
                self.left = self._leaving or (self._interest is not None and self._interest.give_up())
                if self.left:
                    for stage in self._open():
                        self._put(stage, self._stopped(stage, f"; its run goes on{on}"))
                else:
                    self._end("it was cancelled")
        except DvkfError as error:
            self._close(
                RunnerError(
                    f"the run {self.run_id} can no longer be followed, and may still be running: {error}. "
                    f"Run the command again to follow it, or see {self._page}"
                )
            )
        except BaseException as error:
            self._close(RunnerError(f"following the run {self.run_id} failed: {error!r}"))
            raise
        finally:
            self._followed.set()
            if self._interest is not None:
                self._interest.release()
                self._interest.clear()

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
                        "",
                        f"; it did not confirm the cancellation in {self._patience.cancel:.0f} s: {self._page}",
                    )
                )
                return
            time.sleep(delay)
            delay = min(delay * 1.5, self._patience.poll_to)

    def _look(self, api: KfpApi) -> tuple[bool, bool]:
        """Poll the run once; return True if it has ended, and True if anything changed."""
        run = api.run(self.run_id)
        if run is None:
            raise RunnerError("it does not exist any more; it may have been deleted")
        state = str(run.get("state", ""))
        # The server ends a terminated run as failed, and only this state before its end shows the termination.
        self._canceling = self._canceling or state in ("CANCELING", "CANCELED")
        changed = self._mirror(run)
        ended = state in ENDED
        if ended and not self.done:
            self._read_workflow()
        changed = self._collect(run, state) or changed
        if ended and not self.done:
            # A pod's last files may not be visible at once, and the server stores a run's tasks after its state.
            end = time.monotonic() + _LAG
            while not self.done and time.monotonic() < end and self._awaited(state):
                time.sleep(0.2)
                run = api.run(self.run_id) or run
                self._mirror(run)
                self._read_workflow()
                self._collect(run, state)
            self._settle(run, state)
        return ended, changed

    def _read_workflow(self) -> None:
        """Read the workflow, whose states are those of its tasks at the moment of the run's state."""
        self._workflow = self._steady.workflow(self.run_id) or self._workflow
        self._mirror_workflow()

    def _mirror_workflow(self) -> None:
        for stage, task in self._tasks.items():
            if self._workflow is not None and (state := self._workflow.state(task)):
                self._change(stage, state, "", self._workflow.ended(task))

    def _mirror(self, run: Mapping[str, Any]) -> bool:
        """Report tasks whose state changed."""
        changed = False
        details = (run.get("run_details") or {}).get("task_details") or ()
        self._has_tasks = self._has_tasks or bool(details)
        by_name = {task: stage for stage, task in self._tasks.items()}
        for detail in details:
            stage = by_name.get(str(detail.get("display_name", "")))
            state = str(detail.get("state", ""))
            if stage is not None and state:
                error = (detail.get("error") or {}).get("message", "")
                at = time_of(detail.get("end_time" if state in ENDED else "start_time"))
                changed = self._change(stage, state, str(error), at) or changed
        return changed

    def _change(self, stage: str, state: str, message: str, at: datetime | None = None) -> bool:
        before = self._states.get(stage)
        # The server's view of tasks may be older than the workflow.
        if before == state or (before in ENDED and state not in ENDED):
            return False
        self._states[stage] = state
        self._say(stage, state, message, at)
        return True

    def _say(self, stage: str, state: str, message: str, at: datetime | None = None) -> None:
        if self._tell is None:
            return
        try:
            self._tell(TaskEvent(stage, state, message, self.run_id, self.url, at))
        except Exception:  # a fault of the caller's listener must not end the watch
            _logger.exception("the listener of run %s failed", self.run_id)

    def _open(self) -> list[str]:
        with self._changed:
            return [stage for stage in self._tasks if stage not in self._outcomes]

    def _awaited(self, state: str) -> bool:
        """Return True if a result may still arrive: of a task that succeeded, or whose last state is not known."""
        known = self._workflow is not None and bool(self._workflow.nodes)
        return any(
            self._states.get(stage, "SUCCEEDED" if state == "SUCCEEDED" or not known else "FAILED")
            != "FAILED"
            for stage in self._open()
        )

    def _was_stopped(self, state: str) -> bool:
        """Return True if the run was terminated, by this process or another."""
        if self._why or self._canceling:
            return True
        if state in ENDED and self._workflow is None:
            self._workflow = self._steady.workflow(self.run_id)
        return state in ENDED and self._workflow is not None and self._workflow.stopped

    def _collect(self, run: Mapping[str, Any], state: str) -> bool:
        """Collect the available results of ended tasks."""
        changed = False
        for stage in self._open():
            if state not in ENDED and self._states.get(stage) not in ENDED:
                continue
            result = self._result(stage)
            if result is not None:
                # A stopped pod reports a failure of its own.
                stopped = result.failed and self._was_stopped(state)
                self._put(stage, self._stopped(stage) if stopped else result)
                changed = True
            elif self._states.get(stage) == "FAILED":
                self._put(stage, self._stopped(stage) if self._was_stopped(state) else self._lost(stage, run))
                changed = True
        return changed

    def _result(self, stage: str) -> StepResult | None:
        place = self._run.place(stage, RESULT)
        end = time.monotonic() + _TERMINATE_PATIENCE
        wait = 0.5
        while True:
            try:
                return StepResult.from_json(self._run.remote.storage.read(place))
            except MissingObjectError:
                return None
            except (ValueError, TypeError) as error:
                raise RunnerError(
                    f"{place} on {self._run.remote} is not the result of a stage ({error})"
                ) from error
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
                place = self._run.place(stage, RESULT)
                self._put(
                    stage,
                    RunnerError(
                        f"stage '{stage}' succeeded in run {self.run_id}, but its result is not at {place} "
                        f"of {self._run.remote}. Check that the pod writes to the same remote."
                    ),
                )
            elif self._was_stopped(state):
                self._put(stage, self._stopped(stage))
            elif task in ("RUNNING", "FAILED"):
                self._put(stage, self._lost(stage, run))
            elif failed := self._blocked_by(stage):
                because = f"its dependency '{failed}' failed"
                self._put(stage, StageCancelledError(f"stage '{stage}' was not run, because {because}"))
            else:
                self._put(stage, self._not_started(stage, run))

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

    def _not_started(self, stage: str, run: Mapping[str, Any]) -> DvkfError:
        """Return the outcome of a stage without a state: Kubeflow makes a task's node only when it starts the task."""
        task, workflow = self._tasks[stage], self._workflow
        if workflow is None and not (run.get("run_details") or {}).get("task_details"):
            return self._lost(stage, run)
        if workflow is not None and workflow.driver_failed(task):
            return RunnerError(
                f"stage '{stage}' could not be started on the cluster (run {self.run_id}): "
                + self._driver_said(workflow, task)
            )
        failed = next((s for s, outcome in self._outcomes.items() if _is_failure(outcome)), "")
        why = (
            f"stage '{failed}' failed"
            if failed
            else self._driver_said(workflow)
            if workflow is not None
            else ""
        )
        why = why or str((run.get("error") or {}).get("message") or f"see {self._page}")
        return StageCancelledError(f"stage '{stage}' was not run: the run failed ({why})")

    def _driver_said(self, workflow: Workflow, task: str = "") -> str:
        """Return the reason of a failed driver: Argo has its exit code, and only its log has more."""
        reason, pod = workflow.reason(task), workflow.failed_driver(task)
        log = self._steady.pod_log(self.run_id, pod, self._run.namespace) if pod else ""
        lines = clean_log(log.encode()).strip().splitlines()
        return f"{reason}: {lines[-1]}" if lines else reason

    def _stopped(self, stage: str, more: str = "") -> DvkfError:
        if self._why and not self._cancelled.is_set():
            return RunnerError(f"the run {self.run_id} was terminated: {self._why}{more}")
        what = f"stage '{stage}'" if stage else f"the run {self.run_id}"
        return StageCancelledError(f"{what} was stopped before its end{more}")

    def _lost(self, stage: str, run: Mapping[str, Any]) -> DvkfError:
        """Return the known details of a stage whose pod ended without a result."""
        task = self._tasks[stage]
        said = [p.message for p in (self._pods.problems(self.run_id) if self._pods else ()) if p.task == task]
        self._workflow = self._steady.workflow(self.run_id) or self._workflow
        if self._workflow is not None and (reason := self._workflow.reason(task)) and not said:
            said.append(reason)
        if error := (run.get("error") or {}).get("message"):
            said.append(str(error))
        log = self._log(stage, run).strip()
        return RunnerError(
            f"stage '{stage}' failed on the cluster without a result (run {self.run_id}, task {task})"
            + (f": {'; '.join(said)}" if said else "")
            + (f". The end of its log:\n{log}" if log else f". Its pod left no log. See {self._page}")
        )

    def _log(self, stage: str, run: Mapping[str, Any]) -> str:
        """Return the last lines of a stage's log: from the remote, else from its pod, else from KFP."""
        task = self._tasks[stage]
        with suppress(DvkfError):
            if text := read_log(self._run.remote.storage, self._run.key, task):
                return text
        if self._pods and (text := self._pods.log(self.run_id, task)):
            return text
        name = self._workflow.pod(task) if self._workflow is not None else ""
        name = name or (self._pods.name(self.run_id, task) if self._pods else "")
        return (
            clean_log(self._steady.pod_log(self.run_id, name, self._run.namespace).encode()) if name else ""
        )

    def _put(self, stage: str, outcome: StepResult | DvkfError) -> None:
        if self._tell is not None and self._states.get(stage, "") in ("RUNNING", *ENDED):
            with suppress(DvkfError):
                views = self._pods.views(self.run_id) if self._pods is not None else None
                if views is None and (self._workflow is None or not self._workflow.pod(self._tasks[stage])):
                    self._workflow = self._steady.workflow(self.run_id) or self._workflow
                self._report_starts([stage], views)
                self._logs.finish(stage, views, self._workflow)
        with self._changed:
            self._outcomes.setdefault(stage, outcome)
            self._changed.notify_all()

    def _close(self, error: DvkfError) -> None:
        for stage in self._open():
            self._put(stage, error)

    # -- logs and starts of pods ------------------------------------------------------------------------------------

    def _follow_logs(self) -> None:
        """Read logs of running stages, and report the starts of their pods, until the run has ended."""
        try:
            while not self._followed.wait(min(_LOGS_EVERY, self._patience.poll_from * 1.5)):
                open_ = set(self._open())
                running = [stage for stage, state in list(self._states.items()) if state == "RUNNING"]
                if running := [stage for stage in running if stage in open_]:
                    views = self._pods.views(self.run_id) if self._pods is not None else None
                    self._report_starts(running, views)
                    self._logs.read(running, views, self._workflow)
        except Exception:  # logs are no reason to lose a run
            _logger.exception("the logs of run %s can no longer be followed", self.run_id)

    def _report_starts(self, running: Sequence[str], views: Sequence[PodView] | None) -> None:
        if views is None and any(stage not in self._begun for stage in running):
            now = time.monotonic()
            if now - self._asked_starts >= min(_STARTS_EVERY, self._patience.start / 2):
                self._asked_starts = now
                self._workflow = self._steady.workflow(self.run_id) or self._workflow
        for stage in running:
            task = self._tasks[stage]
            at = self._workflow.started(task) if self._workflow is not None and views is None else None
            at = next((view.started for view in views or () if view.task == task and view.started), at)
            unknown = views is None and self._workflow is None
            if (at is not None or unknown) and stage not in self._begun:
                self._begun.add(stage)
                self._say(stage, "STARTED", "", at)

    # -- pods that do not start --------------------------------------------------------------------------------------

    def _look_at_pods(self) -> str:
        """Report pods that do not start; return the reason to terminate the run, or ""."""
        if time.monotonic() - self._asked_pods < min(_PODS_EVERY, self._patience.start / 2):
            return ""
        self._asked_pods = now = time.monotonic()
        by_task = {task: stage for stage, task in self._tasks.items()}
        problems: dict[str, PodProblem] = {}
        if self._pods is not None:
            problems = {p.pod: p for p in self._pods.problems(self.run_id)}
        problems = {**self._waiting(now, {p.task for p in problems.values()}), **problems}
        self._stuck = {pod: known for pod, known in self._stuck.items() if pod in problems}
        for pod, problem in problems.items():
            if problem.kind == "ended":
                continue
            kind, since = self._stuck.get(pod, ("", now))
            stage = by_task.get(problem.task, "")
            if kind != problem.kind and stage:
                self._say(stage, "WAITING", f"its pod has not started: {problem.message}")
            self._stuck[pod] = (problem.kind, since)
            limit = self._patience.start if problem.kind == "image" else self._patience.schedule
            if now - since >= limit:
                what = f"the pod of stage '{stage}'" if stage else f"the pod {pod}"
                return f"{what} did not start in {limit:.0f} s: {problem.message}"
        return ""

    def _waiting(self, now: float, known: set[str]) -> dict[str, PodProblem]:
        """Return the pods that the workflow waits for: a pod that Kubernetes refuses to make is only there."""
        if now - self._asked_workflow >= min(_WORKFLOW_EVERY, self._patience.start / 2):
            self._asked_workflow = now
            self._workflow = self._steady.workflow(self.run_id)
            if not self._has_tasks:
                self._mirror_otherwise()
        if self._workflow is None:
            return {}
        return {
            pod: PodProblem(task, pod, kind_of(message), message)
            for task, (pod, message) in self._workflow.waiting().items()
            if task not in known and kind_of(message)
        }

    def _mirror_otherwise(self) -> None:
        """Report states that the server does not: it shows no tasks of a workflow whose nodes Argo compressed.

        They are in the workflow, or are those of the pods if Argo stores the nodes elsewhere.
        """
        if self._workflow is not None and not self._workflow.offloaded:
            self._mirror_workflow()
            return
        views = self._pods.views(self.run_id) if self._pods is not None else None
        by_task = {task: stage for stage, task in self._tasks.items()}
        for view in views or ():
            # A pod that failed may be followed by another attempt.
            if view.task in by_task and (state := _STATES.get(view.phase)):
                self._change(by_task[view.task], state, "", view.ended or view.started)
        if views is None and not self._is_blind:
            self._is_blind = True
            _logger.warning(
                "run %s: the states of its stages are not available while it runs, as the server %s and Kubernetes "
                "cannot be queried. Results are collected at its end",
                self.run_id,
                "does not show its workflow" if self._workflow is None else "stores its nodes in a database",
            )


def _is_failure(outcome: StepResult | DvkfError) -> bool:
    """Return True for a stage that failed, rather than was stopped or not run."""
    if isinstance(outcome, DvkfError):
        return not isinstance(outcome, StageCancelledError)
    return outcome.failed
