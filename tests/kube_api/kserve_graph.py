"""InferenceGraph of KServe: its schema by version, its webhook, and its controller and router in simulated time.

Source: kserve pkg/apis/serving/v1alpha1/inference_graph_validation.go, pkg/controller/v1alpha1/inferencegraph
(controller.go, raw_ig.go, knative_reconciler.go) and cmd/router/main.go, at v0.15.2 and master of August 2026; and
serving.md C13. The file of the schema holds config/crd/full/serving.kserve.io_inferencegraphs.yaml without
descriptions; equal parts are stored once (Apache-2.0).
"""

from __future__ import annotations

import copy
import functools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .admission import Webhook
from .kserve_kinds import GROUP, KNATIVE, PLURAL, minor_of
from .resources import Resource
from .schema import Schema, expand
from .server_pods import TRACEBACK, Model, status_of
from .store import Store

if TYPE_CHECKING:
    from .kserve import KServeController, _Set

GRAPHS = "inferencegraphs"
ROUTER = "kserve/router"
_NAME = "[a-z]([-a-z0-9]*[a-z0-9])?"
_MODE = "serving.kserve.io/deploymentMode"


@functools.cache
def graph_of(version: str) -> Resource:
    """Return InferenceGraph by a version's CRD; that of 0.15 lacks two fields."""
    document = json.loads((Path(__file__).parent / "inferencegraph.schema.json").read_text())
    root = copy.deepcopy(expand(document))
    if minor_of(version) < 16:
        spec = root["properties"]["spec"]["properties"]
        spec.pop("routerTimeouts")
        steps = spec["nodes"]["additionalProperties"]["properties"]["steps"]
        steps["items"]["properties"].pop("mapPredictionsToInstances")
    return Resource(GROUP, "v1alpha1", GRAPHS, "InferenceGraph", schema=Schema(root))


def inference_graphs() -> Webhook:
    """Return the webhook of InferenceGraph, which only validates."""
    return Webhook("inferencegraph.kserve-webhook-server.validator", _refuse)


def _refuse(store: Store, graph: dict, old: dict | None) -> str:
    """inference_graph_validation.go, in its order."""
    name, nodes = graph["metadata"]["name"], graph["spec"]["nodes"]
    if not re.fullmatch(_NAME, name):
        return (
            f'The InferenceGraph "{name}" is invalid: a InferenceGraph name must consist of lower case alphanumeric '
            'characters or \'-\', and must start with alphabetical character. (e.g. "my-name" or "abc-123", regex '
            f"used for validation is '{_NAME}')"
        )
    if "root" not in nodes:
        return (
            "root node not found, InferenceGraph needs a node with name 'root' as the root node of the graph"
        )
    for node, router in nodes.items():
        names = [step["name"] for step in router.get("steps", ()) if step.get("name")]
        for each in names:
            if names.count(each) > 1:
                return (
                    f'Node "{node}" of InferenceGraph "{name}" contains more than one step with name "{each}"'
                )
    for node, router in nodes.items():
        for at, step in enumerate(router.get("steps", ())):
            targets = sum(bool(step.get(key)) for key in ("nodeName", "serviceName", "serviceUrl"))
            about = f'Step {at} ("{step.get("name", "")}") in node "{node}" of InferenceGraph "{name}"'
            if targets == 0:
                return f"{about} does not specify an inference target"
            if targets > 1:
                return f"{about} specifies more than one of nodeName, serviceName, serviceUrl"
    for node, router in nodes.items():
        if router["routerType"] != "Splitter":
            continue
        for step in router.get("steps", ()):
            if "weight" not in step:
                service = step.get("serviceName", "")
                return f"InferenceGraph[{name}] Node[{node}] Route[{service}] missing the 'Weight'"
        if sum(step["weight"] for step in router.get("steps", ())) != 100:
            return (
                f"InferenceGraph[{name}] Node[{node}] splitter node: the sum of traffic weights for all routing "
                "targets should be 100"
            )
    return ""


class GraphController:
    """Controller of graphs, and their routers.

    Args:
        kserve: Controllers of the services, with the clock.
    """

    def __init__(self, kserve: KServeController) -> None:
        self._kserve = kserve
        self._sets: dict[str, list[_Set]] = {}

    def reconcile(self) -> None:
        """Bring all graphs up to date."""
        graphs = copy.deepcopy(self._kserve.api.all(GRAPHS, GROUP))
        for uid in set(self._sets) - {graph["metadata"]["uid"] for graph in graphs}:
            del self._sets[uid]
        for graph in graphs:
            self._reconcile(graph)

    def _reconcile(self, graph: dict) -> None:
        from .kserve import _Set

        meta, spec = graph["metadata"], copy.deepcopy(graph["spec"])
        for router in spec["nodes"].values():
            for step in router.get("steps", ()):
                if not step.get("serviceName"):
                    continue
                service = self._kserve.api.get(PLURAL, meta["namespace"], step["serviceName"], GROUP)
                address = ((service or {}).get("status") or {}).get("address")
                if address is None:  # "service X is not ready": nothing of the graph changes
                    return
                step["serviceUrl"] = f"{address['url']}/v1/models/{step['serviceName']}:predict"
        # The router reads the graph from its arguments alone, so each change is a rollout.
        args = ["--graph-json", json.dumps({"resources": {}, **spec})]
        sets = self._sets.setdefault(meta["uid"], [])
        if not sets or sets[-1].template["args"] != args:
            model = self._kserve.models.get(ROUTER, Model(load=4))
            number = int(sets[-1].name.rpartition("-")[2]) + 1 if sets else 1
            new = _Set(f"{meta['name']}-{number:05}", {"args": args}, model, self._kserve.now)
            sets.append(new)
        mode = {"RawDeployment": "Standard", "Serverless": "Knative"}
        asked = meta.get("annotations", {}).get(_MODE, self._kserve.mode)
        (self._knative if mode.get(asked, asked) == "Knative" else self._standard)(graph, sets, args)

    def _ready(self, graph: dict, each: _Set) -> bool:
        """Bring the pod of a set up to date; return True if it is ready."""
        meta, pod = graph["metadata"], f"{each.name}-pod"
        labels = {"serving.kserve.io/inferencegraph": meta["name"]}
        if pod not in each.pods:
            each.pods[pod] = self._kserve.now
            container = {"name": meta["name"], "image": ROUTER, "args": each.template["args"]}
            spec = {"containers": [container]}
            self._kserve._put("", "Pod", "pods", graph, pod, spec=spec, metadata={"labels": labels})
        status = status_of(each.model, self._kserve.now - each.born, fetches=False, image=ROUTER)
        for one in status.get("containerStatuses", ()):
            one["name"] = meta["name"]
            log = self._kserve.api.log(meta["namespace"], pod, meta["name"])
            if (one.get("state") or {}).get("terminated") and not log.previous:
                log.add(TRACEBACK)
                log.restart()
        if (self._kserve.api.get("pods", meta["namespace"], pod) or {}).get("status") != status:
            self._kserve.api.set_status("", "pods", meta["namespace"], pod, status)
        return any(c["type"] == "Ready" and c["status"] == "True" for c in status["conditions"])

    def _roll(self, graph: dict, sets: list[_Set]) -> tuple[int, int]:
        """Start the newest pod, stop those before it once it is ready; return the numbers of pods and ready ones."""
        ready = [self._ready(graph, each) for each in sets]
        if ready[-1]:
            for each in sets[:-1]:
                for pod in each.pods:
                    self._kserve._drop("", "pods", graph["metadata"]["namespace"], pod)
            del sets[:-1], ready[:-1]
        elif len(sets) > 2:  # a rollout that another one overtook
            for each in sets[1:-1]:
                for pod in each.pods:
                    self._kserve._drop("", "pods", graph["metadata"]["namespace"], pod)
            del sets[1:-1], ready[1:-1]
        return len(sets), sum(ready)

    def _standard(self, graph: dict, sets: list[_Set], args: list[str]) -> None:
        meta, api = graph["metadata"], self._kserve.api
        labels = {"app": f"isvc.{meta['name']}"}
        container = {"name": meta["name"], "image": ROUTER, "args": args}
        spec = {
            "replicas": 1, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels, "annotations": meta.get("annotations", {})},
                         "spec": {"containers": [container]}},
        }  # fmt: skip
        before = api.get("deployments", meta["namespace"], meta["name"], "apps")
        changed = before is None or before["spec"] != spec
        made = self._kserve._put("apps", "Deployment", "deployments", graph, meta["name"], spec=spec)
        if not changed:
            pods, ready = self._roll(graph, sets)
            status = {
                "observedGeneration": made["metadata"].get("generation", 1), "replicas": pods, "updatedReplicas": 1,
                "readyReplicas": ready, "availableReplicas": ready,
                "conditions": [{"type": "Available", "status": str(ready > 0)}],
            }  # fmt: skip
            if made.get("status") != status:
                made = api.set_status("apps", "deployments", meta["namespace"], meta["name"], status)
        found = made.get("status") or {}
        if not any(c["type"] == "Available" for c in found.get("conditions", ())):
            return  # requeued with an error, before the status is written
        # Its value is not looked at (raw_ig.go, PropagateRawStatus), and the generation is the Deployment's.
        self._write(graph, [{"type": "Ready", "status": "True"}], {
            "url": f"http://{meta['name']}-{meta['namespace']}.example.com",
            "observedGeneration": found["observedGeneration"],
        })  # fmt: skip

    def _knative(self, graph: dict, sets: list[_Set], args: list[str]) -> None:
        meta, api = graph["metadata"], self._kserve.api
        pod = {"containers": [{"image": ROUTER, "args": args}]}
        spec = {"template": {"metadata": {"annotations": meta.get("annotations", {})}, "spec": pod}}
        before = api.get("services", meta["namespace"], meta["name"], KNATIVE)
        made = self._kserve._put(KNATIVE, "Service", "services", graph, meta["name"], spec=spec)
        if before is not None and before["spec"] == spec:
            created = sets[-1].name
            self._kserve._put(KNATIVE, "Revision", "revisions", graph, created, spec=pod)
            old = (made.get("status") or {}).get("latestReadyRevision", "")
            self._roll(graph, sets)
            up = len(sets) == 1 and self._ready(graph, sets[0])
            ready = created if up else old
            status: dict[str, Any] = {
                "latestCreatedRevision": created,
                "conditions": [{"type": "Ready", "status": "True" if up else "Unknown"}],
            }
            if ready:
                status["latestReadyRevision"] = ready
                status["url"] = f"http://{meta['name']}.{meta['namespace']}.example.com"
                status["traffic"] = [{"latestRevision": True, "revisionName": ready, "percent": 100}]
            if made.get("status") != status:
                made = api.set_status(KNATIVE, "services", meta["namespace"], meta["name"], status)
        found = made.get("status") or {}
        conditions = found.get("conditions", [])
        is_ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
        self._write(graph, conditions, {"url": found["url"]} if is_ready else {})

    def _write(self, graph: dict, conditions: list[dict], values: dict[str, Any]) -> None:
        meta = graph["metadata"]
        # controller.go: since 0.16.
        stopped = [{"type": "Stopped", "status": "False"}] if self._kserve.minor >= 16 else []
        status = {"conditions": [*conditions, *stopped], **values}
        if graph.get("status") != status:
            self._kserve.api.set_status(GROUP, GRAPHS, meta["namespace"], meta["name"], status)
