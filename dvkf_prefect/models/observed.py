"""Requests of a served version as metrics show them: from a Prometheus server, or from the version's own server.

Sources: Prometheus' HTTP API (https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries) and its
``histogram_quantile`` (https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dvkf_prefect.errors import ServingError

_TIMEOUT = 30.0


@dataclass(frozen=True)
class Series:
    """Metrics of the requests of one version.

    Attributes:
        count: Counter of requests; empty if nothing counts them.
        labels: Label matchers of the version, as PromQL inside the braces.
        errors: More matchers, of the requests that failed.
        buckets: Histogram of seconds, without ``_bucket``.
        scale: Seconds of one unit of the histogram.
    """

    count: str
    labels: str
    errors: str
    buckets: str
    scale: float = 1.0


@dataclass(frozen=True)
class Observed:
    """Requests of a version.

    Attributes:
        requests: Number of requests.
        failed: Number of those that failed; None if nothing counts them.
        seconds: By quantile, seconds; NaN without requests.
    """

    requests: float
    failed: float | None
    seconds: Mapping[float, float] = field(default_factory=dict)


class PrometheusApi:
    """Queries to a Prometheus server.

    Args:
        url: Its address, without ``/api/v1``.
        headers: Headers of each request, such as Authorization.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self._url = url.rstrip("/")
        self._headers = dict(headers or {})

    def observe(self, sources: Sequence[Series], quantiles: Sequence[float], seconds: float) -> Observed:
        """Return the requests of the last seconds, by the first of the sources that has any.

        Args:
            sources: Metrics that may describe the version.
            quantiles: Quantiles of the seconds of a request, 0 to 1.
            seconds: Length of the time before now.

        Raises:
            ServingError: The server does not answer, or refused a query.
        """
        window = f"[{max(1, math.ceil(seconds))}s]"
        found = Observed(0.0, None)
        for each in sources:
            counter = each.count or f"{each.buckets}_count"
            number = self.value(f"sum(increase({counter}{{{each.labels}}}{window}))")
            if math.isnan(number):
                continue
            failed = None
            if each.errors:
                wrong = self.value(f"sum(increase({counter}{{{each.labels},{each.errors}}}{window}))")
                failed = 0.0 if math.isnan(wrong) else wrong
            rates = f"rate({each.buckets}_bucket{{{each.labels}}}{window})"
            times = {
                quantile: each.scale * self.value(f"histogram_quantile({quantile:g},sum by (le) ({rates}))")
                for quantile in quantiles
            }
            found = Observed(number, failed, times)
            if number:
                break
        return found

    def value(self, query: str) -> float:
        """Return the one value of an instant query; NaN if it has none.

        Raises:
            ServingError: The server does not answer, or refused the query.
        """
        import httpx

        try:
            answer = httpx.post(
                f"{self._url}/api/v1/query",
                data={"query": query},
                headers=self._headers,
                timeout=_TIMEOUT,
            )
        except httpx.HTTPError as error:
            raise ServingError(
                f"Prometheus at {self._url} does not answer ({error}). Correct its URL, or start it."
            ) from error
        try:
            document = answer.json()
        except ValueError:
            document = {}
        if answer.status_code != 200 or document.get("status") != "success":
            said = document.get("error") or f"status {answer.status_code}"
            raise ServingError(
                f"Prometheus at {self._url} refused a query: {said}. Correct its URL and its login."
            )
        data = document["data"]
        if data["resultType"] == "scalar":
            return float(data["result"][1])
        return float(data["result"][0]["value"][1]) if data["result"] else math.nan


def read_exposition(text: str, name: str, labels: Mapping[str, str], quantiles: Sequence[float]) -> Observed:
    """Return the requests of a version since it started, from the metrics of the model server of this package.

    Args:
        text: Metrics in Prometheus' text format.
        name: Start of the names: ``name_requests_total`` and ``name_request_seconds``.
        labels: Labels of the version.
        quantiles: Quantiles of the seconds of a request, 0 to 1.
    """
    from prometheus_client.parser import text_string_to_metric_families

    requests = failed = 0.0
    buckets: dict[float, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if any(sample.labels.get(key) != value for key, value in labels.items()):
                continue
            if sample.name == f"{name}_requests_total":
                requests += sample.value
                failed += sample.value if _is_error(sample.labels.get("status", "")) else 0.0
            elif sample.name == f"{name}_request_seconds_bucket":
                bound = float(sample.labels["le"])
                buckets[bound] = buckets.get(bound, 0.0) + sample.value
    return Observed(requests, failed, {each: _quantile(each, buckets) for each in quantiles})


def _is_error(status: str) -> bool:
    return status.startswith("5")


def _quantile(quantile: float, buckets: Mapping[float, float]) -> float:
    """Return a quantile as Prometheus does: linear inside a bucket; in the last one, its lower bound."""
    bounds = sorted(buckets)
    if not bounds or not buckets[bounds[-1]]:
        return math.nan
    rank = quantile * buckets[bounds[-1]]
    below, counted = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            if math.isinf(bound):
                return below
            inside = buckets[bound] - counted
            return below + (bound - below) * ((rank - counted) / inside if inside else 1.0)
        below, counted = bound, buckets[bound]
    return below
