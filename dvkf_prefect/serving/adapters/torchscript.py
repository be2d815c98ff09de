"""TorchScript modules, run on the CPU."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from dvkf_prefect.serving.adapters.table import Files
from dvkf_prefect.serving.adapters.torch_tensors import outputs_of
from dvkf_prefect.serving.tensor_model import TensorSpec


class Script:
    """A TorchScript module as a program; a file has the names of its inputs, not their types and shapes.

    Attributes:
        inputs: Arguments of ``forward``.
        outputs: Empty; an answer names them ``output-0``, ``output-1``, ….
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        arguments = module.forward.schema.arguments[1:]
        self.inputs: Sequence[TensorSpec] = [
            TensorSpec(argument.name) for argument in arguments if not argument.has_default_value()
        ]
        self.outputs: Sequence[TensorSpec] = ()
        floats = {p.dtype for p in module.parameters() if p.dtype.is_floating_point}
        self._dtype = floats.pop() if len(floats) == 1 else None

    def run(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call ``forward``; numbers of FP64 get the type of the parameters, since JSON has no smaller type.

        Raises:
            ValueError: The module refused the input's shape or type.
        """
        import torch

        given = []
        for spec in self.inputs:
            value = torch.from_numpy(inputs[spec.name])
            if self._dtype is not None and value.dtype == torch.float64:
                value = value.to(self._dtype)
            given.append(value)
        with torch.inference_mode():
            try:
                found = self._module(*given)
            except RuntimeError as error:
                # TorchScript reports bad shapes and types, and nothing else, by this error's last line.
                raise ValueError(str(error).strip().rpartition("\n")[2]) from error
        return outputs_of(found, [])


def load(files: Files) -> Script:
    """Load a module from bytes, in evaluation mode."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch recommends torch.export for new models
        return Script(torch.jit.load(io.BytesIO(files.data), map_location="cpu").eval())
