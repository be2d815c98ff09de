"""Client of a model that KServe serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dvkf_prefect.errors import PredictionError, ServingError
from dvkf_prefect.models.observed import Observed, Series
from dvkf_prefect.serving.endpoint import Endpoint
from dvkf_prefect.serving.frames import answer_of_rows

if TYPE_CHECKING:
    import httpx
    import pandas as pd


@dataclass(frozen=True)
class ServiceEndpoint(Endpoint):
    """A model in an InferenceService.

    Attributes:
        service: Name of the service.
        namespace: Namespace of the service.
        protocol: Protocol of its runtime: ``v1``, or ``v2`` for the Open Inference Protocol.
        host: Value of the Host header, for requests through a gateway; empty for that of the URL.
        served_as: Name of the model in its URLs; empty for the name of the service.
        revision: Revision that answers, in mode Knative.
        deployment: Deployment that answers, in mode Standard.
        graph: Address of the InferenceGraph that splits the requests of its callers; empty without one.
    """

    pid: int = 0
    log: str = ""
    service: str = ""
    namespace: str = ""
    protocol: str = "v1"
    host: str = ""
    served_as: str = ""
    revision: str = ""
    deployment: str = ""
    graph: str = ""

    def __str__(self) -> str:
        behind = f", behind the graph at {self.graph}" if self.graph else ""
        place = f"service {self.service} in namespace {self.namespace}"
        return f"{self.model} {self.version} at {self.url} ({place}){behind}"

    def ready(self, *, timeout: float = 5.0) -> bool:
        """Return True if the service is ready to predict.

        Args:
            timeout: Seconds to wait for the answer.
        """
        path = f"{self._v2}/ready" if self.protocol == "v2" else self._v1
        try:
            return str(self._call("GET", path, None, timeout).get("ready", True)).lower() == "true"
        except ServingError:
            return False

    def _predict_frame(self, frame: pd.DataFrame, timeout: float) -> pd.Series[Any] | pd.DataFrame:
        if self.protocol == "v2":
            return super()._predict_frame(frame, timeout)
        return answer_of_rows(frame, self._predict_rows(frame, timeout))

    def _predict_rows(self, instances: Sequence[object] | pd.DataFrame, timeout: float) -> list[Any]:
        """Predict by the protocol of the runtime; by V2 the rows are one tensor, named as the model's first input."""
        if self.protocol != "v2":
            return super()._predict_rows(instances, timeout)
        import numpy

        rows = numpy.asarray(instances)
        if rows.dtype.kind not in "biuf":
            raise PredictionError(
                f"{self.model} {self.version}: rows of one type of number are needed. Use `infer` for other tensors."
            )
        inputs = self.metadata(timeout=timeout).get("inputs") or [{"name": "input-0", "datatype": "FP64"}]
        name, datatype = inputs[0]["name"], inputs[0].get("datatype") or "FP64"
        tensor = {
            "name": name,
            "shape": list(rows.shape),
            "datatype": datatype,
            "data": rows.ravel().tolist(),
        }
        answer = self.infer([tensor], timeout=timeout)["outputs"][0]
        values = numpy.asarray(answer["data"], dtype=object if answer.get("datatype") == "BYTES" else None)
        found: list[Any] = values.reshape(answer["shape"]).tolist()
        return found

    def series(self) -> Sequence[Series]:
        """Return the metrics that may describe the requests of this version.

        Sources: Knative's queue proxy (https://knative.dev/docs/serving/services/service-metrics/, renamed in 1.19),
        Istio's standard metrics (https://istio.io/latest/docs/reference/config/metrics/), and KServe's servers
        (https://kserve.github.io/website/docs/model-serving/predictive-inference/observability/prometheus-metrics),
        which do not count failures.
        """
        if self.revision:
            old = f'namespace_name="{self.namespace}",revision_name="{self.revision}"'
            new = f'k8s_namespace_name="{self.namespace}",kn_revision_name="{self.revision}"'
            times, since = "revision_app_request_latencies", "kn_serving_invocation_duration_seconds"
            return [
                Series("revision_app_request_count", old, 'response_code_class="5xx"', times, 0.001),
                Series("", new, 'http_response_status_code=~"5.."', since),
            ]
        workload = (
            f'destination_workload="{self.deployment}",destination_workload_namespace="{self.namespace}"'
        )
        mesh = f'reporter="destination",{workload}'
        pods = f'namespace="{self.namespace}",pod=~"{self.deployment}-.+"'
        return [
            Series(
                "istio_requests_total",
                mesh,
                'response_code=~"5.."',
                "istio_request_duration_milliseconds",
                0.001,
            ),
            Series("", pods, "", "request_predict_seconds"),
        ]

    def observe(self, quantiles: Sequence[float]) -> Observed | None:
        """Return None: the metrics of a service are those of its pods, which Prometheus reads."""
        return None

    @property
    def _v2(self) -> str:
        return f"/v2/models/{quote(self.served_as or self.service, safe='')}"

    @property
    def _v1(self) -> str:
        return f"/v1/models/{quote(self.served_as or self.service, safe='')}"

    @property
    def _hint(self) -> str:
        return f"Look at the pods of service '{self.service}' in namespace '{self.namespace}'."

    def _send(
        self, method: str, path: str, content: bytes | None, headers: dict[str, str], timeout: float
    ) -> httpx.Response:
        import httpx

        # A service may lie behind a proxy, and has certificates.
        with httpx.Client(timeout=timeout) as client:
            headers = {**headers, **({"host": self.host} if self.host else {})}
            return client.request(method, self.url + path, content=content, headers=headers)
