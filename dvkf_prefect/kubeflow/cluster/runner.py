"""Runner for stages on a cluster: all stages to run become one Kubeflow pipeline, which this machine watches.

Starting the same stages with the same content finds the existing run again. The run's id is derived from the content.
Its description has the same mark, for servers that assign their own ids. So a killed dispatcher continues with its
run, and two dispatchers never start the same run twice. Failed and cancelled runs, and runs whose results were
collected, are not reused. The next start is a new run.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.remotes.remote import Remote
from dvkf_prefect.data.repo import Repo
from dvkf_prefect.data.transfer.move import move
from dvkf_prefect.errors import DvkfError, RunnerError
from dvkf_prefect.files import write_atomic
from dvkf_prefect.formats.objects import MD5
from dvkf_prefect.formats.tree import is_tree
from dvkf_prefect.kubeflow.cluster.api import KfpApi
from dvkf_prefect.kubeflow.cluster.pods import Pods
from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
from dvkf_prefect.kubeflow.cluster.submit import Dispatch
from dvkf_prefect.kubeflow.cluster.watch import TaskEvent, Watch
from dvkf_prefect.kubeflow.exchange.objects import uncached
from dvkf_prefect.leftovers import OwnedFolder, sweep
from dvkf_prefect.pipeline.step.spec import StepResult, StepSpec

# Prefix of folders with uncached outputs; a sweep removes those whose starter is gone.
_PREFIX = "side-"

__all__ = ["ClusterSettings", "KfpClusterRun", "KfpClusterRunner", "TaskEvent"]


class KfpClusterRun:
    """A stage of a pipeline run.

    Attributes:
        stage: Address of the stage.
        run_id: Id of its KFP run.
        url: URL of the run in KFP's UI.
    """

    def __init__(self, spec: StepSpec, batch: _Batch) -> None:
        self.stage = spec.stage
        self.run_id = batch.watch.run_id
        self.url = batch.watch.url
        self._spec = spec
        self._batch = batch
        self._lock = threading.Lock()
        self._result: StepResult | None = None

    def __repr__(self) -> str:
        return f"<KfpClusterRun of stage {self.stage!r}, run {self.run_id}>"

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
        outcome = self._batch.watch.outcome(self.stage, timeout)
        with self._lock:
            if self._result is None:
                self._batch.waited.add(self.stage)
                if isinstance(outcome, DvkfError):
                    raise outcome
                outcome.check()
                self._result = self._brought(outcome)
            return self._result

    def cancel(self) -> None:
        """Terminate the whole run; ended stages keep their results. Returns at once."""
        self._batch.cancel()

    def _brought(self, result: StepResult) -> StepResult:
        """Download the uncached outputs, which git keeps; the others only with ``fetch``."""
        apart = {out.path for out in self._spec.outs if not out.cached}
        if self._batch.fetch:
            digests = {out.digest for out in result.outs if out.path not in apart}
            _bring(digests, Cache(Path(self._spec.cache_dir)), self._batch.remote)
        digests = {out.digest for out in result.outs if out.path in apart}
        if not digests:
            return result
        # The receiver of the outputs removes their folder.
        side = Cache(self._batch.place_beside() / "side")
        _bring(digests, side, uncached(self._batch.remote))
        return dataclasses.replace(result, side_dir=str(side.root))


class _Batch:
    """A pipeline run and its stages."""

    def __init__(
        self, watch: Watch, remote: Remote, folder: OwnedFolder, note: Path, stages: int, *, fetch: bool
    ) -> None:
        self.watch = watch
        self.remote = remote
        self.fetch = fetch
        self._folder = folder
        self._places = itertools.count()
        self.waited: set[str] = set()
        self._note = note
        self._stages = stages

    def cancel(self) -> None:
        if not self.watch.done:
            self.watch.cancel()

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
        if len(self.waited) == self._stages:
            with suppress(OSError, ValueError):
                known = json.loads(self._note.read_bytes())
                write_atomic(self._note, json.dumps({**known, "taken": True}).encode())


class KfpClusterRunner:
    """Runner that executes stages on a Kubeflow cluster, several as one pipeline.

    Args:
        repo: The repository; pods read their inputs from its default remote.
        settings: Settings of the cluster.
        fetch: True downloads outputs into the cache; otherwise they stay on the remote.
        run_key: Distinguishes runs with equal content, for example the id of a flow run.
        on_event: Called with each task's state changes, in a separate thread.

    Example:
        ``KfpClusterRunner(Repo.open("."), ClusterSettings("http://localhost:8080"))``
    """

    name = "kubeflow"

    def __init__(
        self,
        repo: Repo,
        settings: ClusterSettings,
        *,
        fetch: bool = False,
        run_key: str = "",
        on_event: Callable[[TaskEvent], None] | None = None,
    ) -> None:
        self.fetches = fetch
        self._repo = repo
        self._settings = settings
        self._run_key = run_key
        self._tell = on_event or (lambda event: None)
        self._folder = repo.tmp_dir / "kubeflow" / "cluster"
        self._lock = threading.Lock()
        self._batches: list[_Batch] = []
        self._closed = threading.Event()
        self._api = KfpApi(
            settings.host,
            token=settings.bearer,
            cookies={settings.cookie_name: settings.cookie} if settings.cookie else None,
            ca_file=settings.ca_file,
            verify_ssl=settings.verify_ssl,
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
            patience=settings.outage,
        )

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
        """Start stages as one pipeline, or find the existing run of these stages.

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
        settings = self._settings
        job = Dispatch(
            self._repo, settings, self._api, specs, edges or {}, run_key=self._run_key, folder=self._folder
        )
        run = job.submit()
        remote = self._repo.remote()
        pods = Pods(settings.namespace, config_file=settings.kube_config, context=settings.kube_context)
        watch = Watch(
            self._api,
            run.run_id,
            run.key,
            tasks=run.tasks,
            needs=run.edges,
            remote=remote,
            patience=settings.patience,
            pods=pods if settings.ask_kubernetes else None,
            tell=self._tell,
        )
        sweep(self._folder, _PREFIX)
        batch = _Batch(
            watch, remote, OwnedFolder(self._folder, _PREFIX), run.note, len(specs), fetch=self.fetches
        )
        with self._lock:
            self._batches.append(batch)
        if self._closed.is_set():
            batch.close()
        return {spec.stage: KfpClusterRun(spec, batch) for spec in specs}

    def close(self) -> None:
        """Terminate all running stages and wait for their end; a second call does nothing."""
        with self._lock:
            self._closed.set()
            batches, self._batches = self._batches, []
        for batch in batches:
            batch.cancel()
        for batch in batches:
            batch.close()
        self._api.close()


def _bring(digests: set[str], cache: Cache, remote: Remote) -> None:
    """Download files and directories into a cache, manifests first."""
    trees = {digest for digest in digests if is_tree(digest)}
    _fetch(trees, cache, remote)
    _fetch((digests - trees).union(*(cache.read_tree(tree).digests for tree in trees)), cache, remote)


def _fetch(digests: set[str], cache: Cache, remote: Remote) -> None:
    for error in move("fetch", sorted(cache.missing(digests)), MD5, cache, remote).failed.values():
        raise error
