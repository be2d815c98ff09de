"""The client of a model server."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, overload
from urllib.parse import quote

from dvkf_prefect.errors import PredictionError, ServingError
from dvkf_prefect.models.observed import Observed, Series, read_exposition
from dvkf_prefect.serving.frames import answer_of, is_frame, names_of_answer, tensors_of_frame

VERSION_HEADER = "x-model-version"

if TYPE_CHECKING:
    import httpx
    import pandas as pd


@dataclass(frozen=True)
class Endpoint:
    """A running model server.

    Attributes:
        url: URL of the server, without a path.
        model: Name of the model.
        version: Version it serves.
        digest: Digest verified before the model was loaded.
        pid: Process id of the server.
        log: Path of its log file.
        detached: True if the server outlives the process that started it.
        canary: Version that gets a part of the requests beside `version`; empty for none.
        percent: Percentage of the requests for the canary.
        canary_digest: Digest of the canary's files.
        server: Name of the server that it shares with other models; empty for one of its own.
        grpc: Address of its gRPC, as ``127.0.0.1:PORT``; empty without gRPC.
    """

    url: str
    model: str
    version: str
    digest: str
    pid: int
    log: str
    detached: bool = True
    canary: str = ""
    percent: int = 0
    canary_digest: str = ""
    server: str = ""
    grpc: str = ""

    @property
    def grpc_port(self) -> int | None:
        """Port of its gRPC; None without gRPC."""
        return int(self.grpc.rpartition(":")[2]) if self.grpc else None

    def __str__(self) -> str:
        canary = f", {self.percent} % to {self.canary}" if self.canary else ""
        server = f"server {self.server}, " if self.server else ""
        return f"{self.model} {self.version} at {self.url} ({server}pid {self.pid}{canary})"

    def ready(self, *, timeout: float = 5.0) -> bool:
        """Return True if the server is ready to predict with this version.

        Args:
            timeout: Seconds to wait for the answer.
        """
        try:
            self._call("GET", f"{self._v2}/versions/{quote(self.version)}/ready", None, timeout)
        except ServingError:
            return False
        return True

    def metadata(self, *, timeout: float = 5.0) -> dict[str, Any]:
        """Return the model's V2 metadata: its inputs and outputs with datatypes and shapes.

        Raises:
            ServingError: The server does not answer.
        """
        return self._call("GET", self._v2, None, timeout)

    @overload
    def predict(self, instances: pd.DataFrame, *, timeout: float = 30.0) -> pd.Series[Any] | pd.DataFrame: ...

    @overload
    def predict(self, instances: Sequence[object], *, timeout: float = 30.0) -> list[Any]: ...

    def predict(
        self, instances: Sequence[object] | pd.DataFrame, *, timeout: float = 30.0
    ) -> list[Any] | pd.Series[Any] | pd.DataFrame:
        """Predict for rows by the V1 protocol, or for a pandas frame by the Open Inference Protocol.

        The columns of a frame are matched to the model's by name, if it was trained with named ones. Texts and
        categories are sent as texts, NaN as null.

        Args:
            instances: Rows, shape ``[rows, features]``, as lists, a numpy array or a pandas frame.
            timeout: Seconds to wait for each answer.

        Returns:
            One prediction per row: a list. For a frame, a series with its index, or a frame if there are several
            outputs.

        Raises:
            PredictionError: The rows do not fit the model; the message says what does, and names the columns.
            ServingError: The server does not answer, or failed.

        Example:
            ``endpoint.predict([[0.0, 16.0, 3.0]])``
        """
        if is_frame(instances):
            return self._predict_frame(cast("pd.DataFrame", instances), timeout)
        return self._predict_rows(cast("Sequence[object]", instances), timeout)

    def _predict_rows(self, instances: Sequence[object] | pd.DataFrame, timeout: float) -> list[Any]:
        answer = self._call("POST", f"{self._v1}:predict", {"instances": _rows(instances)}, timeout)
        predictions: list[Any] = answer["predictions"]
        return predictions

    def _predict_frame(self, frame: pd.DataFrame, timeout: float) -> pd.Series[Any] | pd.DataFrame:
        metadata = self.metadata(timeout=timeout)
        inputs = tensors_of_frame(frame, metadata)
        found = self.infer(inputs, outputs=names_of_answer(metadata), timeout=timeout)
        return answer_of(frame, found["outputs"])

    def infer(
        self,
        inputs: Sequence[Mapping[str, Any]],
        *,
        outputs: Sequence[str] = (),
        timeout: float = 30.0,
    ) -> dict[str, Any]:
        """Predict by the Open Inference Protocol V2.

        Args:
            inputs: Tensors, each with ``name``, ``shape``, ``datatype`` and ``data``.
            outputs: Names of the requested outputs (``predict``, ``predict_proba``); all by default.
            timeout: Seconds to wait for the answer.

        Returns:
            The V2 response: ``model_name``, ``model_version`` and ``outputs``.

        Raises:
            PredictionError: The request does not fit the model; the message says what does.
            ServingError: The server does not answer, or failed.
        """
        document: dict[str, Any] = {"inputs": [dict(tensor) for tensor in inputs]}
        if outputs:
            document["outputs"] = [{"name": name} for name in outputs]
        return self._call("POST", f"{self._v2}/infer", document, timeout)

    def series(self) -> Sequence[Series]:
        """Return the metrics of this version in a Prometheus that reads those of the server."""
        labels = ",".join(f"{key}={json.dumps(value)}" for key, value in self._labels.items())
        return [Series("dvkf_requests_total", labels, 'status=~"5.."', "dvkf_request_seconds")]

    def observe(self, quantiles: Sequence[float]) -> Observed | None:
        """Return the requests of this version since it was loaded, by the server's own metrics.

        Args:
            quantiles: Quantiles of the seconds of a request, 0 to 1.

        Raises:
            ServingError: The server does not answer.
        """
        answer = self._ask("GET", "/metrics", None, {}, 5.0)
        return read_exposition(answer.text, "dvkf", self._labels, quantiles)

    def of_version(self, version: str) -> Endpoint:
        """Return the endpoint of a loaded version, which alone answers, whatever the split of the requests.

        Args:
            version: The version: the one that is served, or its canary.
        """
        digest = self.canary_digest if version == self.canary else self.digest
        return _VersionEndpoint(
            self.url, self.model, version, digest, self.pid, self.log, self.detached, server=self.server
        )

    @property
    def _labels(self) -> dict[str, str]:
        return {"model": self.model, "version": self.version}

    @property
    def _v1(self) -> str:
        return f"/v1/models/{quote(self.model, safe='')}"

    @property
    def _v2(self) -> str:
        return f"/v2/models/{quote(self.model, safe='')}"

    @property
    def _hint(self) -> str:
        """Place to look at after a failure."""
        return f"See its log {self.log}."

    def _send(
        self, method: str, path: str, content: bytes | None, headers: dict[str, str], timeout: float
    ) -> httpx.Response:
        import httpx

        # Plain HTTP needs no certificates, and loading the machine's takes longer than the request.
        no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # 127.0.0.1 must not be reached through a proxy set in the environment.
        with httpx.Client(timeout=timeout, trust_env=False, verify=no_tls) as client:
            # On one machine compressing takes longer than sending.
            headers = {"accept-encoding": "identity", **headers}
            return client.request(method, self.url + path, content=content, headers=headers)

    def _ask(
        self, method: str, path: str, content: bytes | None, headers: dict[str, str], timeout: float
    ) -> httpx.Response:
        import httpx

        try:
            return self._send(method, path, content, headers, timeout)
        except httpx.TimeoutException as error:
            raise ServingError(f"{self} gave no answer in {timeout:.0f} s. {self._hint}") from error
        except httpx.HTTPError as error:
            raise ServingError(f"{self} does not answer ({error}). {self._hint}") from error

    def _call(self, method: str, path: str, document: object, timeout: float) -> dict[str, Any]:
        content = None if document is None else _json(document)
        headers = {} if content is None else {"content-type": "application/json"}
        response = self._ask(method, path, content, headers, timeout)
        try:
            answer = response.json()
        except ValueError as error:
            raise ServingError(
                f"{self} answered {response.status_code} without JSON. {self._hint}"
            ) from error
        if response.status_code >= 400 or not isinstance(answer, dict):
            said = answer.get("error", answer.get("detail")) if isinstance(answer, dict) else answer
            if 400 <= response.status_code < 500:
                raise PredictionError(f"{self.model} {self.version} refused the request: {said}")
            raise ServingError(f"{self} failed ({response.status_code}): {said}. {self._hint}")
        return answer


@dataclass(frozen=True)
class _VersionEndpoint(Endpoint):
    """A model server that is asked for one version."""

    def _send(
        self, method: str, path: str, content: bytes | None, headers: dict[str, str], timeout: float
    ) -> httpx.Response:
        return super()._send(method, path, content, {**headers, VERSION_HEADER: self.version}, timeout)


def _rows(instances: Any) -> list[Any]:
    if is_frame(instances):
        return list(instances.to_dict("records"))
    return list(instances.tolist() if hasattr(instances, "tolist") else instances)


def _json(document: object) -> bytes:
    """Encode a document as JSON, with null for NaN.

    Raises:
        PredictionError: The document contains infinity or an unsupported type.
    """
    try:
        return json.dumps(document, default=_number, allow_nan=False).encode()
    except ValueError:
        return json.dumps(_with_nulls(document), allow_nan=False).encode()


def _with_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_nulls(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(each) for each in value]
    if isinstance(value, float):
        if value in (float("inf"), float("-inf")):
            raise PredictionError(
                "infinity cannot be sent as JSON. Use finite numbers, or NaN for missing values."
            )
        return None if value != value else float(value)
    if value is None or isinstance(value, str | int):
        return value
    return _with_nulls(_number(value))


def _number(value: object) -> object:
    """Convert numpy's scalars and arrays for JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise PredictionError(f"a {type(value).__name__} cannot be sent as JSON. Use numbers or strings.")
