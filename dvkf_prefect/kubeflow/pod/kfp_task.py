"""Body of a KFP task: one stage, run from the digests in its specification and of its upstream tasks."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.errors import MissingObjectError, StageCancelledError, StageError
from dvkf_prefect.files import write_atomic
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.formats.tree import Tree, is_tree
from dvkf_prefect.kubeflow.compile.parameters import resolved
from dvkf_prefect.kubeflow.pod.describe import Artifact, describe
from dvkf_prefect.pipeline.step.step import StepContent, StepResult, StepSpec, run_step

_RESULT = "DVKF_STEP_RESULT"
_ENVIRONMENT = "DVKF_STEP_ENVIRONMENT"


class Trees(Protocol):
    """Store of manifests; a `Cache` is one."""

    def read_tree(self, digest: str) -> Tree:
        """Return a directory's manifest."""

    def add_tree(self, tree: Tree) -> str:
        """Store a directory's manifest; return its digest."""


def local_environment(result: Path, environment: Mapping[str, str | None]) -> dict[str, str]:
    """Return variables for KFP's local executor; `run` removes them from the environment again.

    Args:
        result: File for the `StepResult`, written on success and failure.
        environment: Variables of the stage's commands that differ from KFP's; None for unset. They are not a task
            parameter, because KFP logs those.
    """
    return {_RESULT: str(result), _ENVIRONMENT: json.dumps(dict(environment))}


def run(
    spec: str,
    upstream: Sequence[str],
    outputs: str,
    *,
    params: Mapping[str, Any] = MappingProxyType({}),
    artifacts: Mapping[str, Artifact] = MappingProxyType({}),
) -> None:
    """Run the stage.

    Args:
        spec: `StepSpec` of the stage as JSON, or the ``file:`` URI of a file with it.
        upstream: Outputs of upstream tasks: each a JSON object of ``{path: [digest, size, isexec]}``.
        outputs: File for this stage's outputs in the same form.
        params: Values of the task's typed parameters, see `dvkf_prefect.kubeflow.compile.parameters`.
        artifacts: KFP's artifacts by name, see `dvkf_prefect.kubeflow.compile.artifacts`.

    Raises:
        SystemExit: The stage failed, so the task must fail; the code is 1.
    """
    result_file = os.environ.pop(_RESULT, None)
    _restore(json.loads(os.environ.pop(_ENVIRONMENT, "{}")))
    step = StepSpec.from_json(_read(spec))
    signal.signal(signal.SIGTERM, _stop)
    try:
        step = replace(step, params=resolved(step.params, params, step.stage))
        step = with_upstream(step, upstream, Cache(Path(step.cache_dir)))
    except (MissingObjectError, StageError) as error:
        result = StepResult(step.stage, error=type(error).__name__, message=str(error))
    else:
        # In a pod, standard output is the log. The local runner reads it as lines of text, but it may be binary.
        with open(os.devnull, "w") as null, redirect_stdout(null) if result_file else nullcontext():
            result = run_step(step)
    if result_file:
        write_atomic(Path(result_file), result.to_json().encode())
    if result.failed:
        sys.exit(f"stage '{step.stage}' failed: {result.error}" if result_file else result.message)
    put_text(outputs, outputs_text(result))
    describe(artifacts, step, result)


def outputs_text(result: StepResult) -> str:
    """Return the digests of a stage's outputs for downstream tasks.

    Args:
        result: Result of the stage.
    """
    written = {out.path: (out.digest, out.content.size or 0, out.content.isexec) for out in result.outs}
    return json.dumps(written)


def put_text(file: str, text: str) -> None:
    """Write a KFP output parameter.

    Args:
        file: Path that KFP reads.
        text: Value of the parameter.
    """
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(text, encoding="utf-8")


def _restore(environment: Mapping[str, str | None]) -> None:
    # KFP sets this for its executor; a stage that uses KFP itself must not see it.
    for key, value in {"_KFP_RUNTIME": None, **environment}.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


def _read(spec: str) -> str:
    if spec.startswith("file:"):
        return Path(unquote(urlsplit(spec).path)).read_text(encoding="utf-8")
    return spec


def _stop(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise StageCancelledError(f"the stage was stopped by {signal.Signals(number).name} before its end")


def with_upstream(step: StepSpec, upstream: Sequence[str], store: Trees) -> StepSpec:
    """Return a step with the digests that upstream tasks wrote for its dependencies.

    Args:
        step: The step.
        upstream: Outputs of upstream tasks.
        store: Store of their manifests; a manifest for a part of a directory is added to it.

    Raises:
        MissingObjectError: A dependency is missing from the directory that should contain it.
    """
    found = {
        path: StepContent(path, Content(digest, size, isexec=isexec))
        for text in upstream
        for path, (digest, size, isexec) in json.loads(text).items()
    }
    return replace(step, deps=tuple(_resolve(dep, found, store) for dep in step.deps)) if found else step


def _resolve(dep: StepContent, found: Mapping[str, StepContent], store: Trees) -> StepContent:
    """Return a dependency with its new digest, if it is an upstream output or inside one."""
    if dep.path in found:
        return found[dep.path]
    for path, out in found.items():
        if dep.path.startswith(path + "/") and is_tree(out.digest):
            part = store.read_tree(out.digest).subtree(dep.path[len(path) + 1 :])
            if not part:
                raise MissingObjectError(
                    f"'{dep.path}' is not in '{path}' with the digest that its stage wrote ({out.digest})"
                )
            if part.relpaths == [""]:
                return StepContent(dep.path, Content(part.digests[0]))
            return StepContent(dep.path, Content(store.add_tree(part)))
    return dep
