"""ONNX models, run by onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dvkf_prefect.serving.adapters.table import Files
from dvkf_prefect.serving.tensor_model import TensorSpec

_TYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float": "FP32", "double": "FP64",
    "string": "BYTES",
}  # fmt: skip


class Session:
    """A session of onnxruntime as a program.

    Attributes:
        inputs: Its inputs, as the model declares them.
        outputs: Its outputs.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs: Sequence[TensorSpec] = [_spec(each) for each in session.get_inputs()]
        self.outputs: Sequence[TensorSpec] = [_spec(each) for each in session.get_outputs()]

    def run(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Compute all outputs; an output that is a sequence of maps is a list of mappings.

        Raises:
            ValueError: onnxruntime refused the input.
        """
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

        try:
            answers = self._session.run(None, dict(inputs))
        except InvalidArgument as error:
            raise ValueError(str(error)) from error
        return dict(zip([spec.name for spec in self.outputs], answers, strict=True))


def load(files: Files) -> Session:
    """Load a model from bytes, or from a path if its weights are in files beside it."""
    import onnxruntime

    source = files.data if files.folder is None else str(files.path)
    return Session(onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]))


def _spec(each: Any) -> TensorSpec:
    kind = each.type.removeprefix("tensor(").removesuffix(")") if each.type.startswith("tensor(") else ""
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in each.shape)
    return TensorSpec(each.name, _TYPES.get(kind), shape if kind in _TYPES else None)
