"""Several pipeline runs, for more stages than one run can have, and for stages that other runs have already.

A run starts after all stages that it needs in others have succeeded. Then their outputs have digests, which replace
those of its dependencies. A run of another start is followed at once, unless it needs stages of a second one: whether
it read the same inputs shows only then. The stages that need none of these runs are started at once, too. The parts of
a run that is too large start in order, so that they do not fill the cluster.

Sources of the limit: Argo takes a workflow of 1 MiB, its compressed nodes among it; a node has the inputs of its
template, so that each stage is stored again with them. KFP reads a run's tasks in 4 MiB, some 1.3 KB for each of six
nodes of a stage.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Part:
    """Stages of one run.

    Attributes:
        specs: The stages.
        after: Places of the parts before it, whose stages must succeed first.
    """

    specs: Sequence[StepSpec]
    after: frozenset[int] = frozenset()


def parts_of(
    specs: Sequence[StepSpec],
    edges: Mapping[str, Sequence[str]],
    shared: Sequence[Sequence[str]],
    most: int = MOST_STAGES,
) -> list[Part]:
    """Return the stages of each run, in an order in which a part needs only those before.

    Args:
        specs: The stages, in any order.
        edges: Predecessors of stages, besides the writers of their inputs.
        shared: Stages that runs on the server have, one list for each run.
        most: Maximum number of stages of a new run.

    Raises:
        StageGraphError: The stages do not form a graph.
    """
    needs = edges_of(specs, edges)
    by_stage = {spec.stage: spec for spec in specs}
    place = {stage: i for i, part in enumerate(shared) for stage in part}
    parts = [Part([by_stage[stage] for stage in part]) for part in shared]
    bound = set(place)
    while more := {spec.stage for spec in specs} - bound:
        if not (reading := {stage for stage in more if bound & set(needs[stage])}):
            break
        bound |= reading
    for group in (
        [spec for spec in specs if spec.stage not in bound],
        [spec for spec in specs if spec.stage in bound and spec.stage not in place],
    ):
        for i, some in enumerate(split(group, edges, most) if group else ()):
            place.update((spec.stage, len(parts)) for spec in some)
            parts.append(Part(some, frozenset({len(parts) - 1} if i else ())))
    return [
        Part(
            part.specs,
            part.after | {place[need] for spec in part.specs for need in needs[spec.stage]} - {i},
        )
        for i, part in enumerate(parts)
    ]


class Chain(Generic[R]):
    """Parts of a pipeline, each one run. Several may run at once, but they are started one at a time.

    Args:
        parts: The stages of each run; the first one waits for none.
        begin: Starts the run of a part, given its place and its stages.
        caches: Caches with manifests of outputs.
        remote: Remote with the outputs.

    Raises:
        DvkfError: The first run could not be started.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        begin: Callable[[int, Sequence[StepSpec]], R],
        *,
        caches: Sequence[Cache],
        remote: Remote,
    ) -> None:
        self._parts = parts
        self._begin = begin
        self._trees = _PassedOn(caches, remote)
        self._cancelled = threading.Event()
        self.runs: list[Future[R]] = [Future() for _ in parts]
        self._starting = threading.Lock()
        self.runs[0].set_result(begin(0, parts[0].specs))
        self._threads = [
            threading.Thread(target=self._start, args=(i,), name=f"kfp-runs-{i}", daemon=True)
            for i in range(1, len(parts))
        ]
        for thread in self._threads:
            thread.start()

    def cancel(self) -> None:
        """Terminate the current runs and start no further one; return at once."""
        self._cancelled.set()
        for run in self._started():
            run.cancel()

    def leave(self) -> None:
        """Stop following the current runs, which go on, and start no further one; return at once."""
        self._cancelled.set()
        for run in self._started():
            run.watch.leave()

    def close(self) -> None:
        """Terminate the current runs, and wait for their end."""
        self.cancel()
        for thread in self._threads:
            thread.join()
        for run in self._started():
            run.close()

    def keep(self, stage: str) -> None:
        """Keep the result of a stage for the next start, because it could not be recorded here."""
        for run in self._started():
            run.keep(stage)

    def _started(self) -> list[R]:
        return [run.result() for run in self.runs if run.done() and run.exception() is None]

    def _start(self, i: int) -> None:
        """Start a part once all stages of those before it have succeeded."""
        part, future = self._parts[i], self.runs[i]
        try:
            written = [text for before in sorted(part.after) for text in self._written(before)]
            with self._starting:
                if self._cancelled.is_set():
                    raise NotStartedError("the run was stopped")
                specs = [with_upstream(spec, written, self._trees) for spec in part.specs]
                run = self._begin(i, specs)
        except Exception as error:  # noqa: BLE001 (the waiting caller gets it)
            future.set_exception(error)
            return
        future.set_result(run)
        if self._cancelled.is_set():
            run.cancel()

    def _written(self, i: int) -> list[str]:
        """Wait for the outputs of a part's stages; return them as parameters of pods.

        Raises:
            NotStartedError: A stage of it did not succeed.
        """
        try:
            run = self.runs[i].result()
        except NotStartedError:
            raise
        except Exception as error:
            raise NotStartedError(f"the run before it failed: {error}") from error
        texts = []
        for spec in self._parts[i].specs:
            outcome = run.watch.outcome(spec.stage, None)
            if not isinstance(outcome, StepResult) or outcome.failed:
                raise NotStartedError(f"the run failed (stage '{spec.stage}' failed)")
            texts.append(outputs_text(outcome))
        return texts


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
