"""Pods of a run, queried from Kubernetes: start failures, logs, and reasons of their end.

Kubeflow Pipelines reports a pod as running even if its image cannot be pulled or it fits on no node. Source: KFP
labels the pods of a run ``pipeline/runid``; Kubernetes' Pod status and Event.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dvkf_prefect.kube.client import kube_client
from dvkf_prefect.kubeflow.cluster.workflow import task_of
from dvkf_prefect.kubeflow.compile.compile import TASK_LABEL
from dvkf_prefect.pipeline.step.step import clean_log

_RUN_LABEL = "pipeline/runid"
_NODE_NAME = "workflows.argoproj.io/node-name"
# Waiting reasons of a container that do not resolve by themselves.
_STUCK = frozenset(
    {
        "ImagePullBackOff",
        "ErrImagePull",
        "InvalidImageName",
        "ErrImageNeverPull",
        "RegistryUnavailable",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "CrashLoopBackOff",
    }
)
# Answers of Kubernetes to a pod that it does not make: quotas, limits, policies, webhooks.
_REFUSED = re.compile(r"is forbidden|exceeded quota|denied the request|is invalid")
_SUPPRESS = 120.0  # seconds until Kubernetes is queried again after a failed query
_LOG_LINES, _LOG_BYTES = 200, 1 << 20
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PodProblem:
    """Reason why a pod does not start, or ended.

    Attributes:
        task: Name of the task; "" for a pod of the whole run.
        pod: Name of the pod.
        kind: ``image`` (or anything else that keeps a container from starting), ``schedule``, or ``ended``.
        message: Message of Kubernetes.
    """

    task: str
    pod: str
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class PodView:
    """Pod of a stage.

    Attributes:
        task: Name of the task.
        name: Name of the pod.
        phase: Kubernetes' phase.
        restarts: Number of restarts of the stage's container.
        started: Start of the container; None if it has not started.
        ended: End of the container; None if it has not ended.
    """

    task: str
    name: str
    phase: str
    restarts: int = 0
    started: datetime | None = None
    ended: datetime | None = None


class Pods:
    """Pods of one namespace.

    Args:
        namespace: Name of the namespace.
        config_file: A kubeconfig; None for the pod's own account, or else the user's.
        context: A context of the kubeconfig.
        timeout: Seconds to wait for an answer.
    """

    def __init__(
        self,
        namespace: str,
        *,
        config_file: str | None = None,
        context: str | None = None,
        timeout: float = 10.0,
    ) -> None:
        self.namespace = namespace
        self._config_file = config_file
        self._context = context
        self._timeout = (timeout, timeout)
        self._core: Any = None
        self._not_before = 0.0

    def problems(self, run_id: str) -> list[PodProblem]:
        """Return start failures and failed pods of a run; empty if Kubernetes cannot be queried.

        Args:
            run_id: Id of the run on the server.
        """
        found = []
        for pod in self._of(run_id):
            problem = self._problem(pod)
            if problem is not None:
                found.append(problem)
        return found

    def views(self, run_id: str) -> list[PodView] | None:
        """Return the pods of a run's stages, the oldest first; None if Kubernetes cannot be queried.

        Args:
            run_id: Id of the run on the server.
        """
        listed = self._list(run_id)
        if listed is None:
            return None
        pods = sorted(listed.items, key=lambda pod: (str(pod.metadata.creation_timestamp), pod.metadata.name))
        return [_view(pod, task) for pod in pods for task, driver in [_task_of(pod)] if task and not driver]

    def log_since(self, pod: str, second: str, limit: int, *, previous: bool = False) -> str | None:
        """Return a part of the log of a pod's stage, with a time before each line; None if it cannot be read.

        Kubernetes' Python client lacks ``sinceTime``, so its generic call is used.

        Args:
            pod: Name of the pod.
            second: Time of the first line, such as ``2026-01-31T12:00:00``; "" for the beginning.
            limit: Maximum number of bytes.
            previous: Read the log of the container before its last restart.
        """
        query = [("container", "main"), ("timestamps", "true"), ("limitBytes", str(limit))]
        query += [("sinceTime", f"{second}Z")] if second else []
        query += [("previous", "true")] if previous else []

        def call(core: Any, **options: Any) -> Any:
            return core.api_client.call_api(
                "/api/v1/namespaces/{namespace}/pods/{name}/log",
                "GET",
                {"namespace": self.namespace, "name": pod},
                query,
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _preload_content=False,
                **options,
            )

        answer = self._try(call)
        return bytes(answer.data).decode(errors="replace") if answer is not None else None

    def log(self, run_id: str, task: str) -> str:
        """Return the last log lines of a task's last pod; "" if not available."""
        pods = [pod for pod in self._of(run_id) if _task_of(pod) == (task, False)]
        for pod in sorted(pods, key=lambda pod: str(pod.metadata.creation_timestamp), reverse=True):
            text = self._ask(
                "read_namespaced_pod_log",
                pod.metadata.name,
                self.namespace,
                container="main",
                tail_lines=_LOG_LINES,
                limit_bytes=_LOG_BYTES,
            )
            if text:
                return clean_log(str(text).encode())
        return ""

    def name(self, run_id: str, task: str) -> str:
        """Return the name of a task's pod; "" if unknown."""
        pods = (pod for pod in self._of(run_id) if _task_of(pod) == (task, False))
        return next((str(pod.metadata.name) for pod in pods), "")

    def _of(self, run_id: str) -> Iterator[Any]:
        listed = self._list(run_id)
        yield from listed.items if listed is not None else ()

    def _list(self, run_id: str) -> Any:
        return self._ask(
            "list_namespaced_pod", self.namespace, label_selector=f"{_RUN_LABEL}={run_id}", limit=1000
        )

    def _problem(self, pod: Any) -> PodProblem | None:
        task, name, status = _task_of(pod)[0], str(pod.metadata.name), pod.status
        for each in (*(status.init_container_statuses or ()), *(status.container_statuses or ())):
            waiting = each.state.waiting if each.state else None
            if waiting is not None and waiting.reason in _STUCK:
                said = f"{waiting.reason}: {waiting.message}" if waiting.message else waiting.reason
                return PodProblem(task, name, "image", f"{said} (image {each.image})")
            ended = each.state.terminated if each.state else None
            if ended is not None and each.name == "main" and ended.exit_code:
                said = ended.reason or "Error"
                return PodProblem(task, name, "ended", f"{said}, exit code {ended.exit_code}")
        if status.phase == "Failed" and status.reason:
            return PodProblem(task, name, "ended", f"{status.reason}: {status.message or ''}".rstrip(": "))
        if status.phase == "Pending":
            for condition in status.conditions or ():
                if (
                    condition.type == "PodScheduled"
                    and condition.status == "False"
                    and condition.reason == "Unschedulable"
                ):
                    return PodProblem(
                        task, name, "schedule", f"Unschedulable: {condition.message or 'no reason given'}"
                    )
            if event := self._warning(name):
                return PodProblem(task, name, "schedule", event)
        return None

    def _warning(self, pod: str) -> str:
        """Return the last warning about a pending pod, mostly about a volume or a secret."""
        listed = self._ask(
            "list_namespaced_event",
            self.namespace,
            field_selector=f"involvedObject.name={pod},type=Warning",
            limit=50,
        )
        events = sorted(listed.items, key=lambda e: str(e.last_timestamp or "")) if listed is not None else []
        return f"{events[-1].reason}: {events[-1].message}" if events else ""

    def _ask(self, call: str, *arguments: Any, **options: Any) -> Any:
        return self._try(lambda core, **more: getattr(core, call)(*arguments, **options, **more))

    def _try(self, call: Callable[..., Any]) -> Any:
        """Query Kubernetes; None on failure, after which queries pause for a while."""
        if time.monotonic() < self._not_before:
            return None
        try:
            return call(self._client(), _request_timeout=self._timeout)
        except Exception as error:  # noqa: BLE001 (on any error the run continues without this information)
            if getattr(error, "status", None) not in (
                400,
                404,
            ):  # of one pod, which has no log yet or is gone
                _logger.debug("cannot query Kubernetes about pods: %s", type(error).__name__)
                self._not_before = time.monotonic() + _SUPPRESS
            return None

    def _client(self) -> Any:
        if self._core is None:
            from kubernetes import client  # type: ignore[import-untyped]

            self._core = client.CoreV1Api(kube_client(self._config_file, self._context))
        return self._core


def kind_of(message: str) -> str:
    """Return the kind of a waiting pod's problem, from Argo's message; "" if it resolves by itself.

    Args:
        message: Message of the pod's node.

    Example:
        >>> kind_of("ImagePullBackOff: Back-off"), kind_of("PodInitializing")
        ('image', '')
    """
    reason = message.partition(":")[0]
    if reason in _STUCK:
        return "image"
    return "schedule" if reason == "Unschedulable" or _REFUSED.search(message) else ""


def _view(pod: Any, task: str) -> PodView:
    status = pod.status
    main = next((each for each in status.container_statuses or () if each.name == "main"), None)
    state = main.state if main is not None else None
    running, ended = (state.running, state.terminated) if state is not None else (None, None)
    return PodView(
        task,
        str(pod.metadata.name),
        str(status.phase),
        int(main.restart_count or 0) if main is not None else 0,
        running.started_at if running else ended.started_at if ended else None,
        ended.finished_at if ended else None,
    )


def _task_of(pod: Any) -> tuple[str, bool]:
    """Return the task of a pod, "" if it has none, and True for the pod of its driver.

    KFP up to 2.5 puts the first task's labels on all pods, so the label is only for pods without Argo's annotation.
    """
    if node := (pod.metadata.annotations or {}).get(_NODE_NAME, ""):
        return task_of(node)
    labels: Mapping[str, str] = pod.metadata.labels or {}
    return labels.get(TASK_LABEL, ""), False
