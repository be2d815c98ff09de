"""SavedModels of TensorFlow, by their signature ``serving_default``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dvkf_prefect.errors import ServingError
from dvkf_prefect.serving.adapters.table import Files
from dvkf_prefect.serving.tensor_model import TensorSpec

SIGNATURE = "serving_default"
_TYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    "string": "BYTES",
}  # fmt: skip


class SavedModel:
    """The signature of a SavedModel as a program.

    Attributes:
        inputs: Inputs of the signature.
        outputs: Outputs of the signature.
    """

    def __init__(self, loaded: Any, signature: Any) -> None:
        self._loaded = loaded  # it owns the variables that the signature refers to
        self._signature = signature
        self.inputs: Sequence[TensorSpec] = specs(signature.structured_input_signature[1])
        self.outputs: Sequence[TensorSpec] = specs(signature.structured_outputs)

    def run(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call the signature.

        Raises:
            ValueError: TensorFlow refused the input.
        """
        import tensorflow as tf

        try:
            found = self._signature(**{name: tf.constant(value) for name, value in inputs.items()})
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(str(error).partition("\n")[0]) from error
        return {name: value.numpy() for name, value in found.items()}


def load(files: Files) -> SavedModel:
    """Load the folder of a SavedModel.

    Raises:
        ServingError: The model has no signature ``serving_default``.
    """
    import tensorflow as tf

    loaded = tf.saved_model.load(str(files.path.parent))
    if SIGNATURE not in loaded.signatures:
        raise ServingError(
            f"no signature {SIGNATURE}: {files.name} (it has {', '.join(loaded.signatures) or 'none'}). Export the "
            "model with `model.export(folder)` of Keras, or with signatures."
        )
    return SavedModel(loaded, loaded.signatures[SIGNATURE])


def specs(tensors: Mapping[str, Any]) -> list[TensorSpec]:
    """Return the specs of TensorFlow's own, by name."""
    return [TensorSpec(name, *typed(each.dtype, each.shape)) for name, each in tensors.items()]


def typed(dtype: Any, shape: Any) -> tuple[str | None, tuple[int, ...] | None]:
    """Return datatype and shape of the Open Inference Protocol; None for what TensorFlow does not know."""
    kind = getattr(dtype, "name", str(dtype))
    sizes = (
        None if getattr(shape, "rank", 0) is None else tuple(-1 if size is None else size for size in shape)
    )
    return _TYPES.get(kind), sizes
