"""Serving places, as a promotion uses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dvkf_prefect.models.gates import Served
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.version import ModelVersion


@dataclass(frozen=True)
class ServingState:
    """Versions of a model that a place serves.

    Attributes:
        version: Version with the traffic, or the rest of it beside a canary; empty if something else deployed it.
        canary: Version of the canary; empty if there is none.
        percent: Part of the traffic that the canary has.
        url: Address of the service.
    """

    version: str
    canary: str = ""
    percent: int = 0
    url: str = ""

    def __str__(self) -> str:
        rest = f", canary {self.canary} with {self.percent} %" if self.canary else ""
        return f"{self.version or 'a version of another tool'}{rest} at {self.url}"


class Answering(Protocol):
    """Endpoint of a version that serves."""

    @property
    def url(self) -> str:
        """Its address."""


class ServingPlace(Protocol):
    """A place that serves models: this machine, or a namespace of a cluster.

    A call that fails leaves the version before it in service. After a kill it may be repeated.
    """

    @property
    def where(self) -> str:
        """Name of the place, the same for each of its blocks."""

    def state(self, model: str) -> ServingState | None:
        """Return the versions that are served; None if there is none."""

    def candidate(self, model: str, version: str) -> Served | None:
        """Return an endpoint that one version alone answers; None if the place has none."""

    def start_preview(self, registry: ModelRegistry, version: ModelVersion) -> Served | None:
        """Serve a version apart, at an address that gets no traffic; None if the place has no such address."""

    def end_preview(self, model: str) -> None:
        """End the preview of a model; nothing if there is none."""

    def deploy(self, registry: ModelRegistry, version: ModelVersion) -> Answering:
        """Serve a version in place of the one that is served now, and of a canary."""

    def undeploy(self, model: str) -> bool:
        """Serve no version any more."""

    def start_canary(self, registry: ModelRegistry, version: ModelVersion, percent: int) -> object:
        """Give a version a part of the traffic."""

    def promote_canary(self, model: str) -> Answering:
        """Give the canary all traffic."""

    def abort_canary(self, model: str) -> Answering:
        """End the canary."""
