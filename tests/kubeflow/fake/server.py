"""The API server: its calls, each checked by KFP's own API description (`spec`)."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from email import policy
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
from kube_api import KubeApi
from processes import wait_until
from servers import serving

from . import filters, kube, proxy, store
from .argo import WORKFLOW, Node, Workflow
from .launcher import Task
from .pipelines import Pipelines
from .recurring import RecurringRuns
from .spec import NoOperationError, Operation, gateway_error
from .store import Refused, now

ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
VERSIONS = ("2.5", "2.14", "2.17")
_UNSET = "1970-01-01T00:00:00Z"
# Packages of an image that a stage can run in.
COMPLETE = {"kfp": metadata.version("kfp"), "dvkf_prefect": metadata.version("dvkf-prefect")}
_INSTALLED = re.compile(r"\b(kfp|dvkf[-_]prefect)(?:\[[^]]*\])?(?:==([\w.]+))?(?![-\w.])")


class Run:
    """A run's row."""

    def __init__(self, fake: FakeKfp, run_id: str, body: dict, workflow: Workflow) -> None:
        self.fake = fake
        self.id = run_id
        self.body = body
        self.workflow = workflow
        self.lock = threading.RLock()
        self.state = "PENDING"
        self.tasks_seen: list[dict] = []
        self.storage_state = "AVAILABLE"
        self.created = now()
        self.history = [{"update_time": now(), "state": "PENDING"}]

    @property
    def pipeline(self) -> dict:
        return self.workflow.pipeline

    @property
    def platform(self) -> dict:
        return self.workflow.platform

    @property
    def tasks(self) -> dict[str, Task]:
        return self.workflow.tasks

    def report(self, state: str) -> None:
        with self.lock:
            if state != self.state:
                self.state = state
                self.history.append({"update_time": now(), "state": state})

    def terminate(self) -> None:
        with self.lock:
            # storage/run_store.go:823: only of runs that are not ended and not being terminated.
            if self.state in (*ENDED, "CANCELING"):
                raise Refused(400, "Failed to terminate a run: Row not found")
            self.report("CANCELING")
        self.workflow.terminate()

    def retry(self) -> None:
        """Run what failed again (resource_manager.go:1069-1150, common/util/workflow.go:201-274).

        The workflow's manifest in the run's row decides, which is that of the last report.
        """
        with self.lock:
            if self.state != "FAILED":
                # BadRequest is gRPC's Aborted, which the gateway answers with 409.
                raise Refused(409, "Failed to retry run: Workflow must be Failed/Error to retry", 10)
            self.workflow.retry()
            self.report("RUNNING")

    def as_dict(self) -> dict:
        with self.lock:
            if len(self.tasks_seen) * store.TASK_ROW > store.JOINED:
                raise Refused(500, "InternalServerError: Failed to get run: unexpected end of JSON input")
            # server/api_converter.go:1565-1660 (toApiRun): empty texts and an empty configuration are left out, and
            # times that are not set are those of 1970.
            values = {k: v for k, v in self.body.items() if k != "run_id" and v not in ("", {}, None)}
            if not any((self.body.get("runtime_config") or {}).values()):
                values.pop("runtime_config", None)
            return {
                "service_account": self.fake.default_account,
                **values,
                "run_id": self.id,
                "created_at": self.created,
                "scheduled_at": _UNSET,
                "finished_at": now() if self.state in ENDED else _UNSET,
                "storage_state": self.storage_state,
                "state": self.state,
                "state_history": self.history,
                **({"run_details": {"task_details": self.tasks_seen}} if self.tasks_seen else {}),
            }


class FakeKfp(Pipelines, RecurringRuns):
    """The server; a context manager.

    Attributes:
        version: ``2.5``, ``2.14`` or ``2.17``, as two numbers.
        runs: All runs by id.
        workflows: All workflows that were started, those without a run among them.
        requests: Every request: ``(method, path)``.
        headers: The headers of the last one.
        faults: ``(method, pattern of the path, kind, times)``; see `fault`.
        chaos: Called with method and path of each request without a fault of those; returns a kind, or None.
        compress_above: Bytes of a workflow above which Argo compresses its nodes; Argo has no setting for it.
        offloads: True if Argo stores such nodes in a database (``nodeStatusOffLoad``).
        let: Ends the wait of ``late`` requests.
        happened: Number of faults by kind.
        images: Packages and their versions of each image, by the beginning of its name; others cannot be pulled.
        secrets: Kubernetes' secrets.
        claims: Persistent volume claims; None for all that are named.
        accounts: Service accounts.
        stuck: Tasks whose pods do not start, and their status.
        refused_pods: Tasks whose pods Kubernetes does not make, and the reason.
        powerless: Service accounts without KFP's role.
        metadata: False if ML Metadata does not answer.
        driver_seconds: Seconds that a task's driver takes.
        broken_drivers: Tasks (or ``root``) whose drivers fail, and the reason.
        honours_run_id: Whether a run gets the id that it comes with.
        ui_host: True for the host of KFP's UI, which passes on two APIs only; False for the API server itself.
        multi_user: True for a server that asks Kubernetes about each user and namespace.
        allowed: Namespaces of each user.
        body_limit: Bytes of a request that the proxy passes on.
        term_reaches_python: Whether SIGTERM gets to a stage, or its launcher dies first and it is killed later.
        tls: TLS of the host; None for plain HTTP.
        drops_capabilities: True if stages have none of root's capabilities, as since 2.16
            (v2/driver/security_context.go); ``popen`` must be that of `fake.forks.Host`.
        agent_lag: Seconds between a report of a run's state and of its tasks.
        grace: Seconds from SIGTERM to SIGKILL.
        gc_grace: Seconds until a workflow without a run is deleted.
        ttl: Seconds from a workflow's end until it and its pods are deleted.
        popen: Starts a pod's process, as `subprocess.Popen` does.
        vanished: Pods that Kubernetes has no more.
        restarted: Pods whose container was restarted, and the lines that it had printed before.
        asked_kubernetes: Paths of the calls of Kubernetes.
        clock: The time of a line in a log.
        problems: What went wrong here, requests that the API does not know among it.
    """

    def __init__(self, folder: Path, version: str = "2.17") -> None:
        Pipelines.__init__(self)
        RecurringRuns.__init__(self)
        self.folder = folder
        self.version = tuple(map(int, version.split(".")))
        self.namespace = "kubeflow"
        self.runs: dict[str, Run] = {}
        self.workflows: list[Workflow] = []
        self.experiments: dict[str, dict] = {}
        self.requests: list[tuple[str, str]] = []
        self.headers: dict[str, str] = {}
        self.faults: list[list] = []
        self.chaos: Callable[[str, str], int | str | None] = lambda method, path: None
        self.let = threading.Event()
        self.happened: Counter[int | str] = Counter()
        self.images: dict[str, dict[str, str]] = {
            "registry.example.org/": COMPLETE,
            "example.org/": COMPLETE,
            "python:": {},
        }
        self.secrets: dict[str, dict[str, str]] = {}
        self.claims: set[str] | None = None
        self.accounts = {"pipeline-runner", "default-editor", "trainer", "robot"}
        self.stuck: dict[str, dict] = {}
        self.refused_pods: dict[str, str] = {}
        self.broken_drivers: dict[str, str] = {}
        self.powerless: set[str] = set()
        self.metadata = True
        self.driver_seconds = 0.0
        self.honours_run_id = True
        self.task_details = True
        self.compress_above = WORKFLOW
        self.offloads = False
        self.archived_logs = True
        self.ui_host = True
        self.kubernetes = True
        self.cluster = KubeApi()
        self.cluster.serve(kube.WORKFLOWS)
        self.asked_kubernetes: list[str] = []
        self.pausing = False
        self.delay = 0.0
        self.multi_user = False
        self.user = "user@example.org"
        self.allowed: dict[str, set[str]] = {}
        self.tokens: set[str] = set()
        self.cookies: dict[str, str] = {}
        self.cookies_until = float("inf")
        self.body_limit = 1 << 30
        self.term_reaches_python = True
        self.tls: ssl.SSLContext | None = None
        self.drops_capabilities = False
        self.agent_lag = 0.05
        self.grace = 10.0
        self.gc_grace = 120.0
        self.ttl = float("inf")
        self.popen: Callable[..., Any] = subprocess.Popen
        self.vanished: set[str] = set()
        self.restarted: dict[str, int] = {}
        self.stamps: dict[str, list[str]] = {}
        self.clock: Callable[[], str] = lambda: (
            f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime())}.{time.time_ns() % 10**9:09}Z"
        )
        self.problems: list[str] = []
        self.lock = threading.RLock()

    def identity(self, node: Node) -> dict[str, str]:
        """Return the variables with a pod's name and uid (v2/compiler/argocompiler/common.go:40-56)."""
        made = kube.put(self, node.workflow, node, node.pod)
        return {"KFP_POD_NAME": node.pod, "KFP_POD_UID": made["metadata"]["uid"]}

    @property
    def default_account(self) -> str:
        return "default-editor" if self.multi_user else "pipeline-runner"

    def root(self, body: dict) -> str:
        return (body.get("runtime_config") or {}).get("pipeline_root") or "minio://mlpipeline/v2/artifacts"

    def packages(self, container: dict) -> dict[str, str] | None:
        """Return the packages and versions that a container can import; None if there is no such image.

        They are its image's, and those that its command installs at its start.
        """
        known = max(
            (name for name in self.images if container["image"].startswith(name)), key=len, default=None
        )
        if known is None:
            return None
        found = dict(self.images[known])
        command = json.dumps(container.get("command", []))
        if "pip install" in command:
            asked = {name.replace("-", "_"): version for name, version in _INSTALLED.findall(command)}
            if "dvkf_prefect" in asked:
                asked.setdefault("kfp", "")  # which it requires
            found |= {name: version or COMPLETE[name] for name, version in asked.items()}
        return found

    def absent(self, container: dict) -> list[str]:
        """Return the modules that a pod's command looks for and does not find in its image.

        Source: sdk/python/kfp/dsl/component_factory.py:503-586: the command is ``python3 -m kfp.dsl.executor_main``,
        and the source that it runs imports this package. KFP 1 has no such module, and other versions of this package
        have another layout.
        """
        packages = self.packages(container) or {}
        lacks = [name for name in COMPLETE if name not in packages]
        if packages.get("kfp", "2").partition(".")[0] < "2":
            lacks.append("kfp.dsl.executor_main")
        if packages.get("dvkf_prefect", COMPLETE["dvkf_prefect"]) != COMPLETE["dvkf_prefect"]:
            lacks.append("dvkf_prefect.kubeflow.pod")
        return lacks

    def __enter__(self) -> FakeKfp:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def do_GET(self) -> None:
                fake._serve(self, "GET")

            def do_POST(self) -> None:
                fake._serve(self, "POST")

            def do_DELETE(self) -> None:
                fake._serve(self, "DELETE")

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, address: object) -> None:
                # A client that went away, or was killed.
                if not isinstance(sys.exc_info()[1], (ConnectionError, ssl.SSLError)):
                    fake.problems.append(traceback.format_exc())

        server = Server(("127.0.0.1", 0), Handler)
        if self.tls is not None:
            server.socket = self.tls.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._running = serving(server)
        self.host = f"http{'s' if self.tls else ''}://127.0.0.1:{self._running.__enter__()}"
        return self

    def __exit__(self, *error: object) -> None:
        self._running.__exit__(None, None, None)
        for workflow in self.workflows:
            workflow.stop()
            workflow.kill()
            workflow.thread.join(20)
        if error[0] is None:
            assert not self.problems, "\n".join(self.problems)

    def fault(self, method: str, pattern: str, kind: int | str, times: int = 1) -> None:
        """Let the next requests of a kind fail.

        Args:
            method: HTTP method.
            pattern: Pattern of the path.
            kind: Status of a proxy's answer, ``drop`` (before it is handled), ``drop-after`` (before it is answered),
                ``504-after`` (a proxy's answer to a request that was handled), ``unsent`` (Envoy's to one that it did
                not pass on), ``cut`` (only a part of the answer
                arrives), ``slow``, ``late`` (handled once ``let`` is set), ``hang``, ``twice`` (a proxy sends it
                again), ``locked`` (500 before anything is done) or ``deadlock`` (of the database, after the workflow
                is made).
            times: Number of requests.
        """
        self.faults.append([method, re.compile(pattern), kind, times])

    @property
    def run(self) -> Run:
        """The only run."""
        (run,) = self.runs.values()
        return run

    # -- requests ----------------------------------------------------------------------------------------------------

    def _serve(self, handler: BaseHTTPRequestHandler, method: str) -> None:
        parts = urlsplit(handler.path)
        length = int(handler.headers.get("Content-Length") or 0)
        data = handler.rfile.read(length)
        if len(data) < length:
            self._drop(handler)  # its client was killed meanwhile
            return
        self.requests.append((method, parts.path))
        self.headers = dict(handler.headers)
        kind = self._fault(method, parts.path)
        if kind == "drop":
            self._drop(handler)
            return
        if kind == "hang":
            time.sleep(3)
            self._drop(handler)
            return
        if kind == "slow":
            time.sleep(0.3)
        if kind == "late":
            assert self.let.wait(60)
        if len(data) > self.body_limit:
            kind = 413  # of a proxy; that of nginx's ingress is 1 MiB by default
        if kind == "unsent":
            # envoy source/common/router/router.cc (UpstreamRequest) and StreamInfo's response flag UF
            said = (
                b"upstream connect error or disconnect/reset before headers. reset reason: connection failure"
            )
            self._answer(handler, 503, said, "text/plain")
            return
        if isinstance(kind, int):
            self._answer(handler, kind, b"<html>upstream is away</html>", "text/html")
            return
        try:
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            user = proxy.check_login(self, parts.path, handler.headers)
            if kind == "locked":
                raise Refused(500, "InternalServerError: database is locked")
            if kind == "twice":
                with suppress(Refused):
                    again = (method, parts.path, query, data, user)
                    self._handle(*again, headers=handler.headers, database=True)
            answer = self._handle(
                method,
                parts.path,
                query,
                data,
                user,
                headers=handler.headers,
                database=kind != "deadlock",
            )
            status = 200
        except Refused as error:
            status, answer = error.status, error.answer
        except (jsonschema.ValidationError, NoOperationError, ValueError) as error:
            # A request that this API does not have: the gateway refuses it (runtime.DefaultRoutingErrorHandler, and
            # protojson with DiscardUnknown: false), and the product must not make it.
            refused = gateway_error(error)
            status, answer = refused.status, refused.answer
            self.problems.append(f"{method} {handler.path}\n{error}")
        except Exception:
            self.problems.append(f"{method} {handler.path}\n{traceback.format_exc()}")
            status, answer = 400, {"code": 3, "message": "bad request", "details": []}
        if kind == "drop-after":
            self._drop(handler)
            return
        if kind == "504-after":
            self._answer(handler, 504, b"upstream request timeout", "text/plain")
            return
        text = answer if isinstance(answer, str) else json.dumps(answer)
        mime = "text/plain" if isinstance(answer, str) else "application/json"
        self._answer(handler, status, text.encode(), mime, cut=kind == "cut")

    def _handle(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        data: bytes,
        user: str,
        *,
        headers: Mapping[str, str],
        database: bool,
    ) -> Any:
        kind = headers.get("Content-Type", "")
        if path.startswith(("/api/v1/", "/apis/argoproj.io/")):
            return kube.answer(self, path, query, headers)
        if path.startswith("/apis/v1beta1/runs/") and method == "GET":
            return self._old_run(path.rpartition("/")[2])
        if path in ("/apis/v1beta1/healthz", "/apis/v2beta1/healthz") and method == "GET":
            return self._health()
        if path == "/k8s/pod/logs" and self.ui_host:
            return self._ui_log(query)
        if path.startswith("/apis/v1alpha1/") and not self.ui_host:
            return self._argo_log(path)
        if not path.startswith("/apis/v2beta1/"):
            # frontend/server/app.ts: two APIs are passed on; the API server has no route of the UI.
            raise Refused(404, "Not Found", by="gateway")
        return self._checked(method, path, query, data, user, kind=kind, database=database)

    def _fault(self, method: str, path: str) -> int | str | None:
        with self.lock:
            for fault in self.faults:
                if fault[0] == method and fault[1].search(path) and fault[3] > 0:
                    fault[3] -= 1
                    kind = fault[2]
                    break
            else:
                kind = self.chaos(method, path)
            if kind is not None:
                self.happened[kind] += 1
        return kind

    @staticmethod
    def _drop(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.connection.close()

    @staticmethod
    def _answer(
        handler: BaseHTTPRequestHandler, status: int, data: bytes, kind: str, *, cut: bool = False
    ) -> None:
        handler.send_response(status)
        if status == 302:
            handler.send_header("Location", "/oauth2/start?rd=%2F")
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if cut:
            handler.wfile.write(data[: len(data) // 2])
            FakeKfp._drop(handler)
        else:
            handler.wfile.write(data)

    def _checked(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        data: bytes,
        user: str,
        *,
        kind: str,
        database: bool,
    ) -> Any:
        """Handle a request after it, and return an answer after that, was held next to the API's description."""
        operation = Operation(method, path)
        files, body = None, None
        if kind.startswith("multipart/form-data"):
            files, filename = _form(data, kind)
            body = {**files, "filename": filename}
        elif data:
            body = json.loads(data)
        operation.check_request(query, body if files is None else None, files)
        try:
            answer = getattr(self, "_" + operation.name)(
                query=query, body=body, user=user, database=database, **operation.values
            )
        except Refused as error:
            if error.by != "upload":
                operation.check_answer(error.answer, error.status)
            raise
        operation.check_answer(answer)
        return answer

    # -- operations --------------------------------------------------------------------------------------------------

    def _ExperimentService_ListExperiments(self, query: dict, body: None, user: str, database: bool) -> dict:
        proxy.check_namespace(self, query.get("namespace", ""), user, "list")
        return filters.page("experiments", list(self.experiments.values()), query)

    def _ExperimentService_CreateExperiment(self, query: dict, body: dict, user: str, database: bool) -> dict:
        proxy.check_namespace(self, body.get("namespace", ""), user, "create")
        with self.lock:
            if not body.get("display_name"):
                raise Refused(
                    400, "Invalid input error: Experiment name is empty. Please specify a valid name"
                )
            if len(body["display_name"]) > store.EXPERIMENT:
                raise Refused(400, "Invalid input error: the name is longer than 128 characters")
            # The column's collation ignores case.
            taken = {e["display_name"].casefold() for e in self.experiments.values()}
            if body["display_name"].casefold() in taken:
                raise Refused(409, f"Already exist error: experiment {body['display_name']} already exists")
            made = {
                **body,
                "experiment_id": str(uuid.uuid4()),
                "created_at": now(),
                "storage_state": "AVAILABLE",
            }
            if not self.multi_user:
                made["namespace"] = ""  # server/experiment_server.go:99
            self.experiments[made["experiment_id"]] = made
        return made

    def _ExperimentService_GetExperiment(
        self, experiment_id: str, query: dict, body: None, user: str, database: bool
    ) -> dict:
        found = self._experiment(experiment_id)
        proxy.check_namespace(self, found.get("namespace", ""), user, "get")
        return found

    def _ExperimentService_ArchiveExperiment(
        self, experiment_id: str, query: dict, body: Any, user: str, database: bool
    ) -> dict:
        """Archive it and its runs, and pause its recurring runs (resource_manager.go:229-276)."""
        found = self._experiment(experiment_id)
        proxy.check_namespace(self, found.get("namespace", ""), user, "archive")
        found["storage_state"] = "ARCHIVED"
        for run in self.runs.values():
            if run.body.get("experiment_id") == experiment_id:
                run.storage_state = "ARCHIVED"
        for row in self.recurring.values():
            if row.get("experiment_id") == experiment_id:
                row.update(mode="DISABLE", status="DISABLED")
        return {}

    def _experiment(self, experiment_id: str) -> dict:
        if experiment_id not in self.experiments:
            raise Refused(404, f"Experiment {experiment_id} not found")
        return self.experiments[experiment_id]

    def _RunService_ListRuns(self, query: dict, body: None, user: str, database: bool) -> dict:
        proxy.check_namespace(self, query.get("namespace", ""), user, "list")
        found = [
            run.as_dict()
            for run in list(self.runs.values())
            if query.get("experiment_id") in (None, run.body.get("experiment_id"))
        ]
        return filters.page("runs", found, query)

    def _RunService_CreateRun(self, query: dict, body: dict, user: str, database: bool) -> dict:
        if not body.get("display_name"):
            # server/run_server.go:141
            raise Refused(400, "Invalid input error: The run name is empty. Please specify a valid name")
        experiment = self.experiments.get(body.get("experiment_id", ""))
        if experiment is None:
            raise Refused(404, f"experiment {body.get('experiment_id')} not found")
        proxy.check_namespace(self, experiment.get("namespace", ""), user, "create")
        run_id = (body.get("run_id") if self.honours_run_id else None) or str(uuid.uuid4())
        return self.start_run(body, run_id, spec=self.source_of(body), database=database).as_dict()

    def start_run(self, body: dict, run_id: str, *, spec: dict, database: bool = True) -> Run:
        """Make a workflow, then the run's row."""
        # resource_manager.go:742 makes the workflow and :772 stores the run: what fails in between leaves a workflow.
        workflow = Workflow(self, run_id, {**body, "pipeline_spec": spec})
        with self.lock:
            self.workflows.append(workflow)
            workflow.thread.start()
            store.check_row(body, run_id)
            if run_id in self.runs:
                raise store.not_stored(
                    run_id, f"Error 1062 (23000): Duplicate entry '{run_id}' for key 'PRIMARY'"
                )
            if not database:
                raise store.not_stored(run_id, "Error 1213 (40001): Deadlock found when trying to get lock")
            self.runs[run_id] = run = Run(self, run_id, body, workflow)
        return run

    def _RunService_GetRun(self, run_id: str, query: dict, body: None, user: str, database: bool) -> dict:
        proxy.check_namespace(self, self.namespace, user, "get")
        return self._known(run_id).as_dict()

    def _RunService_TerminateRun(
        self, run_id: str, query: dict, body: Any, user: str, database: bool
    ) -> dict:
        proxy.check_namespace(self, self.namespace, user, "terminate")
        self._known(run_id).terminate()
        return {}

    def _RunService_ArchiveRun(self, run_id: str, query: dict, body: Any, user: str, database: bool) -> dict:
        # storage/run_store.go:709-729: in any state, and twice.
        proxy.check_namespace(self, self.namespace, user, "archive")
        self._known(run_id).storage_state = "ARCHIVED"
        return {}

    def _RunService_UnarchiveRun(
        self, run_id: str, query: dict, body: Any, user: str, database: bool
    ) -> dict:
        proxy.check_namespace(self, self.namespace, user, "unarchive")
        run = self._known(run_id)
        if self._experiment(run.body["experiment_id"]).get("storage_state") == "ARCHIVED":
            # resource_manager.go:912-918: FailedPrecondition, which the gateway answers with 400.
            raise Refused(400, f"Failed to unarchive run {run_id} as experiment must be un-archived first", 9)
        run.storage_state = "AVAILABLE"
        return {}

    def _RunService_DeleteRun(self, run_id: str, query: dict, body: None, user: str, database: bool) -> dict:
        proxy.check_namespace(self, self.namespace, user, "delete")
        run = self._known(run_id)
        run.workflow.stop()  # its workflow is deleted, and its pods with it
        del self.runs[run_id]
        return {}

    def _RunService_RetryRun(self, run_id: str, query: dict, body: Any, user: str, database: bool) -> dict:
        proxy.check_namespace(self, self.namespace, user, "retry")
        self._known(run_id).retry()
        return {}

    def _known(self, run_id: str) -> Run:
        if run_id not in self.runs:
            raise Refused(404, f"Failed to get run: Run {run_id} not found")
        return self.runs[run_id]

    def _old_run(self, run_id: str) -> dict:
        """Return a run by the old API, which has the workflow (server/api_converter.go:1695-1715)."""
        run = self._known(run_id)
        manifest = json.dumps(run.workflow.manifest())
        return {
            "run": {"id": run.id, "name": run.body["display_name"]},
            "pipeline_runtime": {"workflow_manifest": manifest},
        }

    def _health(self) -> dict:
        """Answer the health route: the UI's own (frontend/server/handlers/healthz.ts), or the API server's."""
        tag = ".".join(map(str, self.version)) + ".0"
        if self.ui_host:
            own = {"buildDate": "", "frontendCommitHash": "4a3592c", "frontendTagName": tag}
            return own | {
                "apiServerReady": True,
                "apiServerTagName": tag,
                "apiServerMultiUser": self.multi_user,
            }
        return {"commit_sha": "4a3592c", "tag_name": tag, "multi_user": self.multi_user}

    # -- logs --------------------------------------------------------------------------------------------------------

    def _argo_log(self, path: str) -> Any:
        """Answer the log route of the API server: 200 before anything is read (server/run_log_server.go:61).

        In single-user mode the namespace is unknown (resource_manager.go:2405-2427), so only the archive answers.
        """
        match = re.fullmatch(r"/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", path)
        assert match
        node = next((n for n in self._known(match[1]).workflow.pods() if n.pod == match[2]), None)
        if node is None or not ((node.final and self.archived_logs) or self.multi_user):
            return {
                "error_message": f"failed to get the log of {match[2]}: an empty namespace may not be set"
            }
        return node.log.decode()

    def _ui_log(self, query: dict[str, str]) -> str:
        """Answer the log route of the UI (frontend/server/handlers/pod-logs.ts)."""
        assert set(query) <= {"podname", "runid", "podnamespace"}
        for workflow in self.workflows:
            for node in workflow.pods():
                there = not workflow.collected or self.archived_logs
                if node.pod == query["podname"] and query["podnamespace"] == self.namespace and there:
                    return node.log.decode()
        raise Refused(500, "Could not get main container logs: Error: pods not found", by="proxy")


def _form(data: bytes, kind: str) -> tuple[dict[str, bytes], str]:
    """Return the files of a form by field, and the name of the last one."""
    message = BytesParser(policy=policy.HTTP).parsebytes(
        b"Content-Type: " + kind.encode() + b"\r\n\r\n" + data
    )
    parts = list(message.iter_parts())
    files = {str(part.get_param("name", header="content-disposition")): part.get_content() for part in parts}
    binary = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
    return binary, parts[-1].get_filename() or ""


def kill(task: Any) -> None:
    """Kill a task's pod once it runs; it may write before its starter knows of it."""
    os.killpg(wait_until(lambda: task.process).pid, signal.SIGKILL)
