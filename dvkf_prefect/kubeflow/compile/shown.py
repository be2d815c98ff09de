"""Choice of the parameters and artifacts that KFP shows of each stage, within the limits of a pod and a workflow.

Each parameter and artifact is part of the task, of its component, and of the template of its pod. So a stage with many,
or one of many stages, shows some of them. The order is: metrics and models, plots, parameters, data, data of upstream
stages. What is left out stays where it always is: values in ``spec``, outputs in the stage's result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dvkf_prefect.kubeflow.compile.artifacts import Edge, StageArtifact, artifacts_of, edges_between
from dvkf_prefect.kubeflow.compile.parameters import Leaf, leaves_of, parameter_names
from dvkf_prefect.pipeline.step.spec import StepSpec

# Characters for all that a task shows, in the template of its pod; bytes of them in the whole workflow.
_TASK = 12 * 1024
_WORKFLOW = 256 * 1024
# Bytes of a component's container, which stages with different interfaces cannot share.
_CONTAINER = 1600
# Share of the space left that parameters may take, and then data, so that each of them is shown.
_SHARE = 0.6
_logger = logging.getLogger(__name__)


class Parameter(NamedTuple):
    """A typed KFP parameter of a stage.

    Attributes:
        name: Name in the run and in the task.
        kind: Kind of the value, see `parameters.TYPES`.
        value: The value.
        identity: `Leaf.identity` of its place in the stage's parameters.
    """

    name: str
    kind: str
    value: Any
    identity: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """Part of a stage that KFP shows.

    Attributes:
        outputs: Artifacts that it writes.
        parameters: Parameters of its task.
        inputs: Artifacts that it reads.
        size: Characters of all these in the template of its pod.
    """

    outputs: tuple[StageArtifact, ...]
    parameters: tuple[Parameter, ...]
    inputs: tuple[Edge, ...]
    size: int


class _Room:
    """Space that is left for a stage."""

    def __init__(self, workflow: int) -> None:
        self.used = 0
        self._task = _TASK
        self._workflow = workflow

        self._kept = (0.0, 0.0)

    def keep(self, share: float) -> None:
        """Keep a share of the space that is left from `take`."""
        self._kept = self._task * share, self._workflow * share

    def take(self, task: int, workflow: int) -> bool:
        """Take space in the task and in the workflow, if there is enough in both."""
        if task > self._task - self._kept[0] or workflow > self._workflow - self._kept[1]:
            return False
        self._task -= task
        self._workflow -= workflow
        self.used += task
        return True


def choose(
    steps: Sequence[StepSpec],
    edges: Mapping[str, Sequence[str]],
    left: Callable[[StepSpec], int] = lambda step: _WORKFLOW,
) -> dict[str, Shown]:
    """Return the parameters and artifacts of each stage that KFP shows.

    Args:
        steps: The stages.
        edges: Stages whose outputs each of them reads.
        left: Returns the bytes of the workflow that a stage's specification leaves to it.
    """
    every = {step.stage: artifacts_of(step) for step in steps}
    leaves = {step.stage: leaves_of(step.params) for step in steps}
    names = parameter_names(
        [leaf for found in leaves.values() for leaf in found],
        {artifact.name for found in every.values() for artifact in found},
    )
    rooms: dict[str, _Room] = {}
    outputs: dict[str, list[StageArtifact]] = {}
    parameters: dict[str, list[Parameter]] = {}
    for step in steps:
        room = rooms[step.stage] = _Room(min(_WORKFLOW // len(steps), left(step)) - _CONTAINER)
        kept = outputs[step.stage] = []
        for artifact in every[step.stage]:
            if artifact.kind in ("Metrics", "Model"):
                kept.append(artifact)
                room.used += _output_size(artifact)
            elif artifact.kind != "Dataset" and _take_output(room, artifact):
                kept.append(artifact)
        room.keep(1 - _SHARE)
        parameters[step.stage] = [
            Parameter(names[leaf.identity], leaf.kind, leaf.value, leaf.identity)
            for leaf in leaves[step.stage]
            if _take_parameter(room, leaf, names[leaf.identity])
        ]
        room.keep(1 - _SHARE)
        kept += [a for a in every[step.stage] if a.kind == "Dataset" and _take_output(room, a)]
    found = {}
    for step in steps:
        room = rooms[step.stage]
        taken = {a.name for a in every[step.stage]} | {p.name for p in parameters[step.stage]}
        room.keep(0)
        inputs = edges_between(step, edges[step.stage], outputs, taken)
        # The artifact with its metadata: path, digest, location, session of the object store.
        kept_inputs = [e for e in inputs if room.take(950 + 2 * len(e.name), 360 + 4 * len(e.name))]
        found[step.stage] = Shown(
            tuple(outputs[step.stage]), tuple(parameters[step.stage]), tuple(kept_inputs), room.used
        )
        _report(step, len(every[step.stage]), len(inputs), found[step.stage])
    return found


def _output_size(artifact: StageArtifact) -> int:
    return 330 + 3 * len(artifact.name)


def _take_output(room: _Room, artifact: StageArtifact) -> bool:
    return room.take(_output_size(artifact), 260 + 4 * len(artifact.name))


def _take_parameter(room: _Room, leaf: Leaf, name: str) -> bool:
    size = len(leaf.text)
    return room.take(80 + 4 * len(name) + size, 300 + 6 * len(name) + 2 * size)


def _report(step: StepSpec, outputs: int, inputs: int, shown: Shown) -> None:
    parameters = sum(_count(values) for values in step.params.values())
    left = {
        "parameters": parameters - len(shown.parameters),
        "output artifacts": outputs - len(shown.outputs),
        "input artifacts": inputs - len(shown.inputs),
    }
    if any(left.values()):
        _logger.info(
            "stage '%s': KFP does not show %s; values are in the task's parameter 'spec', outputs in its 'result'",
            step.stage,
            ", ".join(f"{count} {what}" for what, count in left.items() if count),
        )


def _count(values: Mapping[str, Any]) -> int:
    return sum(_count(value) if isinstance(value, Mapping) and value else 1 for value in values.values())
