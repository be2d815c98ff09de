"""Mode Knative of KServe: revisions, their traffic, and the status of a service in simulated time.

Source: serving.md B12 to B14, C1 to C6, J8, J9 (KServe ksvc_reconciler.go:130-166, status.go:567-635; Knative
pkg/reconciler/revision/reconcile_resources.go).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .kserve_kinds import DEADLINE, GROUP, KNATIVE, PLURAL
from .server_pods import TRACEBACK

if TYPE_CHECKING:
    from .kserve import KServeController, _Known, _Set


def reconcile(controller: KServeController, known: _Known, service: dict) -> None:
    """Bring a service's revisions, traffic and status up to date."""
    from .kserve import _Set

    meta, predictor = service["metadata"], service["spec"]["predictor"]
    name = f"{meta['name']}-predictor"
    template = controller.template(service, predictor)
    if not known.revisions or known.revisions[-1].template != template:
        number = int(known.revisions[-1].name[-5:]) + 1 if known.revisions else 1
        revision = f"{name}-{number:05}"
        known.revisions.append(_Set(revision, template, controller._behaviour(template), controller.now))
        controller._put(
            KNATIVE, "Revision", "revisions", service, revision, spec={},
            metadata={
                "labels": {"serving.knative.dev/service": name, **template["labels"]},
                "annotations": template["annotations"],
            },
        )  # fmt: skip
        # B8: of the pass that changes the child, with the child's old conditions.
        if service.get("status"):
            return
    for each in known.revisions:
        _play(controller, known, service, each)
    traffic = _traffic(controller, known, service)
    _write(controller, known, service, traffic)


def _play(controller: KServeController, known: _Known, service: dict, revision: _Set) -> None:
    """Let Knative work on a revision: pods while it has traffic or is the latest, and its conditions."""

    latest = revision is known.revisions[-1]
    failed = known.failed.get(revision.name)
    age = controller.now - revision.born
    used = latest or revision.name in (known.rolled_out, _latest_ready(known))
    least = service["spec"]["predictor"].get("minReplicas", 1)  # F1: 1 unless it is said
    wanted = max(least, 0 if revision.was_ready else 1) if used else 0
    if failed and age >= DEADLINE:
        wanted = 0
    controller._grow(
        service, revision, wanted, {"serving.knative.dev/revision": revision.name, "app": revision.name}
    )
    refused = controller._refusal(revision.template) if wanted > len(revision.pods) else ""
    conditions = [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": refused}]
    template = {
        "metadata": {"annotations": revision.template["annotations"]},
        "spec": {"containers": [{"name": "x"}]},
    }
    controller._put(
        "apps", "Deployment", "deployments", service, f"{revision.name}-deployment",
        spec={"replicas": wanted, "selector": {}, "template": template},
        status={"conditions": conditions if refused else []},
    )  # fmt: skip
    up = controller._ready(service, revision) > 0
    if up:
        known.failed.pop(revision.name, None)
    elif not revision.was_ready and revision.name not in known.failed:
        found = _failure(controller, service, revision, age)
        known.failed |= {revision.name: found} if found else {}
    failed = known.failed.get(revision.name)
    state = "True" if revision.was_ready and not failed else "False" if failed else "Unknown"
    ready: dict[str, Any] = {"type": "Ready", "status": state}
    if failed:
        ready.update(reason=failed[0], message=failed[1])
    status = {"conditions": [ready], "observedGeneration": 1}
    controller._put(KNATIVE, "Revision", "revisions", service, revision.name, status=status)


def _failure(
    controller: KServeController, service: dict, revision: _Set, age: float
) -> tuple[str, str] | None:
    """Return the reason and message of a revision that failed (B14)."""
    kind = revision.model.kind
    if kind == "tag" and age >= 10:
        return ("ContainerMissing", 'Unable to fetch image "registry.example.org/none:1": manifest unknown')
    if kind in ("crash", "oom"):
        for pod in revision.pods:
            found = controller.api.get("pods", service["metadata"]["namespace"], pod) or {}
            for each in (found.get("status") or {}).get("containerStatuses", ()):
                if each["restartCount"] >= 1:
                    code = 137 if kind == "oom" else 1
                    return (f"ExitCode{code}", f"Container failed with: {TRACEBACK}")
    if age >= DEADLINE:
        if kind == "image":
            return ("ImagePullBackOff", 'Back-off pulling image "registry.example.org/none:1"')
        return ("ProgressDeadlineExceeded", "Initial scale was never achieved")
    return None


def _latest_ready(known: _Known) -> str:
    return next((r.name for r in reversed(known.revisions) if r.was_ready), "")


def _traffic(controller: KServeController, known: _Known, service: dict) -> list[dict]:
    """Return the routed traffic, and move the rolled-out revision (C1 to C5)."""
    percent = service["spec"]["predictor"].get("canaryTrafficPercent")
    latest, ready = known.revisions[-1], _latest_ready(known)
    if not ready:
        return []
    if percent is None or not known.rolled_out:
        percent = 100
    elif percent == 0 and latest.name == known.rolled_out and known.previous:
        # C5: once after a promotion, both shares are of the same revision.
        known.rolled_out, known.previous = known.previous, ""
    if percent == 100:
        if latest.name == ready and known.rolled_out != ready:
            known.previous, known.rolled_out = known.rolled_out, ready
        return [{"latestRevision": True, "revisionName": ready, "percent": 100}]
    namespace = service["metadata"]["namespace"]
    name = f"{service['metadata']['name']}-predictor.{namespace}.example.com"
    host = f"http://prev-{name}"
    # C2: of the component, whose annotations are those of the service and of its predictor (predictor.go:498-519).
    tagged = latest.template["annotations"].get("serving.kserve.io/enable-tag-routing") == "true"
    tag = {"tag": "latest", "url": f"http://latest-{name}"} if tagged else {}
    return [
        {"latestRevision": True, "revisionName": ready, "percent": percent, **tag},
        {"latestRevision": False, "revisionName": known.rolled_out, "percent": 100 - percent, "tag": "prev",
         "url": host},
    ]  # fmt: skip


def _write(controller: KServeController, known: _Known, service: dict, traffic: list[dict]) -> None:
    """Write the status of a service in mode Knative (B10, B12, B13, J8, J9)."""
    from .kserve import _condition

    meta = service["metadata"]
    latest, ready = known.revisions[-1], _latest_ready(known)
    failed = known.failed.get(latest.name)
    said = f'Revision "{latest.name}" failed with message: {failed[1]}.' if failed else ""
    state = False if failed else True if latest.was_ready else None
    reason = "RevisionFailed" if failed else ""
    conditions = [
        _condition("IngressReady", True if ready else state, ""),
        _condition("LatestDeploymentReady", state, reason, said),
        _condition("PredictorConfigurationReady", state, reason, said),
        _condition("PredictorReady", state, reason, said),
        _condition("PredictorRouteReady", True if ready else state, ""),
        _condition("Ready", state, reason, said),
        _condition("RoutesReady", True if ready else state, ""),
        _condition("Stopped", False, ""),
    ]
    component: dict[str, Any] = {"latestCreatedRevision": latest.name}
    if ready:
        component["latestReadyRevision"] = ready
    if known.rolled_out:
        component["latestRolledoutRevision"] = known.rolled_out
    if known.previous:
        component["previousRolledoutRevision"] = known.previous
    if traffic:
        component["traffic"] = traffic
    model_status = controller.model_status(known, service, latest, ready=state is True)
    if not latest.pods and failed:
        model_status["states"]["targetModelState"] = "FailedToLoad"
    status: dict[str, Any] = {
        "deploymentMode": "Knative" if controller.minor >= 16 else "Serverless",
        "observedGeneration": len(known.revisions),
        "conditions": conditions,
        "components": {"predictor": component},
        "modelStatus": model_status,
    }
    if model := service["spec"]["predictor"].get("model"):
        status["clusterServingRuntimeName"] = controller._runtime(model)
    if ready:
        status["url"] = f"http://{meta['name']}.{meta['namespace']}.example.com"
        status["address"] = {"url": f"http://{meta['name']}.{meta['namespace']}.svc.cluster.local"}
    if status != service.get("status"):
        controller.api.set_status(GROUP, PLURAL, meta["namespace"], meta["name"], status)
