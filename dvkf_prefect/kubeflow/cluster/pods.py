"""Pods of a run, queried from Kubernetes: start failures, logs, and reasons of their end.

Kubeflow Pipelines reports a pod as running even if its image cannot be pulled or it fits on no node. Source: KFP
labels the pods of a run ``pipeline/runid``; Kubernetes' Pod status and Event.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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
_SUPPRESS = 120.0  # seconds until Kubernetes is queried again after a failed query
_LOG_LINES = 200
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PodProblem:
    """Reason why a pod does not start, or ended.

    Attributes:
        task: Name of the task.
        pod: Name of the pod.
        kind: ``image`` (or anything else that keeps a container from starting), ``schedule``, or ``ended``.
        message: Message of Kubernetes.
    """

    task: str
    pod: str
    kind: str
    message: str


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

    def log(self, run_id: str, task: str) -> str:
        """Return the last log lines of a task's last pod; "" if not available."""
        pods = [pod for pod in self._of(run_id) if _task_of(pod) == task]
        for pod in sorted(pods, key=lambda pod: str(pod.metadata.creation_timestamp), reverse=True):
            text = self._ask(
                "read_namespaced_pod_log",
                pod.metadata.name,
                self.namespace,
                container="main",
                tail_lines=_LOG_LINES,
            )
            if text:
                return clean_log(str(text).encode())
        return ""

    def name(self, run_id: str, task: str) -> str:
        """Return the name of a task's pod; "" if unknown."""
        return next((str(pod.metadata.name) for pod in self._of(run_id) if _task_of(pod) == task), "")

    def _of(self, run_id: str) -> Iterator[Any]:
        listed = self._ask(
            "list_namespaced_pod", self.namespace, label_selector=f"{_RUN_LABEL}={run_id}", limit=1000
        )
        yield from listed.items if listed is not None else ()

    def _problem(self, pod: Any) -> PodProblem | None:
        task, name, status = _task_of(pod), str(pod.metadata.name), pod.status
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
        """Query Kubernetes; None on failure, after which queries pause for a while."""
        if time.monotonic() < self._not_before:
            return None
        try:
            return getattr(self._client(), call)(*arguments, _request_timeout=self._timeout, **options)
        except Exception as error:  # noqa: BLE001 (on any error the run continues without this information)
            if getattr(error, "status", None) not in (
                400,
                404,
            ):  # of one pod, which has no log yet or is gone
                _logger.debug("Kubernetes cannot be asked about pods: %s", type(error).__name__)
                self._not_before = time.monotonic() + _SUPPRESS
            return None

    def _client(self) -> Any:
        if self._core is None:
            from kubernetes import client, config  # type: ignore[import-untyped]

            settings = client.Configuration()
            # By default the client tries three times, each with the full timeout.
            settings.retries = False
            if self._config_file or self._context:
                config.load_kube_config(self._config_file, self._context, settings, persist_config=False)
            else:
                try:
                    config.load_incluster_config(settings)
                except config.ConfigException:
                    config.load_kube_config(client_configuration=settings, persist_config=False)
            self._core = client.CoreV1Api(client.ApiClient(settings))
        return self._core


def _task_of(pod: Any) -> str:
    labels: Mapping[str, str] = pod.metadata.labels or {}
    if TASK_LABEL in labels:
        return labels[TASK_LABEL]
    # ``workflow.root.train.executor``; before it runs, ``workflow.root.train-driver``.
    node = (pod.metadata.annotations or {}).get(_NODE_NAME, "")
    match = re.search(r"\.root\.([a-z0-9-]+)", node)
    return match[1].removesuffix("-driver") if match else ""
