"""Argo's workflow of a run: its nodes, drivers, retries, deadline, and what of it is reported to the API server."""

from __future__ import annotations

import base64
import gzip
import json
import signal
import threading
import time
import traceback
import uuid
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from . import launcher, platform
from .launcher import Task
from .store import Refused, now

if TYPE_CHECKING:
    from .server import FakeKfp

# argo/workflow/packer/packer.go:15-20 (MAX_WORKFLOW_SIZE); etcd's and the API server's limits of a request.
WORKFLOW, ETCD, REQUEST = 1 << 20, 3 << 19, 3 << 20
_FINAL = ("Succeeded", "Failed", "Error", "Skipped", "Omitted")
# common/util/workflow.go: a node's phase as a state; an omitted node has none, so the field is left out.
_STATES = {
    "Pending": "PENDING", "Running": "RUNNING", "Succeeded": "SUCCEEDED", "Skipped": "SKIPPED", "Failed": "FAILED",
    "Error": "FAILED",
}  # fmt: skip
# manifests/kustomize/third-party/argo/base/workflow-controller-configmap-patch.yaml:49-59 (2.17).
_DEFAULT_RETRIES = 2


def fnv(text: str) -> int:
    """Return the 32-bit FNV-1a hash, as in Argo's names of nodes."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


class Node:
    """A node of a workflow: a DAG, a retry or a pod."""

    def __init__(
        self, workflow: Workflow, name: str, kind: str, template: str, task: Task | None = None
    ) -> None:
        self.workflow, self.name, self.kind, self.template, self.task = workflow, name, kind, template, task
        self.display = name.rpartition(".")[2]
        parts = name.split(".")
        # The task of a node, or its driver: the third part of its name.
        self.of = parts[2].partition("(")[0] if len(parts) > 2 else ""
        self.phase = "Running"
        self.message = ""
        self.said = "driver\n"
        self.code = 0
        self.status: dict[str, Any] = {}
        self.children: list[str] = []
        self.started = time.monotonic()
        self.exists = True
        self.created = now()
        self.ended = ""
        self.log_from = 0

    @property
    def id(self) -> str:
        return (
            self.workflow.name
            if self.name == self.workflow.name
            else f"{self.workflow.name}-{fnv(self.name)}"
        )

    @property
    def pod(self) -> str:
        return f"{self.workflow.name}-{self.template}-{fnv(self.name)}"

    @property
    def final(self) -> bool:
        return self.phase in _FINAL

    def end(self, phase: str, message: str = "", code: int = 0) -> None:
        if not self.final:
            self.phase, self.message, self.code = phase, message, code
            self.ended = now()

    @property
    def log(self) -> bytes:
        """The log of the pod: its part of what all attempts of its task printed."""
        if self.task is None:
            return self.said.encode()
        later = [
            n.log_from
            for n in self.workflow.nodes.values()
            if n.task is self.task and n.log_from > self.log_from
        ]
        return self.task.log.encode()[self.log_from : min(later, default=None)]


class Workflow:
    """A workflow, which works through its tasks in a thread."""

    def __init__(self, fake: FakeKfp, run_id: str, body: dict) -> None:
        self.fake = fake
        self.run_id = run_id
        self.body = body
        self.lock = threading.RLock()
        spec = body["pipeline_spec"]
        self.platform = spec.get("platform_spec", {})
        self.pipeline = spec.get("pipeline_spec", spec)
        self.name = f"{self.pipeline['pipelineInfo']['name'][:40]}-{uuid.uuid4().hex[:5]}"
        # 2.17: templateDefaults put a retry on every template, DAGs too.
        self.retries_all = fake.version >= (2, 17)
        self.nodes: dict[str, Node] = {}
        self.terminated = False
        self.collected = False
        self.started = time.monotonic()
        self.ended_at: float | None = None
        self.tasks = {
            name: Task(name, task, fake.folder / self.name / name)
            for name, task in self.pipeline["root"]["dag"]["tasks"].items()
        }
        for each in self.tasks.values():
            each.popen = (
                partial(fake.popen, drops_capabilities=True) if fake.drops_capabilities else fake.popen
            )
        self._executors: dict[str, dict[str, Any]] = {}
        self._arguments: dict[str, list[dict[str, str]]] = {}
        self.parameters = self._run_parameters()
        self.spec = self._compiled()
        self.spec_size = len(json.dumps(self.spec).encode())
        if self.spec_size > REQUEST:
            raise Refused(
                500,
                "InternalServerError: Failed to create a workflow: Request entity too large: limit is 3145728",
            )
        if self.spec_size > ETCD:
            raise Refused(
                500, "InternalServerError: Failed to create a workflow: etcdserver: request is too large"
            )
        # Bytes with all nodes as they are, and with compressed ones.
        self.size = self.packed_size = self.spec_size
        self._measured, self._measured_at = 0, 0.0
        self._waiting: list[tuple[float, list[dict]]] = []
        self.idle = False
        self.retried = 0
        self.thread = threading.Thread(target=self._work, daemon=True)

    # -- compilation -------------------------------------------------------------------------------------------------

    def configuration(self, task: Task) -> dict:
        executors = (
            self.platform.get("platforms", {})
            .get("kubernetes", {})
            .get("deploymentSpec", {})
            .get("executors", {})
        )
        return executors.get(self._label(task), {})

    def container(self, task: Task) -> dict:
        return self.pipeline["deploymentSpec"]["executors"][self._label(task)]["container"]

    def component(self, task: Task) -> dict:
        return self.pipeline["components"][task.spec["componentRef"]["name"]]

    def _label(self, task: Task) -> str:
        return self.component(task)["executorLabel"]

    def pod_labels(self, task: Task) -> dict[str, str]:
        # 2.5: v2/compiler/argocompiler/container.go:276-289,447: the first task's metadata is on every executor's pod.
        of = next(iter(self.tasks.values())) if self.fake.version < (2, 14) else task
        return platform.metadata(self.configuration(of), self.fake.version).get("labels", {})

    def _run_parameters(self) -> dict[str, Any]:
        """Return the run's parameters, defaults among them; refuse those of another type.

        Source: apiserver/template/v2_template.go, validatePipelineJobInputs; v2/compiler/argocompiler/argo.go:97-107.
        """
        given = (self.body.get("runtime_config") or {}).get("parameters") or {}
        found = {}
        for name, about in (
            self.pipeline.get("root", {}).get("inputDefinitions", {}).get("parameters", {}).items()
        ):
            if name not in given and "defaultValue" not in about:
                if about.get("isOptional"):
                    continue
                raise Refused(
                    400, f"parameter {name} is not optional, yet has neither default value nor user value"
                )
            found[name] = given.get(name, about.get("defaultValue"))
            expected = about["parameterType"].replace("NUMBER_INTEGER", "NUMBER_DOUBLE")
            if name in given and launcher.kind_of(given[name]) != expected:
                raise Refused(400, f"input parameter {name} requires type {expected.lower()}")
        return {name: launcher.through_protobuf(value) for name, value in found.items()}

    def _compiled(self) -> dict:
        """Return the workflow's spec; refuse what the compiler or Argo's validation refuses.

        Source: apiserver/template/v2_template.go, v2/compiler/argocompiler; each refusal is 500/13.
        """
        if self.pipeline.get("schemaVersion") != "2.1.0" or "root" not in self.pipeline:
            raise Refused(500, "InternalServerError: invalid v2 pipeline: schemaVersion")
        if problem := platform.pipeline_problem(self.platform, self.fake.version):
            raise Refused(500, f"InternalServerError: {problem}")
        parameters: dict[str, str] = {}
        dag: list[dict] = []
        for task in self.tasks.values():
            config = self.configuration(task)
            if field := platform.refused_field(config, self.fake.version):
                raise Refused(
                    500,
                    f'InternalServerError: failed to unmarshal kubernetes config: unknown field "{field}"',
                )
            component = json.dumps({k: v for k, v in self.component(task).items() if k != "name"})
            box = json.dumps(self.container(task))
            keys = (f"components-{fnv(component)}", f"implementations-{fnv(box)}", f"kubernetes-{task.name}")
            parameters |= dict(zip(keys, (component, box, json.dumps(config)), strict=True))
            depends = " && ".join(f"{n}.Succeeded" for n in task.spec.get("dependentTasks", ()))
            self._arguments[task.name] = [
                {"name": "component", "value": component},
                {"name": "task", "value": json.dumps(task.spec)},
                {"name": "container", "value": box},
                {"name": "kubernetes-config", "value": json.dumps(config)},
                {"name": "task-name", "value": task.name},
            ]
            dag.append(
                {
                    "name": f"{task.name}-driver",
                    "template": "system-container-driver",
                    "depends": depends,
                    "arguments": {
                        "parameters": [
                            {"name": "component", "value": f"{{{{workflow.parameters.{keys[0]}}}}}"},
                            {"name": "task", "value": json.dumps(task.spec)},
                            {"name": "container", "value": f"{{{{workflow.parameters.{keys[1]}}}}}"},
                            {"name": "parent-dag-id", "value": "{{inputs.parameters.parent-dag-id}}"},
                            {"name": "kubernetes-config", "value": f"{{{{workflow.parameters.{keys[2]}}}}}"},
                            {"name": "task-name", "value": task.name},
                        ]
                    },
                }
            )
            outputs = ("pod-spec-patch", "cached-decision")
            dag.append(
                {
                    "name": task.name,
                    "template": "system-container-executor",
                    "depends": f"{task.name}-driver.Succeeded",
                    "arguments": {
                        "parameters": [
                            {"name": n, "value": f"{{{{tasks.{task.name}-driver.outputs.parameters.{n}}}}}"}
                            for n in outputs
                        ]
                    },
                }
            )
        names = [each["name"] for each in dag]
        if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
            raise Refused(
                500,
                f"InternalServerError: Failed to create a workflow: templates.root.tasks.{twice} is not unique",
            )
        return {
            "serviceAccountName": self.body.get("service_account") or self.fake.default_account,
            "arguments": {"parameters": [{"name": k, "value": v} for k, v in parameters.items()]},
            "runtime-config": json.dumps({"parameterValues": self.parameters}),
            "templates": [{"name": "root", "dag": {"tasks": dag}}],
        }

    # -- what is seen of it ------------------------------------------------------------------------------------------

    @property
    def phase(self) -> str:
        return self.nodes[self.name].phase if self.name in self.nodes else "Pending"

    @property
    def ended(self) -> bool:
        return self.phase in _FINAL

    @property
    def compressed(self) -> bool:
        """True if Argo compresses the nodes, which the API server does not decompress."""
        return self.size > self.fake.compress_above

    def _measure(self) -> None:
        """Compute the bytes of the workflow, when nodes were added (argo workflow/packer/packer.go)."""
        count, moment = len(self.nodes), time.monotonic()
        if count == self._measured or (count < self._measured * 1.1 and moment < self._measured_at + 2):
            return
        self._measured, self._measured_at = count, moment
        nodes = json.dumps({node.id: self._stored(node) for node in self.nodes.values()}).encode()
        self.size = self.spec_size + len(nodes)
        if self.compressed:
            self.packed_size = self.spec_size + len(base64.b64encode(gzip.compress(nodes)))

    def _stored(self, node: Node) -> dict[str, Any]:
        """Return a node as Argo stores it.

        A node has its template's inputs (argo operator.go, initializeExecutableNode), and a retry the outputs of its
        last child. So the patch of a task's pod is stored with its driver, twice or four times, and in all nodes below
        its task.
        """
        values: dict[str, Any] = {
            "id": node.id,
            "name": node.name,
            "displayName": node.display,
            "type": node.kind,
            "templateName": node.template,
            "templateScope": f"local/{self.name}",
            "phase": node.phase,
            "boundaryID": self.name,
            "startedAt": node.created,
            **({"finishedAt": node.ended} if node.ended else {}),
            "progress": "1/1",
            "resourcesDuration": {"cpu": 1, "memory": 10},
            **({"message": node.message} if node.message else {}),
            **({"children": node.children} if node.children else {}),
        }
        task = self.tasks.get(node.of.removesuffix("-driver"))
        if task is None or node.kind == "Skipped":
            return values
        patch = [
            {"name": "pod-spec-patch", "value": task.patch},
            {"name": "cached-decision", "value": "false"},
        ]
        if node.of.endswith("-driver"):
            values["inputs"] = {"parameters": self._arguments[task.name]}
            if node.phase == "Succeeded":
                values["outputs"] = {"parameters": patch}
        else:
            values["inputs"] = {"parameters": patch}
        return values

    def pods(self) -> list[Node]:
        with self.lock:
            return [
                node
                for node in self.nodes.values()
                if node.kind == "Pod" and node.exists and node.phase != "Omitted"
            ]

    def manifest(self) -> dict:
        """Return the workflow as ``pipeline_runtime.workflow_manifest`` has it (server/api_converter.go:1695-1715)."""
        with self.lock:
            spec = dict(self.spec)
            if self.terminated:
                spec["activeDeadlineSeconds"] = 0  # common/util/execution_spec.go:294
            status: dict[str, Any] = {"phase": self.phase}
            if self.name in self.nodes and self.nodes[self.name].message:
                status["message"] = self.nodes[self.name].message
            nodes = {node.id: self._stored(node) for node in self.nodes.values()}
            if self.compressed and self.fake.offloads:
                # argo persist/sqldb/offload_node_status_repo.go: nodes are in the controller's database.
                status["offloadNodeStatusVersion"] = f"fnv:{fnv(json.dumps(nodes))}"
            elif self.compressed:
                packed = base64.b64encode(gzip.compress(json.dumps(nodes).encode()))
                status["compressedNodes"] = packed.decode()
            else:
                status["nodes"] = nodes
            return {
                "metadata": {
                    "name": self.name,
                    "namespace": self.fake.namespace,
                    # apiserver/template/v2_template.go (RunWorkflow)
                    "labels": {"pipeline/runid": self.run_id},
                    "annotations": {"pipelines.kubeflow.org/run_name": self.body.get("display_name", "")},
                },
                "spec": spec,
                "status": status,
            }

    def details(self) -> list[dict]:
        """Return the tasks that the API server stores: of nodes that Argo has made, ids in place of pods' names.

        Source: common/util/workflow.go:906-918.
        """
        if self.compressed or not self.fake.task_details:
            return []
        found = []
        for node in self.nodes.values():
            detail: dict[str, Any] = {
                "run_id": self.run_id,
                "task_id": str(uuid.uuid5(uuid.UUID(int=0), node.id)),
                "display_name": node.display,
                "create_time": node.created,
                "start_time": node.created,
                **({"end_time": node.ended} if node.ended else {}),
            }
            if node.phase in _STATES:
                detail["state"] = _STATES[node.phase]
            if node.children:
                detail["child_tasks"] = [{"pod_name": child} for child in node.children]
            found.append(detail)
        return found

    def state(self) -> str:
        # common/util/workflow.go:314-318: a final workflow is no longer terminating; nothing sets CANCELED.
        if self.terminated and not self.ended:
            return "CANCELING"
        return _STATES[self.phase]

    # -- the controller ----------------------------------------------------------------------------------------------

    def terminate(self) -> None:
        with self.lock:
            self.terminated = True

    def retry(self) -> None:
        """Keep what succeeded, and start again what did not (common/util/workflow.go:201-274).

        Failed pods and retries vanish from the workflow, and their pods are deleted; DAGs run again. New
        nodes have the names and ids of the old ones.
        """
        with self.lock:
            if busy := next((n for n in self.nodes.values() if not n.final), None):
                raise Refused(500, f"Workflow cannot be retried with node {busy.pod} in {busy.phase} phase")
            self.retried += 1
            self.terminated = self.collected = False
            self.ended_at = None
            self._waiting = []
            failed = {task.name for task in self.tasks.values() if self._failed(task)}
            root_failed = not any(".root" in name and n.kind == "DAG" for name, n in self.nodes.items())
            dags = {n.name for n in self.nodes.values() if n.kind == "DAG"}
            keep = {}
            for name, node in self.nodes.items():
                if node.phase in ("Succeeded", "Skipped"):
                    keep[name] = node
                elif (name in dags or f"{name}(0)" in dags) and not root_failed:
                    node.phase, node.message = "Running", ""
                    keep[name] = node
            self.nodes = keep if not root_failed else {}
            ids = {node.id for node in self.nodes.values()}
            for node in self.nodes.values():
                node.children = [child for child in node.children if child in ids]
            for name in failed:
                task = self.tasks[name]
                task.end(signal.SIGKILL)
                task.tries, task.process, task.lost = 0, None, False
                task.folder = self.fake.folder / self.name / f"{name}-again-{self.retried}"
                box = self._executors.pop(name, None)
                if box is not None and not root_failed:
                    outer = box["outer"]
                    if outer is not None:
                        outer = self._node(
                            box["dag"], f"{box['dag'].name}.executor", "Retry", "system-container-impl"
                        )
                    self._executors[name] = {**box, "outer": outer, "first": time.monotonic(), "next": 0.0}
                    self._attempt(task)
            if self.idle:
                self.idle = False
                self.thread = threading.Thread(target=self._work, daemon=True)
                self.thread.start()

    def _failed(self, task: Task) -> bool:
        try:
            return self._phase(task) != "Succeeded"
        except KeyError:
            return True

    def kill(self) -> None:
        for task in self.tasks.values():
            task.end(signal.SIGKILL)
            if task.process is not None:
                task.process.wait()

    def stop(self) -> None:
        with self.lock:
            self.collected = True

    def _work(self) -> None:
        try:
            time.sleep(self.fake.delay)
            while not self.collected:
                with self.lock:
                    if not self.ended:
                        self._advance()
                    self._report()
                    if self._over():
                        self.idle = True
                        return
                time.sleep(0.02)
        except BaseException:
            self.fake.problems.append(traceback.format_exc())
            with self.lock:
                for node in self.nodes.values():
                    node.end("Error", "the fake failed")
                self._report()
        finally:
            if self.collected:
                self.kill()

    def _over(self) -> bool:
        """Return True if nothing is left to do; processes of ended pods are killed after their grace."""
        row = self.fake.runs.get(self.run_id)
        if row is None and time.monotonic() - self.started > self.fake.gc_grace:
            self.collected = True  # resource_manager.go:1570-1600: a workflow without a row is deleted
        if self.ended:
            self.ended_at = self.ended_at or time.monotonic()
            alive = [
                task
                for task in self.tasks.values()
                if task.process is not None and task.process.poll() is None
            ]
            if alive and time.monotonic() - self.ended_at > self.fake.grace:
                for task in alive:
                    task.end(signal.SIGKILL)
            if time.monotonic() - self.ended_at > self.fake.ttl:
                self.collected = True
            told = row is not None and not self._waiting and row.tasks_seen == self.details()
            return self.collected or (told and not alive and self.fake.ttl > 3600)
        return self.collected

    def _report(self) -> None:
        """Report to the API server as the persistence agent does: the state first, the tasks later.

        Source: apiserver/server/report_server.go.
        """
        row = self.fake.runs.get(self.run_id)
        if row is None:
            return
        moment = time.monotonic()
        if not self._waiting and (details := self.details()) != row.tasks_seen:
            self._waiting.append((moment + self.fake.agent_lag, details))
        row.report(self.state())
        while self._waiting and self._waiting[0][0] <= moment:
            row.tasks_seen = self._waiting.pop(0)[1]

    def _node(
        self, parent: Node | None, name: str, kind: str, template: str, task: Task | None = None
    ) -> Node:
        node = Node(self, name, kind, template, task)
        self.nodes[name] = node
        if parent is not None:
            parent.children.append(node.id)
        return node

    def _pair(self, parent: Node | None, name: str, kind: str, template: str) -> Node:
        """Make a node, inside a retry where all templates have one; return the inner one."""
        if not self.retries_all:
            return self._node(parent, name, kind, template)
        outer = self._node(parent, name, "Retry", template)
        return self._node(outer, f"{name}(0)", kind, template)

    def _advance(self) -> None:
        if self.name not in self.nodes:
            self._begin()
            return
        self._measure()
        if self.packed_size > WORKFLOW:
            # argo/workflow/controller/operator.go:748: too large even with its nodes compressed.
            size = self.packed_size
            self._end_all(
                "Error",
                f"workflow is longer than maximum allowed size. compressed size {size} > maxSize {WORKFLOW}",
            )
            return
        if self.terminated:
            # argo exec_control.go:57-66: nodes fail at once, and pods have their grace.
            for task in self.tasks.values():
                if self.fake.term_reaches_python:
                    task.end(signal.SIGTERM)
            for node in self.nodes.values():
                if node.kind == "Pod":
                    node.end("Failed", "Step exceeded its deadline")
            self._end_all("Failed", "Max duration limit exceeded")
            return
        if self.fake.pausing:
            return
        for task in self.tasks.values():
            self._step(task)
        failed = any(self._phase(task) in ("Failed", "Error") for task in self.tasks.values())
        running = [task for task in self.tasks.values() if self._is_running(task)]
        if failed:
            self._omit()
            if not running:
                self._end_all("Failed")
            return
        if all(self._phase(task) == "Succeeded" for task in self.tasks.values()):
            self._end_all("Succeeded")
            return
        for task in self.tasks.values():
            # argo dag.go:199-224 (failFast): nothing starts once a task has failed.
            needs = task.spec.get("dependentTasks", [])
            driver = self._inner(f"{task.name}-driver")
            if driver is not None and driver.phase == "Running":
                self._end_driver(task, driver)
            elif driver is None and all(self._phase(self.tasks[n]) == "Succeeded" for n in needs):
                self._drive(task)
            elif driver is not None and driver.phase == "Succeeded" and self._inner(task.name) is None:
                self._begin_task(task)

    def _begin(self) -> None:
        root = self._pair(None, self.name, "DAG", "entrypoint")
        driver = self._pair(root, f"{root.name}.root-driver", "Pod", "system-dag-driver")
        account = self.spec["serviceAccountName"]
        problem = self.fake.broken_drivers.get("root", "") or self._root_problem(account)
        if account not in self.fake.accounts:
            driver.exists = False
            problem = (
                f'pods "{driver.pod}" is forbidden: error looking up service account '
                f'{self.fake.namespace}/{account}: serviceaccount "{account}" not found'
            )
            self._close(driver, "Error", problem)
        elif problem:
            self._fail_driver(driver, problem)
        if problem:
            self._end_all("Failed")
            return
        self._close(driver, "Succeeded")
        self._pair(root, f"{root.name}.root", "DAG", "root")

    def _root_problem(self, account: str) -> str:
        """Return the reason for which the first driver fails; "" if it does not.

        Source: v2/driver/root_dag.go: the configuration map ``kfp-launcher`` (v2/config/env.go, FromConfigMap), the
        provider of the pipeline root (GetStoreSessionInfo), the pipeline in ML Metadata (GetPipeline).
        """
        failed, namespace = "driver.RootDAG(pipelineName=demo) failed", self.fake.namespace
        if account in self.fake.powerless:
            user = f"system:serviceaccount:{namespace}:{account}"
            return (
                f'{failed}: configmaps "kfp-launcher" is forbidden: User "{user}" cannot get resource "configmaps" '
                f'in API group "" in the namespace "{namespace}"'
            )
        if not (root := self.fake.root(self.body)).startswith(("minio://", "s3://", "gs://")):
            return f"{failed}: unsupported Cloud bucket: {root!r}"
        if not self.fake.metadata:
            return f"{failed}: rpc error: code = Unavailable desc = connection refused"
        return ""

    @property
    def _root(self) -> Node:
        end = "(0)" if self.retries_all else ""
        return self.nodes[f"{self.name}{end}.root{end}"]

    def _inner(self, name: str) -> Node | None:
        """Return the node of a task of the root, the one inside its retry."""
        whole = f"{self._root.name}.{name}"
        return self.nodes.get(f"{whole}(0)" if self.retries_all else whole) or self.nodes.get(whole)

    def _close(self, node: Node, phase: str, message: str = "") -> None:
        node.end(phase, message)
        outer = self.nodes.get(node.name.removesuffix("(0)"))
        if outer is not None:
            outer.end(phase, message)

    def _end_all(self, phase: str, message: str = "") -> None:
        for node in self.nodes.values():
            node.end(phase)
        self.nodes[self.name].message = message

    def _phase(self, task: Task) -> str:
        dag, driver = self._inner(task.name), self._inner(f"{task.name}-driver")
        if dag is not None:
            return dag.phase
        return driver.phase if driver is not None and driver.phase in ("Failed", "Error") else "Running"

    def _is_running(self, task: Task) -> bool:
        dag = self._inner(task.name)
        return dag is not None and not dag.final

    def _omit(self) -> None:
        for task in self.tasks.values():
            needs = [self._phase(self.tasks[n]) for n in task.spec.get("dependentTasks", ())]
            if (
                any(p in ("Failed", "Error", "Omitted") for p in needs)
                and self._inner(f"{task.name}-driver") is None
            ):
                for name in (f"{task.name}-driver", task.name):
                    node = self._node(
                        self._root, f"{self._root.name}.{name}", "Skipped", "system-container-executor"
                    )
                    node.end("Omitted", "omitted: depends condition not met")

    def _fail_driver(self, driver: Node, problem: str) -> None:
        """End a driver with an error, which only its log says.

        Source: argo operator.go, inferFailedReason: a message is the container's exit code and what is in its
        termination log, where KFP's driver writes nothing (v2/cmd/driver/main.go).
        """
        driver.said = f"F1128 10:00:00.000000 1 main.go:80] KFP driver: {problem}\n"
        self._close(driver, "Failed", "main: Error (exit code 1)")

    def _drive(self, task: Task) -> None:
        driver = self._pair(
            self._root, f"{self._root.name}.{task.name}-driver", "Pod", "system-container-driver"
        )
        self._end_driver(task, driver)

    def _end_driver(self, task: Task, driver: Node) -> None:
        """End a driver after its time: each is a pod of its own, which takes seconds to start."""
        if time.monotonic() - driver.started < self.fake.driver_seconds:
            return
        problem = self.fake.broken_drivers.get(task.name, "") or platform.driver_problem(
            self.container(task),
            self.configuration(task),
            self.fake.version,
            workspace=platform.mounts_workspace(self.platform, self.fake.version),
        )
        if problem:
            self._fail_driver(driver, problem)
        else:
            with suppress(ValueError):  # the attempt fails on it
                task.patch = launcher.patch(self.container(task), self.given(task))
            self._close(driver, "Succeeded")

    # -- executors ---------------------------------------------------------------------------------------------------

    def _policy(self, task: Task) -> tuple[int, bool, dict]:
        """Return the most retries, True if failures are retried rather than errors, and the policy in the pipeline.

        Source: v2/compiler/argocompiler/container.go:600-680 names no policy, so Argo's default (OnFailure) holds
        until 2.17, whose templateDefaults say OnError (argo operator.go:1100-1125, 2133).
        """
        own = task.spec.get("retryPolicy", {})
        most = int(own.get("maxRetryCount", 0))
        return (most or _DEFAULT_RETRIES, False, own) if self.retries_all else (most, True, own)

    def _begin_task(self, task: Task) -> None:
        dag = self._pair(self._root, f"{self._root.name}.{task.name}", "DAG", "system-container-executor")
        name = f"{dag.name}.executor"
        if self._policy(task)[0]:
            outer = self._node(dag, name, "Retry", "system-container-impl")
            self._executors[task.name] = {"dag": dag, "outer": outer, "first": time.monotonic(), "next": 0.0}
        else:
            self._executors[task.name] = {"dag": dag, "outer": None, "first": time.monotonic(), "next": 0.0}
        self._attempt(task)

    def _attempt(self, task: Task) -> None:
        box = self._executors[task.name]
        outer, dag = box["outer"], box["dag"]
        name = f"{dag.name}.executor"
        task.tries += 1
        task.process, task.lost = None, False
        box["next"] = 0.0
        box["pod"] = node = self._node(
            outer or dag, f"{name}({task.tries - 1})" if outer else name, "Pod", "system-container-impl", task
        )
        node.log_from = len(task.log.encode())
        config, container = self.configuration(task), self.container(task)
        try:
            given = self.given(task)
        except ValueError as error:
            node.exists = False
            node.end("Error", f"failed to resolve inputs: {error}")
            return
        # argo/workflow/controller/workflowpod.go:462-541; KFP's role for Argo may not create configuration maps.
        if launcher.template_size(container, given) > launcher.TEMPLATE:
            node.exists = False
            node.end(
                "Error",
                'configmaps is forbidden: User "system:serviceaccount:kubeflow:argo" cannot create resource '
                '"configmaps"',
            )
            return
        if problem := platform.pod_problem(config, self.fake.claims, self.fake.version):
            node.exists = False
            node.end("Error", f'Pod "{node.pod}" is invalid: {problem}')
            return
        if problem := self.fake.refused_pods.get(task.name, ""):
            # A quota counts as transient: Argo makes no pod and tries again, for ever.
            node.exists = False
            node.phase, node.message = "Pending", f'pods "{node.pod}" is forbidden: {problem}'
            return
        if task.name in self.fake.stuck:
            node.phase, node.status = "Pending", self.fake.stuck[task.name]
            node.message = _pending(node.status)
            return
        variables, problem = launcher.secrets(config, self.fake.secrets)
        waiting = {"reason": "CreateContainerConfigError", "message": problem} if problem else None
        if self.fake.packages(container) is None:
            waiting = {
                "reason": "ImagePullBackOff",
                "message": f'Back-off pulling image "{container["image"]}"',
            }
        if waiting:
            from .kube import container as status

            node.phase, node.status = "Pending", {"containerStatuses": [status("main", waiting=waiting)]}
            node.message = _pending(node.status)
            return
        task.folder.mkdir(parents=True, exist_ok=True)
        artifacts = launcher.resolve_artifacts(task.spec, self.tasks)
        if problem := launcher.bring(task, artifacts, self.tasks, self.fake.root(self.body)):
            task.say(problem)
            node.end("Failed", "Error (exit code 1)", 1)
            return
        given["inputs"]["artifacts"] = {name: {"artifacts": [found]} for name, found in task.read.items()}
        try:
            launcher.start(
                task, container, given, variables | self.fake.identity(node), self.fake.absent(container)
            )
        except OSError as error:
            task.say(str(error))
            node.end("Failed", "Error (exit code 1)", 1)

    def _constant(self, value: Any) -> Any:
        """Return a constant with the values of its placeholders."""
        # v2/driver/resolve.go:440: a constant that is the placeholder as a whole.
        if value == "{{$.pipeline_job_uuid}}":
            return self.run_id
        if isinstance(value, str) and platform.mounts_workspace(self.platform, self.fake.version):
            place = self.fake.folder / self.name / "workspace"
            place.mkdir(parents=True, exist_ok=True)
            return value.replace(platform.WORKSPACE, str(place))
        return value

    def given(self, task: Task) -> dict[str, Any]:
        """Return what the driver passes to a task whose upstream tasks have ended.

        Raises:
            ValueError: An input cannot be resolved; the message is the driver's.
        """
        outputs = {name: other.outputs for name, other in self.tasks.items()}
        component, artifacts = self.component(task), launcher.resolve_artifacts(task.spec, self.tasks)
        parameters = launcher.resolve_parameters(
            task.spec, component, self.parameters, outputs, self._constant
        )
        return launcher.executor_input(task, component, parameters, artifacts, self.fake.version)

    def _step(self, task: Task) -> None:
        box = self._executors.get(task.name)
        if box is None or box["dag"].final:
            return
        node: Node = box["pod"]
        most, on_failure, own = self._policy(task)
        longest = _seconds(own.get("backoffMaxDuration")) or float("inf")
        if not node.final:
            code = task.ended()
            deadline = _seconds(self.configuration(task).get("activeDeadlineSeconds")) or float("inf")
            if task.lost:
                task.end(signal.SIGKILL)
                node.end("Error", "pod deleted")
            elif code is not None:
                node.exists = True
                problem = ""
                if code == 0:
                    problem = launcher.publish(task, self.component(task), self.fake.root(self.body))
                if problem:
                    task.say(problem)
                code = 1 if problem else 137 if code < 0 else code
                reason = "OOMKilled" if code == 137 else "Error"
                node.end("Failed", f"{reason} (exit code {code})", code) if code else node.end("Succeeded")
            elif task.process is not None and time.monotonic() - node.started > deadline:
                task.end(signal.SIGKILL)
                node.end("Failed", "Pod was active on the node longer than the specified deadline")
            elif task.tries > 1 and time.monotonic() - box["first"] > longest:
                # argo operator.go:1094-1095: the longest duration is the deadline of retried pods.
                task.end(signal.SIGKILL)
                node.end("Failed", "Step exceeded its deadline")
            if not node.final:
                return
        if node.phase == "Succeeded":
            self._finish(task, "Succeeded")
            return
        retried = node.phase == ("Failed" if on_failure else "Error")
        if box["outer"] is None or not retried or task.tries > most:
            self._finish(task, node.phase, "No more retries left" if retried and most else node.message)
            return
        factor = own.get("backoffFactor")
        if factor is not None and float(factor) != int(factor):
            # argo/util/intstr/parametrizable.go:12-45
            self._finish(task, "Error", f'strconv.Atoi: parsing "{factor}": invalid syntax')
            return
        if not box["next"]:
            wait = (_seconds(own.get("backoffDuration")) or 0.0) * (int(factor or 2) ** (task.tries - 1))
            box["next"] = time.monotonic() + wait
        if box["next"] - box["first"] > longest:
            # argo operator.go:1028-1041: counted from the first attempt's start.
            self._finish(task, "Failed", "Max duration limit exceeded")
        elif time.monotonic() >= box["next"]:
            self._attempt(task)

    def _finish(self, task: Task, phase: str, message: str = "") -> None:
        box = self._executors[task.name]
        if box["outer"] is not None:
            box["outer"].end(phase, message)
        self._close(box["dag"], "Failed" if phase == "Error" else phase)


def _seconds(value: Any) -> float | None:
    return float(str(value).rstrip("s")) if value not in (None, "") else None


def _pending(status: dict) -> str:
    """Return the message of a node whose pod waits (argo operator.go, getPendingReason)."""
    for condition in status.get("conditions", ()):
        if condition.get("reason") == "Unschedulable":
            return f"Unschedulable: {condition['message']}"
    for each in status.get("containerStatuses", ()):
        waiting = each["state"].get("waiting", {})
        if waiting.get("reason"):
            return f"{waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
    return ""
