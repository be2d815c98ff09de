"""State of a rollout: from the Deployment or the revisions with its mark, their pods, and events.

``status.observedGeneration`` of an InferenceService is that of its Deployment or Knative Service in all versions, and
Ready may be of the version before (kserve 0.20, ``status.go:455``). So neither decides alone. The mark in the pods'
template tells the versions apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dvkf_prefect.serving.kserve.reasons import Problem, pod_problem
from dvkf_prefect.serving.kserve.spec import MARK


@dataclass(frozen=True)
class Waits:
    """Seconds to wait while a problem may pass.

    Attributes:
        total: For a version to serve; more than the 600 s after which Kubernetes gives up.
        image: For an image that cannot be pulled.
        schedule: For a pod that fits on no node.
        config: For a Secret or ConfigMap that is absent.
        refused: For a pod that is not made, as by a quota.
        event: For an error that KServe reports.
        spec: For a specification that KServe reports as invalid.
        revision: For a revision that Knative reports as failed.
    """

    total: float = 900.0
    image: float = 120.0
    schedule: float = 300.0
    config: float = 60.0
    refused: float = 60.0
    event: float = 60.0
    spec: float = 10.0
    revision: float = 60.0
    crash: float = 600.0


@dataclass(frozen=True)
class Target:
    """Rollout to wait for.

    Attributes:
        mark: Mark of its pods.
        deployment: Name of its Deployment, in mode Standard.
        percent: Traffic of a Knative canary; None for all.
        canary: Name of a canary of mode Standard; empty for the stable version.
        replicas: Smallest number of pods, in mode Standard. A change of it alone leaves the mark as it was.
    """

    mark: str
    deployment: str
    percent: int | None = None
    canary: str = ""
    replicas: int = 0


@dataclass(frozen=True)
class View:
    """Objects of a service at one moment.

    Attributes:
        service: The InferenceService.
        mode: Its mode; empty before KServe looked at it.
        deployment: The Deployment, in mode Knative that of the latest revision; None if absent.
        revisions: Revisions by name, in mode Knative.
        pods: Pods of the service.
        events: Warnings about the service since the change.
    """

    service: Mapping[str, Any]
    mode: str
    deployment: Mapping[str, Any] | None = None
    revisions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pods: Sequence[Mapping[str, Any]] = ()
    events: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Verdict:
    """State of a rollout.

    Attributes:
        serves: True if the version serves as asked.
        problem: Problem that keeps it from that; None if it starts.
        message: State in words.
    """

    serves: bool
    problem: Problem | None = None
    message: str = ""


def judge(view: View, target: Target, log: Callable[[str, str], str] = lambda pod, container: "") -> Verdict:
    """Return the state of a rollout.

    Args:
        view: Objects of the service.
        target: The rollout.
        log: Returns the end of the log of a pod's container before its last restart.
    """
    status = view.service.get("status") or {}
    model = status.get("modelStatus") or {}
    if model.get("transitionStatus") == "InvalidSpec":
        info = model.get("lastFailureInfo") or {}
        said = f"KServe refuses the specification: {info.get('reason', '')}: {info.get('message', '')}"
        return Verdict(False, Problem("spec", said), said)
    serves, message = (_knative if view.mode == "Knative" else _standard)(view, target, status)
    if serves:
        return Verdict(True, None, message)
    marked = [pod for pod in view.pods if _mark(pod) == target.mark]
    problem = pod_problem(marked, log)
    if problem is None:
        problem = (_revision if view.mode == "Knative" else _deployment)(view, target, marked)
    if problem is None:
        problem = _event(view.events)
    return Verdict(False, problem, problem.message if problem else message)


def _mark(obj: Mapping[str, Any] | None) -> str:
    return str(((obj or {}).get("metadata", {}).get("annotations") or {}).get(MARK, ""))


def condition(obj: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Return a condition of an object's status; empty if it has none of that type."""
    conditions = (obj.get("status") or {}).get("conditions") or ()
    return next((each for each in conditions if each.get("type") == kind), {})


def _standard(view: View, target: Target, status: Mapping[str, Any]) -> tuple[bool, str]:
    deployment = view.deployment
    if deployment is None or _mark(deployment["spec"].get("template")) != target.mark:
        return False, "waiting for KServe to change the Deployment"
    counts, wanted = deployment.get("status") or {}, deployment["spec"].get("replicas", 1)
    seen = counts.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 1)
    numbers = [int(counts.get(key) or 0) for key in ("updatedReplicas", "replicas", "availableReplicas")]
    if not seen or wanted < target.replicas or numbers != [wanted] * 3:
        return False, f"{numbers[0]} of {wanted} pods are of this version, {numbers[2]} pods are available"
    if target.canary:
        ready = next(
            (c.get("ready") for c in status.get("canaryStatuses") or () if c.get("name") == target.canary), False
        )  # fmt: skip
        return bool(ready), "the canary is ready" if ready else "waiting for KServe to see the canary"
    if status.get("canaryStatuses"):
        return False, "its pods are available, and KServe has not ended the canary"
    if condition(view.service, "Ready").get("status") != "True" or not status.get("url"):
        return False, "its pods are available, and KServe has not set the route"
    return True, f"{wanted} pods serve it"


def _knative(view: View, target: Target, status: Mapping[str, Any]) -> tuple[bool, str]:
    part = (status.get("components") or {}).get("predictor") or {}
    created, ready = part.get("latestCreatedRevision", ""), part.get("latestReadyRevision", "")
    if _mark(view.revisions.get(created)) != target.mark:
        return False, "waiting for KServe to make a revision"
    if created != ready:
        return False, f"revision {created} starts"
    traffic = part.get("traffic") or ()
    share = sum(int(each.get("percent") or 0) for each in traffic if each.get("revisionName") == created)
    wanted = 100 if target.percent is None else target.percent
    rolled_out = part.get("latestRolledoutRevision") == created
    if share != wanted or (target.percent is None and not rolled_out):
        return False, f"revision {created} is ready and gets {share} % of the traffic"
    if condition(view.service, "Ready").get("status") != "True":
        return False, f"revision {created} is ready, and KServe has not set the route"
    return True, f"revision {created} gets {share} % of the traffic"


def _deployment(view: View, target: Target, pods: Sequence[Mapping[str, Any]]) -> Problem | None:
    deployment = view.deployment
    if deployment is None or _mark(deployment["spec"].get("template")) != target.mark:
        return None
    if (refused := _refused(deployment, pods)) is not None:
        return refused
    progress = condition(deployment, "Progressing")
    if progress.get("status") == "False":
        return Problem("deadline", f"{progress.get('reason')}: {progress.get('message', '')}", final=True)
    return None


def _refused(deployment: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> Problem | None:
    failure = condition(deployment, "ReplicaFailure")
    if failure.get("status") == "True" and not pods:
        return Problem("refused", f"no pod is made: {failure.get('message') or failure.get('reason')}")
    return None


def _revision(view: View, target: Target, pods: Sequence[Mapping[str, Any]]) -> Problem | None:
    part = ((view.service.get("status") or {}).get("components") or {}).get("predictor") or {}
    created = part.get("latestCreatedRevision", "")
    revision = view.revisions.get(created)
    if revision is None or _mark(revision) != target.mark:
        return None
    if view.deployment is not None and (refused := _refused(view.deployment, pods)) is not None:
        return refused
    ready = condition(revision, "Ready")
    if ready.get("status") != "False":
        return None
    reason = str(ready.get("reason", ""))
    return Problem(
        "revision",
        f"revision {created}: {reason}: {ready.get('message', '')}",
        final=reason == "ProgressDeadlineExceeded",
    )


def _event(events: Sequence[Mapping[str, Any]]) -> Problem | None:
    for event in events:
        said = str(event.get("message", ""))
        if event.get("reason") in (
            "InternalError",
            "ServerlessModeRejected",
            "UpdateFailed",
            "VirtualServiceCRDNotFound",
        ):
            final = "not supported" in said
            return Problem("event", f"{event['reason']}: {said}", final=final)
    return None
