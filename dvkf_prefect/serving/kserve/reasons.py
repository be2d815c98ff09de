"""Reasons why pods of a service do not serve, in the words of their containers.

KServe's own ``modelStatus`` looks at the newest pod alone, returns to InProgress between two crashes, and never reports
an image that cannot be pulled (kserve 0.20, ``status.go:721``). So the pods decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dvkf_prefect.serving.kserve.spec import CONTAINER

_INITIALIZER = "storage-initializer"
_PULL = frozenset({"ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "RegistryUnavailable"})
_CONFIG = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_RESTARTS = 2
_LINES = 8


@dataclass(frozen=True)
class Problem:
    """Reason why a service does not serve a version.

    Attributes:
        kind: ``crash``, ``image``, ``config``, ``schedule``, ``refused``, ``spec``, ``event``, ``revision`` or
            ``deadline``.
        message: Reason, with the container's own words.
        final: True if more waiting cannot help.
    """

    kind: str
    message: str
    final: bool = False


def pod_problem(pods: Iterable[Mapping[str, Any]], log: Callable[[str, str], str]) -> Problem | None:
    """Return the first problem of pods; None if they start or serve.

    Args:
        pods: Pods of one version.
        log: Returns the end of the log of a pod's container before its last restart.
    """
    found = [problem for pod in pods if (problem := _problem(pod, log)) is not None]
    return next((problem for problem in found if problem.final), found[0] if found else None)


def _problem(pod: Mapping[str, Any], log: Callable[[str, str], str]) -> Problem | None:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return Problem(
                "schedule", f"pod {name} fits on no node: {condition.get('message') or 'no reason given'}"
            )
    for each in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        container = each["name"]
        waiting = (each.get("state") or {}).get("waiting") or {}
        reason, said = waiting.get("reason", ""), waiting.get("message") or ""
        if reason == "InvalidImageName":
            return Problem("image", f"pod {name}: {reason}: {said or each.get('image')}", final=True)
        if reason in _PULL:
            return Problem("image", f"pod {name}: {reason}: {said or each.get('image')}")
        if reason in _CONFIG:
            return Problem("config", f"pod {name}: {reason}: {said}")
        state, last = each.get("state") or {}, each.get("lastState") or {}
        ended = state.get("terminated") or last.get("terminated") or {}
        if not ended.get("exitCode"):
            continue
        if container in (_INITIALIZER, CONTAINER) or reason == "CrashLoopBackOff":
            restarts = int(each.get("restartCount") or 0)
            words = _words(ended.get("message") or log(name, container))
            what = "the model cannot be downloaded" if container == _INITIALIZER else f"{container} ended"
            how = f"{ended.get('reason') or 'Error'}, exit code {ended['exitCode']}"
            return Problem(
                "crash",
                f"{what} ({how}, {restarts} restarts): {words or 'no log'}",
                final=restarts >= _RESTARTS,
            )
    return None


def _words(text: str) -> str:
    """Return the last lines of a message or a log."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-_LINES:])
