"""A cluster with KServe in simulated time, and a client of its services."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kube_api import KServeController, KubeApi, install_kserve
from kubernetes import client

from dvkf_prefect.kube.objects import KubeObjects
from dvkf_prefect.serving.kserve.canaries import Canaries
from dvkf_prefect.serving.kserve.services import KServeServices
from dvkf_prefect.serving.kserve.spec import ServiceSettings

GROUP, PLURAL = "serving.kserve.io", "inferenceservices"
SETTINGS = ServiceSettings("sklearn", service_account="lake")


def uri(number: int) -> str:
    return f"s3://models/iris/v{number}.0.0/"


class World:
    """A cluster, whose clock moves when the client waits.

    Attributes:
        api: Its API.
        kserve: Its controllers.
        services: The client.
        canaries: Its canaries.
    """

    def __init__(
        self, api: KubeApi, version: str, mode: str, gateway: bool, graphs: bool, options: dict[str, Any]
    ) -> None:
        self.api = api
        self.kserve: KServeController = install_kserve(
            api, version, mode=mode, gateway=gateway, graphs=graphs
        )
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ml"}}
        for obj in (
            namespace,
            _named("Secret", "lake", data={}),
            _named("ServiceAccount", "lake", secrets=[{"name": "lake"}]),
        ):
            api.put(obj)  # fmt: skip
        self.kube = KubeObjects(self.login("admin"))
        self.watch: list[Callable[[], None]] = []
        self.services = KServeServices(
            self.kube, "ml", pause=self.pause, clock=lambda: self.kserve.now, **options
        )
        self.canaries = Canaries(self.services)

    def login(self, user: str) -> client.ApiClient:
        settings = client.Configuration(host=self.api.url)
        settings.retries = False
        settings.api_key["authorization"] = f"Bearer {self.api.token(user)}"
        return client.ApiClient(settings)

    def pause(self, seconds: float) -> None:
        self.kserve.advance(seconds)
        for call in self.watch:
            call()

    def service(self, name: str = "iris") -> dict[str, Any]:
        found = self.api.get(PLURAL, "ml", name, GROUP)
        assert found is not None
        return found

    def deploy(self, number: int = 1, settings: ServiceSettings = SETTINGS):
        return self.services.deploy("iris", f"v{number}.0.0", f"digest{number}", uri(number), settings)

    def deploy_canary(self, number: int, percent: int, settings: ServiceSettings = SETTINGS, **options: Any):
        version, digest = f"v{number}.0.0", f"digest{number}"
        return self.canaries.start("iris", version, digest, uri(number), settings, percent=percent, **options)


def _named(kind: str, name: str, **parts: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": "ml"}, **parts}


@contextmanager
def world(
    version: str = "0.20",
    *,
    mode: str = "Standard",
    gateway: bool = True,
    graphs: bool = True,
    **options: Any,
) -> Iterator[World]:
    """Yield a cluster with a version of KServe."""
    with KubeApi() as api:
        yield World(api, version, mode, gateway, graphs, options)


def patch_waits(monkeypatch: Any, cluster: World) -> None:
    """Let all services wait on a cluster's clock, as those that a block or a command makes."""
    defaults = KServeServices.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "pause", cluster.pause)
    monkeypatch.setitem(defaults, "clock", lambda: cluster.kserve.now)
