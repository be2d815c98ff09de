"""Stages as a Kubeflow pipeline: a KFP task a stage, and an edge wherever one stage reads what another writes.

A task's ``spec`` parameter is its `StepSpec` as JSON: digests, never data and never the environment, which may
hold credentials. Along an edge the upstream task's ``outputs`` parameter, the digests of what it wrote, goes to
the downstream task and replaces what its specification says of those dependencies.

Source of the format: KFP's pipeline spec 2.1, by KFP's own compiler.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import linecache
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvkf_prefect.errors import RunnerError, StageGraphError

if TYPE_CHECKING:
    from dvkf_prefect.pipeline.step import StepSpec

IMAGE = "python:3.11-slim"
# KFP hands a task all its parameters as one argument, in JSON within JSON; Linux ends an argument at 128 KiB.
SPEC_LIMIT = 56 * 1024
# A prefix (comp-, exec-, system-) and a suffix of the scheduler still have to fit into a label of 63 characters.
_NAME_LENGTH = 40


def task_names(stages: Sequence[str]) -> dict[str, str]:
    """Give each stage a valid KFP task name of its own, as much like its address as may be.

    Args:
        stages: Addresses of stages, each once.

    Returns:
        The task name of each address: lower-case ASCII letters, digits and dashes, at most 47 characters, a letter
        first. It depends only on the set of the addresses, not on their order.

    Example:
        >>> task_names(["train", "Train", "nlp/dvc.yaml:prepare@en", "4x"])["nlp/dvc.yaml:prepare@en"]
        'nlp-prepare-en'
    """
    slugs = {stage: _slug(stage) for stage in stages}
    counts = Counter(slugs.values())
    # A stage whose address is its slug keeps it; of those that merely fall together each gets a mark.
    names = {stage: slug for stage, slug in slugs.items() if stage == slug or counts[slug] == 1}
    taken = set(names.values())
    for stage in sorted(slugs.keys() - names.keys()):
        mark = hashlib.sha256(stage.encode(errors="surrogateescape")).hexdigest()
        name = next(n for size in range(6, 65) if (n := f"{slugs[stage]}-{mark[:size]}") not in taken)
        names[stage] = name
        taken.add(name)
    return {stage: names[stage] for stage in stages}


def compile_stages(
    steps: Sequence[StepSpec], *, name: str, image: str = IMAGE, folder: Path | None = None
) -> dict[str, Any]:
    """Compile stages to one KFP pipeline.

    Args:
        steps: The stages, in any order. What a dependency's digest says counts only where no other of these
            stages writes it. ``env`` does not become part of the pipeline.
        name: The pipeline's name; made valid for KFP.
        image: The container image of every task. It needs Python and this package; KFP's local subprocess runner
            looks only for the word "python" in it.
        folder: Where specifications too large for a parameter are written, for tasks that see this machine's
            files. Without it they are refused.

    Returns:
        The pipeline spec (KFP's intermediate representation) as JSON values, as ``POST /apis/v2beta1/runs`` takes it.
        Each task's ``taskInfo.name``, which KFP's UI shows, is the stage's address.

    Raises:
        StageGraphError: The stages form a cycle, two of them write one path or have one name, or one depends on a
            directory that holds other stages' outputs.
        RunnerError: A specification is too large and there is no ``folder``.

    Example:
        >>> from dvkf_prefect.pipeline.step import StepSpec
        >>> spec = compile_stages([StepSpec("train", ("true",), "/cache")], name="demo")
        >>> list(spec["root"]["dag"]["tasks"])
        ['train']
    """
    from google.protobuf import json_format  # type: ignore[import-untyped]
    from kfp import dsl

    if not steps:
        raise StageGraphError("there is no stage to compile")
    edges = _edges(steps)
    by_stage = {step.stage: step for step in steps}
    names = task_names([step.stage for step in steps])
    tasks: dict[str, Any] = {}

    # KFP would read a return annotation, even None, as an output.
    def pipeline():  # type: ignore[no-untyped-def]
        for stage in _order(edges):
            step, upstream = by_stage[stage], edges[stage]
            metrics = any(out.kind == "metric" for out in step.outs)
            component = _component(names[stage], len(upstream), metrics, image)
            task = component(
                spec=_parameter(step, names[stage], folder),
                **{f"upstream_{i}": tasks[u].outputs["outputs"] for i, u in enumerate(upstream)},
            )
            # Whether a stage runs is decided by content before it gets here; KFP's cache does not see content.
            task.set_caching_options(False)
            task.set_display_name(stage)
            tasks[stage] = task

    pipeline_name = _slug(name, 100)
    # KFP's loader takes a pipeline that has a task's name for that task alone.
    while pipeline_name in names.values():
        pipeline_name += "-pipeline"
    compiled = dsl.pipeline(pipeline, name=pipeline_name)
    spec: dict[str, Any] = json_format.MessageToDict(compiled.pipeline_spec)
    return spec


def _slug(text: str, length: int = _NAME_LENGTH) -> str:
    ascii_text = (
        unicodedata.normalize("NFKD", text.replace("dvc.yaml:", "")).encode("ascii", "ignore").decode()
    )
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")
    if not slug[:1].isalpha():
        slug = f"stage-{slug}".rstrip("-")
    return slug[:length].rstrip("-")


def _edges(steps: Sequence[StepSpec]) -> dict[str, tuple[str, ...]]:
    """Return which stages each stage takes digests from."""
    writers: dict[str, str] = {}
    edges: dict[str, tuple[str, ...]] = {}
    for step in steps:
        if step.stage in edges:
            raise StageGraphError(f"stage '{step.stage}' is given twice")
        edges[step.stage] = ()
        for out in step.outs:
            if out.path in writers:
                raise StageGraphError(
                    f"'{out.path}' is an output of stage '{writers[out.path]}' and of stage '{step.stage}'"
                )
            writers[out.path] = step.stage
    for step in steps:
        upstream: dict[str, None] = {}
        for dep in step.deps:
            writer = next(
                (writers[p] for p in itertools.chain((dep.path,), _parents(dep.path)) if p in writers), None
            )
            if writer is not None:
                upstream[writer] = None
                continue
            inside = [path for path in writers if path.startswith(dep.path + "/")]
            if inside:
                raise StageGraphError(
                    f"stage '{step.stage}' depends on the directory '{dep.path}', in which stage "
                    f"'{writers[inside[0]]}' writes '{inside[0]}'; make the outputs themselves its dependencies"
                )
        edges[step.stage] = tuple(upstream)
    return edges


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]


def _order(edges: Mapping[str, Sequence[str]]) -> list[str]:
    try:
        return list(TopologicalSorter(edges).static_order())
    except CycleError as error:
        raise StageGraphError("these stages form a cycle: " + " → ".join(error.args[1])) from error


def _parameter(step: StepSpec, task: str, folder: Path | None) -> str:
    """Return the step as the value of a KFP parameter."""
    text = dataclasses.replace(step, env={}).to_json()
    if len(text) > SPEC_LIMIT:
        if folder is None:
            raise RunnerError(
                f"stage '{step.stage}' declares so many dependencies and parameters ({len(text)} bytes) that a "
                f"Kubernetes container cannot be given them ({SPEC_LIMIT} bytes); depend on directories "
                "instead of their files"
            )
        path = folder / f"{task}.step.json"
        path.write_text(text, encoding="utf-8")
        return path.as_uri()
    # KFP and Argo replace what stands in double braces, wherever it stands.
    return text.replace("{{", "{\\u007b")


@cache
def _function(upstream: int, metrics: bool) -> Any:
    """Return the function a task executes, with a parameter for each upstream task.

    KFP reads a component's interface from a function's signature and sends its source along, so a component
    with a given number of inputs needs a function with that many parameters.
    """
    digests = [f"upstream_{i}" for i in range(upstream)]
    parameters = ["spec: str", *(f"{d}: str" for d in digests), "outputs: dsl.OutputPath(str)"]
    arguments = ["spec", "[" + ", ".join(digests) + "]", "outputs"]
    if metrics:
        parameters.append("metrics: dsl.Output[dsl.Metrics]")
        arguments.append("metrics")
    source = (
        f"def run_stage({', '.join(parameters)}):\n"
        "    from dvkf_prefect.kubeflow.task import run\n"
        f"    run({', '.join(arguments)})\n"
    )
    from kfp import dsl

    filename = f"<stage with {upstream} upstream{' and metrics' if metrics else ''}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"dsl": dsl}
    exec(compile(source, filename, "exec", dont_inherit=True), namespace)  # noqa: S102 (the source is above)
    return namespace["run_stage"]


def _component(task: str, upstream: int, metrics: bool, image: str) -> Any:
    from kfp import dsl

    component = dsl.component(_function(upstream, metrics), base_image=image, install_kfp_package=False)
    component.component_spec.name = task
    return component
