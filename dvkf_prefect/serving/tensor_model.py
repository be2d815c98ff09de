"""A program of named tensors behind both protocols: TorchScript, `torch.export`, TensorFlow, Keras, ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dvkf_prefect.errors import PredictionError
from dvkf_prefect.serving import served
from dvkf_prefect.serving.predictions import DATATYPES, rows_of, tensors_of
from dvkf_prefect.serving.served import Question, Served
from dvkf_prefect.serving.tensors import check_request, read_array, read_instances, read_tensor

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a program.

    Attributes:
        name: Name of the tensor.
        datatype: Datatype of the Open Inference Protocol; None if any is accepted.
        shape: Sizes of its dimensions, -1 for a variable one; None if not known.
    """

    name: str
    datatype: str | None = None
    shape: tuple[int, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the spec as V2 metadata; call it only if datatype and shape are known."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape or ())}

    @property
    def known(self) -> bool:
        """True if datatype and shape are known."""
        return self.datatype is not None and self.shape is not None


class Program(Protocol):
    """A loaded program of named tensors, as an adapter returns it.

    Attributes:
        inputs: Its inputs, in order.
        outputs: Its outputs, in order; empty if they are known only from an answer.
    """

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """Inputs of the program."""

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """Outputs of the program."""

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Mapping[str, Any]:
        """Compute the outputs by name, from the inputs by name."""


class TensorModel(Served):
    """A program that answers both protocols.

    Args:
        program: The program.
        name: Name of the model.
        version: Version of the model.
        platform: Format of the model.
    """

    def __init__(self, program: Program, name: str, version: str, platform: str) -> None:
        self.name = name
        self.version = version
        self.platform = platform
        self._program = program
        self._inputs = {spec.name: spec for spec in program.inputs}
        self._outputs = [spec.name for spec in program.outputs]

    def metadata(self) -> dict[str, Any]:
        """Return the V2 model metadata; inputs or outputs of unknown type or shape are left out."""
        document: dict[str, Any] = {"name": self.name, "versions": [self.version], "platform": self.platform}
        for key, specs in (("inputs", self._program.inputs), ("outputs", self._program.outputs)):
            if specs and all(spec.known for spec in specs):
                document[key] = [spec.as_dict() for spec in specs]
        return document

    def ask(self, protocol: served.Protocol, document: object) -> Question:
        """Check a request against the program's inputs.

        A V1 instance is the value of the only input, or a mapping by name of inputs. V2 ``inputs`` has one tensor for
        each input; a single one may have any name. Numbers are converted to the input's datatype.
        """
        if protocol == "v1":
            return self._ask_v1(document)
        if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
            raise PredictionError(f'expected {{"inputs": [tensor]}} with {self._wanted()}')
        check_request(document)
        wanted = served.names_of_outputs(document, self._outputs) if self._outputs else None
        inputs = self._named([read_tensor(entry) for entry in document["inputs"]])
        rows = self._rows(inputs)

        def render(found: Mapping[str, Any]) -> dict[str, Any]:
            names = wanted if wanted is not None else list(found)
            outputs = [
                tensor for name in names if name in found for tensor in tensors_of(name, found[name], rows)
            ]
            return self.respond(document, outputs)

        return Question(inputs, rows, tuple(wanted or self._outputs), wanted is None, render)

    def _ask_v1(self, document: object) -> Question:
        instances = read_instances(document, self._wanted())
        names = list(self._inputs)
        if len(names) == 1 and not (isinstance(instances[0], dict) and set(instances[0]) == set(names)):
            columns = {names[0]: instances}
        else:
            for position, row in enumerate(instances):
                if not isinstance(row, dict) or set(row) != set(names):
                    raise PredictionError(f"instance {position} does not fit; expected {self._wanted()}")
            columns = {name: [row[name] for row in instances] for name in names}
        inputs = self._named([(name, read_array(values, self._wanted())) for name, values in columns.items()])

        def render(found: Mapping[str, Any]) -> dict[str, Any]:
            if len(found) == 1:
                return {"predictions": rows_of(next(iter(found.values())))}
            return {"predictions": rows_of({name: rows_of(value) for name, value in found.items()})}

        return Question(inputs, len(instances), tuple(self._outputs), True, render)

    def compute(self, question: Question) -> dict[str, Any]:
        """Run the program, and keep the outputs that the question asks for."""
        found = served.guarded(self._program.run, question.inputs)
        return {
            name: value for name, value in found.items() if not question.outputs or name in question.outputs
        }

    def _named(self, tensors: Sequence[tuple[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
        """Return the tensors by the program's names, converted and checked."""
        if len(tensors) == 1 == len(self._inputs):
            tensors = [(next(iter(self._inputs)), tensors[0][1])]
        names = [name for name, _ in tensors]
        if sorted(names) != sorted(self._inputs):
            raise PredictionError(f"inputs {', '.join(names) or 'none'}; expected {self._wanted()}")
        return {name: self._fitted(self._inputs[name], values) for name, values in tensors}

    def _fitted(self, spec: TensorSpec, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        import numpy as np

        if not values.size:
            raise PredictionError(f"input '{spec.name}' has no values; expected {self._wanted()}")
        shape = spec.shape
        if shape is not None and (
            len(shape) != values.ndim
            or any(want not in (-1, has) for want, has in zip(shape, values.shape, strict=True))
        ):
            raise PredictionError(
                f"input '{spec.name}' has shape {list(values.shape)}; expected {self._wanted()}"
            )
        if spec.datatype is None:
            return values
        dtype = np.dtype(DATATYPES[spec.datatype])
        fits = {"b": "b", "u": "biu", "i": "biu", "f": "biuf", "O": "OU"}[dtype.kind]
        if values.dtype.kind not in fits:
            raise PredictionError(f"input '{spec.name}' is not all {spec.datatype}")
        if dtype.kind in "iu" and values.dtype.kind != "b":
            limits = np.iinfo(dtype)
            if int(values.min()) < limits.min or int(values.max()) > limits.max:
                raise PredictionError(f"input '{spec.name}': a value is out of the range of {spec.datatype}")
        with np.errstate(over="ignore"):
            return values.astype(dtype)

    def _rows(self, inputs: Mapping[str, npt.NDArray[Any]]) -> int:
        sizes = {len(values) if values.ndim else 1 for values in inputs.values()}
        return max(sizes, default=1)

    def _wanted(self) -> str:
        return ", ".join(
            f"{spec.name} {spec.datatype or 'of any type'}"
            + (f" {list(spec.shape)}" if spec.shape is not None else "")
            for spec in self._inputs.values()
        )
