"""KServe 0.15 to 0.21: its kinds, and its controllers in simulated time.

The controllers make Deployments, pods, HTTPRoutes, Knative Services and revisions from an InferenceService, and write
its status as each version does. ``KServeController.advance`` moves the clock; nothing happens between two calls.
Source: serving.md B2, B6 to B16, C1 to C12, J4 to J10, which names the files and lines of kserve v0.15.2 to v0.20.0 and
master of August 2026; each function names its sections.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass, field
from typing import Any

from .admission import inference_services
from .kserve_graph import GraphController, graph_of, inference_graphs
from .kserve_kinds import (
    DEADLINE,
    GATEWAY,
    GROUP,
    KNATIVE,
    KNOWN,
    PLURAL,
    RUNTIMES,
    SCHEMES,
    minor_of,
    resource_of,
)
from .resources import Resource
from .server import KubeApi
from .server_pods import INIT, MAIN, TRACEBACK, Model, status_of


def install_kserve(
    api: KubeApi, version: str = "0.20", *, mode: str = "Standard", gateway: bool = True, graphs: bool = True
) -> KServeController:
    """Install the kinds and the webhook of a version; return its controllers.

    Args:
        api: The API.
        version: One of `kserve_kinds.VERSIONS`, or another from 0.15 to 0.21.
        mode: Default mode of the installation, by the names of 0.16 and later.
        gateway: True if the installation uses the Gateway API.
        graphs: False to leave out the CRD of InferenceGraph.
    """
    api.serve(resource_of(version), inference_services(version, mode))
    if graphs:
        api.serve(graph_of(version), inference_graphs())
    if api.get("namespaces", "", "kserve") is None:
        api.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kserve"}})
    # B1: the default is a setting, by the version's own names.
    named = mode if minor_of(version) >= 16 else {"Standard": "RawDeployment", "Knative": "Serverless"}[mode]
    deploy = json.dumps({"defaultDeploymentMode": named})
    metadata = {"name": "inferenceservice-config", "namespace": "kserve"}
    api.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"deploy": deploy}})
    if mode == "Knative":
        api.serve(Resource(KNATIVE, "v1", "services", "Service"))
        api.serve(Resource(KNATIVE, "v1", "revisions", "Revision"))
    if gateway:
        api.serve(Resource(GATEWAY, "v1", "httproutes", "HTTPRoute"))
    # A5: the chart and the manifests bring runtimes for all namespaces; a namespace may have its own.
    api.serve(
        Resource(GROUP, "v1alpha1", "clusterservingruntimes", "ClusterServingRuntime", namespaced=False)
    )
    api.serve(Resource(GROUP, "v1alpha1", "servingruntimes", "ServingRuntime"))
    for runtime in sorted(KNOWN):
        kind = {"apiVersion": f"{GROUP}/v1alpha1", "kind": "ClusterServingRuntime"}
        api.put({**kind, "metadata": {"name": runtime}, "spec": {"containers": []}})
    return KServeController(api, version, mode=mode, gateway=gateway and mode == "Standard")


@dataclass
class _Set:
    """Pods of one template: a ReplicaSet or a revision."""

    name: str
    template: dict
    model: Model
    born: float
    pods: dict[str, float] = field(default_factory=dict)
    was_ready: bool = False


@dataclass
class _Rollout:
    """A Deployment and its sets."""

    name: str
    sets: list[_Set]
    replicas: int = 1
    conditions: dict[str, dict] = field(default_factory=dict)


@dataclass
class _Known:
    """Memory of the controllers about one service."""

    rollouts: dict[str, _Rollout] = field(default_factory=dict)
    revisions: list[_Set] = field(default_factory=list)
    failed: dict[str, tuple[str, str]] = field(default_factory=dict)
    seen: str = ""
    loaded: bool = False
    failure: dict | None = None
    rolled_out: str = ""
    previous: str = ""
    ingress: bool = False


class KServeController:
    """Controllers of KServe, of Deployments, of Knative and of pods.

    Attributes:
        now: Seconds of the simulated clock.
        models: Behaviour of each model, by its ``storageUri``, or by the image of a custom container.
    """

    def __init__(self, api: KubeApi, version: str, *, mode: str, gateway: bool) -> None:
        self.api, self.version, self.minor = api, version, minor_of(version)
        self.mode, self.gateway = mode, gateway
        self.now = 0.0
        self.models: dict[str, Model] = {}
        self._known: dict[str, _Known] = {}
        self._graphs = GraphController(self)

    def advance(self, seconds: float) -> None:
        """Move the clock, second by second."""
        for _ in range(max(1, math.ceil(seconds))):
            self.now += 1
            for service in list(self.api.all(PLURAL, GROUP)):
                self._reconcile(service)
            self._graphs.reconcile()
            self._clean()

    # -- objects -----------------------------------------------------------------------------------------------------

    def _put(self, group: str, kind: str, plural: str, service: dict, name: str, **parts: Any) -> dict:
        """Create an object of a service, or change it."""
        namespace = service["metadata"]["namespace"]
        version = {"": "v1", "apps": "apps/v1"}.get(group, f"{group}/v1")
        owner = {"apiVersion": service["apiVersion"], "kind": service["kind"], "name": service["metadata"]["name"],
                 "uid": service["metadata"]["uid"], "controller": True}  # fmt: skip
        metadata = {
            "name": name,
            "namespace": namespace,
            "ownerReferences": [owner],
            **parts.pop("metadata", {}),
        }
        status = parts.pop("status", None)
        old = self.api.get(plural, namespace, name, group)
        if old is None:
            self.api.put({"apiVersion": version, "kind": kind, "metadata": metadata, **parts})
        elif any(old.get(key) != value for key, value in parts.items()):
            resource = self.api.store.resources[group, plural]
            new = {**copy.deepcopy(old), **parts}
            self.api.store.update(resource, old, new, ("kserve", "Update"))
        made = self.api.get(plural, namespace, name, group)
        assert made is not None
        if status is not None and made.get("status") != status:
            made = self.api.set_status(group, plural, namespace, name, status)
        return made

    def _drop(self, group: str, plural: str, namespace: str, name: str) -> None:
        if (old := self.api.get(plural, namespace, name, group)) is not None:
            self.api.store.delete(self.api.store.resources[group, plural], old)

    def _clean(self) -> None:
        """Forget deleted services; their objects go with their owner."""
        alive = {service["metadata"]["uid"] for service in self.api.all(PLURAL, GROUP)}
        for uid in set(self._known) - alive:
            del self._known[uid]

    # -- pods --------------------------------------------------------------------------------------------------------

    def _behaviour(self, template: dict) -> Model:
        """Return the behaviour of a template; an account without secrets cannot read from S3 (A13)."""
        uri = template["uri"] or template["image"]
        found = self.models.get(uri, Model())
        if uri.startswith("s3://") and found.kind == "healthy":
            account = self.api.get("serviceaccounts", template["namespace"], template["account"])
            names = [each["name"] for each in (account or {}).get("secrets", ())]
            if not any(self.api.get("secrets", template["namespace"], name) for name in names):
                return Model("denied")
        return found

    def _refusal(self, template: dict) -> str:
        """Return why no pod is made: a quota, or an account that is absent (A16)."""
        if self.models.get(template["uri"] or template["image"], Model()).kind == "quota":
            return (
                'pods "iris" is forbidden: exceeded quota: team, requested: limits.cpu=4, used: limits.cpu=8'
            )
        account, namespace = template["account"], template["namespace"]
        if account != "default" and self.api.get("serviceaccounts", namespace, account) is None:
            said = f'error looking up service account {namespace}/{account}: serviceaccount "{account}" not found'
            return f'pods "iris" is forbidden: {said}'
        return ""

    def _grow(self, service: dict, group: _Set, wanted: int, labels: dict[str, str]) -> None:
        """Make missing pods of a set, remove surplus ones, and bring all up to date."""
        name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
        while len(group.pods) < wanted and not self._refusal(group.template):
            pod = f"{group.name}-{len(group.pods)}-{int(self.now)}"
            group.pods[pod] = self.now
            spec = {
                "serviceAccountName": group.template["account"],
                "containers": [{"name": MAIN, "image": group.template["image"]}],
            }
            if group.template["uri"]:
                spec["initContainers"] = [{"name": INIT, "image": "kserve/storage-initializer"}]
            self._put(
                "", "Pod", "pods", service, pod, spec=spec,
                metadata={
                    "annotations": group.template["annotations"],
                    "labels": {"serving.kserve.io/inferenceservice": name, "component": "predictor", **labels},
                },
            )  # fmt: skip
        for pod in list(group.pods)[wanted:]:
            del group.pods[pod]
            self._drop("", "pods", namespace, pod)
        for pod, born in group.pods.items():
            status = status_of(
                group.model,
                self.now - born,
                fetches=bool(group.template["uri"]),
                image=group.template["image"],
            )
            if (self.api.get("pods", namespace, pod) or {}).get("status") != status:
                self.api.set_status("", "pods", namespace, pod, status)
                main = status.get("containerStatuses", [{}])[0]
                log = self.api.log(namespace, pod, MAIN)
                if (main.get("state") or {}).get("terminated") and not log.previous:
                    log.add(TRACEBACK if group.model.kind == "crash" else "Loading model")
                    log.restart()

    def _ready(self, service: dict, group: _Set) -> int:
        found = 0
        for pod in group.pods:
            status = (self.api.get("pods", service["metadata"]["namespace"], pod) or {}).get("status") or {}
            found += any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ()))
        group.was_ready |= found > 0
        return found

    # -- reconciliation ----------------------------------------------------------------------------------------------

    def _reconcile(self, service: dict) -> None:
        meta = service["metadata"]
        known = self._known.setdefault(meta["uid"], _Known())
        service = copy.deepcopy(service)
        problem = self._invalid(service)
        if problem is None:
            return
        if problem:
            reason, said = problem
            status = copy.deepcopy(service.get("status") or {"conditions": []})
            failure = {"reason": reason, "message": said}
            # B15: conditions stay as they were.
            status["modelStatus"] = {"transitionStatus": "InvalidSpec", "lastFailureInfo": failure,
                                     "states": {"activeModelState": "", "targetModelState": "FailedToLoad"},
                                     "copies": {"failedCopies": 0}}  # fmt: skip
            if status != service.get("status"):
                self.api.event(service, "InternalError", said, kind="Warning")
                self.api.set_status(GROUP, PLURAL, meta["namespace"], meta["name"], status)
            return
        if self.mode == "Knative":
            from .kserve_knative import reconcile

            reconcile(self, known, service)
        else:
            self._standard(known, service)

    def _invalid(self, service: dict) -> tuple[str, str] | tuple[()] | None:
        """Return the reason of an invalid specification (B15); None if only an event is written (A11)."""
        model = service["spec"]["predictor"].get("model")
        if model is None:
            return ()
        uri = model.get("storageUri", "")
        if uri and uri.partition("://")[0] not in SCHEMES:
            events = [e for e in self.api.all("events") if e["reason"] == "InternalError"]
            if not any(uri in e["message"] for e in events):
                said = f"StorageURI not supported, storageUri [{uri}]. Must be one of: [{', '.join(SCHEMES)}]"
                self.api.event(service, "InternalError", said, kind="Warning")
            return None
        if (name := model.get("runtime", "")) and name not in KNOWN:
            said = f"Specified runtime {name} does not exist"
            return ("RuntimeNotRecognized", said)
        return (
            () if self._runtime(model) else ("NoSupportingRuntime", "No runtime found to support predictor")
        )

    @staticmethod
    def _runtime(model: dict) -> str:
        """Return the runtime of a model: the named one, or the one of its format and protocol (A3, A4)."""
        if model.get("runtime"):
            return model["runtime"]
        name, protocol = model["modelFormat"]["name"], model.get("protocolVersion", "v1")
        if name in ("onnx", "mlflow") and protocol == "v1":
            return ""
        if protocol == "v2" and name in ("sklearn", "xgboost", "lightgbm", "mlflow"):
            return "kserve-mlserver"
        return RUNTIMES.get(name, "")

    def template(self, service: dict, predictor: dict) -> dict:
        """Return the part of a pod template that is told apart here; all metadata of the service is in it (B7)."""
        model = predictor.get("model") or {}
        containers = predictor.get("containers") or [{}]
        env = {e["name"]: e.get("value", "") for e in containers[0].get("env", ())}
        annotations = {
            key: value
            for key, value in service["metadata"].get("annotations", {}).items()
            if key != "modelFormat"
        }
        runtime = self._runtime(model) if model else ""
        return {
            "annotations": {**annotations, **predictor.get("annotations", {})},
            "labels": {**service["metadata"].get("labels", {}), **predictor.get("labels", {})},
            "namespace": service["metadata"]["namespace"],
            "account": predictor.get("serviceAccountName", "default"),
            "uri": model.get("storageUri", "") if model else env.get("STORAGE_URI", ""),
            "image": containers[0].get("image") or f"{runtime}:{model.get('runtimeVersion', self.version)}",
            "rest": json.dumps([model, containers], sort_keys=True),
        }

    # -- Standard ----------------------------------------------------------------------------------------------------

    def _standard(self, known: _Known, service: dict) -> None:
        meta, spec = service["metadata"], service["spec"]
        canaries = spec.get("canary") or []
        stable = self._deployment_name(meta["name"], spec["predictor"])
        wanted = {stable: (spec["predictor"], max(1, spec["predictor"].get("minReplicas", 1)))}
        for canary in canaries:
            # C10: unset fields are the stable one's; replicas by percent.
            predictor = _merged(spec["predictor"], canary["predictor"])
            base = wanted[stable][1]
            count = canary["predictor"].get("minReplicas") or math.ceil(base * canary["trafficPercent"] / 100)
            wanted[self._deployment_name(meta["name"], canary["predictor"])] = (predictor, max(1, count))
        changed = False
        for name in set(known.rollouts) - set(wanted):
            # C12: in the same pass, before the new stable one is ready.
            for group in known.rollouts.pop(name).sets:
                for pod in group.pods:
                    self._drop("", "pods", meta["namespace"], pod)
            self._drop("apps", "deployments", meta["namespace"], name)
            changed = True
        for name, (predictor, replicas) in wanted.items():
            changed |= self._roll(known, service, name, predictor, replicas)
        if changed:
            # B8: of the pass that changes a child, with the child's old conditions.
            self._write(known, service, stable, canaries, {n: known.rollouts[n].conditions for n in wanted})
            return
        for name in wanted:
            self._play(known.rollouts[name], service)
        self._route(known, service, stable, canaries)
        conditions = {name: known.rollouts[name].conditions for name in wanted}
        trigger = json.dumps([meta["generation"], conditions, self._watched(known.rollouts[stable], service)])
        # B14: with the Gateway API each second until the routes are ready.
        if trigger != known.seen or (self.gateway and not known.ingress):
            settled = trigger == known.seen
            known.seen = trigger
            self._write(known, service, stable, canaries, conditions, settled=settled)
        elif (
            _is_true(service["status"], "Ready")
            and service["status"]["modelStatus"]["transitionStatus"] == "InProgress"
        ):
            # J4: the pass that finds it ready still says InProgress, and the next one Loaded.
            self._write(known, service, stable, canaries, conditions)

    @staticmethod
    def _deployment_name(service: str, predictor: dict) -> str:
        return f"{service}-{predictor['name']}-predictor" if predictor.get("name") else f"{service}-predictor"

    def _roll(self, known: _Known, service: dict, name: str, predictor: dict, replicas: int) -> bool:
        """Bring a Deployment's specification up to date; return True if it changed."""
        template = self.template(service, predictor)
        rollout = known.rollouts.get(name)
        if rollout and rollout.sets[-1].template == template and rollout.replicas == replicas:
            return False
        if rollout is None or rollout.sets[-1].template != template:
            number = len(rollout.sets) + 1 if rollout else 1
            new = _Set(f"{name}-{number}", template, self._behaviour(template), self.now)
            if rollout is None:
                rollout = known.rollouts[name] = _Rollout(name, [])
            rollout.sets.append(new)
        rollout.replicas = replicas
        labels = {"app": f"isvc.{name}"}
        spec = {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": {**labels, **template["labels"]}, "annotations": template["annotations"]},
                "spec": {"containers": [{"name": MAIN, "image": template["image"], "args": [template["rest"]]}]},
            },
        }  # fmt: skip
        self._put("apps", "Deployment", "deployments", service, name, spec=spec)
        return True

    def _play(self, rollout: _Rollout, service: dict) -> None:
        """Let a Deployment's controller work: one pod more than wanted, none less (F2)."""
        labels = {"app": f"isvc.{rollout.name}"}
        new = rollout.sets[-1]
        ready_new = self._ready(service, new)
        old_sets = rollout.sets[:-1]
        left = max(0, rollout.replicas - ready_new)
        for group in old_sets:
            # Pods that were never ready are the first to go.
            left_here = min(left, len(group.pods)) if group.was_ready else 0
            self._grow(service, group, left_here, labels)
            left -= left_here
        old_pods = sum(len(group.pods) for group in old_sets)
        wanted = rollout.replicas if not old_pods else min(rollout.replicas, ready_new + 1)
        self._grow(service, new, wanted, labels)
        ready_new = self._ready(service, new)
        ready = ready_new + sum(self._ready(service, group) for group in old_sets)
        complete = ready_new >= rollout.replicas and not old_pods
        refused = self._refusal(new.template) if len(new.pods) < wanted else ""
        rollout.conditions = conditions = {
            "Available": _condition(
                "Available", ready >= rollout.replicas,
                "MinimumReplicasAvailable" if ready >= rollout.replicas else "MinimumReplicasUnavailable",
                "" if ready >= rollout.replicas else "Deployment does not have minimum availability.",
            ),
            "Progressing": _condition("Progressing", True, "ReplicaSetUpdated"),
        }  # fmt: skip
        if complete:
            conditions["Progressing"] = _condition("Progressing", True, "NewReplicaSetAvailable")
        elif self.now - new.born >= DEADLINE:
            said = f'ReplicaSet "{new.name}" has timed out progressing.'
            conditions["Progressing"] = _condition("Progressing", False, "ProgressDeadlineExceeded", said)
        if refused:
            conditions["ReplicaFailure"] = _condition("ReplicaFailure", True, "FailedCreate", refused)
        namespace = service["metadata"]["namespace"]
        deployment = self.api.get("deployments", namespace, rollout.name, "apps")
        assert deployment is not None
        status = {
            "observedGeneration": deployment["metadata"].get("generation", 1),
            "replicas": sum(len(group.pods) for group in rollout.sets),
            "updatedReplicas": len(new.pods),
            "readyReplicas": ready,
            "availableReplicas": ready,
            "conditions": list(conditions.values()),
        }
        if deployment.get("status") != status:
            self.api.set_status("apps", "deployments", namespace, rollout.name, status)

    def _watched(self, rollout: _Rollout, service: dict) -> list:
        """Return the initializers that start a pass: pods are watched from 0.17 on, and of them only these (B14)."""
        if self.minor < 17:
            return []
        found = []
        for pod in rollout.sets[-1].pods:
            status = (self.api.get("pods", service["metadata"]["namespace"], pod) or {}).get("status") or {}
            found.append([each["state"] for each in status.get("initContainerStatuses", ())])
        return found

    def _route(self, known: _Known, service: dict, stable: str, canaries: list[dict]) -> None:
        """Write the HTTPRoute: weights from 0.21 on, and only of canaries that are ready (C9)."""
        if not self.gateway:
            return
        backends, left = [], 100
        for canary in canaries if self.minor >= 21 else ():
            name = self._deployment_name(service["metadata"]["name"], canary["predictor"])
            if any(self._ready(service, group) for group in known.rollouts[name].sets):
                weight = canary["trafficPercent"]
                backends.append({"name": name, "kind": "Service", "port": 80, "weight": weight})
                left -= weight
        backends.insert(0, {"name": stable, "kind": "Service", "port": 80, "weight": left})
        spec = {"rules": [{"backendRefs": backends}]}
        self._put(GATEWAY, "HTTPRoute", "httproutes", service, service["metadata"]["name"], spec=spec)

    def _predictor_ready(self, conditions: dict[str, dict], *, first: bool) -> dict:
        """Return PredictorReady from a Deployment's conditions (A16, B11; status.go:404-449)."""
        if not conditions:
            return _condition("PredictorReady", False, "")
        available, progressing = conditions["Available"], conditions["Progressing"]
        is_available = available["status"] == "True"
        if self.minor >= 16:
            if "ReplicaFailure" in conditions and not is_available:
                failure = conditions["ReplicaFailure"]
                return _condition("PredictorReady", False, failure["reason"], failure["message"])
            if progressing["status"] == "False":
                return _condition("PredictorReady", False, progressing["reason"], progressing["message"])
            rolling = progressing["reason"] != "NewReplicaSetAvailable"
            if is_available and rolling and self.minor < 20:
                return _condition("PredictorReady", None, progressing["reason"])
        if is_available:
            return _condition("PredictorReady", True, progressing["reason"] if self.minor >= 16 else "")
        return _condition("PredictorReady", False, available["reason"], available["message"])

    def _write(
        self,
        known: _Known,
        service: dict,
        stable: str,
        canaries: list[dict],
        conditions: dict[str, dict[str, dict]],
        *,
        settled: bool = False,
    ) -> None:
        """Write the status of a service in mode Standard (B8, B10, B11, B16, C11, J4 to J7, J10)."""
        meta, before = service["metadata"], service.get("status") or {}
        was_ready = _is_true(before, "Ready")
        predictor = self._predictor_ready(conditions[stable], first=not before)
        known.ingress |= predictor["status"] == "True"
        ingress = _condition(
            "IngressReady", known.ingress, "", "" if known.ingress else "Predictor ingress not created"
        )
        ready = predictor["status"] if known.ingress else "False"
        found = [ingress, predictor, {**predictor, "type": "Ready", "status": ready}]
        found.append(_condition("Stopped", False, ""))  # B10: normal
        status: dict[str, Any] = {
            "deploymentMode": "Standard" if self.minor >= 16 else "RawDeployment",
            "conditions": found,
            "modelStatus": self.model_status(
                known, service, known.rollouts[stable].sets[-1], ready=was_ready
            ),
        }
        if model := service["spec"]["predictor"].get("model"):
            status["clusterServingRuntimeName"] = self._runtime(model)
        deployment = self.api.get("deployments", meta["namespace"], stable, "apps") or {}
        if observed := (deployment.get("status") or {}).get("observedGeneration"):
            status["observedGeneration"] = observed  # B8: the Deployment's
        if known.ingress:
            status["url"] = f"http://{meta['name']}-{meta['namespace']}.example.com"
            status["address"] = {"url": f"http://{stable}.{meta['namespace']}.svc.cluster.local"}
        if canaries:
            each = []
            for canary in canaries:
                name = self._deployment_name(meta["name"], canary["predictor"])
                up = any(self._ready(service, group) for group in known.rollouts[name].sets)
                percent, model = canary["trafficPercent"], {"transitionStatus": ""}
                one = {"name": canary["predictor"]["name"], "ready": up}
                each.append({**one, "trafficPercent": percent, "modelStatus": model})
            status["canaryStatuses"] = each
            every = all(one["ready"] for one in each)
            reason = "AllCanariesReady" if every else "CanariesNotReady"
            found.append(_condition("CanaryPredictorReady", every, reason))
        if status != service.get("status"):
            self.api.set_status(GROUP, PLURAL, meta["namespace"], meta["name"], status)

    def model_status(self, known: _Known, service: dict, newest: _Set, *, ready: bool) -> dict:
        """Return modelStatus, by the newest pod alone (B13; status.go:721-828)."""
        active = "Loaded" if known.loaded else ""
        copies: dict[str, int] = {"failedCopies": 0}

        def said(transition: str, target: str, now_active: str = active) -> dict:
            found: dict[str, Any] = {
                "transitionStatus": transition, "copies": copies,
                "states": {"activeModelState": now_active, "targetModelState": target},
            }  # fmt: skip
            if known.failure:
                found["lastFailureInfo"] = known.failure  # never cleared
            return found

        if not newest.pods:
            return said("InProgress", "Pending")
        pod = self.api.get("pods", service["metadata"]["namespace"], [*newest.pods][-1]) or {}
        status = pod.get("status") or {}
        init = next(iter(status.get("initContainerStatuses", ())), {})
        main = next(iter(status.get("containerStatuses", ())), {})
        if "running" in (init.get("state") or {}):
            return said("InProgress", "Loading")
        for container in (init, main):
            if container is main and ready:
                known.loaded = True
                copies["totalCopies"] = len(newest.pods)
                return said("UpToDate", "Loaded", "Loaded")
            state = container.get("state") or {}
            waiting = (state.get("waiting") or {}).get("reason") == "CrashLoopBackOff"
            ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
            if waiting or (state.get("terminated") or {}).get("reason") == "Error":
                known.failure = {
                    "reason": "ModelLoadFailed", "exitCode": ended.get("exitCode", 1),
                    "message": ended.get("message", ""),
                }  # fmt: skip
                copies["failedCopies"] = 1
                return said("BlockedByFailedLoad", "FailedToLoad")
        return said("InProgress", "Pending")


def _condition(kind: str, value: bool | None, reason: str, message: str = "") -> dict:
    found = {"type": kind, "status": "Unknown" if value is None else str(value)}
    return {**found, **({"reason": reason} if reason else {}), **({"message": message} if message else {})}


def _is_true(status: dict, kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == "True" for c in status.get("conditions", ()))


def _merged(stable: dict, canary: dict) -> dict:
    """Return a canary's predictor over the stable one: unset fields are inherited (C10)."""
    found = copy.deepcopy(stable)
    for key, value in canary.items():
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            found[key] = _merged(found[key], value)
        else:
            found[key] = copy.deepcopy(value)
    return found
