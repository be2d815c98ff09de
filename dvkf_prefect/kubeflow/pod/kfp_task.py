"""Body of a KFP task: one stage, run from the digests in its specification and of its upstream tasks."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.errors import MissingObjectError, ParseError, StageCancelledError
from dvkf_prefect.files import write_atomic
from dvkf_prefect.formats.tree import Tree, is_tree
from dvkf_prefect.pipeline.step.step import StepDependency, StepResult, StepSpec, run_step

if TYPE_CHECKING:
    from collections.abc import Iterator

_RESULT = "DVKF_STEP_RESULT"
_ENVIRONMENT = "DVKF_STEP_ENVIRONMENT"


class Metrics(Protocol):
    """Part of ``kfp.dsl.Metrics`` that is used here."""

    def log_metric(self, metric: str, value: float) -> None:
        """Record a number under a name."""


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


def run(spec: str, upstream: Sequence[str], outputs: str, metrics: Metrics | None = None) -> None:
    """Run the stage.

    Args:
        spec: `StepSpec` of the stage as JSON, or the ``file:`` URI of a file with it.
        upstream: Outputs of upstream tasks: each a JSON object of ``{path: [digest, size, isexec]}``.
        outputs: File for this stage's outputs in the same form.
        metrics: KFP's artifact for the numbers in the stage's metric outputs, if it has any.

    Raises:
        SystemExit: The stage failed, so the task must fail; the code is 1.
    """
    result_file = os.environ.pop(_RESULT, None)
    _restore(json.loads(os.environ.pop(_ENVIRONMENT, "{}")))
    step = StepSpec.from_json(_read(spec))
    signal.signal(signal.SIGTERM, _stop)
    try:
        step = with_upstream(step, upstream, Cache(Path(step.cache_dir)))
    except MissingObjectError as error:
        result = StepResult(step.stage, error=type(error).__name__, message=str(error))
    else:
        # In a pod, standard output is the log. The local runner reads it as lines of text, but it may be binary.
        with open(os.devnull, "w") as null, redirect_stdout(null) if result_file else nullcontext():
            result = run_step(step)
    if result_file:
        write_atomic(Path(result_file), result.to_json().encode())
    if result.failed:
        sys.exit(f"stage '{step.stage}' failed: {result.error}" if result_file else result.message)
    put_outputs(result, outputs)
    if metrics is not None:
        for name, value in numbers(step, result):
            metrics.log_metric(name, value)


def put_outputs(result: StepResult, outputs: str) -> None:
    """Write the digests of a stage's outputs for downstream tasks.

    Args:
        result: Result of the stage.
        outputs: File to write.
    """
    put_text(outputs, json.dumps({out.path: (out.digest, out.size, out.isexec) for out in result.outs}))


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
        path: StepDependency(path, digest, size, isexec)
        for text in upstream
        for path, (digest, size, isexec) in json.loads(text).items()
    }
    return replace(step, deps=tuple(_resolve(dep, found, store) for dep in step.deps)) if found else step


def _resolve(dep: StepDependency, found: Mapping[str, StepDependency], store: Trees) -> StepDependency:
    """Return a dependency with its new digest, if it is an upstream output or inside one."""
    if dep.path in found:
        return found[dep.path]
    for path, out in found.items():
        if dep.path.startswith(path + "/") and is_tree(out.digest):
            tree = store.read_tree(out.digest)
            relpath = dep.path[len(path) + 1 :]
            if digest := dict(tree.items()).get(relpath):
                return StepDependency(dep.path, digest)
            below = Tree.from_pairs((p[len(relpath) + 1 :], d) for p, d in tree.below(relpath).items())
            if not below.relpaths:
                raise MissingObjectError(f"'{dep.path}' is not in '{path}' as it was written ({out.digest})")
            return StepDependency(dep.path, store.add_tree(below))
    return dep


def numbers(step: StepSpec, result: StepResult) -> Iterator[tuple[str, float]]:
    """Yield the numbers in the metric outputs; nested names are joined by dots.

    Args:
        step: The step.
        result: Its result; the content is still in its cache, or in its side cache.
    """
    from dvkf_prefect.formats.params import parse_params

    kinds = {out.path: out for out in step.outs if out.kind == "metric"}
    for content in result.outs:
        if content.path not in kinds or is_tree(content.digest):
            continue
        store = Cache(Path(step.cache_dir if kinds[content.path].cached else result.side_dir))
        prefix = f"{content.path}:" if len(kinds) > 1 else ""
        # Unreadable metrics are still outputs; KFP's view of metrics just omits them.
        with suppress(ParseError):
            yield from _flat(prefix, parse_params(store.read_bytes(content.digest), content.path))


def _flat(prefix: str, values: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{key}.", value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            yield prefix + key, value
