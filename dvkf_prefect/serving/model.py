"""An estimator behind KServe's two request formats, without HTTP.

Sources: KServe's V1 protocol (``instances`` and ``predictions``) and the Open Inference Protocol V2 (tensors with
``name``, ``shape``, ``datatype`` and ``data``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dvkf_prefect.errors import PredictionError, ServingError
from dvkf_prefect.serving.predictions import rows_of, tensors_of
from dvkf_prefect.serving.served import (
    Protocol,
    Question,
    Served,
    guarded,
    is_part_of,
    names_of_outputs,
    no_output,
)
from dvkf_prefect.serving.tensors import check_request, read_array, read_instances, read_tensor

if TYPE_CHECKING:
    import numpy.typing as npt

INPUT = "input-0"
PREDICT = "predict"
PROBABILITY = "predict_proba"
# Libraries whose estimators compute, and do nothing else.
_LIBRARIES = ("sklearn", "xgboost", "lightgbm")
_TRIALS = 3
# Seconds of a prediction of one row that may be computed on the event loop.
_QUICK = 0.002


class Model(Served):
    """A loaded estimator that answers both protocols.

    Args:
        estimator: A fitted scikit-learn estimator, or any object with its ``predict``.
        name: Name of the model.
        version: Version of the model.
        platform: Format of the model.

    Raises:
        ServingError: The estimator has no ``predict``.
    """

    def __init__(self, estimator: Any, name: str, version: str, platform: str = "sklearn") -> None:
        if not callable(getattr(estimator, "predict", None)):
            raise ServingError(
                f"model '{name}' {version}: a {type(estimator).__name__} has no predict method"
            )
        self.name = name
        self.version = version
        self.platform = platform
        self._estimator = estimator
        features = _attribute(estimator, "n_features_in_")
        self._features = int(features) if features is not None else None
        columns = _attribute(estimator, "feature_names_in_")
        self._columns = None if columns is None else [str(column) for column in columns]
        categories = _attribute(estimator, "is_categorical_")
        # Columns that were pandas categories in training must be categories again.
        self._categories = [
            column for column, is_one in zip(self._columns or (), _flags(categories), strict=False) if is_one
        ]
        self._outputs = [PREDICT]
        if callable(_attribute(estimator, PROBABILITY)):
            self._outputs.append(PROBABILITY)
        self._output_metadata = self._probe()
        self.quick = bool(self._output_metadata) and self._is_quick()

    def metadata(self) -> dict[str, Any]:
        """Return the V2 model metadata; ``-1`` is a variable size.

        ``features``, which the protocol does not know, are the names of columns that the model was trained with.
        """
        document: dict[str, Any] = {"name": self.name, "versions": [self.version], "platform": self.platform}
        if self._features is not None:
            document["inputs"] = [{"name": INPUT, "datatype": "FP64", "shape": [-1, self._features]}]
        if self._columns is not None:
            document["features"] = self._columns
        if self._output_metadata:
            document["outputs"] = self._output_metadata
        return document

    def ask(self, protocol: Protocol, document: object) -> Question:
        """Check a request against the estimator.

        A V1 instance is a list of features, or a mapping by name if the model was trained with named features. V2
        ``inputs`` has one tensor of shape ``[rows, features]``, or one of shape ``[rows]`` for each named feature.
        """
        return self._ask_v1(document) if protocol == "v1" else self._ask_v2(document)

    def _ask_v1(self, document: object) -> Question:
        instances = read_instances(document, self._wanted())
        if self._columns is not None:
            batch = self._frame(instances, self._columns)
        else:
            batch = self._batch(read_array(instances, self._wanted()))
        return Question(
            batch, len(batch), (PREDICT,), False, lambda found: {"predictions": rows_of(found[PREDICT])}
        )

    def _ask_v2(self, document: object) -> Question:
        if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
            raise PredictionError(f'expected {{"inputs": [tensor]}} with {self._wanted()}')
        check_request(document)
        wanted = names_of_outputs(document, self._outputs)
        batch = self._tensors(document["inputs"])
        rows = len(batch)
        methods = [
            method
            for method in self._outputs
            if wanted is None or any(is_part_of(name, method) for name in wanted)
        ]

        def render(found: Mapping[str, Any]) -> dict[str, Any]:
            outputs = [
                tensor
                for method, answer in found.items()
                for tensor in tensors_of(method, answer, rows)
                if wanted is None or method in wanted or tensor["name"] in wanted
            ]
            if wanted is not None and (
                lost := [n for n in wanted if not any(is_part_of(t["name"], n) for t in outputs)]
            ):
                raise no_output(lost, self._outputs)
            return self.respond(document, outputs)

        return Question(batch, rows, tuple(methods), wanted is None, render)

    def compute(self, question: Question) -> dict[str, Any]:
        """Call the estimator's methods; one that fails for lack of its requirements is left out if optional."""
        found = {}
        for method in question.outputs:
            try:
                found[method] = guarded(getattr(self._estimator, method), question.inputs)
            except (NotImplementedError, AttributeError):
                # Some estimators have the method but lack its requirements.
                if not question.optional or method == PREDICT:
                    raise
        return found

    def _tensors(self, inputs: Sequence[object]) -> Any:
        if not inputs:
            raise PredictionError(f"inputs is empty; expected {self._wanted()}")
        tensors = [read_tensor(entry) for entry in inputs]
        names = [name for name, _ in tensors]
        if self._columns is not None and sorted(names) == sorted(self._columns):
            import pandas as pd

            rows = tensors[0][1].size
            for name, values in tensors:
                if values.shape not in ((rows,), (rows, 1)) or not rows:
                    raise PredictionError(
                        f"input '{name}' has shape {list(values.shape)}; expected [rows] for each feature, with "
                        "equal rows"
                    )
            table = pd.DataFrame({name: values.ravel() for name, values in tensors})[self._columns]
            return self._typed(table)
        if len(tensors) != 1 and self._columns is not None:
            missing, unknown = set(self._columns) - set(names), set(names) - set(self._columns)
            raise PredictionError(
                f"missing features {sorted(missing)}, unknown features {sorted(unknown)}; expected {self._wanted()}"
            )
        if len(tensors) != 1:
            raise PredictionError(
                f"{len(tensors)} inputs ({', '.join(names)}); expected one: {self._wanted()}"
            )
        batch = self._batch(tensors[0][1])
        return batch if self._columns is None else self._frame(batch.tolist(), self._columns)

    def _batch(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Check an array against the shape and type that the estimator expects."""
        import numpy as np

        if not values.size:
            raise PredictionError(f"no values (shape {list(values.shape)}); expected {self._wanted()}")
        if self._features is not None:
            if values.ndim != 2 or values.shape[1] != self._features:
                raise PredictionError(f"shape {list(values.shape)}; expected {self._wanted()}")
            if self._columns is None and values.dtype.kind not in "biuf":
                raise PredictionError(f"not all values are numbers; expected {self._wanted()}")
        # NaN stands for null; the model decides if it accepts missing values.
        if values.dtype.kind == "f" and np.isinf(values).any():
            raise PredictionError(f"a value is not a finite number; expected {self._wanted()}")
        return values

    def _frame(self, rows: Sequence[object], columns: Sequence[str]) -> Any:
        """Build a data frame from rows, which may be mappings, for an estimator fitted on one."""
        import pandas as pd

        table: list[Sequence[object]] = []
        for position, row in enumerate(rows):
            if isinstance(row, dict):
                if set(row) != set(columns):
                    odd = sorted(set(row) ^ set(columns))
                    raise PredictionError(
                        f"instance {position}: missing or unknown features {odd}; expected {list(columns)}"
                    )
                row = [row[column] for column in columns]
            if not isinstance(row, list) or len(row) != len(columns):
                raise PredictionError(
                    f"instance {position} does not fit the model; expected {self._wanted()}"
                )
            for value in row:
                if not isinstance(value, str | int | float | None) or (
                    isinstance(value, float) and math.isinf(value)
                ):
                    raise PredictionError(
                        f"instance {position}: a value is neither a finite number nor text nor null"
                    )
            table.append(row)
        return self._typed(pd.DataFrame(table, columns=list(columns)))

    def _typed(self, table: Any) -> Any:
        """Make empty columns numeric and restore categorical columns."""
        empty = [column for column in table.columns if table[column].isna().all()]
        return table.astype(
            {**dict.fromkeys(empty, "float64"), **dict.fromkeys(self._categories, "category")}
        )

    def _wanted(self) -> str:
        if self._features is None:
            return "rows as the model was trained with"
        names = (
            f" ({', '.join(self._columns[:8])}{', …' if len(self._columns) > 8 else ''})"
            if self._columns
            else ""
        )
        return f"rows of {self._features} finite numbers{names}, shape [rows, {self._features}]"

    def _probe(self) -> list[dict[str, Any]]:
        """Predict once, to learn the outputs' types and to spare the first request the slow start."""
        import numpy as np

        if self._features is None:
            return []
        row: Any = np.zeros((1, self._features))
        try:
            if self._columns is not None:
                row = self._frame(row.tolist(), self._columns)
            found = self.compute(Question(row, 1, tuple(self._outputs), True, dict))
            tensors = [tensor for method, answer in found.items() for tensor in tensors_of(method, answer, 1)]
        except Exception:  # noqa: BLE001 - a model may fail in any way on zeros that it was not trained for
            # A model of texts or categories rejects zeros; its output types are then taken from its answers.
            return []
        return [
            {"name": each["name"], "datatype": each["datatype"], "shape": [-1, *each["shape"][1:]]}
            for each in tensors
        ]

    def _is_quick(self) -> bool:
        """Return True for an estimator of a library, which waits for nothing, whose prediction takes no time."""
        if type(self._estimator).__module__.partition(".")[0] not in _LIBRARIES:
            return False
        row = [[0.0] * (self._features or 0)]
        seconds = []
        for _ in range(_TRIALS):
            started = time.perf_counter()
            self.compute(self.ask("v1", {"instances": row}))
            seconds.append(time.perf_counter() - started)
        return min(seconds) < _QUICK


def _attribute(estimator: Any, name: str) -> Any:
    """Return an attribute; None if it is missing or a property that fails."""
    try:
        return getattr(estimator, name, None)
    except Exception:  # noqa: BLE001 - a property runs the estimator's code
        return None


def _flags(value: Any) -> list[bool]:
    return [bool(flag) for flag in value.tolist()] if hasattr(value, "tolist") and value.ndim == 1 else []
