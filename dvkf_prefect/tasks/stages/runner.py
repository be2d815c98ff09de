"""Runner that makes each stage a task run of the current flow.

The wrapped runner executes the stage. The task run shows its state, its live log and its attempts. `repro` starts a
stage when all its upstream stages are complete, so Prefect's task runner only provides threads.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from itertools import count
from types import TracebackType
from typing import Any
from uuid import UUID

from prefect import Task
from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.client.schemas.objects import RunInput, TaskRunResult
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import Pause
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from dvkf_prefect.errors import RunnerError, StageCancelledError
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
from dvkf_prefect.kubeflow.cluster.watch import TaskEvent
from dvkf_prefect.leftovers import OwnedFolder, sweep
from dvkf_prefect.pipeline.plan.snapshot import Snapshot
from dvkf_prefect.pipeline.run.events import ReproResult, StageEvent
from dvkf_prefect.pipeline.step.runner import BatchRunner, Keeper, Runner, StageRun
from dvkf_prefect.pipeline.step.spec import StepKnown, StepResult, StepSpec
from dvkf_prefect.repo import Repo
from dvkf_prefect.tasks.stages.log import Mask, mask_of
from dvkf_prefect.tasks.stages.mirror import RunLinks, TaskMirror
from dvkf_prefect.tasks.stages.options import StageOptions, read_options
from dvkf_prefect.tasks.stages.task_run import (
    GRACE,
    StageCall,
    StageContext,
    StageMark,
    mark_stage,
    may_retry_of,
    run_stage,
)

# Maximum number of task runs for unchanged stages. The pipeline's card lists all stages.
_MARKS = 100
# Prefix of temporary folders. The next flow removes those of killed flows.
_PREFIX = "prefect-"
# Maximum number of a cluster's stages that are followed at the same time.
_FOLLOWED = 64


class StageTasks:
    """Runner of stages as task runs.

    Args:
        repo: The repository.
        runner: Runner that executes the stages; closed together with this one.
        snapshot: The stages of the repository.
        options: Options of task runs by the address of the stage.
        jobs: Maximum number of stages that run in parallel.
        reuse: Take results that Prefect persisted for equal runs.
        mirror: Receiver of the runner's task events.
        name: Short name of the repository for artifacts; the name of its folder if empty.

    Example:
        ``stage_tasks(repo, lambda on_event: pipelines.runner(repo, on_event=on_event))``
    """

    _uses_flow = True

    def __init__(
        self,
        repo: Repo,
        runner: Runner,
        snapshot: Snapshot,
        *,
        options: Mapping[str, StageOptions],
        jobs: int = 2,
        reuse: bool = True,
        mirror: TaskMirror | None = None,
        name: str = "",
    ) -> None:
        self.repo = repo
        self.repository = name or repo.root.name
        self.inner = runner
        self.snapshot = snapshot
        self.mask: Mask = mask_of(repo)
        self.reuse = reuse
        self.cancelled = threading.Event()
        self._options = options
        self._mirror = mirror or TaskMirror()
        self._jobs = jobs
        self._stack = ExitStack()
        sweep(repo.tmp_dir, _PREFIX)
        self._folder = OwnedFolder(repo.tmp_dir, _PREFIX)
        self._numbers = count()
        self._futures: dict[str, PrefectFuture[Any]] = {}
        self._calls: dict[str, StageCall] = {}
        self._marks: list[PrefectFuture[Any]] = []
        self._task_runner: TaskRunner[Any] | None = None
        self._graph = self.snapshot.graph

    @property
    def name(self) -> str:
        """Name of the wrapped runner."""
        return self.inner.name

    @property
    def in_place(self) -> bool:
        """True if stages run in the workspace."""
        return bool(getattr(self.inner, "in_place", False))

    @property
    def hermetic(self) -> bool:
        """True if stages may write only their outputs."""
        return bool(getattr(self.inner, "hermetic", False))

    def __enter__(self) -> StageTasks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, spec: StepSpec) -> StageRun:
        """Submit a stage's task run without waiting for it."""
        call = self._call(spec, begin=None)
        return _TaskRun(call, self._submit(call, policy=call.policy))

    def on_event(self, event: StageEvent) -> None:
        """Show a stage that ends without a run: skipped, restored, or failed before its start.

        Args:
            event: The event from `repro`.
        """
        if event.kind in ("start", "done") or event.stage in self._futures:
            return
        if event.kind != "fail" and len(self._marks) >= _MARKS:
            return
        self._mark(StageMark(event, self.mask))

    def show_blocked(self, result: ReproResult) -> None:
        """Show stages that were not started, because another one failed, as cancelled task runs.

        Args:
            result: The result of `repro`, or of the part up to a failure.
        """
        for stage in result.blocked:
            if stage in self._futures or len(self._marks) >= _MARKS:
                continue
            upstream = {other.address for other in self._graph.order([stage])}
            near = [other for other in result.failed if other in upstream]
            cause = ", ".join(f"'{other}'" for other in (near or result.failed)[:3])
            message = f"not reached: {cause} failed" if cause else "not reached"
            event = StageEvent(stage, "skip", message=message)
            self._mark(StageMark(event, self.mask, reached=False))

    def task_run(self, stage: str) -> UUID | None:
        """Return the ID of a stage's last task run, or None.

        Args:
            stage: Address of the stage.
        """
        future = self._futures.get(stage)
        return future.task_run_id if future is not None else None

    def size_of(self, stage: str) -> int:
        """Return the bytes of the outputs that a stage wrote; 0 if unknown.

        Args:
            stage: Address of the stage.
        """
        result = self._calls[stage].result if stage in self._calls else None
        return sum(out.content.size or 0 for out in result.outs) if result is not None else 0

    def close(self) -> None:
        """Cancel running stages and release resources. A second call has no effect."""
        self.cancelled.set()
        try:
            self.inner.close()
            end = time.monotonic() + GRACE
            for mark in self._marks:
                with suppress(CancelledError):
                    mark.wait(max(0.0, end - time.monotonic()))
        finally:
            self._stack.close()
            self._folder.release()

    # -- task runs ---------------------------------------------------------------------------------------------------

    def _call(
        self,
        spec: StepSpec,
        *,
        begin: Callable[[], StageRun] | None,
        has_ended: Callable[[], bool] = lambda: True,
    ) -> StageCall:
        log = None
        if begin is None:
            log = self._folder.path / f"{next(self._numbers)}.log"
            spec = dataclasses.replace(spec, log=str(log))
        call = StageCall(
            StageContext(self.repo, self.snapshot, self.mask, self.reuse, self.cancelled),
            self.options_of(spec.stage),
            spec,
            self._graph.stages.get(spec.stage),
            log,
            begin or (lambda: self.inner.start(spec)),
            batched=begin is not None,
            has_ended=has_ended,
        )
        self._mirror.add(spec.stage, call)
        self._calls[spec.stage] = call
        return call

    def options_of(self, stage: str) -> StageOptions:
        """Return the options of a stage's task run.

        Args:
            stage: Address of the stage.
        """
        return self._options.get(stage) or StageOptions()

    def _submit(
        self,
        call: StageCall,
        *,
        policy: CachePolicy = NO_CACHE,
        wait_for: Collection[PrefectFuture[Any]] = (),
    ) -> PrefectFuture[Any]:
        name, options = call.spec.stage, call.options

        def named() -> str:
            call.wait_for_pod()
            return name

        # Prefect's own retry delay is not used: its sleep ignores cancellation.
        made: Task[..., Any] = run_stage.with_options(
            name=name,
            task_run_name=named,
            tags=options.tags,
            retries=options.retries,
            retry_condition_fn=may_retry_of(call),
            cache_policy=policy,
            persist_result=policy is not NO_CACHE,
            result_serializer="json",
            refresh_cache=not self.reuse,
        )
        return self._run(made, call, name, wait_for)

    def _mark(self, mark: StageMark) -> None:
        self._marks.append(self._run(mark_stage, mark, mark.name))

    def _run(
        self,
        made: Task[..., Any],
        body: StageCall | StageMark,
        name: str,
        wait_for: Collection[PrefectFuture[Any]] = (),
    ) -> PrefectFuture[Any]:
        edges: set[RunInput] = {
            TaskRunResult(id=self._futures[other].task_run_id)
            for other in (self._graph.upstream.get(name) or ())
            if other in self._futures
        }
        future: PrefectFuture[Any] = self._runner().submit(
            made, {"stage": body}, wait_for=list(wait_for) or None, dependencies={"stage": edges}
        )
        self._futures[name] = future
        return future

    def _runner(self) -> TaskRunner[Any]:
        """Return the flow's task runner, or a new one inside a task, which holds a thread of the flow's."""
        if self._task_runner is None:
            context = FlowRunContext.get()
            if (
                context is not None
                and self._uses_flow
                and TaskRunContext.get() is None
                and isinstance(context.task_runner, ThreadPoolTaskRunner)
            ):
                self._task_runner = context.task_runner
            else:
                own: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=max(self._jobs, 4))
                self._task_runner = self._stack.enter_context(own)
        return self._task_runner


class BatchStageTasks(StageTasks):
    """`StageTasks` for a runner that starts all stages together.

    Attributes:
        fetches: True if the outputs are in the cache when their runs end.
    """

    _uses_flow = False  # the flow's task runner may have too few threads

    def __init__(
        self,
        repo: Repo,
        runner: BatchRunner,
        snapshot: Snapshot,
        *,
        options: Mapping[str, StageOptions],
        reuse: bool = True,
        mirror: TaskMirror | None = None,
        name: str = "",
    ) -> None:
        super().__init__(
            repo, runner, snapshot, options=options, jobs=_FOLLOWED, reuse=reuse, mirror=mirror, name=name
        )
        self.fetches = runner.fetches
        self._batch_runner = runner

    def start_all(
        self, specs: Sequence[StepSpec], edges: Mapping[str, Sequence[str]] | None = None
    ) -> Mapping[str, StageRun]:
        """Start stages together, each with a task run; see `BatchRunner.start_all`.

        Args:
            specs: The stages.
            edges: Stages to wait for, besides those whose outputs are read.
        """
        batch = _PipelineRuns(self, self._batch_runner, specs, edges or {})
        runs: dict[str, StageRun] = {}
        by_stage = {spec.stage: spec for spec in specs}
        # Upstream stages are submitted first: downstream ones wait in threads, and must not take all of them.
        order = [
            stage.address for stage in self._graph.order(set(by_stage) & set(self._graph.stages), alone=True)
        ]
        for address in dict.fromkeys((*order, *by_stage)):
            call = self._call(
                by_stage[address], begin=batch.begin_of(address), has_ended=batch.end_of(address)
            )
            needed = {*self._graph.upstream.get(address, ()), *(edges or {}).get(address, ())}
            wait_for = [self._futures[other] for other in sorted(needed) if other in runs]
            batch.calls[address] = call
            runs[address] = _TaskRun(
                call,
                self._submit(call, wait_for=wait_for),
                batch.cancel,
                self._leave,
            )
        return runs

    def _leave(self) -> None:
        """Let runs on a cluster go on without this process; the resumed flow run follows them."""
        if isinstance(self._batch_runner, KfpClusterRunner):
            self._batch_runner.leave()

    def keep(self, stage: str) -> None:
        """Keep the result of a stage that could not be recorded; see `Keeper`.

        Args:
            stage: Address of the stage.
        """
        if isinstance(self._batch_runner, Keeper):
            self._batch_runner.keep(stage)


class _PipelineRuns:
    """Pipeline run on a cluster, with the later runs that retry its failed stages."""

    def __init__(
        self,
        tasks: StageTasks,
        runner: BatchRunner,
        specs: Sequence[StepSpec],
        edges: Mapping[str, Sequence[str]],
    ) -> None:
        self.calls: dict[str, StageCall] = {}
        self._tasks = tasks
        self._runner = runner
        self._specs = specs
        self._edges = edges
        self._lock = threading.Lock()
        self._round = 0
        self._begun: dict[str, int] = {}
        self._runs = runner.start_all(specs, edges)

    def begin_of(self, stage: str) -> Callable[[], StageRun]:
        """Return a function that gives a stage's run. On a second call, it starts the next pipeline run if needed."""

        def begin() -> StageRun:
            with self._lock:
                if self._begun.get(stage) == self._round:
                    self._again()
                self._begun[stage] = self._round
                return self._runs[stage]

        return begin

    def end_of(self, stage: str) -> Callable[[], bool]:
        """Return a function that returns True if the stage's outcome is known."""

        def has_ended() -> bool:
            with self._lock:
                return bool(getattr(self._runs[stage], "ended", True))

        return has_ended

    def cancel(self) -> None:
        """Cancel all stages."""
        with self._lock:
            for run in self._runs.values():
                run.cancel()

    def _again(self) -> None:
        """Start the pipeline again. Equal content finds the existing run; completed stages are not repeated."""
        lost = not any(call.failed for call in self.calls.values())
        specs = self._specs if lost else [self._with_known(spec) for spec in self._specs]
        self._runs = self._runner.start_all(specs, self._edges)
        self._round += 1

    def _with_known(self, spec: StepSpec) -> StepSpec:
        call = self.calls.get(spec.stage)
        if call is None or call.result is None:
            return spec
        deps = call.result.deps or spec.deps
        return dataclasses.replace(
            spec, known=StepKnown({dep.path: dep.digest for dep in deps}, call.result.outs)
        )


class _TaskRun:
    """A stage that runs as a task run."""

    def __init__(
        self,
        call: StageCall,
        future: PrefectFuture[Any],
        cancel: Callable[[], None] | None = None,
        leave: Callable[[], None] = lambda: None,
    ) -> None:
        self._leave = leave
        self._call = call
        self._future = future
        self._cancel = cancel
        self._ended = threading.Event()
        future.add_done_callback(lambda _: self._ended.set())

    def __repr__(self) -> str:
        return f"<task run of stage {self._call.spec.stage!r}>"

    def wait(self, timeout: float | None = None) -> StepResult:
        """Wait for the end of the task run, including retries; see `StageRun.wait`."""
        call = self._call
        if not self._ended.wait(timeout):
            raise TimeoutError(f"stage '{call.spec.stage}' is still running after {timeout:g} s")
        if call.error is not None:
            raise call.error
        if call.result is not None:
            return call.result
        try:
            self._future.wait()
            state = self._future.state
        except CancelledError:
            raise StageCancelledError(f"stage '{call.spec.stage}' was cancelled before it started") from None
        except Pause:  # the flow run was suspended, and this process ends
            self._leave()
            raise
        if state.name == "NotReady" or call.cancelled:
            raise StageCancelledError(f"stage '{call.spec.stage}' was not run: {state.message}")
        raise RunnerError(f"the task run of stage '{call.spec.stage}' ended {state.name}: {state.message}")

    def cancel(self) -> None:
        """Cancel the stage and all its processes."""
        self._call.cancel()
        if self._cancel is not None:
            self._cancel()


def stage_tasks(
    repo: Repo,
    open_runner: Callable[[Callable[[TaskEvent], None]], Runner],
    *,
    jobs: int = 2,
    retries: int = 0,
    retry_delay_seconds: float = 0.0,
    reuse: bool = True,
    name: str = "",
) -> StageTasks:
    """Return a runner that makes each stage a task run of the current flow.

    Args:
        repo: The repository.
        open_runner: Function that opens the runner of the stages; its argument is a callback for task events.
        jobs: Maximum number of stages that run in parallel.
        retries: Number of retries, unless a stage's ``meta: prefect:`` sets it.
        retry_delay_seconds: Seconds to wait before each retry.
        reuse: Take results that Prefect persisted for equal runs.
        name: Short name of the repository for artifacts; the name of its folder if empty.

    Returns:
        The runner, a context manager. Pass its `StageTasks.on_event` to `repro` as ``on_event``.

    Raises:
        ParseError: A stage's ``meta: prefect:`` is invalid; with file, line, stage and key.

    Example:
        >>> with stage_tasks(repo, lambda on_event: pipelines.runner(repo, on_event=on_event)) as runner:
        ...     repro(repo, runner=runner, on_event=runner.on_event)
    """
    defaults = StageOptions(retries, (retry_delay_seconds,) if retry_delay_seconds else ())
    snapshot = Snapshot(repo)
    options = read_options(snapshot.graph.stages.values(), snapshot.files, defaults)
    mirror = TaskMirror()
    runner = open_runner(mirror.take)
    if isinstance(runner, KfpClusterRunner):
        runner.on_run = RunLinks(name or repo.root.name).publish
    if isinstance(runner, BatchRunner):
        return BatchStageTasks(repo, runner, snapshot, options=options, reuse=reuse, mirror=mirror, name=name)
    return StageTasks(
        repo, runner, snapshot, options=options, jobs=jobs, reuse=reuse, mirror=mirror, name=name
    )
