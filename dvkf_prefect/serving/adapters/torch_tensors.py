"""Results of PyTorch as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def outputs_of(found: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return a module's result as arrays by name.

    Args:
        found: A tensor; a sequence or a mapping of tensors.
        names: Names of the outputs in order; missing ones are ``output-0``, ``output-1``, ….
    """
    if isinstance(found, Mapping):
        return {str(name): _array(value) for name, value in found.items()}
    values = list(found) if isinstance(found, list | tuple) else [found]
    return {
        names[position] if position < len(names) else f"output-{position}": _array(value)
        for position, value in enumerate(values)
    }


def _array(value: Any) -> Any:
    if not hasattr(value, "detach"):
        return value
    value = value.detach().cpu()
    # numpy has no bfloat16.
    return value.float().numpy() if str(value.dtype) == "torch.bfloat16" else value.numpy()
