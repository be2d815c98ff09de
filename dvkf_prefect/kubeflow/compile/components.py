"""KFP components of stages: the function that a task executes, and its container.

KFP reads a component's interface from a function's signature, and ships its source. So each interface needs a function
with these parameters. Stages with the same interface share one.
"""

from __future__ import annotations

import linecache
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from dvkf_prefect.kubeflow.compile.images import install_in_own_environment
from dvkf_prefect.kubeflow.compile.parameters import TYPES


class Interface(NamedTuple):
    """Inputs and outputs of a component.

    Attributes:
        upstream: Number of upstream tasks with an ``outputs`` parameter.
        in_pod: True for a task on a cluster, which has a ``run`` parameter.
        named: True if the task gets the id of the KFP run as ``run_id``.
        parameters: Name and kind of each typed parameter, see `parameters.TYPES`.
        inputs: Name and class of each artifact that it reads.
        outputs: Name and class of each artifact that it writes.
    """

    upstream: int
    in_pod: bool = False
    named: bool = False
    parameters: tuple[tuple[str, str], ...] = ()
    inputs: tuple[tuple[str, str], ...] = ()
    outputs: tuple[tuple[str, str], ...] = ()


def make_component(task: str, interface: Interface, image: str, packages: Sequence[str] = ()) -> Any:
    """Return the KFP component of a task.

    Args:
        task: Name of the task.
        interface: Its inputs and outputs.
        image: Container image.
        packages: Python packages to install at the container's start.
    """
    from kfp import dsl

    component = dsl.component(
        _function(interface),
        base_image=image,
        install_kfp_package=False,
        packages_to_install=list(packages) or None,
    )
    if packages:
        install_in_own_environment(component)
    component.component_spec.name = task
    return component


@cache
def _function(interface: Interface) -> Any:
    """Return the function that a task executes."""
    digests = [f"upstream_{i}" for i in range(interface.upstream)]
    takes = ["spec: str", *(["run: str"] if interface.in_pod else []), *(f"{d}: str" for d in digests)]
    takes += ["run_id: str"] if interface.named else []
    takes += [f"{name}: {TYPES[kind].__name__}" for name, kind in interface.parameters]
    takes += [f"{name}: dsl.Input[dsl.{kind}]" for name, kind in interface.inputs]
    takes.append("outputs: dsl.OutputPath(str)")
    gives = ["spec", *(["run"] if interface.in_pod else []), "[" + ", ".join(digests) + "]", "outputs"]
    if interface.in_pod:
        takes.append("result: dsl.OutputPath(str)")
        gives.append("result")
    if interface.named:
        gives.append("run_id=run_id")
    takes += [f"{name}: dsl.Output[dsl.{kind}]" for name, kind in interface.outputs]
    for argument, names in (("params", interface.parameters), ("artifacts", interface.outputs)):
        if names:
            gives.append(f"{argument}={{" + ", ".join(f"'{name}': {name}" for name, _ in names) + "}")
    module, function = ("pod", "run_in_pod") if interface.in_pod else ("kfp_task", "run")
    source = (
        f"def run_stage({', '.join(takes)}):\n"
        f"    from dvkf_prefect.kubeflow.pod.{module} import {function}\n"
        f"    {function}({', '.join(gives)})\n"
    )
    from kfp import dsl

    filename = f"<stage of {interface}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"dsl": dsl}
    exec(compile(source, filename, "exec", dont_inherit=True), namespace)  # noqa: S102 (the source is above)
    return namespace["run_stage"]
