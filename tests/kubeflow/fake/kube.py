"""Kubernetes' calls about pods and workflows, which are objects of `kube_api`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import kube_api
from kube_api.request import Request
from kube_api.resources import Resource

from .store import Refused

if TYPE_CHECKING:
    from .argo import Node, Workflow
    from .server import FakeKfp

_NODE = "workflows.argoproj.io/node-name"
_ARGO = "argoproj.io"
WORKFLOWS = Resource(_ARGO, "v1alpha1", "workflows", "Workflow", status=False)


def container(name: str, **state: dict) -> dict:
    """Return a container's status as Kubernetes reports it."""
    return {
        "name": name,
        "image": "registry.example.org/train:1",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": state,
    }


def answer(fake: FakeKfp, path: str, query: dict[str, str], headers: Mapping[str, str]) -> Any:
    if not fake.kubernetes:
        raise Refused(403, "pods is forbidden")
    fake.asked_kubernetes.append(path)
    if path.endswith("/log"):
        name = path.split("/")[-2]
        assert query["container"] == "main"
        for workflow in fake.workflows:
            for node in workflow.pods():
                if node.pod == name and name not in fake.vanished and not workflow.collected:
                    return log(fake, node, query)
        raise Refused(404, "no such pod")
    refresh(fake)
    request = Request("GET", f"{path}?{urlencode(query)}", headers, b"")
    request.user = "admin"
    try:
        return fake.cluster.answer(request)[1]
    except kube_api.Refused as refused:
        raise Refused(refused.code, str(refused)) from None


def refresh(fake: FakeKfp) -> None:
    """Put the pods of all workflows up to date in the Kubernetes that serves them."""
    found = {
        node.pod: (workflow, node)
        for workflow in list(fake.workflows)
        if not workflow.collected
        for node in workflow.pods()
        if node.pod not in fake.vanished
    }
    for name, (workflow, node) in found.items():
        put(fake, workflow, node, name)
    pods = fake.cluster.store.resources["", "pods"]
    for obj in fake.cluster.all("pods"):
        if _NODE in obj["metadata"].get("annotations", {}) and obj["metadata"]["name"] not in found:
            fake.cluster.store.delete(pods, obj)
    refresh_workflows(fake)


def refresh_workflows(fake: FakeKfp) -> None:
    """Put the workflows up to date in the Kubernetes that serves them; those that were deleted are not there."""
    there = {w.name: w.manifest()["metadata"] for w in list(fake.workflows) if not w.collected}
    # No lock of a workflow is taken below this one.
    with fake.cluster.store.lock:
        for name, metadata in there.items():
            if fake.cluster.get("workflows", fake.namespace, name, _ARGO) is None:
                about = {"apiVersion": f"{_ARGO}/v1alpha1", "kind": "Workflow", "metadata": metadata}
                fake.cluster.put(about)
        for obj in fake.cluster.all("workflows", _ARGO):
            if obj["metadata"]["name"] not in there:
                fake.cluster.store.delete(WORKFLOWS, obj)


def put(fake: FakeKfp, workflow: Workflow, node: Node, name: str) -> dict:
    """Make a pod's object, or change its status; return it."""
    made = pod(workflow, node)
    # No lock of a workflow is taken below this one.
    with fake.cluster.store.lock:
        known = fake.cluster.get("pods", fake.namespace, name)
        if known is None:
            metadata = made["metadata"] | {"namespace": fake.namespace}
            spec = {"containers": [{"name": "main", "image": "x"}, {"name": "wait", "image": "argoexec"}]}
            obj = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
            return fake.cluster.put(obj | {"status": made["status"]})
        if known.get("status") != made["status"]:
            return fake.cluster.set_status("", "pods", fake.namespace, name, made["status"])
        return known


def log(fake: FakeKfp, node: Node, query: dict[str, str]) -> str:
    """Return a pod's log as the kubelet does (``pkg/kubelet/kuberuntime/logs``).

    ``sinceTime`` has whole seconds only; ``limitBytes`` cuts a line; a restart of the container begins another log.
    """
    lines = node.log.decode(errors="replace").splitlines(keepends=True)
    stamps = fake.stamps.setdefault(node.pod, [])
    while len(stamps) < len(lines):
        # Each line gets its time when it is first seen; two at once have the same, as in a burst.
        stamps.append(fake.clock())
    first = fake.restarted.get(node.pod, 0)
    pairs = list(zip(stamps, lines, strict=False))
    pairs = pairs[:first] if query.get("previous") == "true" else pairs[first:]
    if since := query.get("sinceTime"):
        assert "." not in since
        pairs = [(stamp, line) for stamp, line in pairs if stamp[:19] >= since[:19]]
    text = "".join(f"{stamp} {line}" if query.get("timestamps") == "true" else line for stamp, line in pairs)
    if "tailLines" in query:
        text = "".join(text.splitlines(keepends=True)[-int(query["tailLines"]) :])
    return text.encode()[: int(query.get("limitBytes", 1 << 30))].decode(errors="replace")


def pod(workflow: Workflow, node: Node) -> dict:
    labels = {"pipeline/runid": workflow.run_id, "workflows.argoproj.io/workflow": workflow.name}
    if node.task is not None:
        labels |= workflow.pod_labels(node.task)
    status: dict[str, Any] = {"phase": {"Omitted": "Pending", "Error": "Failed"}.get(node.phase, node.phase)}
    if node.task is not None and node.status:
        status |= node.status
    if node.task is not None and node.phase in ("Running", "Succeeded"):
        times = {
            "startedAt": node.created,
            **({"finishedAt": node.ended, "exitCode": 0} if node.ended else {}),
        }
        main = container("main", **{"terminated" if node.ended else "running": times})
        main["restartCount"] = int(node.pod in workflow.fake.restarted)
        status["containerStatuses"] = [main]
    if node.task is not None and node.phase == "Failed" and node.code:
        ended = {"exitCode": node.code, "reason": "OOMKilled" if node.code == 137 else "Error"}
        status["containerStatuses"] = [container("main", terminated=ended)]
    return {
        "metadata": {
            "name": node.pod,
            "labels": labels,
            "annotations": {
                _NODE: node.name,
                "workflows.argoproj.io/node-id": node.id,
            },
        },
        "status": status,
    }
