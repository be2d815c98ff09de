"""Body of a KFP task on a cluster: one stage in a pod that has only a remote.

It downloads the stage's inputs and the sources of the commit from the remote. It runs the commands in a clean folder
(`dvkf_prefect.pipeline.step.step`). The outputs are uploaded to the remote, objects before manifests. The
`StepResult` and the log are stored beside them, under a key chosen by the dispatcher. KFP's own place for a task's
outputs would not be known in advance. Kubernetes passes the remote's credentials as environment variables; the
commands do not see them.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.data.remotes.remote import Remote
from dvkf_prefect.errors import (
    DvkfError,
    RemoteError,
    StageCancelledError,
    StageError,
    StageOutputError,
)
from dvkf_prefect.formats import manifest_rows
from dvkf_prefect.formats.tree import is_tree
from dvkf_prefect.kubeflow.compile.parameters import resolved
from dvkf_prefect.kubeflow.exchange.bundle import unpack_bundle
from dvkf_prefect.kubeflow.exchange.exports import export_sources, read_record
from dvkf_prefect.kubeflow.exchange.objects import RemoteObjects, send, uncached, volume_at
from dvkf_prefect.kubeflow.exchange.runs import LOG, OPTION_VARIABLE, RESULT, SPILLED, PodRun
from dvkf_prefect.kubeflow.pod.attempts import Attempts
from dvkf_prefect.kubeflow.pod.describe import Artifact, contents_shown, describe
from dvkf_prefect.kubeflow.pod.kfp_task import outputs_text, put_text, with_upstream
from dvkf_prefect.kubeflow.pod.overrides import write_values
from dvkf_prefect.pipeline.step.spec import StepContent, StepResult, StepSpec
from dvkf_prefect.pipeline.step.step import run_step
from dvkf_prefect.scratch import scratch_folder

# Variable with the pod's work folder instead of its temporary folder, for example on a larger mounted disk.
SCRATCH_VARIABLE = "DVKF_SCRATCH"
_LOG_EVERY = 20.0  # seconds
_LOG_BYTES = 4 << 20
MANIFEST_MB = 1_000_000
_logger = logging.getLogger(__name__)


def run_in_pod(
    spec: str,
    run: str,
    upstream: Sequence[str],
    outputs: str,
    result: str,
    *,
    params: Mapping[str, Any] = MappingProxyType({}),
    artifacts: Mapping[str, Artifact] = MappingProxyType({}),
    run_id: str = "",
) -> None:
    """Run the stage.

    Args:
        spec: `StepSpec` of the stage as JSON, or its reference on the remote.
        run: The `PodRun` as JSON.
        upstream: Outputs of upstream tasks: each a JSON object of ``{path: [digest, size, isexec]}``.
        outputs: File for this stage's outputs in the same form.
        result: File for the `StepResult`, without its log.
        params: Values of the task's typed parameters, see `dvkf_prefect.kubeflow.compile.parameters`.
        artifacts: KFP's artifacts by name, see `dvkf_prefect.kubeflow.compile.artifacts`.
        run_id: Id of the KFP run of an exported pipeline, which is the key of the results; "" if the key is in ``run``.

    Raises:
        SystemExit: The stage failed, so the task must fail; the code is 1. Or another version of this package sent the
            parameters.
    """
    os.environ.pop("_KFP_RUNTIME", None)
    # A commit whose commands run here may use any memory for its manifests, too.
    os.environ.setdefault(manifest_rows.VARIABLE, str(MANIFEST_MB))
    try:
        about = PodRun.from_json(run)
    except TypeError as error:
        sys.exit(
            f"dvkf-prefect {metadata.version('dvkf-prefect')} of this image does not know the parameters of the run "
            f"({error}): another version sent them. Build the image again with that version (`dvkf image build`)."
        )
    if run_id:
        about = replace(about, key=run_id)
    remote = about.open(take_secrets())
    signal.signal(signal.SIGTERM, stop)
    place = os.environ.pop(SCRATCH_VARIABLE, None)
    attempts = Attempts(remote.storage, about)
    if attempts.exhausted:
        sys.exit(f"the stage failed {attempts.failed} times, as often as it may be tried")
    while True:
        # On a mounted disk, the next pod removes the leftovers of a killed one.
        with scratch_folder("dvkf-pod-", Path(place) if place else None) as folder:
            pod = StagePod(about, remote, folder, params, artifacts, attempt=attempts.failed)
            with attempts.limited():
                step, done = pod.run(spec, upstream)
            if not done.failed:
                assert step is not None
                put_text(outputs, pod.outputs)
                put_text(result, replace(done, log_tail="", side_dir="").to_json())
                describe(artifacts, step, done, url=remote.url, commit=about.commit)
                return
        wait = attempts.wait_after(done)
        if wait is None:
            sys.exit(done.message or done.error)
        _logger.warning("attempt %d failed: %s", attempts.failed, done.message or done.error)
        _logger.warning("attempt %d begins in %g s", attempts.failed + 1, wait)
        time.sleep(wait)


class StagePod:
    """One attempt of a stage in a pod.

    Args:
        about: Parameters of the pod.
        remote: The remote.
        folder: Work folder of the attempt.
        params: Values of the stage's parameters in the pipeline.
        artifacts: KFP's artifacts that the stage fills.
        attempt: Number of failed attempts before.
        log_key: Key of the log on the remote; that of the stage's log by default.

    Attributes:
        outputs: Value of the parameter with the outputs' digests; "" until the stage succeeds.
    """

    def __init__(
        self,
        about: PodRun,
        remote: Remote,
        folder: Path,
        params: Mapping[str, Any],
        artifacts: Mapping[str, Artifact],
        *,
        attempt: int = 0,
        log_key: str = "",
    ) -> None:
        self._about = about
        self._params = params
        self._changed: set[str] = set()
        self._artifacts = artifacts
        self._attempt = attempt
        self._log_key = log_key or about.place(LOG)
        self._remote = remote
        self._folder = folder
        self._log = folder / "log.txt"
        self._objects = RemoteObjects(
            remote, Cache(folder / "cache"), volume=volume_at(about.volume), keep=about.keeps
        )
        self.outputs = ""

    def run(self, text: str, upstream: Sequence[str]) -> tuple[StepSpec | None, StepResult]:
        """Run the stage; return the step, if it could be read, and the result, which is on the remote too."""
        step: StepSpec | None = None
        try:
            # The result of an earlier attempt is not that of this one, which may be killed.
            self._remote.storage.delete([self._about.place(RESULT)])
            step = self._read(text)
            declared = set(step.deps)
            storage = self._remote.storage
            written = [self._about.shared(storage, value) for value in upstream]
            step = self._resolve(step, written)
            record = read_record(storage, self._about.record)
            if record is not None:
                step = replace(step, known=record.known(storage, step))
            if self._is_known(step):
                step = self._weigh(step, declared)
                result = self._take_known(step)
            else:
                if self._about.training is not None:
                    step = self._weigh(step, declared)
                    result = self._train(step, text, written)
                else:
                    step = self._bring(step)
                    result = self._execute(step)
                    self._send(step, result)
                if record is not None and not result.failed:
                    record.save(storage, step, result.outs)
            if not result.failed:
                self.outputs = self._about.share(storage, outputs_text(result))
        except (DvkfError, OSError) as error:
            result = _failure(step, error)
        result = replace(
            result,
            deps=step.deps if step else (),
            commit=self._about.commit,
            run=self._about.key,
        )
        self._report(result)
        return step, result

    def run_as_node(self, text: str, upstream: Sequence[str], *, first: bool) -> StepResult:
        """Run the stage as one node of a training; only the first node's outputs are kept.

        Args:
            text: Specification of the stage, or its reference.
            upstream: Outputs of upstream tasks.
            first: True for the first node.
        """
        step: StepSpec | None = None
        try:
            step = self._bring(self._resolve(self._read(text), upstream))
            if first:
                result = self._execute(step)
                self._send(step, result)
                return result
            # Another node may write the outputs, a part of them, or none.
            result = self._execute(replace(step, lenient=True))
            if result.error == StageOutputError.__name__:
                return replace(result, error="", message="", outs=())
            return replace(result, outs=())
        except (DvkfError, OSError) as error:
            return _failure(step, error)

    # -- phases ------------------------------------------------------------------------------------------------------

    def _read(self, text: str) -> StepSpec:
        """Return the stage's specification, which is on the remote if it is too large for a parameter."""
        if text.startswith(SPILLED):
            text = self._remote.storage.read(text[len(SPILLED) :]).decode()
        step = StepSpec.from_json(text)
        return replace(
            step,
            cache_dir=str(self._objects.cache.root),
            workspace=None,
            log=str(self._log),
            params=resolved(
                step.params, self._params, step.stage, changed=self._changed if self._about.exported else None
            ),
        )

    def _resolve(self, step: StepSpec, upstream: Sequence[str]) -> StepSpec:
        """Return the step with the digests of all its inputs, also of those that upstream stages wrote."""
        return with_upstream(step, upstream, _Manifests(self._objects))

    def _is_known(self, step: StepSpec) -> bool:
        """Return True if the stage's outputs are known and all available on the remote."""
        known = step.known
        if known is None or {dep.path: dep.digest for dep in step.deps} != dict(known.deps):
            return False
        apart = {out.path for out in step.outs if not out.cached}
        for place, digests in (
            (self._remote, {out.digest for out in known.outs if out.path not in apart}),
            (uncached(self._remote), {out.digest for out in known.outs if out.path in apart}),
        ):
            if place.missing(digests):
                return False
            trees = [self._objects.read_tree(digest) for digest in digests if is_tree(digest)]
            if place.missing({digest for tree in trees for digest in tree.digests}):
                return False
        return True

    def _weigh(self, step: StepSpec, declared: Collection[StepContent]) -> StepSpec:
        """Return the step with the sizes of its inputs, without downloading those of upstream stages."""
        return replace(step, deps=tuple(dep if dep in declared else self._weighed(dep) for dep in step.deps))

    def _take_known(self, step: StepSpec) -> StepResult:
        assert step.known is not None
        _logger.warning("stage '%s': inputs match its last run; reusing its outputs", step.stage)
        return self._with_shown(step, StepResult(step.stage, outs=step.known.outs, restored=True))

    def _with_shown(self, step: StepSpec, result: StepResult) -> StepResult:
        """Download the outputs of a result that KFP's artifacts show, if it was not computed here."""
        self._objects.prepare(contents_shown(self._artifacts, step, result.outs, self._objects.read_tree))
        # `describe` looks for uncached outputs in the side cache, so it must be this cache.
        return replace(result, side_dir=str(self._objects.cache.root))

    def _train(self, step: StepSpec, text: str, upstream: Sequence[str]) -> StepResult:
        """Run the stage on the nodes of a training; return the result of the first one."""
        from dvkf_prefect.kube.objects import KubeObjects
        from dvkf_prefect.kubeflow.trainer.launch import Training
        from dvkf_prefect.kubeflow.trainer.nodes import Nodes, train
        from dvkf_prefect.kubeflow.trainer.plan import TrainingPlan

        plan = TrainingPlan.from_values(self._about.training or {})
        nodes = Nodes(self._remote.storage, self._about, self._attempt)
        training = Training(KubeObjects(), plan, nodes.name, nodes.mark)
        return self._with_shown(step, train(training, nodes, step.stage, (text, upstream, self._params)))

    def _bring(self, step: StepSpec) -> StepSpec:
        """Download the sources and the stage's inputs; return the step with the sizes of its inputs."""
        if self._about.bundle:
            source = self._folder / "source"
            storage = self._remote.storage
            unpack_bundle(
                export_sources(storage) if self._about.exported else storage, self._about.bundle, source
            )
            write_values(source, step, self._changed)
            step = replace(step, workspace=str(source), sources=str(source))
        self._objects.prepare(
            [*(dep.digest for dep in step.deps), *(out.previous for out in step.outs if out.previous)]
        )
        return replace(step, deps=tuple(map(self._measured, step.deps)))

    def _execute(self, step: StepSpec) -> StepResult:
        """Run the commands; the remote gets their log while they run."""
        shipper = _LogShipper(self._remote.storage, self._log_key, self._log)
        try:
            return run_step(step, self._objects)
        finally:
            shipper.close()

    def _send(self, step: StepSpec, result: StepResult) -> None:
        """Upload the outputs of a stage that succeeded; those that stay out of the cache go to a place of their own."""
        if result.failed:
            return
        self._objects.flush()
        if result.side_dir:
            apart = {out.path for out in step.outs if not out.cached}
            digests = [out.digest for out in result.outs if out.path in apart]
            side = Cache(Path(result.side_dir))
            self._objects.keep_beside(side, digests)
            if self._about.record:  # as in DVC, the run cache names ordinary objects only
                send(digests, side, self._remote)

    def _report(self, result: StepResult) -> None:
        """Write the result to the remote; if that fails, print the error to the log and exit."""
        data = replace(result, side_dir="").to_json().encode()
        try:
            self._remote.storage.write(self._about.place(RESULT), data)
        except RemoteError as error:
            sys.exit(
                f"{result.message}\nthe result of stage '{result.stage}' cannot be stored: {error}".strip()
            )

    # -- sizes of inputs ---------------------------------------------------------------------------------------------

    def _measured(self, dep: StepContent) -> StepContent:
        cache = self._objects.cache
        if not cache.exists(dep.digest):
            return dep  # it is in the sources
        if not is_tree(dep.digest):
            size = cache.path(dep.digest).stat().st_size
            return replace(dep, content=replace(dep.content, size=size))
        digests = cache.read_tree(dep.digest).digests
        size = sum(cache.path(digest).stat().st_size for digest in digests)
        return replace(dep, content=replace(dep.content, size=size, nfiles=len(digests)))

    def _weighed(self, dep: StepContent) -> StepContent:
        """Return a dependency with the size of its content, without downloading it."""
        tree = is_tree(dep.digest)
        digests = self._objects.read_tree(dep.digest).digests if tree else [dep.digest]
        size = dep.content.size
        if not size:  # a part of an upstream output
            sizes = uncached(self._remote).sizes(digests) | self._remote.sizes(digests)
            size = sum(sizes.get(digest, 0) for digest in digests)
        return replace(dep, content=replace(dep.content, size=size, nfiles=len(digests) if tree else None))


class _Manifests:
    """Manifests of upstream outputs, and of parts of them; those of parts stay in the cache, not on the remote."""

    def __init__(self, objects: RemoteObjects) -> None:
        self.read_tree = objects.read_tree
        self.add_tree = objects.cache.add_tree


class _LogShipper:
    """Thread that uploads a growing log to the remote at intervals, so that the log survives the pod."""

    def __init__(self, storage: Storage, key: str, log: Path) -> None:
        self._storage = storage
        self._key = key
        self._log = log
        self._shipped = -1
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="dvkf-log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Upload the rest of the log, then stop."""
        self._ended.set()
        self._thread.join()
        self._ship()

    def _work(self) -> None:
        while not self._ended.wait(_LOG_EVERY):
            self._ship()

    def _ship(self) -> None:
        # A failed upload of the log must not fail the stage.
        with suppress(DvkfError, OSError):
            size = self._log.stat().st_size if self._log.exists() else 0
            if size == self._shipped:
                return
            with self._log.open("rb") if size else open(os.devnull, "rb") as stream:
                stream.seek(max(0, size - _LOG_BYTES))
                self._storage.write(self._key, stream.read())
            self._shipped = size


def _failure(step: StepSpec | None, error: DvkfError | OSError) -> StepResult:
    """Return the result of a stage that an error ended."""
    stage = step.stage if step else ""
    kind = type(error) if isinstance(error, DvkfError) else StageError
    message = f"stage '{stage}': {error}" if step else str(error)
    return StepResult(stage, error=kind.__name__, message=message)


def take_secrets() -> dict[str, str]:
    """Remove the remote's credentials from the environment, so that no command sees them; return them."""
    found = {}
    for name in [name for name in os.environ if name.startswith(OPTION_VARIABLE)]:
        found[name[len(OPTION_VARIABLE) :].lower()] = os.environ.pop(name)
    return found


def stop(number: int, frame: object) -> None:
    """Handle a signal that ends the pod: stop the stage.

    Raises:
        StageCancelledError: Always.
    """
    signal.signal(number, signal.SIG_IGN)
    raise StageCancelledError(f"the stage was stopped by {signal.Signals(number).name} before its end")
