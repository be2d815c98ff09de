"""Prometheus metrics of the model server.

| metric | labels | value |
|---|---|---|
| ``dvkf_requests_total`` | model, version, protocol, status | answered requests |
| ``dvkf_request_seconds`` | model, version, protocol | histogram of seconds from the read body to the answer |
| ``dvkf_requests_running`` | model, version | requests in progress |
| ``dvkf_batches_total`` | model, version | computations; one may answer a batch of requests |
| ``dvkf_workers`` | model, version | worker processes that run, if the model has any |
| ``dvkf_model_percent`` | model, version | percentage of requests that the split gives the version |
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from dvkf_prefect.serving.traffic import Models

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The metrics of one server.

    Args:
        models: Its models; their gauges are read when the metrics are.
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self._registry = CollectorRegistry()
        self._answered = Counter(
            "dvkf_requests",
            "Answered requests.",
            ["model", "version", "protocol", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "dvkf_request_seconds",
            "Seconds from the read body to the answer.",
            ["model", "version", "protocol"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._registry.register(self)

    def count(self, model: str, version: str, protocol: str, status: int, seconds: float) -> None:
        """Record an answered request.

        Args:
            model: Name of the model.
            version: Version that answered.
            protocol: ``v1``, ``v2`` or ``grpc``.
            status: HTTP status.
            seconds: Seconds from the read body to the answer.
        """
        self._answered.labels(model, version, protocol, str(status)).inc()
        self._seconds.labels(model, version, protocol).observe(seconds)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Yield the values of loaded versions, as prometheus_client asks its collectors."""
        running = GaugeMetricFamily(
            "dvkf_requests_running", "Requests in progress.", labels=["model", "version"]
        )
        percent = GaugeMetricFamily(
            "dvkf_model_percent", "Percentage of requests for the version.", labels=["model", "version"]
        )
        workers = GaugeMetricFamily("dvkf_workers", "Worker processes that run.", labels=["model", "version"])
        batches = CounterMetricFamily("dvkf_batches", "Computations.", labels=["model", "version"])
        for name in self._models.names:
            split = self._models.split(name)
            for version, lane in split.lanes.items():
                running.add_metric([name, version], lane.running)
                batches.add_metric([name, version], lane.batches)
                if lane.workers is not None:
                    workers.add_metric([name, version], lane.workers)
                percent.add_metric([name, version], split.percents[version])
        yield running
        yield percent
        yield batches
        yield workers

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)
