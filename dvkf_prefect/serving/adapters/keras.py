"""Keras models in the .keras or .h5 format, on TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dvkf_prefect.serving.adapters.table import Files
from dvkf_prefect.serving.adapters.tensorflow import typed
from dvkf_prefect.serving.tensor_model import TensorSpec


class KerasModel:
    """A Keras model as a program.

    Attributes:
        inputs: Its inputs.
        outputs: Its outputs.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.inputs: Sequence[TensorSpec] = [
            TensorSpec(each.name, *typed(each.dtype, each.shape)) for each in model.inputs
        ]
        # A sequential model has no names of outputs; its last layer has one.
        names = getattr(model, "output_names", None) or [model.layers[-1].name]
        self.outputs: Sequence[TensorSpec] = [
            TensorSpec(name, *typed(each.dtype, each.shape))
            for name, each in zip(names, model.outputs, strict=True)
        ]

    def run(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call the model as for inference."""
        given = [inputs[spec.name] for spec in self.inputs]
        found = self._model(given[0] if len(given) == 1 else given, training=False)
        values = list(found.values()) if isinstance(found, Mapping) else found
        several = values if isinstance(values, list | tuple) else [values]
        return {spec.name: value.numpy() for spec, value in zip(self.outputs, several, strict=True)}


def load(files: Files) -> KerasModel:
    """Load a model; Keras' safe mode refuses code in it."""
    import keras

    return KerasModel(keras.saving.load_model(str(files.path), compile=False, safe_mode=True))
