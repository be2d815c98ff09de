"""Logs of pods.

Source: kubernetes pkg/registry/core/pod/strategy.go (``LogLocation``, ``validateContainer``),
pkg/kubelet/kubelet_pods.go (``validateContainerLogStatus``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone

from .request import Request
from .store import Refused


@dataclass
class Log:
    """Lines of a container with their times, and of the container before it; ``ended`` closes streams that follow."""

    lines: list[tuple[float, str]] = field(default_factory=list)
    previous: list[tuple[float, str]] = field(default_factory=list)
    ended: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self, text: str) -> None:
        with self.changed:
            self.lines += [(time.time(), line) for line in text.splitlines()]
            self.changed.notify_all()

    def restart(self) -> None:
        """Begin the log of the next container; only that of the last one before it is kept."""
        with self.changed:
            self.previous, self.lines = self.lines, []

    def end(self) -> None:
        with self.changed:
            self.ended = True
            self.changed.notify_all()


def container_of(pod: dict, query: dict[str, str]) -> str:
    """Return the container that a request means."""
    spec, name = pod["spec"], pod["metadata"]["name"]
    names = [c["name"] for c in spec.get("containers", ())]
    every = [*[c["name"] for c in spec.get("initContainers", ())], *names]
    asked = query.get("container", "")
    if not asked:
        if len(names) == 1:
            return names[0]
        inits = [c["name"] for c in spec.get("initContainers", ())]
        more = f" or one of the init containers: [{' '.join(inits)}]" if inits else ""
        said = f"a container name must be specified for pod {name}, choose one of: [{' '.join(names)}]{more}"
        raise Refused(400, "BadRequest", said)
    if asked not in every:
        raise Refused(400, "BadRequest", f"container {asked} is not valid for pod {name}")
    return asked


def check_started(pod: dict, container: str, *, previous: bool) -> None:
    name = pod["metadata"]["name"]
    status = pod.get("status", {})
    for each in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        if each["name"] != container:
            continue
        if previous:
            if not (each.get("lastState") or {}).get("terminated"):
                said = f'previous terminated container "{container}" in pod "{name}" not found'
                raise Refused(400, "BadRequest", said)
            return
        waiting = (each.get("state") or {}).get("waiting")
        if waiting and not (each.get("lastState") or {}).get("terminated"):
            why = waiting.get("reason", "ContainerCreating")
            said = f'container "{container}" in pod "{name}" is waiting to start: {why}'
            if why in ("ErrImagePull", "ImagePullBackOff"):
                said = f'container "{container}" in pod "{name}" is waiting to start: trying and failing to pull image'
            raise Refused(400, "BadRequest", said)
        return


def read(log: Log, request: Request) -> Iterator[str]:
    """Yield the lines that a request asks for; with ``follow`` until the container's end."""
    query, stamps = request.query, request.flag("timestamps")
    since = 0.0
    if "sinceSeconds" in query and "sinceTime" in query:
        # kubernetes pkg/apis/core/validation: ValidatePodLogOptions.
        said = 'PodLogOptions "" is invalid: at most one of `sinceTime` or `sinceSeconds` may be specified'
        raise Refused(422, "Invalid", said)
    if "sinceSeconds" in query:
        since = time.time() - float(query["sinceSeconds"])
    if "sinceTime" in query:
        # Of whole seconds: metav1.Time has no fraction.
        since = int(datetime.fromisoformat(query["sinceTime"].replace("Z", "+00:00")).timestamp())
    limit = int(query["limitBytes"]) if "limitBytes" in query else None

    def shown(at: float, line: str) -> str:
        stamp = (
            datetime.fromtimestamp(at, timezone.utc)
            .isoformat(timespec="microseconds")
            .replace("+00:00", "000Z")
        )
        return f"{stamp} {line}\n" if stamps else f"{line}\n"

    with log.changed:
        start = (log.previous if request.flag("previous") else log.lines)[:]
    kept = [(at, line) for at, line in start if at >= since]
    if "tailLines" in query:
        kept = kept[-int(query["tailLines"]) :] if int(query["tailLines"]) else []
    for at, line in kept:
        text = shown(at, line)
        if limit is not None:  # it cuts a line
            text = text.encode()[:limit].decode(errors="replace")
            limit -= len(text.encode())
        if text:
            yield text
    if not request.flag("follow"):
        return
    seen = len(start)
    while True:
        with log.changed:
            if seen == len(log.lines):
                if log.ended:
                    return
                log.changed.wait(0.5)
            more = log.lines[seen:]
        for at, line in more:
            yield shown(at, line)
        seen += len(more)
