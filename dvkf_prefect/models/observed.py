"""Requests of a served version as metrics show them: from a Prometheus server, or from the version's own server.

Sources: Prometheus' HTTP API (https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries) and its
``histogram_quantile`` (https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile).
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dvkf_prefect.errors import ServingError

_TIMEOUT = 30.0
# Answers of a proxy before a server that is not there now, and kinds of errors of a query that may pass.
_PASSING = (502, 503, 504)
_PASSING_KINDS = ("timeout", "canceled", "unavailable")
_logger = logging.getLogger(__name__)


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


class MetricsUnavailableError(ServingError):
    """Metrics cannot be read now, and may be later: no answer, a timeout, or a server that starts or is overloaded."""


class PrometheusApi:
    """Queries to a Prometheus server, or one with its HTTP API.

    Args:
        url: Its address, without ``/api/v1``; it may have a user and a password.
        headers: Headers of each request, such as Authorization.
        timeout: Seconds to wait for each answer.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str] | None = None, *, timeout: float = _TIMEOUT
    ) -> None:
        self._url = url.rstrip("/")
        self._headers = dict(headers or {})
        self._timeout = timeout

    def observe(self, sources: Sequence[Series], quantiles: Sequence[float], seconds: float) -> Observed:
        """Return the requests of the last seconds, by the first of the sources that has any.

        Args:
            sources: Metrics that may describe the version.
            quantiles: Quantiles of the seconds of a request, 0 to 1.
            seconds: Length of the time before now.

        Raises:
            ServingError: The server does not answer, or refused a query.
        """
        window = max(1, math.ceil(seconds))
        found = Observed(0.0, None)
        for each in sources:
            counter = each.count or f"{each.buckets}_count"
            number = self.value(_increase(f"{counter}{{{each.labels}}}", window))
            if math.isnan(number):
                continue
            failed = None
            if each.errors:
                wrong = self.value(_increase(f"{counter}{{{each.labels},{each.errors}}}", window))
                failed = 0.0 if math.isnan(wrong) else wrong
            counts = _increase(f"{each.buckets}_bucket{{{each.labels}}}", window, " by (le)")
            times = {
                quantile: each.scale * self.value(f"histogram_quantile({quantile:g},{counts})")
                for quantile in quantiles
            }
            found = Observed(number, failed, times)
            if number:
                break
        return found

    def value(self, query: str) -> float:
        """Return the one value of an instant query; NaN if it has none.

        Raises:
            MetricsUnavailableError: The server does not answer now.
            ServingError: The server refused the query, or is not Prometheus.
        """
        import httpx

        try:
            answer = httpx.post(
                f"{self._url}/api/v1/query",
                data={"query": query},
                headers=self._headers,
                timeout=self._timeout,
            )
        except httpx.TimeoutException as error:
            raise MetricsUnavailableError(
                f"{self}: no answer in {self._timeout:g} s. Correct its URL, or look at its load."
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            unusable = isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol)
            kind = ServingError if unusable else MetricsUnavailableError
            raise kind(f"{self}: no answer ({error}). Correct its URL, or start it.") from error
        try:
            document = answer.json()
        except ValueError:
            document = None
        return self._value(answer.status_code, document if isinstance(document, dict) else {})

    def _value(self, status: int, document: Mapping[str, Any]) -> float:
        if status in (401, 403) or 300 <= status < 400:
            raise ServingError(
                f"{self}: it asks for a login (status {status}). Set the token DVKF_PROMETHEUS_TOKEN, or write "
                "USER:PASSWORD@ into its URL."
            )
        if "status" not in document:
            kind_of = MetricsUnavailableError if status in _PASSING else ServingError
            raise kind_of(
                f"{self}: the answer is not one of Prometheus (status {status}). Correct its URL; before a login page "
                "set the token DVKF_PROMETHEUS_TOKEN."
            )
        if document["status"] != "success":
            kind, said = document.get("errorType") or status, str(document.get("error") or "no reason")
            kind_of = MetricsUnavailableError if kind in _PASSING_KINDS else ServingError
            raise kind_of(f"{self}: a query failed ({kind}: {said.rstrip('.')}). {_next_step(kind)}")
        for warning in document.get("warnings") or ():
            _logger.warning("%s: %s", self, warning)
        data = document.get("data") or {}
        found = data.get("result")
        try:
            return (
                float((found if data["resultType"] == "scalar" else found[0]["value"])[1])
                if found
                else math.nan
            )
        except (LookupError, TypeError, ValueError) as error:
            raise ServingError(
                f"{self}: the result of a query is not a number ({str(data)[:100]}). Correct its URL."
            ) from error

    def __str__(self) -> str:
        """Return its address, without a password."""
        return f"Prometheus at {re.sub(r'(?<=://)[^/@]*@', '', self._url)}"


def _next_step(kind: object) -> str:
    if kind in _PASSING_KINDS:
        return "Try again later, or look at its load."
    if kind == "execution":
        return "Look at its limits of samples and series."
    return "Correct its URL; it needs version 2.26 or later."


def _increase(selector: str, seconds: int, by: str = "") -> str:
    """Return the query for the increase of counters, with the first value of those that are new.

    ``increase`` takes the first value of a series as its start, so errors that a new version has before it is scraped
    for the first time would be missing. A series is new if it had no sample in the hour before the time.
    """
    window = f"{selector}[{seconds}s]"
    changed = f"sum{by} (increase({window}))"
    new = f"sum{by} (min_over_time({window}) unless last_over_time({selector}[1h] offset {seconds}s))"
    return f"({changed} + {new} or {changed} or {new})"


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
