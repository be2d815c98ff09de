"""Compilation of stages to a Kubeflow pipeline: one KFP task per stage, an edge from each output to its readers.

A task's ``spec`` parameter is its `StepSpec` as JSON: digests, never data and never the environment, which may
contain credentials. The upstream task's ``outputs`` parameter has the digests of its outputs. Along an edge it is
passed to the downstream task, where it replaces the specification's digests of those dependencies.

On a cluster a task has one more parameter, ``run``, for `dvkf_prefect.kubeflow.pod.pod`. It contains the pod's access
to the remote and the place of its result. The pod's settings are set by `dvkf_prefect.kubeflow.compile.pod_settings`.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from dvkf_prefect.errors import RunnerError, StageGraphError

if TYPE_CHECKING:
    from dvkf_prefect.kubeflow.compile.pod_settings import Placement
    from dvkf_prefect.pipeline.step.step import StepSpec

IMAGE = "python:3.11-slim"
# KFP passes all parameters of a task as one argument, in JSON within JSON. Linux limits an argument to 128 KiB.
SPEC_LIMIT = 56 * 1024
# Pod label with the name of its task.
TASK_LABEL = "dvkf-task"
# A name must fit into a label of 63 characters, with a prefix (comp-, exec-, system-) and a scheduler's suffix.
_NAME_LENGTH = 40


def task_names(stages: Sequence[str]) -> dict[str, str]:
    """Return a unique valid KFP task name for each stage, as close to its address as possible.

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
    # A stage whose address equals its slug keeps it; other stages with the same slug get a hash suffix.
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
        steps: The stages, in any order. A dependency's digest is ignored if another of these stages writes it.
            ``env`` does not become part of the pipeline.
        name: Name of the pipeline; made valid for KFP.
        image: Container image of every task. It needs Python and this package; KFP's local subprocess runner only
            looks for the word "python" in it.
        folder: Folder for specifications that are too large for a parameter, for tasks with access to this machine's
            files. If None they are refused.

    Returns:
        The pipeline spec (KFP's intermediate representation) as JSON values, as ``POST /apis/v2beta1/runs`` takes it.
        Each task's ``taskInfo.name``, which KFP's UI shows, is the stage's address.

    Raises:
        StageGraphError: The stages form a cycle, or two of them write one path or have one name. Also if one
            depends on a directory that contains other stages' outputs.
        RunnerError: A specification is too large and there is no ``folder``.

    Example:
        >>> from dvkf_prefect.pipeline.step.step import StepSpec
        >>> spec = compile_stages([StepSpec("train", ("true",), "/cache")], name="demo")
        >>> list(spec["root"]["dag"]["tasks"])
        ['train']
    """
    compiled = _compile(steps, name, image, None, folder)
    return _as_values(compiled.pipeline_spec)


@dataclass(frozen=True, slots=True)
class PodPlan:
    """Cluster settings of a run's stages.

    Attributes:
        run: Value of each task's ``run`` parameter, for `dvkf_prefect.kubeflow.pod.pod`.
        placements: Settings of each stage's pod, by address; the defaults are included.
        models: Outputs of each stage that are models.
        edges: Predecessors of a stage, besides the writers of its inputs.
        labels: Labels of every pod; `TASK_LABEL` is added.
        spill: Stores a specification that is too large for a parameter, ``(task, text)``; returns its reference.
        limit: Maximum length of a specification as a parameter, in characters.
    """

    run: str
    placements: Mapping[str, Placement]
    models: Mapping[str, Sequence[str]]
    edges: Mapping[str, Sequence[str]]
    labels: Mapping[str, str]
    spill: Callable[[str, str], str]
    limit: int = SPEC_LIMIT


def compile_for_cluster(steps: Sequence[StepSpec], plan: PodPlan, *, name: str, image: str) -> dict[str, Any]:
    """Compile stages to one KFP pipeline whose tasks have only a remote.

    Args:
        steps: The stages, in any order; their paths on this machine do not become part of the pipeline.
        plan: Cluster settings of the stages.
        name: Name of the pipeline; made valid for KFP.
        image: Container image of stages that name none.

    Returns:
        ``pipeline_spec`` as ``POST /apis/v2beta1/runs`` takes it: KFP's intermediate representation, or that and the
        platform's part as ``{"pipeline_spec": …, "platform_spec": …}``.

    Raises:
        StageGraphError: The stages form a cycle, or two of them write one path or have one name. Also if one
            depends on a directory that contains other stages' outputs.
    """
    anywhere = [dataclasses.replace(step, cache_dir="", workspace=None, log=None, env={}) for step in steps]
    compiled = _compile(anywhere, name, image, plan, None)
    spec, platform = _as_values(compiled.pipeline_spec), _as_values(compiled.platform_spec)
    return {"pipeline_spec": spec, "platform_spec": platform} if platform else spec


def edges_of(
    steps: Sequence[StepSpec], more: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> dict[str, tuple[str, ...]]:
    """Return the predecessors of each stage: the writers of its inputs first, then those in ``more``.

    Raises:
        StageGraphError: The stages do not form a graph.
    """
    reads = _edges(steps)
    edges = {
        stage: tuple(dict.fromkeys([*found, *(m for m in more.get(stage, ()) if m in reads and m != stage)]))
        for stage, found in reads.items()
    }
    _order(edges)
    return edges


def _as_values(message: Any) -> dict[str, Any]:
    from google.protobuf import json_format  # type: ignore[import-untyped]

    values: dict[str, Any] = json_format.MessageToDict(message)
    return values


def _compile(
    steps: Sequence[StepSpec], name: str, image: str, plan: PodPlan | None, folder: Path | None
) -> Any:
    from kfp import dsl

    if not steps:
        raise StageGraphError("there is no stage to compile")
    edges = _edges(steps)
    waits = edges_of(steps, plan.edges) if plan else edges
    by_stage = {step.stage: step for step in steps}
    names = task_names([step.stage for step in steps])
    tasks: dict[str, Any] = {}

    # KFP would read a return annotation, even None, as an output.
    def pipeline():  # type: ignore[no-untyped-def]
        for stage in _order(waits):
            step, upstream = by_stage[stage], edges[stage]
            metrics = any(out.kind == "metric" for out in step.outs)
            models = plan.models.get(stage, ()) if plan else ()
            placement = plan.placements[stage] if plan else None
            component = _component(
                names[stage],
                _Shape(len(upstream), metrics, len(models), plan is not None),
                placement.image or image if placement else image,
                placement.packages if placement else (),
            )
            task = component(
                spec=_parameter(step, names[stage], folder, plan),
                **({"run": plan.run} if plan else {}),
                **{f"upstream_{i}": tasks[u].outputs["outputs"] for i, u in enumerate(upstream)},
            )
            after = [tasks[other] for other in waits[stage] if other not in upstream]
            if after:
                task.after(*after)
            # The decision to run a stage is made by content beforehand; KFP's cache does not see content.
            task.set_caching_options(False)
            task.set_display_name(stage)
            if plan and placement:
                labels = {**placement.labels, **plan.labels, TASK_LABEL: names[stage]}
                dataclasses.replace(placement, labels=labels).apply(task)
            tasks[stage] = task

    pipeline_name = _slug(name, 100)
    # KFP's loader mistakes a pipeline with a task's name for that task alone.
    while pipeline_name in names.values():
        pipeline_name += "-pipeline"
    return dsl.pipeline(pipeline, name=pipeline_name)


def _slug(text: str, length: int = _NAME_LENGTH) -> str:
    ascii_text = (
        unicodedata.normalize("NFKD", text.replace("dvc.yaml:", "")).encode("ascii", "ignore").decode()
    )
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")
    if not slug[:1].isalpha():
        slug = f"stage-{slug}".rstrip("-")
    return slug[:length].rstrip("-")


def _edges(steps: Sequence[StepSpec]) -> dict[str, tuple[str, ...]]:
    """Return the stages whose digests each stage takes."""
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


def _parameter(step: StepSpec, task: str, folder: Path | None, plan: PodPlan | None) -> str:
    """Return the step as the value of a KFP parameter."""
    text = dataclasses.replace(step, env={}).to_json()
    if len(text) > (plan.limit if plan else SPEC_LIMIT):
        if plan is not None:
            return plan.spill(task, text)
        if folder is None:
            raise RunnerError(
                f"stage '{step.stage}' declares so many dependencies and parameters ({len(text)} bytes) that a "
                f"Kubernetes container cannot be given them ({SPEC_LIMIT} bytes); depend on directories "
                "instead of their files"
            )
        path = folder / f"{task}.step.json"
        path.write_text(text, encoding="utf-8")
        return path.as_uri()
    # KFP and Argo replace text in double braces anywhere.
    return text.replace("{{", "{\\u007b")


class _Shape(NamedTuple):
    """Properties that determine the interface of a task's function."""

    upstream: int
    metrics: bool
    models: int = 0
    in_pod: bool = False


@cache
def _function(shape: _Shape) -> Any:
    """Return the function that a task executes, with a parameter for each upstream task.

    KFP reads a component's interface from a function's signature, and ships its source. So a component with a given
    number of inputs needs a function with that many parameters.
    """
    digests = [f"upstream_{i}" for i in range(shape.upstream)]
    models = [f"model_{i}" for i in range(shape.models)]
    parameters = ["spec: str", *(["run: str"] if shape.in_pod else []), *(f"{d}: str" for d in digests)]
    parameters.append("outputs: dsl.OutputPath(str)")
    arguments = ["spec", *(["run"] if shape.in_pod else []), "[" + ", ".join(digests) + "]", "outputs"]
    if shape.in_pod:
        parameters.append("result: dsl.OutputPath(str)")
        arguments.append("result")
    if shape.metrics:
        parameters.append("metrics: dsl.Output[dsl.Metrics]")
        arguments.append("metrics=metrics")
    if shape.models:
        parameters += [f"{model}: dsl.Output[dsl.Model]" for model in models]
        arguments.append("models=[" + ", ".join(models) + "]")
    module, function = ("pod", "run_in_pod") if shape.in_pod else ("kfp_task", "run")
    source = (
        f"def run_stage({', '.join(parameters)}):\n"
        f"    from dvkf_prefect.kubeflow.pod.{module} import {function}\n"
        f"    {function}({', '.join(arguments)})\n"
    )
    from kfp import dsl

    filename = f"<stage of {shape}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"dsl": dsl}
    exec(compile(source, filename, "exec", dont_inherit=True), namespace)  # noqa: S102 (the source is above)
    return namespace["run_stage"]


def _component(task: str, shape: _Shape, image: str, packages: Sequence[str] = ()) -> Any:
    from kfp import dsl

    component = dsl.component(
        _function(shape),
        base_image=image,
        install_kfp_package=False,
        packages_to_install=list(packages) or None,
    )
    component.component_spec.name = task
    return component
