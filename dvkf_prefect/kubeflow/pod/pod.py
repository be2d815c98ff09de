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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.data.remotes.remote import Remote
from dvkf_prefect.errors import DvkfError, RemoteError, StageCancelledError, StageError
from dvkf_prefect.formats import manifest_rows
from dvkf_prefect.formats.tree import is_tree
from dvkf_prefect.kubeflow.exchange.bundle import unpack_bundle
from dvkf_prefect.kubeflow.exchange.objects import RemoteObjects, uncached
from dvkf_prefect.kubeflow.exchange.runs import LOG, OPTION_VARIABLE, RESULT, SPILLED, PodRun
from dvkf_prefect.kubeflow.pod.kfp_task import Metrics, numbers, put_outputs, put_text, with_upstream
from dvkf_prefect.pipeline.step.spec import StepDependency, StepResult, StepSpec
from dvkf_prefect.pipeline.step.step import run_step
from dvkf_prefect.scratch import scratch_folder

# Variable with the pod's work folder instead of its temporary folder, for example on a larger mounted disk.
SCRATCH_VARIABLE = "DVKF_SCRATCH"
_LOG_EVERY = 20.0  # seconds
_LOG_BYTES = 4 << 20
_MANIFEST_MB = 1_000_000
_logger = logging.getLogger(__name__)


class Model(Protocol):
    """Part of ``kfp.dsl.Model`` that is used here."""

    uri: str
    metadata: dict[str, Any]


def run_in_pod(
    spec: str,
    run: str,
    upstream: Sequence[str],
    outputs: str,
    result: str,
    *,
    metrics: Metrics | None = None,
    models: Sequence[Model] = (),
) -> None:
    """Run the stage.

    Args:
        spec: `StepSpec` of the stage as JSON, or its reference on the remote.
        run: The `PodRun` as JSON.
        upstream: Outputs of upstream tasks: each a JSON object of ``{path: [digest, size, isexec]}``.
        outputs: File for this stage's outputs in the same form.
        result: File for the `StepResult`, without its log.
        metrics: KFP's artifact for the numbers in the stage's metric outputs, if it has any.
        models: KFP's artifacts for its models.

    Raises:
        SystemExit: The stage failed, so the task must fail; the code is 1.
    """
    os.environ.pop("_KFP_RUNTIME", None)
    # A commit whose commands run here may use any memory for its manifests, too.
    os.environ.setdefault(manifest_rows.VARIABLE, str(_MANIFEST_MB))
    about = PodRun.from_json(run)
    remote = about.open(_secrets())
    signal.signal(signal.SIGTERM, _stop)
    place = os.environ.pop(SCRATCH_VARIABLE, None)
    # On a mounted disk, the next pod removes the leftovers of a killed one.
    with scratch_folder("dvkf-pod-", Path(place) if place else None) as folder:
        pod = _Pod(about, remote, folder)
        step, done = pod.run(spec, upstream)
        if done.failed:
            sys.exit(done.message or done.error)
        assert step is not None
        put_outputs(done, outputs)
        put_text(result, replace(done, log_tail="", side_dir="").to_json())
        if metrics is not None:
            for name, value in numbers(step, done):
                metrics.log_metric(name, value)
        _describe(models, about, step, done, remote)


class _Pod:
    def __init__(self, about: PodRun, remote: Remote, folder: Path) -> None:
        self._about = about
        self._remote = remote
        self._folder = folder
        self._log = folder / "log.txt"
        self._objects = RemoteObjects(remote, Cache(folder / "cache"))
        self._task = ""

    def run(self, text: str, upstream: Sequence[str]) -> tuple[StepSpec | None, StepResult]:
        """Run the stage; return the step, if it could be read, and the result, which is on the remote too."""
        step: StepSpec | None = None
        try:
            if text.startswith(SPILLED):
                text = self._remote.storage.read(text[len(SPILLED) :]).decode()
            step = StepSpec.from_json(text)
            self._task = self._about.tasks[step.stage]
            given = set(step.deps)
            step = self._prepare(step, upstream)
            if self._is_known(step):
                step = replace(
                    step, deps=tuple(dep if dep in given else self._weighed(dep) for dep in step.deps)
                )
                result = self._take_known(step)
            else:
                step = self._bring(step)
                shipper = _LogShipper(self._remote.storage, self._about.place(self._task, LOG), self._log)
                try:
                    result = run_step(step, self._objects)
                finally:
                    shipper.close()
            if not (result.failed or result.restored):
                self._objects.flush()
                if result.side_dir:
                    apart = {out.path for out in step.outs if not out.cached}
                    self._objects.keep_beside(
                        Cache(Path(result.side_dir)), [o.digest for o in result.outs if o.path in apart]
                    )
        except (DvkfError, OSError) as error:
            kind = type(error) if isinstance(error, DvkfError) else StageError
            stage = step.stage if step else ""
            result = StepResult(
                stage,
                error=kind.__name__,
                message=str(error) if step is None else f"stage '{stage}': {error}",
            )
        result = replace(
            result,
            deps=step.deps if step else (),
            commit=self._about.commit,
            dirty=self._about.dirty,
            run=self._about.key,
        )
        self._leave(result)
        return step, result

    def _prepare(self, step: StepSpec, upstream: Sequence[str]) -> StepSpec:
        step = replace(step, cache_dir=str(self._objects.cache.root), workspace=None, log=str(self._log))
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

    def _take_known(self, step: StepSpec) -> StepResult:
        assert step.known is not None
        _logger.warning("stage '%s' reads what its last run read; its outputs are taken", step.stage)
        metrics = {out.path for out in step.outs if out.kind == "metric"}
        self._objects.prepare([out.digest for out in step.known.outs if out.path in metrics])
        # `numbers` looks for uncached metrics in the side cache, so it must be this cache.
        side = str(self._objects.cache.root)
        return StepResult(step.stage, outs=step.known.outs, side_dir=side, restored=True)

    def _bring(self, step: StepSpec) -> StepSpec:
        """Download the sources and the stage's inputs; return the step with the sizes of its inputs."""
        if self._about.bundle:
            source = self._folder / "source"
            unpack_bundle(self._remote.storage, self._about.bundle, source)
            step = replace(step, workspace=str(source), sources=str(source))
        self._objects.prepare(
            [*(dep.digest for dep in step.deps), *(out.previous for out in step.outs if out.previous)]
        )
        return replace(step, deps=tuple(map(self._measured, step.deps)))

    def _measured(self, dep: StepDependency) -> StepDependency:
        cache = self._objects.cache
        if not cache.exists(dep.digest):
            return dep  # it is in the sources
        if not is_tree(dep.digest):
            return replace(dep, size=cache.path(dep.digest).stat().st_size)
        digests = cache.read_tree(dep.digest).digests
        return replace(
            dep, size=sum(cache.path(digest).stat().st_size for digest in digests), nfiles=len(digests)
        )

    def _weighed(self, dep: StepDependency) -> StepDependency:
        """Return a dependency with the size of its content, without downloading it."""
        tree = is_tree(dep.digest)
        digests = self._objects.read_tree(dep.digest).digests if tree else [dep.digest]
        size = dep.size
        if not size:  # a part of an upstream output
            sizes = uncached(self._remote).sizes(digests) | self._remote.sizes(digests)
            size = sum(sizes.get(digest, 0) for digest in digests)
        return replace(dep, size=size, nfiles=len(digests) if tree else None)

    def _leave(self, result: StepResult) -> None:
        """Write the result to the remote; if that fails, print the error to the log and exit."""
        if not self._task:
            return
        data = replace(result, side_dir="").to_json().encode()
        try:
            self._remote.storage.write(self._about.place(self._task, RESULT), data)
        except RemoteError as error:
            sys.exit(
                f"{result.message}\nthe result of stage '{result.stage}' cannot be stored: {error}".strip()
            )


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


def _secrets() -> dict[str, str]:
    """Remove the remote's credentials from the environment, so that no command sees them; return them."""
    found = {}
    for name in [name for name in os.environ if name.startswith(OPTION_VARIABLE)]:
        found[name[len(OPTION_VARIABLE) :].lower()] = os.environ.pop(name)
    return found


def _describe(
    models: Sequence[Model], about: PodRun, step: StepSpec, result: StepResult, remote: Remote
) -> None:
    """Fill KFP's artifacts: a model's URI is its content on the remote, and its md5 identifies it."""
    from dvkf_prefect.formats.objects import object_key

    contents = {out.path: out for out in result.outs}
    for model, path in zip(models, about.models.get(step.stage, ()), strict=True):
        content = contents[path]
        model.uri = f"{remote.url.rstrip('/')}/{object_key(content.digest)}"
        model.metadata.update(
            path=path, md5=content.digest, size=content.size, stage=step.stage, commit=about.commit
        )


def _stop(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise StageCancelledError(f"the stage was stopped by {signal.Signals(number).name} before its end")
