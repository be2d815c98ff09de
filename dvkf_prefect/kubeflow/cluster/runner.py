"""Runner for stages on a cluster: all stages to run become one Kubeflow pipeline, which this machine watches.

More stages than a run can have become several runs in order, see `dvkf_prefect.kubeflow.cluster.chain`.

Starting the same stages with the same content finds the existing run again. The run's id is derived from the content.
Its description has the same mark, for servers that assign their own ids. A killed dispatcher may have recorded some of
its stages; the next one then has fewer, and finds the run by its list of stages
(`dvkf_prefect.kubeflow.cluster.open_runs`). Of two dispatchers, on any machines, one claims the run on the remote and
starts it; the other finds it. Failed and cancelled runs, and runs whose results were collected, are not reused. The
next start is a new run.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.remotes.remote import Remote
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.transfer.move import move
from dvkf_prefect.errors import DvkfError, RunnerError, StageCancelledError
from dvkf_prefect.formats.objects import MD5
from dvkf_prefect.formats.tree import is_tree
from dvkf_prefect.kubeflow.cluster.chain import MOST_STAGES, Chain, NotStartedError, parts_of
from dvkf_prefect.kubeflow.cluster.followed import FollowedRun
from dvkf_prefect.kubeflow.cluster.links import Links
from dvkf_prefect.kubeflow.cluster.notes import mark_taken
from dvkf_prefect.kubeflow.cluster.open_runs import OpenRun, open_runs
from dvkf_prefect.kubeflow.cluster.pods import Pods
from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
from dvkf_prefect.kubeflow.cluster.submit import ENDING, Dispatch, Submitted
from dvkf_prefect.kubeflow.cluster.watch import TaskEvent, Watch
from dvkf_prefect.kubeflow.exchange.interests import Interest
from dvkf_prefect.kubeflow.exchange.objects import uncached
from dvkf_prefect.leftovers import OwnedFolder, sweep
from dvkf_prefect.pipeline.step.spec import StepResult, StepSpec

# Prefix of folders with uncached outputs; a sweep removes those whose starter is gone.
_PREFIX = "side-"

__all__ = ["ClusterSettings", "KfpClusterRun", "KfpClusterRunner", "StartedRun", "TaskEvent"]


@dataclasses.dataclass(frozen=True, slots=True)
class StartedRun:
    """A pipeline run that was started or found.

    Attributes:
        run_id: Id of the run.
        url: Its page in KFP's UI; "" if the UI's address is unknown.
        experiment_url: Page of its experiment; "" if the UI's address is unknown.
        stages: Its stages.
    """

    run_id: str
    url: str
    experiment_url: str
    stages: tuple[str, ...]

    def __str__(self) -> str:
        what = f"Kubeflow run {self.run_id} of {len(self.stages)} stage{'s' if len(self.stages) != 1 else ''}"
        return what + (f": {self.url} (experiment: {self.experiment_url})" if self.url else "")


class KfpClusterRun:
    """A stage of a pipeline run.

    Attributes:
        stage: Address of the stage.
    """

    def __init__(self, spec: StepSpec, run: Future[_PipelineRun], cancel: Callable[[], None]) -> None:
        self.stage = spec.stage
        self._spec = spec
        self._run = run
        self._cancel = cancel
        self._lock = threading.Lock()
        self._result: StepResult | None = None

    def __repr__(self) -> str:
        return f"<KfpClusterRun of stage {self.stage!r}, run {self.run_id}>"

    @property
    def run_id(self) -> str:
        """Id of its KFP run; "" before the run starts, after others."""
        return self._run.result().watch.run_id if self._is_started else ""

    @property
    def url(self) -> str:
        """URL of the run in KFP's UI; "" before the run starts, and if the UI's address is unknown."""
        return self._run.result().watch.url if self._is_started else ""

    @property
    def ended(self) -> bool:
        """True if the outcome is known, so that `wait` needs no longer than a download."""
        if not self._run.done():
            return False
        return not self._is_started or self._run.result().watch.has_ended(self.stage)

    @property
    def _is_started(self) -> bool:
        return self._run.done() and self._run.exception() is None

    def wait(self, timeout: float | None = None) -> StepResult:
        """Wait for the stage's end.

        Args:
            timeout: Maximum number of seconds; None waits as long as the run may take.

        Returns:
            The result. Its outputs are on the remote; those that stay out of the cache are also in ``side_dir``.

        Raises:
            TimeoutError: The stage still runs.
            StageError: The stage failed; the class gives the kind of failure.
            StageCancelledError: It was stopped, or never ran because a stage that it needs failed.
            RunnerError: The outcome is unknown.
        """
        began = time.monotonic()
        try:
            run = self._run.result(timeout)
        except NotStartedError as error:
            raise StageCancelledError(f"stage '{self.stage}' was not run: {error}") from error
        except FutureTimeoutError:
            raise TimeoutError(f"stage '{self.stage}' still runs after {timeout:g} s") from None
        left = None if timeout is None else max(0.0, timeout - (time.monotonic() - began))
        outcome = run.watch.outcome(self.stage, left)
        with self._lock:
            if self._result is None:
                run.waited.add(self.stage)
                if isinstance(outcome, DvkfError):
                    raise outcome
                outcome.check()
                self._result = self._brought(run, dataclasses.replace(outcome, dirty=run.dirty))
            return self._result

    def cancel(self) -> None:
        """Terminate the whole run, unless another dispatcher follows it; return at once.

        Ended stages keep their results.
        """
        self._cancel()

    def _brought(self, run: _PipelineRun, result: StepResult) -> StepResult:
        """Download the uncached outputs, which git keeps; the others only with ``fetch``."""
        apart = {out.path for out in self._spec.outs if not out.cached}
        if run.fetch:
            digests = {out.digest for out in result.outs if out.path not in apart}
            _bring(digests, Cache(Path(self._spec.cache_dir)), run.remote)
        digests = {out.digest for out in result.outs if out.path in apart}
        if not digests:
            return result
        # The receiver of the outputs removes their folder.
        side = Cache(run.place_beside() / "side")
        _bring(digests, side, uncached(run.remote))
        return dataclasses.replace(result, side_dir=str(side.root))


class _PipelineRun:
    """A pipeline run and its stages."""

    def __init__(
        self, watch: Watch, remote: Remote, folder: OwnedFolder, run: Submitted, *, fetch: bool, retries: bool
    ) -> None:
        self.watch = watch
        self.dirty = run.dirty
        self.remote = remote
        self.fetch = fetch
        self._folder = folder
        self._places = itertools.count()
        self.waited: set[str] = set()
        self._run = run
        # The next start finds a failed run again, and retries it.
        self._retries = retries

    def cancel(self) -> None:
        if not self.watch.done:
            self.watch.cancel()

    def keep(self, stage: str) -> None:
        """Count the result of a stage as not collected."""
        self.waited.discard(stage)

    def place_beside(self) -> Path:
        """Create a folder for uncached outputs until they are collected."""
        place = self._folder.path / str(next(self._places))
        place.mkdir()
        return place

    def close(self) -> None:
        """Terminate the run unless it has ended; record that its results were collected, if all were."""
        self.cancel()
        self.watch.join()
        self._folder.release(keep=True)  # uncollected outputs are removed by the next run
        kept = self._retries and self.watch.failed
        if len(self.waited) == len(self._run.tasks) and not self.watch.left and not kept:
            note, run = self._run.note, self._run.run
            # Another repository's dispatcher may still need the other stages of a run that it started.
            whole = run.stages.keys() == self._run.tasks.keys() or note.exists()
            mark_taken(note)
            with suppress(DvkfError):
                if whole:
                    run.forget(self.remote.storage)


class KfpClusterRunner:
    """Runner that executes stages on a Kubeflow cluster, several as one pipeline.

    Args:
        repo: The repository; pods read their inputs from its default remote.
        settings: Settings of the cluster.
        fetch: True downloads outputs into the cache; otherwise they stay on the remote.
        run_key: Distinguishes runs with equal content, for example the id of a flow run.
        owner: Name of this dispatcher's work in its interests in runs, for example the id of a flow run; see
            `dvkf_prefect.kubeflow.cluster.ending`.
        on_event: Called with each task's state changes and new lines of its log, in separate threads; None for no
            events, and no reading of logs.
        on_run: Called with each pipeline run once it is started or found; later runs of a chain in a separate thread.

    Attributes:
        on_run: The callback of that name; it may be set before the first start.

    Example:
        ``KfpClusterRunner(Repo.open("."), ClusterSettings("http://localhost:8080"))``
    """

    name = "kubeflow"

    def __init__(
        self,
        repo: Repository,
        settings: ClusterSettings,
        *,
        fetch: bool = False,
        run_key: str = "",
        owner: str = "",
        on_event: Callable[[TaskEvent], None] | None = None,
        on_run: Callable[[StartedRun], None] | None = None,
    ) -> None:
        self.fetches = fetch
        self._repo = repo
        self._settings = settings
        self._run_key = run_key
        self._owner = owner
        self._tell = on_event
        self._folder = repo.tmp_dir / "kubeflow" / "cluster"
        self._lock = threading.Lock()
        self._chains: list[Chain[_PipelineRun]] = []
        self._closed = threading.Event()
        self._api = settings.connect()
        self.on_run = on_run
        self._known_links: Links | None = None

    def __enter__(self) -> KfpClusterRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, spec: StepSpec) -> KfpClusterRun:
        """Start one stage; see `start_all`."""
        return self.start_all([spec])[spec.stage]

    def start_all(
        self, specs: Sequence[StepSpec], edges: Mapping[str, Sequence[str]] | None = None
    ) -> dict[str, KfpClusterRun]:
        """Start stages as one pipeline, or find the existing runs of them; very many become several runs in order.

        Args:
            specs: The stages, in any order. A dependency's digest is ignored if one of these stages writes it.
            edges: Additional predecessors by stage address, besides the writers of its inputs.

        Returns:
            The run of each stage by its address.

        Raises:
            StageGraphError: The stages do not form a graph.
            StageError: Sources are not committed, or an input is neither in git nor on the remote.
            ParseError: A stage's ``meta: kubeflow:`` is wrong.
            ConfigError: The remote or the cluster is not configured for this.
            RunnerError: The stages could not be started.
        """
        if self._closed.is_set():
            raise RunnerError("the runner is closed; stages cannot start")
        edges, remote = edges or {}, self._repo.remote()
        runs = list(open_runs(remote.storage))
        shared = self._dispatch(specs, edges, runs).shared()
        parts = parts_of(specs, edges, shared, MOST_STAGES)

        def begin(i: int, some: Sequence[StepSpec]) -> _PipelineRun:
            # The list is too old for a part that waited.
            return self._begin(some, edges, None if parts[i].after else runs)

        chain = Chain(parts, begin, caches=[self._repo.cache], remote=remote)
        with self._lock:
            self._chains.append(chain)
        if self._closed.is_set():
            chain.close()
        return {
            spec.stage: KfpClusterRun(spec, run, chain.cancel)
            for part, run in zip(parts, chain.runs, strict=True)
            for spec in part.specs
        }

    def _dispatch(
        self,
        specs: Sequence[StepSpec],
        edges: Mapping[str, Sequence[str]],
        runs: Sequence[OpenRun] | None,
    ) -> Dispatch:
        return Dispatch(
            self._repo,
            self._settings,
            self._api,
            specs,
            edges,
            run_key=self._run_key,
            folder=self._folder,
            runs=runs,
            owner=self._owner,
        )

    def keep(self, stage: str) -> None:
        """Keep the result of a stage that could not be recorded; the next start of these stages takes it.

        Args:
            stage: Address of the stage.
        """
        with self._lock:
            chains = list(self._chains)
        for chain in chains:
            chain.keep(stage)

    def _begin(
        self,
        specs: Sequence[StepSpec],
        edges: Mapping[str, Sequence[str]],
        runs: Sequence[OpenRun] | None,
    ) -> _PipelineRun:
        """Start one run, or find it, among some open ones; None lists them."""
        settings = self._settings
        links = self._links()
        remote = self._repo.remote()
        run, interest = self._submit(self._dispatch(specs, edges, runs), remote)
        pods = Pods(settings.namespace, config_file=settings.kube_config, context=settings.kube_context)
        followed = FollowedRun(
            self._api,
            run.run.run_id,
            run.run.key,
            run.tasks,
            remote,
            pods if settings.ask_kubernetes else None,
            settings.namespace,
            links.run(run.run.run_id),
        )
        watch = Watch(
            followed, needs=run.edges, patience=settings.patience, tell=self._tell, interest=interest
        )
        sweep(self._folder, _PREFIX)
        experiment = links.experiment(run.experiment_id)
        if self.on_run is not None:
            self.on_run(StartedRun(run.run.run_id, watch.url, experiment, tuple(run.tasks)))
        return _PipelineRun(
            watch,
            remote,
            OwnedFolder(self._folder, _PREFIX),
            run,
            fetch=self.fetches,
            retries=settings.failed_run == "retry",
        )

    def _submit(self, job: Dispatch, remote: Remote) -> tuple[Submitted, Interest]:
        """Start the run, or find one that no other dispatcher is about to end."""
        while True:
            run = job.submit()
            interest = Interest(remote.storage, run.run.key, self._owner)
            run_id = run.run.run_id
            try:
                late = interest.is_late(lambda: (self._api.run(run_id) or {}).get("state") in ENDING)  # noqa: B023
            except BaseException:
                interest.release()
                raise
            if not late:
                return run, interest
            interest.release()

    def leave(self) -> None:
        """Stop following the runs, which go on; the next start of their stages follows them. Return at once."""
        with self._lock:
            chains = list(self._chains)
        for chain in chains:
            chain.leave()

    def _links(self) -> Links:
        if self._known_links is None:
            self._known_links = self._settings.links(self._api)
        return self._known_links

    def close(self) -> None:
        """Terminate all running stages and wait for their end; a second call does nothing."""
        with self._lock:
            self._closed.set()
            chains, self._chains = self._chains, []
        for chain in chains:
            chain.cancel()
        for chain in chains:
            chain.close()
        self._api.close()


def _bring(digests: set[str], cache: Cache, remote: Remote) -> None:
    """Download files and directories into a cache, manifests first."""
    trees = {digest for digest in digests if is_tree(digest)}
    _fetch(trees, cache, remote)
    _fetch((digests - trees).union(*(cache.read_tree(tree).digests for tree in trees)), cache, remote)


def _fetch(digests: set[str], cache: Cache, remote: Remote) -> None:
    for error in move("fetch", sorted(cache.missing(digests)), MD5, cache, remote).failed.values():
        raise error
