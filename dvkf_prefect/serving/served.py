"""Models as the server sees them: a checked question, a computation, an answer in either protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dvkf_prefect.errors import PredictionError, ServingError

Protocol = Literal["v1", "v2"]


@dataclass(frozen=True)
class Question:
    """One request, checked against the model.

    Attributes:
        inputs: Input of the computation: an array, a data frame, or arrays by name. Its first dimension is the rows.
        rows: Number of rows.
        outputs: Names of the outputs to compute.
        optional: True if an output that the model lacks after all may be left out.
        render: Makes the JSON answer of the computed outputs.
    """

    inputs: Any
    rows: int
    outputs: tuple[str, ...]
    optional: bool
    render: Callable[[Mapping[str, Any]], dict[str, Any]]


class Served(ABC):
    """One version of a model, loaded.

    Attributes:
        name: Name of the model.
        version: Version of the model.
        platform: Format of the model, in the words of the Open Inference Protocol.
        quick: True if a small computation takes no time and never waits for anything, so that it needs no thread.
    """

    name: str
    version: str
    platform: str
    quick: bool = False

    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """Return the V2 model metadata; ``-1`` is a variable size."""

    @abstractmethod
    def ask(self, protocol: Protocol, document: object) -> Question:
        """Check a request against the model.

        Args:
            protocol: ``v1`` or ``v2``.
            document: JSON of the request.

        Raises:
            PredictionError: The request does not fit the model; the message says what does.
        """

    @abstractmethod
    def compute(self, question: Question) -> dict[str, Any]:
        """Compute the outputs of a question, by name.

        Raises:
            PredictionError: The model refused the input.
            ServingError: The model failed in a way that would end the server.
        """

    def predict(self, document: object) -> dict[str, Any]:
        """Answer a V1 request.

        Args:
            document: ``{"instances": [row, …]}``.

        Returns:
            ``{"predictions": […]}``, one per instance.

        Raises:
            PredictionError: The request does not fit the model; the message says what does.
            ServingError: The model's answer cannot be expressed in JSON.
        """
        return self.answer("v1", document)

    def infer(self, document: object) -> dict[str, Any]:
        """Answer a V2 inference request.

        Args:
            document: JSON of the request: ``inputs``, and by choice ``outputs`` and ``id``.

        Returns:
            The V2 inference response.

        Raises:
            PredictionError: The request does not fit the model; the message says what does.
            ServingError: The model failed in a way that would end the server.
        """
        return self.answer("v2", document)

    def answer(self, protocol: Protocol, document: object) -> dict[str, Any]:
        """Answer a request of either protocol; see `predict` and `infer`."""
        question = self.ask(protocol, document)
        return question.render(self.compute(question))

    def respond(self, document: Mapping[str, Any], outputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the V2 inference response with these output tensors; it repeats the request's id."""
        response: dict[str, Any] = {
            "model_name": self.name,
            "model_version": self.version,
            "outputs": outputs,
        }
        if isinstance(document.get("id"), str):
            response["id"] = document["id"]
        return response


def names_of_outputs(document: Mapping[str, Any], known: Sequence[str]) -> list[str] | None:
    """Return the names of the outputs that a V2 request asks for; None for all.

    Args:
        document: The request.
        known: Outputs of the model. ``NAME-PART`` is a part of one.

    Raises:
        PredictionError: The request asks for an output that the model lacks.
    """
    asked = document.get("outputs")
    if not asked:
        return None
    if not isinstance(asked, list):
        raise PredictionError('outputs is a list of {"name": ...}')
    names = [output.get("name") if isinstance(output, dict) else None for output in asked]
    unknown = [
        str(name)
        for name in names
        if not isinstance(name, str) or not any(is_part_of(name, output) for output in known)
    ]
    if unknown:
        raise no_output(unknown, known)
    return [name for name in names if name is not None]


def no_output(names: Sequence[str], known: Sequence[str]) -> PredictionError:
    """Return the error for outputs that the model lacks."""
    return PredictionError(f"no output {', '.join(names)}; this model has {', '.join(known)}")


def is_part_of(name: str, output: str) -> bool:
    """Return True if a tensor is an output or a part of it."""
    return name == output or name.startswith(f"{output}-")


def guarded(call: Callable[..., Any], *args: Any) -> Any:
    """Call a model, and turn the errors of bad input, and those that end a process, into ours.

    Raises:
        PredictionError: The model refused the input by ValueError or TypeError.
        ServingError: The model raised what would end the server.
    """
    try:
        return call(*args)
    except (ValueError, TypeError) as error:
        # scikit-learn reports bad input by these errors; the server's own checks cannot know every model.
        raise PredictionError(f"the model refused the input: {error}") from error
    except (SystemExit, KeyboardInterrupt, StopIteration, StopAsyncIteration) as error:
        raise ServingError(f"the model raised {type(error).__name__}: {error}") from error
