"""Compilation of stages to a Kubeflow pipeline: one KFP task per stage, an edge from each output to its readers.

A task's ``spec`` parameter is its `StepSpec` as JSON: digests, never data and never the environment, which may
contain credentials. The upstream task's ``outputs`` parameter has the digests of its outputs. Along an edge it is
passed to the downstream task, where it replaces the specification's digests of those dependencies.

The values of DVC's parameters are typed parameters of the run and its tasks (`parameters`), not part of ``spec``. What
a stage writes are KFP artifacts of its task, and inputs of the tasks that read it (`artifacts`).

On a cluster a task has one more parameter, ``run``, for `dvkf_prefect.kubeflow.pod.pod`. It contains the pod's access
to the remote and the place of its result. The pod's settings are set by `dvkf_prefect.kubeflow.compile.pod_settings`.

Source of the format: KFP's pipeline spec 2.1, by KFP's own compiler.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import itertools
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dvkf_prefect.errors import RunnerError, StageGraphError
from dvkf_prefect.kubeflow.compile.components import Interface, make_component
from dvkf_prefect.kubeflow.compile.images import PYTHON_IMAGE, image_of
from dvkf_prefect.kubeflow.compile.parameters import TYPES, with_references
from dvkf_prefect.kubeflow.compile.shown import Shown, choose
from dvkf_prefect.text import slug

if TYPE_CHECKING:
    from dvkf_prefect.kubeflow.compile.pod_settings import Placement
    from dvkf_prefect.kubeflow.compile.workspace import WorkspaceVolume
    from dvkf_prefect.pipeline.step.step import StepSpec

# KFP passes all parameters of a task as one argument, in JSON within JSON. Linux limits an argument to 128 KiB.
SPEC_LIMIT = 56 * 1024
# On a cluster: characters of a task's parameters, and bytes of them as Argo stores them in a pod's template, JSON in
# JSON in JSON. A template of more than 128 KiB needs a right that KFP does not give to Argo.
_TASK_LIMIT = 32 * 1024
_TEMPLATE_LIMIT = 80 * 1024
# Bytes of all tasks' parameters in the workflow, JSON in JSON. Argo takes 1 MiB with everything else, and stores them
# a second time in the compressed nodes.
_WORKFLOW_LIMIT = 384 * 1024
# Characters of a task's parameters that are for the outputs of upstream tasks.
_UPSTREAM_LIMIT = 8 * 1024
# Pod label with the name of its task.
TASK_LABEL = "dvkf-task"
# Argo's names of its own nodes, and the suffix of a task's driver: no task may have them.
_RESERVED = frozenset({"root", "executor", "entrypoint"})
_DRIVER = "-driver"
# A name must fit into a label of 63 characters, with a prefix (comp-, exec-, system-) and a scheduler's suffix.
_NAME_LENGTH = 40


def task_names(stages: Sequence[str]) -> dict[str, str]:
    """Return a unique valid KFP task name for each stage, as close to its address as possible.

    Args:
        stages: Addresses of stages, each once.

    Returns:
        The task name of each address: lower-case ASCII letters, digits and dashes, at most 47 characters, a letter
        first. It depends only on the set of the addresses, not on their order. No name is one of Argo's own nodes.

    Example:
        >>> task_names(["train", "Train", "nlp/dvc.yaml:prepare@en", "4x"])["nlp/dvc.yaml:prepare@en"]
        'nlp-prepare-en'
    """
    slugs = {stage: _slug(stage) for stage in stages}
    counts = Counter(slugs.values())
    # A stage whose address equals its slug keeps it; other stages with the same slug get a hash suffix.
    names = {
        stage: slug
        for stage, slug in slugs.items()
        if (stage == slug or counts[slug] == 1) and slug not in _RESERVED and not slug.endswith(_DRIVER)
    }
    taken = set(names.values())
    for stage in sorted(slugs.keys() - names.keys()):
        mark = hashlib.sha256(stage.encode(errors="surrogateescape")).hexdigest()
        name = next(n for size in range(6, 65) if (n := f"{slugs[stage]}-{mark[:size]}") not in taken)
        names[stage] = name
        taken.add(name)
    return {stage: names[stage] for stage in stages}


def compile_stages(
    steps: Sequence[StepSpec], *, name: str, image: str = PYTHON_IMAGE, folder: Path | None = None
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
        run: Returns the value of a task's ``run`` parameter, for `dvkf_prefect.kubeflow.pod.pod`.
        placements: Settings of each stage's pod, by address; the defaults are included.
        edges: Predecessors of a stage, besides the writers of its inputs.
        labels: Labels of every pod; `TASK_LABEL` is added.
        spill: Stores a specification that is too large for a parameter, ``(task, text)``; returns its reference.
        named_by_run: True passes the id of the KFP run to each pod as the key of its results.
        workspace: Volume that the pods share; None for none.
    """

    run: Callable[[str], str]
    placements: Mapping[str, Placement]
    edges: Mapping[str, Sequence[str]]
    labels: Mapping[str, str]
    spill: Callable[[str, str], str]
    named_by_run: bool = False
    workspace: WorkspaceVolume | None = None


def compile_for_cluster(steps: Sequence[StepSpec], plan: PodPlan, *, name: str, image: str) -> dict[str, Any]:
    """Compile stages to one KFP pipeline whose tasks have only a remote.

    Args:
        steps: The stages, in any order; their paths on this machine do not become part of the pipeline.
        plan: Cluster settings of the stages.
        name: Name of the pipeline; made valid for KFP.
        image: Container image of stages that name none; "" if all do.

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
        raise StageGraphError("no stage to compile")
    edges = _edges(steps)
    waits = edges_of(steps, plan.edges) if plan else edges
    by_stage = {step.stage: step for step in steps}
    names = task_names([step.stage for step in steps])
    share = _WORKFLOW_LIMIT // len(steps)

    def left(step: StepSpec) -> int:
        inner = len(_nested(step.to_json(), plan.run(names[step.stage]) if plan else ""))
        return share - inner if inner < share else share  # a larger one is not in the workflow

    shown = choose(steps, edges, left)
    run_parameters = {
        each.name: inspect.Parameter(
            each.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=each.value,
            annotation=TYPES[each.kind],
        )
        for found in shown.values()
        for each in found.parameters
    }
    tasks: dict[str, Any] = {}

    # KFP would read a return annotation, even None, as an output.
    def pipeline(*channels):  # type: ignore[no-untyped-def]
        given = dict(zip(run_parameters, channels, strict=True))
        for stage in _order(waits):
            step, upstream, seen = by_stage[stage], edges[stage], shown[stage]
            placement = plan.placements[stage] if plan else None
            component = make_component(
                names[stage],
                _interface(seen, len(upstream), plan),
                image_of(placement, image) if plan else image,
                placement.packages if placement else (),
            )
            run = plan.run(names[stage]) if plan else ""
            params = with_references(step.params, {each.identity: each.name for each in seen.parameters})
            text = dataclasses.replace(step, env={}, params=params).to_json()
            if plan:
                if not _fits(text, run, len(upstream), len(steps), seen.size):
                    text = plan.spill(names[stage], text)
            elif len(text) > SPEC_LIMIT:
                text = _put_aside(step, names[stage], text, folder)
            task = component(
                # KFP and Argo replace text in double braces anywhere.
                spec=text.replace("{{", "{\\u007b"),
                **({"run": run} if plan else {}),
                # The driver replaces a constant that is this placeholder as a whole (v2/driver/resolve.go:440).
                **({"run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER} if plan and plan.named_by_run else {}),
                **{f"upstream_{i}": tasks[u].outputs["outputs"] for i, u in enumerate(upstream)},
                **{each.name: given[each.name] for each in seen.parameters},
                **{edge.name: tasks[edge.stage].outputs[edge.output] for edge in seen.inputs},
            )
            after = [tasks[other] for other in waits[stage] if other not in upstream]
            if after:
                task.after(*after)
            # The decision to run a stage is made by content beforehand; KFP's cache does not see content.
            task.set_caching_options(False)
            # KFP's database stores no character outside Unicode's first plane.
            task.set_display_name(to_ascii(stage))
            if plan and placement:
                labels = {**placement.labels, **plan.labels, TASK_LABEL: names[stage]}
                dataclasses.replace(placement, labels=labels).apply(task)
            tasks[stage] = task

    pipeline.__signature__ = inspect.Signature(list(run_parameters.values()))  # type: ignore[attr-defined]
    pipeline_name = _slug(name, 100)
    # KFP's loader mistakes a pipeline with a task's name for that task alone.
    while pipeline_name in names.values():
        pipeline_name += "-pipeline"
    config = plan.workspace.config() if plan and plan.workspace else None
    return dsl.pipeline(pipeline, name=pipeline_name, pipeline_config=config)


def _interface(seen: Shown, upstream: int, plan: PodPlan | None) -> Interface:
    return Interface(
        upstream,
        plan is not None,
        plan is not None and plan.named_by_run,
        tuple((each.name, each.kind) for each in seen.parameters),
        tuple((edge.name, edge.kind) for edge in seen.inputs),
        tuple((artifact.name, artifact.kind) for artifact in seen.outputs),
    )


def _slug(text: str, length: int = _NAME_LENGTH) -> str:
    ascii_text = (
        unicodedata.normalize("NFKD", text.replace("dvc.yaml:", "")).encode("ascii", "ignore").decode()
    )
    name = slug(ascii_text)
    if not name[:1].isalpha():
        name = f"stage-{name}".rstrip("-")
    return name[:length].rstrip("-")


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
                    f"'{writers[inside[0]]}' writes '{inside[0]}'. Depend on that output instead."
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


def inline_limit(edges: Mapping[str, Sequence[str]]) -> int:
    """Return the maximum length of a stage's outputs as a parameter of later stages, in characters.

    Args:
        edges: Predecessors of each stage.
    """
    return min(1024, _UPSTREAM_LIMIT // max([1, *map(len, edges.values())]))


def to_ascii(text: str) -> str:
    r"""Return a text with other characters than ASCII as escapes.

    Example:
        >>> print(to_ascii("größe"))
        gr\xf6\xdfe
    """
    return text.encode("ascii", "backslashreplace").decode()


def _fits(text: str, run: str, upstream: int, stages: int, shown: int) -> bool:
    """Return True if a task's parameters are small enough for Argo.

    Args:
        text: Specification of the stage.
        run: The ``run`` parameter.
        upstream: Number of upstream tasks, each with an ``outputs`` parameter.
        stages: Number of stages in the workflow.
        shown: Characters of its typed parameters and artifacts.
    """
    # Beyond the limit each is a reference, a task's name.
    kept = max(_UPSTREAM_LIMIT, upstream * (_NAME_LENGTH + 20)) + shown
    if len(text) + len(run) > _TASK_LIMIT - kept:
        return False
    inner = _nested(text, run)
    # Digests of outputs are mostly letters, with few quotes: they grow to less than twice their length.
    if len(json.dumps(inner)) > _TEMPLATE_LIMIT - 2 * kept:
        return False
    return len(inner) <= _WORKFLOW_LIMIT // stages


def _nested(text: str, run: str) -> str:
    """Return a task's parameters as the workflow has them, JSON in JSON."""
    return json.dumps(json.dumps([text, run]))


def _put_aside(step: StepSpec, task: str, text: str, folder: Path | None) -> str:
    """Write a large specification to a file; return its URI."""
    if folder is None:
        raise RunnerError(
            f"stage '{step.stage}' has too many dependencies and parameters for a Kubernetes container: "
            f"{len(text)} bytes, at most {SPEC_LIMIT}. Depend on directories instead of their files."
        )
    path = folder / f"{task}.step.json"
    path.write_text(text, encoding="utf-8")
    return path.as_uri()
