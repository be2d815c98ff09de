"""Requests to the models of a server, whatever protocol they come by: limits, the choice of a version, metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from dvkf_prefect.serving.answering import Answer, Request
from dvkf_prefect.serving.endpoint import VERSION_HEADER
from dvkf_prefect.serving.intake import (
    BINARY_HEADER,
    Budget,
    HttpError,
    Share,
    accepts_gzip,
    check_headers,
)
from dvkf_prefect.serving.metrics import Metrics
from dvkf_prefect.serving.traffic import STICKY_HEADER, Models


class Service:
    """The models of a server, with what their requests share.

    Args:
        models: The models; they may change.
        limit: Maximum size of a request body, in bytes.

    Attributes:
        budget: Memory and number of running requests.
        metrics: Counts and times of requests.
        version: Version of this package.
    """

    def __init__(self, models: Models, limit: int) -> None:
        self.models = models
        self.limit = limit
        self.budget = Budget()
        self.metrics = Metrics(models)
        self.version = metadata.version("dvkf-prefect")  # reads a file

    @property
    def all_ready(self) -> bool:
        """True if every version of every model can compute now."""
        models = self.models
        return all(lane.ready for name in models.names for lane in models.split(name).lanes.values())

    def describe(self, name: str, version: str | None) -> dict[str, Any]:
        """Return the V2 metadata of a model.

        Args:
            name: Name of the model.
            version: One version; None for all.

        Raises:
            HttpError: The server has no such model or version.
        """
        split = self.models.split(name)
        lane = self.models.lane(name, version) if version is not None else split.main
        return {**lane.metadata, "versions": [lane.version] if version is not None else [*split.lanes]}

    async def compute(
        self, name: str, version: str | None, key: str | None, asked: Request, share: Share, *, label: str
    ) -> tuple[str, Answer]:
        """Have a version answer a request that was read.

        The version is chosen after the last wait for the client, so a change of the split never closes it.

        Args:
            name: Name of the model.
            version: Version to ask; None for the split's choice.
            key: Sticky key of the request.
            asked: The request.
            share: Memory of the request.
            label: Protocol of the request, for the metrics.

        Returns:
            The version that computed, and the answer.

        Raises:
            HttpError: The server has no such model or version, or the version has too much to do.
        """
        lane = self.models.lane(name, version, key)
        started = time.perf_counter()
        found = await lane.answer(asked, self.limit, share)
        self.metrics.count(name, lane.version, label, found.status, time.perf_counter() - started)
        return lane.version, found

    def answer_at_once(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer | None:
        """Answer a request for a prediction on the event loop, if the model computes it in no time.

        Args:
            path: Path of a POST request.
            headers: Its headers, by lower-case name.
            body: Its body.

        Returns:
            The answer; None if the request must be computed in a thread, or is wrong.
        """
        found = self.models.find(path)
        if found is None or BINARY_HEADER in headers:
            return None
        name, version, protocol = found
        try:
            lane = self.models.lane(name, version or headers.get(VERSION_HEADER), headers.get(STICKY_HEADER))
            if not lane.is_quick:
                return None
            encoding = check_headers(headers, self.limit)
            with self.budget.share() as share:
                share.grow(len(body))
                asked = Request(protocol, body, encoding, None, accepts_gzip(headers))
                started = time.perf_counter()
                answer = lane.answer_at_once(asked, self.limit, share)
        except HttpError:
            return None
        seconds = time.perf_counter() - started
        self.metrics.count(name, lane.version, protocol, answer.status, seconds)
        return Answer(answer.status, answer.body, {**answer.headers, VERSION_HEADER: lane.version})
