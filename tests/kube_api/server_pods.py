"""Pods of a model server over time, as kubelet reports them.

Source: kubernetes pkg/kubelet/kubelet_pods.go (``convertStatusToAPIStatus``), pkg/kubelet/kuberuntime
(``doBackOff``: 10 s, doubled up to 300 s); serving.md D1 to D3 for KServe's containers and messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

INIT, MAIN = "storage-initializer", "kserve-container"
TRACEBACK = (
    "Traceback (most recent call last):\nValueError: node array from the pickle has an incompatible dtype"
)
_ENDS = {
    # D3: the initializer's log is its message (FallbackToLogsOnError); the server's own is not (File).
    "missing": (INIT, "Error", 1, "RuntimeError: Failed to fetch model. No model found in models/iris/1/."),
    "denied": (INIT, "Error", 1, "botocore.exceptions.NoCredentialsError: Unable to locate credentials"),
    "crash": (MAIN, "Error", 1, ""),
    "oom": (MAIN, "OOMKilled", 137, ""),
}
_WAITS = {
    "image": ("ImagePullBackOff", 'Back-off pulling image "registry.example.org/none:1"'),
    "tag": ("ImagePullBackOff", 'Back-off pulling image "registry.example.org/none:1"'),
    "config": ("CreateContainerConfigError", 'secret "lake" not found'),
}


@dataclass(frozen=True)
class Model:
    """A model's behaviour in its pods.

    Attributes:
        kind: ``healthy``, ``missing``, ``denied``, ``crash``, ``oom``, ``image``, ``tag`` (one that the registry does
            not know), ``config``, ``schedule``, or ``quota`` (no pod is made).
        download: Seconds of the initializer.
        load: Seconds until the server answers.
    """

    kind: str = "healthy"
    download: float = 5.0
    load: float = 8.0


def status_of(
    model: Model, age: float, *, fetches: bool, image: str = "kserve/sklearnserver:v0.20.0"
) -> dict:
    """Return the status of a pod.

    Args:
        model: Behaviour of its model.
        age: Seconds since its creation.
        fetches: True if the pod has an initializer.
        image: Image of its server.
    """
    scheduled: dict[str, Any] = {"type": "PodScheduled", "status": "True"}
    if model.kind == "schedule":
        said = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
        scheduled.update(status="False", reason="Unschedulable", message=said)
        return {"phase": "Pending", "conditions": [scheduled]}
    init: dict[str, Any] = {"state": _waiting("PodInitializing"), "lastState": {}, "restartCount": 0}
    main: dict[str, Any] = {"state": _waiting("PodInitializing"), "lastState": {}, "restartCount": 0}
    ready, at = False, 2.0
    if fetches:
        if age >= at and model.kind in _ENDS and _ENDS[model.kind][0] == INIT:
            init = _loop(age - at, model.download, model.kind)
            return _pod("Pending", scheduled, init, main, image, fetches, ready=False)
        if age >= at:
            init["state"] = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
        at += model.download
        if age >= at:
            init["state"] = {"terminated": {"exitCode": 0, "reason": "Completed"}}
    if age >= at:
        if model.kind in _WAITS:
            reason, said = _WAITS[model.kind]
            main["state"] = _waiting(reason, said)
            return _pod("Pending", scheduled, init, main, image, fetches, ready=False)
        if model.kind in _ENDS:
            main = _loop(age - at, model.load / 2, model.kind)
        else:
            main["state"] = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
            ready = age >= at + model.load
    phase = "Pending" if age < at else "Running"
    return _pod(phase, scheduled, init, main, image, fetches, ready=ready)


def _pod(
    phase: str, scheduled: dict, init: dict, main: dict, image: str, fetches: bool, *, ready: bool
) -> dict:
    def named(name: str, values: dict, *, is_ready: bool) -> dict:
        return {"name": name, "image": image, "imageID": "", "ready": is_ready, **values}

    status = {
        "phase": phase,
        "conditions": [scheduled, {"type": "Ready", "status": str(ready)}],
        "containerStatuses": [named(MAIN, main, is_ready=ready)],
    }
    if fetches:
        done = "terminated" in init["state"] and not init["state"]["terminated"]["exitCode"]
        status["initContainerStatuses"] = [named(INIT, init, is_ready=done)]
    return status


def _waiting(reason: str, message: str = "") -> dict:
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


def _loop(age: float, run: float, kind: str) -> dict:
    """Return a container's state that ends after ``run`` seconds and is restarted with longer and longer waits."""
    container, reason, code, said = _ENDS[kind]
    ended = {"terminated": {"exitCode": code, "reason": reason, **({"message": said} if said else {})}}
    at, restarts, last = 0.0, 0, {}
    while True:
        at += run
        if age < at:
            state = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
            return {"state": state, "lastState": last, "restartCount": restarts}
        if age < at + 1:
            return {"state": ended, "lastState": last, "restartCount": restarts}
        wait = min(10.0 * 2**restarts, 300.0)
        at, last = at + wait, ended
        if age < at:
            said = f"back-off {wait:.0f}s restarting failed container={container}"
            return {
                "state": _waiting("CrashLoopBackOff", said),
                "lastState": ended,
                "restartCount": restarts,
            }
        restarts += 1
