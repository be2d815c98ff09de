"""Programs of `torch.export`, run on the CPU."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from dvkf_prefect.serving.adapters.table import Files
from dvkf_prefect.serving.adapters.torch_tensors import outputs_of
from dvkf_prefect.serving.tensor_model import TensorSpec

_TYPES = {
    "torch.bool": "BOOL", "torch.uint8": "UINT8", "torch.int8": "INT8", "torch.int16": "INT16",
    "torch.int32": "INT32", "torch.int64": "INT64", "torch.float16": "FP16", "torch.float32": "FP32",
    "torch.float64": "FP64", "torch.bfloat16": "FP32",
}  # fmt: skip


class Exported:
    """An exported program; its file has names, types and shapes of inputs and outputs.

    Attributes:
        inputs: Tensors that the user gives.
        outputs: Tensors of the answer, named ``output-0``, ``output-1``, ….
    """

    def __init__(self, program: Any) -> None:
        self._module = program.module()
        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        signature = program.graph_signature
        self.inputs: Sequence[TensorSpec] = [_spec(name, values[name]) for name in signature.user_inputs]
        self.outputs: Sequence[TensorSpec] = [
            _spec(f"output-{position}", values.get(name))
            for position, name in enumerate(signature.user_outputs)
        ]

    def run(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call the program.

        Raises:
            ValueError: The program's guards refused a shape.
        """
        import torch

        given = [torch.from_numpy(inputs[spec.name]) for spec in self.inputs]
        with torch.inference_mode():
            try:
                found = self._module(*given)
            except (RuntimeError, AssertionError) as error:
                raise ValueError(str(error).strip().partition("\n")[0]) from error
        return outputs_of(found, [spec.name for spec in self.outputs])


def load(files: Files) -> Exported:
    """Load a program from bytes."""
    import torch

    return Exported(torch.export.load(io.BytesIO(files.data)))


def _spec(name: str, value: Any) -> TensorSpec:
    if value is None or not hasattr(value, "shape"):
        return TensorSpec(name)
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorSpec(name, _TYPES.get(str(value.dtype)), shape)
