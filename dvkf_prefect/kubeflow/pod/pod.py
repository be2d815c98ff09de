"""The body of a KFP task on a cluster: one stage in a pod that has nothing but a remote.

It brings the objects that the stage reads and the sources of the commit from the remote, and runs the commands in a
clean folder (`dvkf_prefect.pipeline.step.step`). The outputs go back to the remote, objects before manifests; the
`StepResult` and the log lie beside them, at a place that the dispatcher chose: nobody can know before where KFP keeps a
task's outputs. The credentials of the remote come from Kubernetes as environment variables; the commands do not see
them.
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
from dvkf_prefect.formats.tree import is_tree
from dvkf_prefect.kubeflow.exchange.bundle import unpack_bundle
from dvkf_prefect.kubeflow.exchange.objects import RemoteObjects, uncached
from dvkf_prefect.kubeflow.exchange.runs import LOG, OPTION_VARIABLE, RESULT, SPILLED, PodRun
from dvkf_prefect.kubeflow.pod.kfp_task import Metrics, numbers, put_outputs, put_text, with_upstream
from dvkf_prefect.pipeline.step.spec import StepDependency, StepResult, StepSpec
from dvkf_prefect.pipeline.step.step import run_step
from dvkf_prefect.scratch import scratch_folder

# Where a pod works, other than in its temporary folder: on a mounted disk with more room, for instance.
SCRATCH_VARIABLE = "DVKF_SCRATCH"
_LOG_EVERY = 20.0  # seconds
_LOG_BYTES = 4 << 20
_logger = logging.getLogger(__name__)


class Model(Protocol):
    """What is used here of ``kfp.dsl.Model``."""

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
        spec: Its `StepSpec` as JSON, or where that lies on the remote.
        run: The `PodRun` as JSON.
        upstream: What upstream tasks put out: each a JSON object of ``{path: [digest, size, isexec]}``.
        outputs: The file to write the same to, for this stage.
        result: The file to write the `StepResult` to, without its log.
        metrics: KFP's artifact for the numbers in the stage's metric outputs, if it has any.
        models: KFP's artifacts for its models.

    Raises:
        SystemExit: The stage failed, so the task must; the code is 1.
    """
    os.environ.pop("_KFP_RUNTIME", None)
    about = PodRun.from_json(run)
    remote = about.open(_secrets())
    signal.signal(signal.SIGTERM, _stop)
    place = os.environ.pop(SCRATCH_VARIABLE, None)
    # On a disk that is mounted, what a pod that was killed left goes with the next one.
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
        """Run the stage; return what ran, if it came so far, and how it ended, which is on the remote too."""
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
        """Tell whether what the stage would write is known, and can all be had."""
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
        # For `numbers`, which looks for what stays out of the cache there.
        side = str(self._objects.cache.root)
        return StepResult(step.stage, outs=step.known.outs, side_dir=side, restored=True)

    def _bring(self, step: StepSpec) -> StepSpec:
        """Bring the sources and what the stage reads, and tell how large it is."""
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
        """Tell how large something is that another stage wrote, and that is not brought."""
        tree = is_tree(dep.digest)
        digests = self._objects.read_tree(dep.digest).digests if tree else [dep.digest]
        size = dep.size
        if not size:  # a part of what was written
            sizes = uncached(self._remote).sizes(digests) | self._remote.sizes(digests)
            size = sum(sizes.get(digest, 0) for digest in digests)
        return replace(dep, size=size, nfiles=len(digests) if tree else None)

    def _leave(self, result: StepResult) -> None:
        """Leave the result where it is looked for; what cannot be left is told in the log."""
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
    """Manifests of upstream outputs, and of parts of them, which stay here: the remote has no use for those."""

    def __init__(self, objects: RemoteObjects) -> None:
        self.read_tree = objects.read_tree
        self.add_bytes = objects.cache.add_bytes


class _LogShipper:
    """Brings a growing log to the remote now and then, so that it is there whatever becomes of the pod."""

    def __init__(self, storage: Storage, key: str, log: Path) -> None:
        self._storage = storage
        self._key = key
        self._log = log
        self._shipped = -1
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="dvkf-log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Bring the end of the log, and no more."""
        self._ended.set()
        self._thread.join()
        self._ship()

    def _work(self) -> None:
        while not self._ended.wait(_LOG_EVERY):
            self._ship()

    def _ship(self) -> None:
        # A log that cannot be brought is no failure of the stage.
        with suppress(DvkfError, OSError):
            size = self._log.stat().st_size if self._log.exists() else 0
            if size == self._shipped:
                return
            with self._log.open("rb") if size else open(os.devnull, "rb") as stream:
                stream.seek(max(0, size - _LOG_BYTES))
                self._storage.write(self._key, stream.read())
            self._shipped = size


def _secrets() -> dict[str, str]:
    """Take the remote's credentials out of the environment, so that no command finds them there."""
    found = {}
    for name in [name for name in os.environ if name.startswith(OPTION_VARIABLE)]:
        found[name[len(OPTION_VARIABLE) :].lower()] = os.environ.pop(name)
    return found


def _describe(
    models: Sequence[Model], about: PodRun, step: StepSpec, result: StepResult, remote: Remote
) -> None:
    """Fill KFP's artifacts: a model is where its content is on the remote, and known by its digest."""
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
