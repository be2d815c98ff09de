"""State of a TrainJob, from its conditions, its pods and its events.

A TrainJob has no condition for a start, and none for children that cannot be created: then its status stays empty, and
only an event says why. A node whose image cannot be pulled waits for ever. Source: ``trainjob_controller.go`` and the
conditions of kubeflow/trainer v2.3.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dvkf_prefect.kubeflow.trainer.plan import TrainingPlan

_NOT_CREATED = "TrainJobResourcesCreationFailed"
# Seconds in which a quota may be freed, or a webhook return.
_CREATION = 120.0
_STUCK = frozenset(
    {
        "ImagePullBackOff",
        "ErrImagePull",
        "InvalidImageName",
        "ErrImageNeverPull",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    }
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """State of a training.

    Attributes:
        phase: ``running``, ``succeeded`` or ``failed``.
        message: Reason, or the current state of a training that has not ended.
    """

    phase: str
    message: str = ""

    @property
    def ended(self) -> bool:
        """True if the training does not run any more, or never will."""
        return self.phase != "running"


def judge(
    job: Mapping[str, Any],
    pods: Sequence[Mapping[str, Any]],
    events: Sequence[Mapping[str, Any]],
    *,
    plan: TrainingPlan,
    waited: float,
) -> Verdict:
    """Return the state of a training.

    Args:
        job: The TrainJob.
        pods: Pods of its nodes.
        events: Events about it.
        plan: Its plan, with the waits for nodes.
        waited: Seconds since its state last changed.
    """
    status = job.get("status") or {}
    true = {c["type"]: c for c in status.get("conditions") or () if c.get("status") == "True"}
    if "Complete" in true:
        return Verdict("succeeded")
    if "Failed" in true:
        said = _text(true["Failed"].get("reason"), true["Failed"].get("message"))
        return Verdict("failed", "; ".join([said, *filter(None, map(_end, pods))]))
    if "Suspended" in true:
        return Verdict("running", "suspended, for example by a queue")
    stuck = next(filter(None, map(_start, pods)), None)
    if stuck is not None:
        kind, said = stuck
        limit = plan.schedule if kind == "schedule" else plan.start
        return Verdict("failed" if waited >= limit else "running", said)
    if not pods:
        refused = [e for e in events if e.get("reason") == _NOT_CREATED]
        if refused:
            said = _text(_NOT_CREATED, refused[-1].get("message"))
            return Verdict("failed" if waited >= _CREATION else "running", said)
        return Verdict("running", "waiting for its nodes")
    phases = [str((pod.get("status") or {}).get("phase")) for pod in pods]
    return Verdict("running", ", ".join(f"{phases.count(p)} {p.lower()}" for p in dict.fromkeys(phases)))


def _text(reason: Any, message: Any) -> str:
    return ": ".join(str(part) for part in (reason, message) if part)


def _start(pod: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the kind and reason of a pod that does not start."""
    status = pod.get("status") or {}
    name = pod["metadata"]["name"]
    for each in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (each.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in _STUCK:
            said = _text(waiting["reason"], waiting.get("message"))
            return "image", f"node {name}: {said} (image {each.get('image')})"
    if status.get("phase") == "Pending":
        for condition in status.get("conditions") or ():
            if condition.get("reason") == "Unschedulable" and condition.get("status") == "False":
                return "schedule", f"node {name}: {_text('Unschedulable', condition.get('message'))}"
    return None


def _end(pod: Mapping[str, Any]) -> str:
    """Return the reason of a pod's failure; "" for any other pod."""
    status = pod.get("status") or {}
    name = pod["metadata"]["name"]
    for each in status.get("containerStatuses") or ():
        for state in ("state", "lastState"):
            ended = (each.get(state) or {}).get("terminated")
            if ended and ended.get("exitCode"):
                return f"node {name}: {ended.get('reason') or 'Error'}, exit code {ended['exitCode']}"
    if status.get("phase") == "Failed" and status.get("reason"):
        return f"node {name}: {_text(status['reason'], status.get('message'))}"
    return ""
