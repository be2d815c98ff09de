"""One scikit-learn model behind KServe's two request formats, without HTTP.

Sources: KServe's V1 protocol (``instances`` and ``predictions``) and the Open Inference Protocol V2 (tensors with
``name``, ``shape``, ``datatype`` and ``data``). numpy and joblib are imported only to load a model, after its digest
is verified.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvkf_prefect.errors import ModelDigestError, PredictionError, ServingError
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.serving.predictions import DATATYPES, rows_of, tensors_of

if TYPE_CHECKING:
    import numpy.typing as npt

PLATFORM = "sklearn"
SUFFIXES = (".joblib", ".pkl", ".pickle")
INPUT = "input-0"
PREDICT = "predict"
PROBABILITY = "predict_proba"


def read_verified(path: Path, digest: str) -> bytes:
    """Read the bytes to unpickle once, and verify them against a digest.

    The returned bytes are the hashed ones, so replacing the file in between has no effect.

    Args:
        path: The model's file, or a folder. A folder has exactly one file that ends in .joblib, .pkl or .pickle at
            its top.
        digest: DVC's md5 of the file, or of the folder's manifest with ``.dir``.

    Raises:
        ModelDigestError: The file or folder has another digest; nothing was unpickled.
        ServingError: It cannot be read, or the folder does not have exactly one model file.
    """
    try:
        if path.is_dir():
            return _read_folder(path, digest)
        data = path.read_bytes()
    except OSError as error:
        raise ServingError(f"the model {path} cannot be read: {error.strerror or error}") from error
    _check(path, digest_bytes(data), digest)
    return data


def _read_folder(path: Path, digest: str) -> bytes:
    pairs: list[tuple[str, str]] = []
    models: dict[str, bytes] = {}
    for folder, _, names in os.walk(path, onerror=_raise):
        for name in names:
            file = Path(folder, name)
            data = file.read_bytes()
            relpath = file.relative_to(path).as_posix()
            pairs.append((relpath, digest_bytes(data)))
            if relpath.endswith(SUFFIXES) and "/" not in relpath:
                models[relpath] = data
    _check(path, Tree.from_pairs(pairs).digest, digest)
    if len(models) != 1:
        found = ", ".join(sorted(models)) or "none"
        raise ServingError(
            f"the model folder {path} must hold exactly one of {', '.join('*' + s for s in SUFFIXES)}; found {found}"
        )
    return models.popitem()[1]


def _raise(error: OSError) -> None:
    raise error


def _check(path: Path, actual: str, expected: str) -> None:
    if actual != expected:
        raise ModelDigestError(
            f"the model {path} has digest {actual}, its version has {expected}; it was not loaded. "
            "Get the version's own file from the cache or the remote."
        )


class Model:
    """A loaded estimator that answers both protocols.

    Args:
        estimator: A fitted scikit-learn estimator, or any object with its ``predict``.
        name: Name of the model.
        version: Version of the model.

    Raises:
        ServingError: The estimator has no ``predict``.
    """

    def __init__(self, estimator: Any, name: str, version: str) -> None:
        if not callable(getattr(estimator, "predict", None)):
            raise ServingError(
                f"model '{name}' {version}: a {type(estimator).__name__} has no predict method"
            )
        self.name = name
        self.version = version
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

    @classmethod
    def load(cls, data: bytes, name: str, version: str) -> Model:
        """Unpickle an estimator from verified bytes.

        Args:
            data: Bytes written by joblib or pickle.
            name: Name of the model.
            version: Version of the model.

        Raises:
            ServingError: The bytes cannot be unpickled, for example because a package is missing.
        """
        import joblib

        try:
            estimator = joblib.load(io.BytesIO(data))
        except Exception as error:
            raise ServingError(
                f"model '{name}' {version} cannot be unpickled ({type(error).__name__}: {error}); "
                "install the packages it was trained with"
            ) from error
        return cls(estimator, name, version)

    def metadata(self) -> dict[str, Any]:
        """Return the V2 model metadata; ``-1`` is a variable size."""
        document: dict[str, Any] = {"name": self.name, "versions": [self.version], "platform": PLATFORM}
        if self._features is not None:
            document["inputs"] = [{"name": INPUT, "datatype": "FP64", "shape": [-1, self._features]}]
        if self._output_metadata:
            document["outputs"] = self._output_metadata
        return document

    def predict(self, document: object) -> dict[str, Any]:
        """Answer a V1 request.

        Args:
            document: ``{"instances": [row, …]}``. A row is a list of features, or a mapping by name if the model was
                trained with named features.

        Returns:
            ``{"predictions": […]}``, one per instance.

        Raises:
            PredictionError: The request does not fit the model; the message says what does.
            ServingError: The model's answer cannot be expressed in JSON.
        """
        if not isinstance(document, dict) or not isinstance(document.get("instances"), list):
            raise PredictionError(f'expected {{"instances": [...]}}, {self._wanted()}')
        instances = document["instances"]
        if not instances:
            raise PredictionError(f"instances is empty; expected {self._wanted()}")
        if self._columns is not None:
            batch = self._frame(instances, self._columns)
        else:
            batch = self._batch(_array(instances, self._wanted()))
        return {"predictions": rows_of(self._call(PREDICT, batch))}

    def infer(self, document: object) -> dict[str, Any]:
        """Answer a V2 inference request.

        Args:
            document: JSON of the request. ``inputs`` has one tensor of shape ``[rows, features]``, or one of shape
                ``[rows]`` for each named feature. ``outputs`` and ``id`` are optional.

        Returns:
            The V2 inference response.

        Raises:
            PredictionError: The request does not fit the model; the message says what does.
        """
        if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
            raise PredictionError(f'expected {{"inputs": [tensor]}} with {self._wanted()}')
        wanted = self._outputs_of(document)
        batch = self._tensors(document["inputs"])
        rows = len(batch)
        outputs = [
            tensor
            for method in self._outputs
            if wanted is None or any(_is_of(name, method) for name in wanted)
            for tensor in self._answer(method, batch, rows, optional=wanted is None)
            if wanted is None or method in wanted or tensor["name"] in wanted
        ]
        if wanted is not None and (
            lost := [n for n in wanted if not any(_is_of(t["name"], n) for t in outputs)]
        ):
            raise self._no_output(lost)
        response: dict[str, Any] = {
            "model_name": self.name,
            "model_version": self.version,
            "outputs": outputs,
        }
        if isinstance(document.get("id"), str):
            response["id"] = document["id"]
        return response

    def _outputs_of(self, document: Mapping[str, Any]) -> list[str] | None:
        """Return the names of the requested outputs; None for all."""
        asked = document.get("outputs")
        if not asked:
            return None
        if not isinstance(asked, list):
            raise PredictionError('outputs is a list of {"name": ...}')
        names = [output.get("name") if isinstance(output, dict) else None for output in asked]
        unknown = [
            str(name)
            for name in names
            if not isinstance(name, str) or not any(_is_of(name, method) for method in self._outputs)
        ]
        if unknown:
            raise self._no_output(unknown)
        return [name for name in names if name is not None]

    def _no_output(self, names: Sequence[str]) -> PredictionError:
        return PredictionError(f"no output {', '.join(names)}; this model has {', '.join(self._outputs)}")

    def _answer(self, method: str, batch: Any, rows: int, *, optional: bool) -> list[dict[str, Any]]:
        try:
            return tensors_of(method, self._call(method, batch), rows)
        except (NotImplementedError, AttributeError):
            # Some estimators have the method but lack its requirements.
            if optional and method != PREDICT:
                return []
            raise

    def _tensors(self, inputs: Sequence[object]) -> Any:
        if not inputs:
            raise PredictionError(f"inputs is empty; expected {self._wanted()}")
        tensors = [_tensor(entry) for entry in inputs]
        names = [name for name, _ in tensors]
        if self._columns is not None and sorted(names) == sorted(self._columns):
            import pandas as pd

            rows = tensors[0][1].size
            for name, values in tensors:
                if values.shape not in ((rows,), (rows, 1)) or not rows:
                    raise PredictionError(
                        f"input '{name}' has shape {list(values.shape)}; each feature's is [rows] with the same rows"
                    )
            table = pd.DataFrame({name: values.ravel() for name, values in tensors})[self._columns]
            return self._typed(table)
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
                raise PredictionError(f"instance {position} does not fit; expected {self._wanted()}")
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

    def _call(self, method: str, batch: Any) -> Any:
        try:
            return getattr(self._estimator, method)(batch)
        except (ValueError, TypeError) as error:
            # scikit-learn reports bad input by these errors; the server's own checks cannot know every estimator.
            raise PredictionError(f"the model refused the input: {error}") from error
        except (SystemExit, KeyboardInterrupt, StopIteration, StopAsyncIteration) as error:
            raise ServingError(f"the model ended with {type(error).__name__}: {error}") from error

    def _probe(self) -> list[dict[str, Any]]:
        """Predict once, to learn the outputs' types and to spare the first request the slow start."""
        import numpy as np

        if self._features is None:
            return []
        row: Any = np.zeros((1, self._features))
        tensors: list[dict[str, Any]] = []
        try:
            if self._columns is not None:
                row = self._frame(row.tolist(), self._columns)
            for method in self._outputs:
                tensors += self._answer(method, row, 1, optional=True)
        except Exception:  # noqa: BLE001 - a model may fail in any way on zeros that it was not trained for
            # A model of texts or categories rejects zeros; its output types are then taken from its answers.
            return []
        return [
            {"name": each["name"], "datatype": each["datatype"], "shape": [-1, *each["shape"][1:]]}
            for each in tensors
        ]


def _attribute(estimator: Any, name: str) -> Any:
    """Return an attribute; None if it is missing or a property that fails."""
    try:
        return getattr(estimator, name, None)
    except Exception:  # noqa: BLE001 - a property runs the estimator's code
        return None


def _flags(value: Any) -> list[bool]:
    return [bool(flag) for flag in value.tolist()] if hasattr(value, "tolist") and value.ndim == 1 else []


def _is_of(name: str, output: str) -> bool:
    """Return True if a tensor is an output or a part of it."""
    return name == output or name.startswith(f"{output}-")


def _array(values: object, wanted: str) -> npt.NDArray[Any]:
    import numpy as np

    try:
        array = np.asarray(values)
    except ValueError as error:
        raise PredictionError(f"the rows differ in length; expected {wanted}") from error
    if array.dtype.kind == "U":
        return array.astype(object)
    if array.dtype.kind == "O":
        return _with_nulls(array, wanted)
    return array


def _with_nulls(array: npt.NDArray[Any], wanted: str) -> npt.NDArray[Any]:
    """Return an array of numbers with NaN for null, or of texts with None."""
    kinds = {type(value) for value in array.ravel().tolist()}
    if type(None) in kinds and kinds <= {type(None), int, float, bool}:
        try:
            return array.astype(float)
        except OverflowError as error:
            raise PredictionError(f"a value is out of range; expected {wanted}") from error
    if type(None) in kinds and kinds <= {type(None), str}:
        return array
    raise PredictionError(f"a value is an object or out of range, or of another type; expected {wanted}")


def _tensor(entry: object) -> tuple[str, npt.NDArray[Any]]:
    """Read one V2 input tensor; its data may be nested or flat, as the protocol allows."""
    import numpy as np

    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise PredictionError("an input has name, shape, datatype and data")
    name: str = entry["name"]
    shape, datatype, data = entry.get("shape"), entry.get("datatype"), entry.get("data")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise PredictionError(f"input '{name}': shape must be a list of whole numbers")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise PredictionError(f"input '{name}': datatype {datatype!r} is none of {', '.join(DATATYPES)}")
    if not isinstance(data, list):
        raise PredictionError(
            f"input '{name}': data must be a JSON array; binary tensor data is not supported"
        )
    array = _array(data, f"data of shape {shape}")
    if array.size != math.prod(shape):
        raise PredictionError(f"input '{name}': {array.size} values do not fill shape {shape}")
    dtype = np.dtype(DATATYPES[datatype])
    if dtype.kind == "O" and array.dtype.kind == "f" and np.isnan(array).all():
        # Only nulls.
        array = np.full(array.shape, None, dtype=object)
    fits = {"b": "b", "u": "iu", "i": "iu", "f": "iuf", "O": "O"}[dtype.kind]
    if array.size and array.dtype.kind not in fits:
        raise PredictionError(f"input '{name}': the data is not all {datatype}")
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise PredictionError(f"input '{name}': a value is out of the range of {datatype}")
    with np.errstate(over="ignore"):
        return name, array.astype(dtype).reshape(shape)
