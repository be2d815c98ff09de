"""Parameters of tasks: checks, and names of task runs made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

from dvkf_prefect.blocks._common import refuse_coroutine


def need_blocks(parameters: Mapping[str, object]) -> None:
    """Check that no parameter is a block that still has to be awaited.

    Args:
        parameters: Parameters by name.

    Raises:
        TypeError: A parameter is a coroutine.
    """
    for name, value in parameters.items():
        if message := refuse_coroutine(name, value):
            raise TypeError(message)


def listed(targets: str | Sequence[str]) -> Sequence[str]:
    """Return targets as a list; one target may be given as text."""
    return (targets,) if isinstance(targets, str) else targets


def run_name(template: str) -> Callable[[], str]:
    """Return a function for ``task_run_name`` that fills in a template, before the task's body runs.

    Args:
        template: Template with the task's parameters in braces; a block may be given by its name.
    """

    def name(parameters: Mapping[str, Any]) -> str:
        need_blocks(parameters)
        named = {
            # A value without a name is no block; the task's body refuses it by the name of the parameter.
            name: SimpleNamespace(name=value if isinstance(value, str) else type(value).__name__)
            if f"{{{name}.name}}" in template and not hasattr(value, "name")
            else value
            for name, value in parameters.items()
        }
        return template.format(**named)

    # Prefect passes the parameters to a function with an argument of that name; its type does not say so.
    return cast("Callable[[], str]", name)
