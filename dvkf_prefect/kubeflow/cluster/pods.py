"""The pods of a run, where Kubernetes can be asked: why one does not start, what it printed, how it was ended.

Kubeflow Pipelines says of a pod whose image cannot be pulled, or that fits on no node, that it is running.
Source: KFP labels the pods of a run ``pipeline/runid``; Kubernetes' Pod status and Event.
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
# Reasons why a container waits that do not go away by waiting.
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
_SUPPRESS = 120.0  # seconds until Kubernetes is asked again after it could not be
_LOG_LINES = 200
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PodProblem:
    """Why a pod does not come to run.

    Attributes:
        task: The task.
        pod: The pod's name.
        kind: ``image`` (or anything else that keeps a container from starting), ``schedule``, or ``ended``.
        message: What Kubernetes says.
    """

    task: str
    pod: str
    kind: str
    message: str


class Pods:
    """The pods of one namespace.

    Args:
        namespace: The namespace.
        config_file: A kubeconfig; None for the pod's own account, or else the user's.
        context: A context in it.
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
        """Return what keeps pods of a run from running, or ended them; none where Kubernetes cannot be asked.

        Args:
            run_id: The run's id, as the server knows it.
        """
        found = []
        for pod in self._of(run_id):
            problem = self._problem(pod)
            if problem is not None:
                found.append(problem)
        return found

    def log(self, run_id: str, task: str) -> str:
        """Return the end of what a task's last pod printed; "" when it cannot be had."""
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
        """Return the name of a task's pod; "" when it is not known."""
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
        """Return the last warning about a pod that waits for something else: a volume or a secret, mostly."""
        listed = self._ask(
            "list_namespaced_event",
            self.namespace,
            field_selector=f"involvedObject.name={pod},type=Warning",
            limit=50,
        )
        events = sorted(listed.items, key=lambda e: str(e.last_timestamp or "")) if listed is not None else []
        return f"{events[-1].reason}: {events[-1].message}" if events else ""

    def _ask(self, call: str, *arguments: Any, **options: Any) -> Any:
        """Ask Kubernetes; None where it cannot be asked, which is then left for a while."""
        if time.monotonic() < self._not_before:
            return None
        try:
            return getattr(self._client(), call)(*arguments, _request_timeout=self._timeout, **options)
        except Exception as error:  # noqa: BLE001 (whatever it is, the run goes on without what it would tell)
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
            # The client's own default is to try three times, each with the whole time limit.
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
