"""Canaries behind an InferenceGraph: a router splits the requests between two services, in every mode and version.

The graph ``<service>-split`` has a node of type Splitter with one step for the service and one for its canary, a
service of its own that this module makes and removes. A step names a whole address, because KServe derives the path
from the first protocol of the runtime (kserve 0.20, ``inferenceservice/utils/utils.go:145``). The graph stays after a
canary, with the service as its only step, so its callers keep their address.

A graph says that it is ready while its router still has the weights before, so the router's own arguments are read
(kserve 0.20, ``inferencegraph/raw_ig.go``, ``knative_reconciler.go``). The canary's service is removed last of all, and
the graph is made first. So an interruption leaves both, and the same call again goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from dvkf_prefect.errors import ServingError
from dvkf_prefect.kube.objects import KubeError
from dvkf_prefect.serving.kserve.access import MANAGER
from dvkf_prefect.serving.kserve.endpoint import ServiceEndpoint
from dvkf_prefect.serving.kserve.installed import mode_of
from dvkf_prefect.serving.kserve.reasons import pod_problem
from dvkf_prefect.serving.kserve.services import KServeServices, annotations_of, applied_spec, deployment_name
from dvkf_prefect.serving.kserve.spec import CANARY_OF, MARK, MODE, SERVED_AS, VERSION, canary_name, mark_of
from dvkf_prefect.serving.kserve.verdict import Target, condition

GRAPH_API = "serving.kserve.io/v1alpha1"
# Stays with the stable service when it gets the predictor of its canary.
_OWN = ("name", "minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "autoScaling")
_POLL_FROM, _POLL_TO = 2.0, 10.0
_MANAGED = "app.kubernetes.io/managed-by"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """A service, its graph, and its canary if there is one.

    Attributes:
        live: The InferenceService.
        graph: The InferenceGraph.
        canary: InferenceService of the canary; None without one.
        percent: Its part of the requests.
    """

    live: Mapping[str, Any]
    graph: Mapping[str, Any]
    canary: Mapping[str, Any] | None
    percent: int

    @property
    def url(self) -> str:
        """Address of the graph; in mode Standard that of its Kubernetes Service, inside the cluster.

        KServe writes a host into the status of mode Standard for which it makes no route (kserve 0.21,
        ``test/e2e/graph/test_inference_graph.py:1095``). The Service has the port of those of predictors.
        """
        if mode_of(self.live) == "Knative":
            return str((self.graph.get("status") or {}).get("url") or "")
        scheme, _, host = _base(self.live).partition("://")
        return (
            f"{scheme}://{graph_name(self.live['metadata']['name'])}.{host.partition('.')[2]}" if host else ""
        )


class Graphs:
    """InferenceGraphs of the services of a namespace.

    Args:
        services: The services.
    """

    def __init__(self, services: KServeServices) -> None:
        self._services = services

    def get(self, live: Mapping[str, Any]) -> Split | None:
        """Return the graph of a service; None if it has none, or this account may not read graphs.

        Raises:
            ServingError: The API server does not answer.
        """
        name = live["metadata"]["name"]
        graph = self._find(name)
        if graph is None or not _ours(graph):
            return None
        shares = {step.get("serviceUrl"): int(step.get("weight") or 0) for step in _steps(graph)}
        canaries = [(shares.get(_address(each), 0), each) for each in self._canaries(name)]
        percent, canary = max(canaries, key=lambda pair: pair[0], default=(0, None))
        return Split(live, graph, canary, percent)

    def start(self, live: Mapping[str, Any], predictor: Mapping[str, Any], percent: int, what: str) -> Split:
        """Start the canary of a service, and give it a part of the graph's requests.

        Args:
            live: The InferenceService.
            predictor: Predictor of the canary, with its mark.
            percent: Its part, 0 to 99.
            what: Model and version, for messages.

        Raises:
            ServingError: The canary or the router does not serve; the service has all requests then.
        """
        name, services = live["metadata"]["name"], self._services
        graph = self._find(name, refused=True)
        if graph is not None and not _ours(graph) and not services.take_over:
            raise ServingError(
                f"graph '{graph_name(name)}' of namespace '{services.namespace}' was not made by dvkf. Remove it, or "
                "take it over with --force."
            )
        marked = _of_canary(predictor, name)
        mark = marked["annotations"][MARK]
        own = f"{name}-{canary_name(mark)}"
        if predictor["annotations"][MARK] == annotations_of(live)[MARK]:
            raise ServingError(f"service '{name}' serves this version already, with the same settings.")
        try:
            if graph is None:
                self._roll_out(live, None, 0)
            # The mode is that of the service.
            services.apply(own, {"predictor": marked}, live=live)
            services.wait(own, Target(mark, deployment_name(own, marked)), what)
            canary = services.find(own)
            self._roll_out(live, canary, percent)
            self._remove_canaries(name, but=own)
        except BaseException as error:
            if graph is None:
                self.remove(name)
            else:
                self.end(live)
            if isinstance(error, ServingError):
                version = annotations_of(live).get(VERSION, "the version before it")
                raise ServingError(f"{str(error).rstrip()} {version} serves.") from error
            raise
        found = self.get(live)
        if found is None or found.canary is None:
            raise ServingError(f"{what}: its graph or service was deleted meanwhile. Start it again.")
        return found

    def promote(self, split: Split, what: str) -> ServiceEndpoint:
        """Serve the version of a canary by the service itself, and end the canary.

        The canary answers its part until the service has the version, so requests are answered throughout.

        Raises:
            ServingError: The version does not serve; the canary goes on then.
        """
        live, canary = split.live, split.canary
        if canary is None:
            raise ServingError(
                f"service '{live['metadata']['name']}' has no canary. Start one with --canary."
            )
        name = live["metadata"]["name"]
        before = applied_spec(live)["predictor"]
        predictor = applied_spec(canary)["predictor"]
        predictor["annotations"].pop(CANARY_OF)
        predictor = {**predictor, **{key: before[key] for key in _OWN if key in before}}
        predictor["annotations"][MARK] = mark = mark_of(predictor)
        target = Target(mark, deployment_name(name, predictor), replicas=predictor.get("minReplicas", 0))
        if annotations_of(live)[MARK] == mark:
            self._services.wait(name, target, what)
        else:
            self._services.roll_out(name, {"predictor": predictor}, target, live, what)
        self.end(live)
        return self._services.get_service(name)

    def end(self, live: Mapping[str, Any]) -> None:
        """Give a service all requests of its graph, then remove its canaries; nothing without a graph.

        Raises:
            ServingError: The router does not change, or a canary does not go.
        """
        name = live["metadata"]["name"]
        if (graph := self._find(name)) is not None and _ours(graph):
            self._roll_out(live, None, 0)
            self._remove_canaries(name)

    def remove(self, name: str) -> None:
        """Remove the canaries and the graph of a service; nothing without a graph.

        Args:
            name: Name of the service.

        Raises:
            ServingError: They do not go.
        """
        graph = self._find(name)
        if graph is None or not _ours(graph):
            return
        self._remove_canaries(name)
        self._services.ask(lambda: self._services.kube.delete(self._path(name)))

    # -- inside ------------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return f"/apis/{GRAPH_API}/namespaces/{self._services.namespace}/inferencegraphs/{graph_name(name)}"

    def _find(self, name: str, *, refused: bool = False) -> dict[str, Any] | None:
        def call() -> Any:
            try:
                return self._services.kube.get(self._path(name))
            except KubeError as error:
                if error.status == 404 or (error.lacks_right and not refused):
                    return None
                raise

        found: dict[str, Any] | None = self._services.ask(call)
        return found

    def _canaries(self, name: str) -> list[Mapping[str, Any]]:
        return [each for each in self._services.all() if annotations_of(each).get(CANARY_OF) == name]

    def _remove_canaries(self, name: str, *, but: str = "") -> None:
        for each in self._canaries(name):
            if each["metadata"]["name"] != but:
                self._services.remove(each["metadata"]["name"])

    def _roll_out(self, live: Mapping[str, Any], canary: Mapping[str, Any] | None, percent: int) -> None:
        """Apply the weights of a graph, and wait until only routers with them run."""
        name, services = live["metadata"]["name"], self._services
        steps = [{"name": "stable", "serviceUrl": _address(live), "weight": 100 - percent}]
        if canary is not None:
            steps.append({"name": "canary", "serviceUrl": _address(canary), "weight": percent})
        if not all(step["serviceUrl"] for step in steps):
            raise ServingError(
                f"service '{name}' or its canary has no address inside the cluster yet. Try again."
            )
        # The names of modes are those of the installed version.
        mode = mode_of(live)
        named = (
            mode
            if services.installed.new_modes
            else {"Standard": "RawDeployment", "Knative": "Serverless"}[mode]
        )
        graph = {
            "apiVersion": GRAPH_API,
            "kind": "InferenceGraph",
            "metadata": {
                "name": graph_name(name),
                "namespace": services.namespace,
                "labels": {_MANAGED: "dvkf"},
                "annotations": {MODE: named},
            },
            "spec": {"nodes": {"root": {"routerType": "Splitter", "steps": steps}}},
        }
        try:
            services.ask(
                lambda: services.kube.apply(self._path(name), graph, MANAGER, force=services.take_over)
            )
        except ServingError as error:
            if isinstance(error.__cause__, KubeError) and error.__cause__.status == 404:
                raise ServingError(
                    "this KServe has no InferenceGraph. Install its CRD, or start the canary without a graph."
                ) from error
            raise
        self._wait(name, mode, steps)

    def _wait(self, name: str, mode: str, steps: Sequence[Mapping[str, Any]]) -> None:
        services, began, poll = self._services, self._services.clock(), _POLL_FROM
        since: dict[str, float] = {}
        while not self._routes(name, mode, steps):
            now = services.clock()
            pods = services.pods(f"serving.kserve.io/inferencegraph={graph_name(name)}")
            if (problem := pod_problem(pods, services.log)) is not None:
                first = since.setdefault(problem.kind, now)
                if problem.final or now - first >= getattr(services.waits, problem.kind, 0.0):
                    raise ServingError(
                        f"the router of graph '{graph_name(name)}': {problem.message.rstrip('.')}."
                    )
            if now - began >= services.waits.total:
                raise ServingError(
                    f"the router of graph '{graph_name(name)}' does not split as asked after {now - began:.0f} s. Look "
                    "at its pods and at the events of the graph."
                )
            services.pause(poll)
            poll = min(poll * 1.5, _POLL_TO)

    def _routes(self, name: str, mode: str, steps: Sequence[Mapping[str, Any]]) -> bool:
        """Return True if the routers of a graph run with these steps, and no others."""
        services, graph = self._services, self._find(name)
        if graph is None:
            raise ServingError(f"graph '{graph_name(name)}' was deleted meanwhile. Start the canary again.")
        ready = condition(graph, "Ready").get("status") == "True" and (graph.get("status") or {}).get("url")
        if mode == "Knative":
            service = services.read(f"serving.knative.dev/v1/services {graph_name(name)}") or {}
            status = service.get("status") or {}
            created = status.get("latestCreatedRevision", "")
            if not ready or not created or status.get("latestReadyRevision") != created:
                return False
            traffic = status.get("traffic") or ()
            if (
                sum(each.get("percent") or 0 for each in traffic if each.get("revisionName") == created)
                != 100
            ):
                return False
            revision = services.read(f"serving.knative.dev/v1/revisions {created}") or {}
            return _routed(revision.get("spec") or {}) == steps
        deployment = services.read(f"apps/v1/deployments {graph_name(name)}") or {}
        if (
            not ready
            or _routed(((deployment.get("spec") or {}).get("template") or {}).get("spec") or {}) != steps
        ):
            return False
        status, wanted = deployment.get("status") or {}, deployment["spec"].get("replicas", 1)
        seen = status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 1)
        keys = ("updatedReplicas", "replicas", "availableReplicas")
        return bool(seen) and [int(status.get(key) or 0) for key in keys] == [wanted] * 3


def graph_name(name: str) -> str:
    """Return the name of a service's graph."""
    return f"{name}-split"


def _ours(graph: Mapping[str, Any]) -> bool:
    return (graph["metadata"].get("labels") or {}).get(_MANAGED) == "dvkf"


def _steps(graph: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    root = ((graph.get("spec") or {}).get("nodes") or {}).get("root") or {}
    return root.get("steps") or ()


def _routed(pod: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the steps in the arguments of a router: ``--graph-json`` and the graph's specification."""
    for container in pod.get("containers") or ():
        for at, argument in enumerate(container.get("args") or ()):
            if argument == "--graph-json":
                steps = _steps({"spec": json.loads(container["args"][at + 1])})
                return [
                    {key: step[key] for key in ("name", "serviceUrl", "weight") if key in step}
                    for step in steps
                ]
    return []


def _address(live: Mapping[str, Any]) -> str:
    """Return the address that predicts by a service, inside the cluster; empty if it has none."""
    base = _base(live)
    predictor = live["spec"]["predictor"]
    model = quote(annotations_of(live).get(SERVED_AS) or live["metadata"]["name"], safe="")
    if (predictor.get("model") or {}).get("protocolVersion") == "v2":
        return f"{base}/v2/models/{model}/infer" if base else ""
    return f"{base}/v1/models/{model}:predict" if base else ""


def _base(live: Mapping[str, Any]) -> str:
    return str(((live.get("status") or {}).get("address") or {}).get("url") or "").rstrip("/")


def _of_canary(predictor: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a predictor as that of a service's canary."""
    annotations = {key: value for key, value in predictor["annotations"].items() if key != MARK}
    marked = {**predictor, "annotations": {**annotations, CANARY_OF: name}}
    marked["annotations"][MARK] = mark_of(marked)
    return marked
