"""Several pipeline runs in order, for more stages than one run can have.

The next run starts after all stages of the one before have succeeded. Then their outputs have digests, which replace
those of its dependencies.

Sources of the limit: Argo takes a workflow of 1 MiB, its compressed nodes among it; a node has the inputs of its
template, so that each stage is stored again with them. KFP reads a run's tasks in 4 MiB, some 1.3 KB for each of six
nodes of a stage.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.remotes.remote import Remote
from dvkf_prefect.data.transfer.manifests import read_manifest
from dvkf_prefect.data.transfer.move import move
from dvkf_prefect.errors import StageCancelledError
from dvkf_prefect.formats.objects import MD5
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.kubeflow.cluster.watch import Watch
from dvkf_prefect.kubeflow.compile.compile import edges_of
from dvkf_prefect.kubeflow.exchange.objects import uncached
from dvkf_prefect.kubeflow.pod.kfp_task import outputs_text, with_upstream
from dvkf_prefect.pipeline.step.spec import StepResult, StepSpec
from dvkf_prefect.scratch import scratch_folder

MOST_STAGES = 100


class NotStartedError(StageCancelledError):
    """A run was not started, because one before it did not succeed."""


class PipelineRun(Protocol):
    """A pipeline run that was started.

    Attributes:
        watch: Watch of the run.
    """

    watch: Watch

    def cancel(self) -> None:
        """Terminate the run, if it has not ended."""

    def close(self) -> None:
        """Terminate the run, and wait for its end."""

    def keep(self, stage: str) -> None:
        """Keep the result of a stage for the next start."""


R = TypeVar("R", bound=PipelineRun)


def split(
    specs: Sequence[StepSpec], edges: Mapping[str, Sequence[str]], most: int = MOST_STAGES
) -> list[list[StepSpec]]:
    """Return the stages in parts, each of which needs only itself and the parts before.

    Args:
        specs: The stages, in any order.
        edges: Predecessors of stages, besides the writers of their inputs.
        most: Maximum number of stages of a part.

    Raises:
        StageGraphError: The stages do not form a graph.
    """
    if len(specs) <= most:
        return [list(specs)]
    by_stage = {spec.stage: spec for spec in specs}
    needs = edges_of(specs, edges)
    ordered: list[StepSpec] = []
    done: set[str] = set()

    def add(stage: str) -> None:
        stack = [stage]
        while stack:
            missing = [other for other in needs[stack[-1]] if other not in done]
            if missing:
                stack.extend(missing)
                continue
            if (last := stack.pop()) not in done:
                done.add(last)
                ordered.append(by_stage[last])

    for stage in by_stage:
        add(stage)
    return [ordered[start : start + most] for start in range(0, len(ordered), most)]


class Chain(Generic[R]):
    """Parts of a pipeline, each one run.

    Args:
        parts: The stages of each run.
        begin: Starts the run of some stages.
        caches: Caches with manifests of outputs.
        remote: Remote with the outputs.

    Raises:
        DvkfError: The first run could not be started.
    """

    def __init__(
        self,
        parts: Sequence[Sequence[StepSpec]],
        begin: Callable[[Sequence[StepSpec]], R],
        *,
        caches: Sequence[Cache],
        remote: Remote,
    ) -> None:
        self._parts = parts
        self._begin = begin
        self._trees = _PassedOn(caches, remote)
        self._cancelled = threading.Event()
        self.runs: list[Future[R]] = [Future() for _ in parts]
        self.runs[0].set_result(begin(parts[0]))
        self._thread = threading.Thread(target=self._work, name="kfp-runs", daemon=True)
        if len(parts) > 1:
            self._thread.start()

    def cancel(self) -> None:
        """Terminate the current run and start no further one; return at once."""
        self._cancelled.set()
        for run in self._started():
            run.cancel()

    def leave(self) -> None:
        """Stop following the current run, which goes on, and start no further one; return at once."""
        self._cancelled.set()
        for run in self._started():
            run.watch.leave()

    def close(self) -> None:
        """Terminate the current run, and wait for its end."""
        self.cancel()
        if len(self._parts) > 1:
            self._thread.join()
        for run in self._started():
            run.close()

    def keep(self, stage: str) -> None:
        """Keep the result of a stage for the next start, because it could not be recorded here."""
        for run in self._started():
            run.keep(stage)

    def _started(self) -> list[R]:
        return [run.result() for run in self.runs if run.done() and run.exception() is None]

    def _work(self) -> None:
        written: list[str] = []
        for i, part in enumerate(self._parts[1:], 1):
            before = self.runs[i - 1].result()
            for spec in self._parts[i - 1]:
                outcome = before.watch.outcome(spec.stage, None)
                if not isinstance(outcome, StepResult) or outcome.failed:
                    self._give_up(i, NotStartedError(f"the run failed (stage '{spec.stage}' failed)"))
                    return
                written.append(outputs_text(outcome))
            if self._cancelled.is_set():
                self._give_up(i, NotStartedError("the run was stopped"))
                return
            try:
                run = self._begin([with_upstream(spec, written, self._trees) for spec in part])
            except Exception as error:  # noqa: BLE001 (the waiting caller gets it)
                self._give_up(i, error)
                return
            self.runs[i].set_result(run)
            if self._cancelled.is_set():
                run.cancel()

    def _give_up(self, first: int, error: Exception) -> None:
        self.runs[first].set_exception(error)
        for run in self.runs[first + 1 :]:
            why = str(error) if isinstance(error, NotStartedError) else f"the run before it failed: {error}"
            run.set_exception(NotStartedError(why))


class _PassedOn:
    """Manifests of earlier runs' outputs, and of parts of them; those of parts are stored beside the objects."""

    def __init__(self, caches: Sequence[Cache], remote: Remote) -> None:
        self._caches = caches
        self._remote = remote

    def read_tree(self, digest: str) -> Tree:
        """Return a directory's manifest."""
        return read_manifest(digest, caches=self._caches, remotes=[self._remote, uncached(self._remote)])

    def add_tree(self, tree: Tree) -> str:
        """Store a manifest for the pods; return its digest."""
        with scratch_folder("dvkf-part-") as folder:
            cache = Cache(folder / "cache")
            digest = cache.add_tree(tree)
            for error in move("push", [digest], MD5, cache, uncached(self._remote)).failed.values():
                raise error
        return digest
