"""The Argo workflow of a run: reasons of failures and names of pods, which KFP's own API leaves out.

Sources: KFP's ``/apis/v1beta1/runs/<id>`` holds the workflow as ``pipeline_runtime.workflow_manifest``. Names of nodes
are Argo's: ``<workflow>.root.<task>.executor`` and ``<workflow>.root.<task>-driver``. Since KFP 2.17 every template is
retried, so each part of a name may end in ``(n)``. Argo names the pod of a node after its workflow, its template and
the hash in the node's id (``GeneratePodName`` in its ``workflow/util/pod_name.go``).

Argo compresses the nodes of a workflow of more than 1 MiB: ``status.compressedNodes`` is the base64 of their JSON in
gzip (``workflow/packer/packer.go``). KFP does not decompress them, so a run of some 30 stages or more has no tasks in
KFP 2.17. A controller with ``nodeStatusOffLoad`` stores larger ones in a database and leaves their version in
``status.offloadNodeStatusVersion`` (``persist/sqldb/offload_node_status_repo.go``).
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

# Longest name of a pod without its hash.
_PREFIX = 242
# Bytes of decompressed nodes; Argo compresses what is larger than 1 MiB to less than that.
_MOST_NODES = 256 << 20
_FAILED = frozenset({"Failed", "Error"})
_STATES = {"Skipped": "SKIPPED", "Error": "FAILED", "Omitted": ""}
_TASK = re.compile(r"\.root\.([a-z0-9-]+?)(-driver)?(\.|$)")
# Messages that only repeat the failure of a node below.
_ECHO = re.compile(r"No more retries left|child '.*' failed|omitted: .*|retry exceeded max duration.*")
_EXIT = re.compile(r"(main: )?Error \(exit code \d+\)")
# Messages of a terminated workflow and its pods.
_STOPPED = ("Step exceeded its deadline", "Max duration limit exceeded", "Stopped with strategy")


def task_of(node: str) -> tuple[str, bool]:
    """Return the task of a node, "" if it has none, and True for the task's driver.

    Args:
        node: Name of the node.

    Example:
        >>> task_of("demo-x(0).root(0).train(0).executor(1)"), task_of("demo-x.root.train-driver")
        (('train', False), ('train', True))
    """
    match = _TASK.search(re.sub(r"\(\d+\)", "", node))
    return (match[1], bool(match[2])) if match else ("", False)


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a workflow.

    Attributes:
        task: Name of its task; "" for a node of the whole run.
        driver: True for a driver.
        name: Name of the node, without numbers of retries.
        phase: Argo's phase: Pending, Running, Succeeded, Failed, Error, Skipped or Omitted.
        message: Argo's message.
        pod: Name of its pod; "" for a node without one.
        started: Time of its start; None if unknown.
        ended: Time of its end; None if it has not ended.
    """

    task: str
    driver: bool
    name: str
    phase: str
    message: str
    pod: str
    started: datetime | None = None
    ended: datetime | None = None

    @property
    def failed(self) -> bool:
        """True if it failed."""
        return self.phase in _FAILED


@dataclass(frozen=True, slots=True)
class Workflow:
    """A workflow.

    Attributes:
        nodes: Its nodes; empty if Argo has made none yet, or stores them elsewhere.
        message: Message of the whole workflow.
        terminated: True if its end was requested.
        offloaded: True if its nodes are in Argo's database.
    """

    nodes: tuple[Node, ...]
    message: str = ""
    terminated: bool = False
    offloaded: bool = False

    @classmethod
    def from_json(cls, text: str) -> Workflow:
        """Read a manifest.

        Raises:
            ValueError: The text is no manifest of a workflow.
        """
        try:
            values = json.loads(text)
            status = values.get("status") or {}
            name = values["metadata"]["name"]
            stored = status.get("nodes") or _decompressed(status.get("compressedNodes") or "")
            nodes = tuple(_node(name, each) for each in stored.values())
            # KFP requests the end of a run by a deadline of 0; pipelines of this package set none.
            terminated = (values.get("spec") or {}).get("activeDeadlineSeconds") == 0
            offloaded = not nodes and bool(status.get("offloadNodeStatusVersion"))
            return cls(nodes, str(status.get("message") or ""), terminated, offloaded)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a workflow: {error!r}") from error

    @property
    def stopped(self) -> bool:
        """True if the run was terminated, rather than failed."""
        return self.terminated or self.message.startswith(_STOPPED)

    def state(self, task: str) -> str:
        """Return KFP's state of a task; "" if its executor was never started."""
        whole = self._whole(task)
        return _STATES.get(whole.phase, whole.phase.upper()) if whole is not None else ""

    def driver_failed(self, task: str) -> bool:
        """Return True if a task's driver failed, so that the task never started."""
        return any(node.driver and node.failed for node in self.nodes if node.task == task)

    def ended(self, task: str) -> datetime | None:
        """Return the end of a task's executor; None if it has not ended."""
        whole = self._whole(task)
        return whole.ended if whole is not None else None

    def _whole(self, task: str) -> Node | None:
        nodes = [node for node in self.nodes if node.task == task and not node.driver]
        return next((node for node in nodes if node.name.endswith(f".root.{task}")), None)

    def started(self, task: str) -> datetime | None:
        """Return the start of the first pod of a task's executor that runs or has ended; None if there is none."""
        for node in self.nodes:
            if node.task == task and node.pod and not node.driver and node.phase not in ("Pending", ""):
                return node.started
        return None

    def failed_driver(self, task: str) -> str:
        """Return the pod of a task's driver that failed, "" if none did.

        Args:
            task: Name of the task; "" for the driver of the whole run.
        """
        for node in reversed(self.nodes):
            driver = node.driver if task else node.name.endswith(".root-driver")
            if driver and node.failed and node.task == task and node.pod:
                return node.pod
        return ""

    def pod(self, task: str) -> str:
        """Return the name of the last pod of a task's executor; "" if there is none."""
        return next((n.pod for n in reversed(self.nodes) if n.task == task and n.pod and not n.driver), "")

    def reason(self, task: str = "") -> str:
        """Return the messages of failed nodes.

        Args:
            task: Name of a task; "" for the whole run: its own nodes, else all.
        """
        failed = [node for node in self.nodes if node.failed]
        chosen = [node for node in failed if node.task == task] or ([] if task else failed)
        said = _distinct(node.message for node in chosen)
        return "; ".join(said or ([] if task or not self.message else [self.message]))

    def waiting(self) -> dict[str, tuple[str, str]]:
        """Return the pod and message of each task that waits for its pod to start."""
        return {
            node.task: (node.pod, node.message)
            for node in self.nodes
            if node.task and node.phase == "Pending" and node.message
        }


def _decompressed(text: str) -> dict[str, Any]:
    """Return compressed nodes; none for ""."""
    if not text:
        return {}
    try:
        data = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(base64.b64decode(text), _MOST_NODES)
    except zlib.error as error:
        raise ValueError(f"compressed nodes: {error}") from error
    nodes: dict[str, Any] = json.loads(data)
    return nodes


def _node(workflow: str, values: Mapping[str, Any]) -> Node:
    name = str(values.get("name", ""))
    task, driver = task_of(name)
    template = values.get("templateName") or (values.get("templateRef") or {}).get("template") or ""
    prefix = f"{workflow}-{template}"[:_PREFIX]
    pod = f"{prefix}-{str(values['id']).rpartition('-')[2]}" if values.get("type") == "Pod" else ""
    message = str(values.get("message") or "")
    phase = str(values.get("phase") or "")
    return Node(
        task,
        driver,
        re.sub(r"\(\d+\)", "", name),
        phase,
        message,
        pod,
        time_of(values.get("startedAt")),
        time_of(values.get("finishedAt")),
    )


def time_of(value: object) -> datetime | None:
    """Return a time in Kubernetes' form; None if it is none.

    Args:
        value: The time, such as ``2026-01-31T12:00:00Z``.
    """
    try:
        return datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    except ValueError:
        return None


def _distinct(messages: Iterable[str]) -> list[str]:
    """Return the messages that say something, the bare exit codes only if there is nothing else."""
    said = [m for m in dict.fromkeys(messages) if m and not _ECHO.fullmatch(m)]
    return [m for m in said if not _EXIT.fullmatch(m)] or said
