"""A Kubeflow Pipelines API server that runs what it is given, for tests.

Every request and answer is held next to KFP's own API description (``kfp-v2beta1-api.json``). A task is the container's
command as a process, in a fresh folder, with an environment of its own: like a pod it has nothing but what the pipeline
tells it, the secrets that are named there, and the remote. A few of Kubernetes' calls about pods are answered too.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema

ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_API = json.loads((Path(__file__).parent / "kfp-v2beta1-api.json").read_text())
for _name, _definition in _API["definitions"].items():
    # The real server refuses fields that it does not know.
    if "properties" in _definition and _name != "protobufAny":
        _definition.setdefault("additionalProperties", False)
_MOMENT = "%Y-%m-%dT%H:%M:%SZ"


def _now() -> str:
    return time.strftime(_MOMENT, time.gmtime())


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message


class Task:
    """One task of a run: its process, when it has one."""

    def __init__(self, name: str, spec: dict, folder: Path) -> None:
        self.name = name
        self.spec = spec
        self.folder = folder
        self.state = "PENDING"
        self.process: subprocess.Popen | None = None
        self.outputs: dict[str, Any] = {}
        self.artifacts: dict[str, Any] = {}
        self.tries = 0

    @property
    def log(self) -> str:
        file = self.folder / "log"
        return file.read_text(errors="replace") if file.exists() else ""

    @property
    def pod(self) -> str:
        return f"pod-{self.folder.parent.name[:8]}-{self.name}"


class Run:
    """A run, which works through its tasks in a thread."""

    def __init__(self, server: FakeKfp, run_id: str, body: dict) -> None:
        self.server = server
        self.id = run_id
        self.body = body
        self.state = "PENDING"
        self.lock = threading.RLock()
        spec = body["pipeline_spec"]
        self.platform = spec.get("platform_spec", {})
        self.pipeline = spec.get("pipeline_spec", spec)
        self.tasks = {
            name: Task(name, task, server.folder / run_id / name)
            for name, task in self.pipeline["root"]["dag"]["tasks"].items()
        }
        self.thread = threading.Thread(target=self._work, daemon=True)

    def as_dict(self) -> dict:
        with self.lock:
            details = [self._detail(task.name, task.state, task) for task in self.tasks.values()]
            details.append(self._detail("root", "RUNNING" if self.state not in ENDED else self.state))
            details += [self._detail(f"{t.name}-driver", "SUCCEEDED") for t in self.tasks.values() if t.tries]
            values = {k: v for k, v in self.body.items() if k != "run_id"}
            return {
                **values,
                "run_id": self.id,
                "created_at": _now(),
                "storage_state": "AVAILABLE",
                "state": self.state,
                **({"run_details": {"task_details": details}} if self.server.task_details else {}),
            }

    def _detail(self, name: str, state: str, task: Task | None = None) -> dict:
        values: dict[str, Any] = {
            "run_id": self.id,
            "task_id": str(uuid.uuid5(uuid.UUID(int=0), self.id + name)),
            "display_name": name,
            "create_time": _now(),
            "state": state,
        }
        if task is not None:
            values["child_tasks"] = [{"pod_name": task.pod}]
        return values

    def terminate(self) -> None:
        with self.lock:
            if self.state in ENDED:
                raise Refused(400, f"run {self.id} has ended")
            self.state = "CANCELING"
            for task in self.tasks.values():
                if task.process is not None and task.process.poll() is None:
                    os.killpg(task.process.pid, signal.SIGTERM)

    def kill(self) -> None:
        for task in self.tasks.values():
            if task.process is not None and task.process.poll() is None:
                os.killpg(task.process.pid, signal.SIGKILL)
                task.process.wait()

    def _work(self) -> None:
        try:
            time.sleep(self.server.delay)
            with self.lock:
                if self.state == "PENDING":
                    self.state = "RUNNING"
            while self._advance():
                time.sleep(0.02)
        except BaseException:
            self.server.problems.append(traceback.format_exc())
            with self.lock:
                self.state = "FAILED"

    def _advance(self) -> bool:
        with self.lock:
            for task in self.tasks.values():
                if task.process is not None and task.state == "RUNNING" and task.process.poll() is not None:
                    self._end(task)
            running = [t for t in self.tasks.values() if t.state == "RUNNING"]
            failed = any(t.state == "FAILED" for t in self.tasks.values())
            if self.state == "CANCELING" or failed:
                if self.state == "CANCELING":
                    for task in running:
                        if task.process is None:
                            task.state = "FAILED"
                    running = [t for t in running if t.process is not None]
                if not running:
                    self.state = "CANCELED" if self.state == "CANCELING" else "FAILED"
                    return False
                return True
            if all(t.state == "SUCCEEDED" for t in self.tasks.values()):
                self.state = "SUCCEEDED"
                return False
            for task in self.tasks.values():
                needs = task.spec.get("dependentTasks", [])
                if task.state == "PENDING" and all(self.tasks[n].state == "SUCCEEDED" for n in needs):
                    self._start(task)
            return True

    def _start(self, task: Task) -> None:
        task.state = "RUNNING"
        task.tries += 1
        if task.name in self.server.stuck:
            return
        label = self.pipeline["components"][task.spec["componentRef"]["name"]]["executorLabel"]
        component = self.pipeline["components"][task.spec["componentRef"]["name"]]
        container = self.pipeline["deploymentSpec"]["executors"][label]["container"]
        work = task.folder / f"try-{task.tries}"
        (work / "tmp").mkdir(parents=True)
        inputs = {}
        for name, value in task.spec.get("inputs", {}).get("parameters", {}).items():
            if "taskOutputParameter" in value:
                source = value["taskOutputParameter"]
                inputs[name] = self.tasks[source["producerTask"]].outputs[source["outputParameterKey"]]
            else:
                inputs[name] = value["runtimeValue"]["constant"]
            # What KFP and Argo would take for a placeholder.
            assert "{{" not in inputs[name], inputs[name]
        declared = component.get("outputDefinitions", {})
        executor_input = {
            "inputs": {"parameterValues": inputs},
            "outputs": {
                "parameters": {
                    name: {"outputFile": str(work / "outputs" / name)}
                    for name in declared.get("parameters", {})
                },
                "artifacts": {
                    name: {
                        "artifacts": [
                            {
                                "name": name,
                                "uri": f"{work}/artifacts/{uuid.uuid4()}/{name}",
                                "type": about["artifactType"],
                                "metadata": {},
                            }
                        ]
                    }
                    for name, about in declared.get("artifacts", {}).items()
                },
                "outputFile": str(work / "executor_output.json"),
            },
        }
        argv = [
            part.replace("{{$}}", json.dumps(executor_input))
            for part in [*container.get("command", []), *container.get("args", [])]
        ]
        # Linux ends a single argument at 128 KiB.
        assert max(map(len, argv)) < 128 * 1024
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "HOME": str(work),
            "TMPDIR": str(work / "tmp"),
            "AWS_EC2_METADATA_DISABLED": "true",
            **{e["name"]: e["value"] for e in container.get("env", [])},
            **self._secrets(label),
        }
        with (task.folder / "log").open("ab") as log:
            task.process = subprocess.Popen(
                argv,
                cwd=work,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _secrets(self, label: str) -> dict[str, str]:
        found = {}
        executors = (
            self.platform.get("platforms", {})
            .get("kubernetes", {})
            .get("deploymentSpec", {})
            .get("executors", {})
        )
        for secret in executors.get(label, {}).get("secretAsEnv", []):
            name = secret.get("secretName") or secret["secretNameParameter"]["runtimeValue"]["constant"]
            for pair in secret["keyToEnv"]:
                found[pair["envVar"]] = self.server.secrets[name][pair["secretKey"]]
        return found

    def _end(self, task: Task) -> None:
        assert task.process is not None
        if task.process.returncode:
            most = task.spec.get("retryPolicy", {}).get("maxRetryCount", 0)
            if self.state != "CANCELING" and task.tries <= most:
                task.state = "PENDING"
                task.process = None
                return
            task.state = "FAILED"
            return
        work = task.folder / f"try-{task.tries}"
        task.outputs = {file.name: file.read_text() for file in (work / "outputs").iterdir()}
        written = work / "executor_output.json"
        if written.exists():
            task.artifacts = json.loads(written.read_text()).get("artifacts", {})
        task.state = "SUCCEEDED"


class FakeKfp:
    """The server; a context manager.

    Attributes:
        runs: All runs by id.
        requests: Every request: ``(method, path)``.
        headers: The headers of the last one.
        faults: ``(method, pattern of the path, kind, times)``: kind is a status, ``drop`` (before it is handled),
            ``drop-after`` (before it is answered) or ``hang``.
        secrets: Kubernetes' secrets.
        stuck: Tasks that do not start, and the container state of their pods.
        honours_run_id: Whether a run gets the id that it comes with.
        problems: What went wrong here, requests that the API does not know among it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: dict[str, Run] = {}
        self.experiments: dict[str, dict] = {}
        self.requests: list[tuple[str, str]] = []
        self.headers: dict[str, str] = {}
        self.faults: list[list] = []
        self.secrets: dict[str, dict[str, str]] = {}
        self.stuck: dict[str, dict] = {}
        self.honours_run_id = True
        self.task_details = True
        self.argo_logs = True
        self.kubernetes = True
        self.delay = 0.0
        self.tokens: set[str] = set()
        self.problems: list[str] = []
        self.lock = threading.RLock()

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

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, address: object) -> None:
                # A client that went away, or was killed.
                if not isinstance(sys.exc_info()[1], ConnectionError):
                    fake.problems.append(traceback.format_exc())

        self._server = Server(("127.0.0.1", 0), Handler)
        self.host = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for run in self.runs.values():
            with run.lock:
                if run.state not in ENDED:
                    run.state = "CANCELING"
            run.kill()
            run.thread.join(20)
        if error[0] is None:
            assert not self.problems, "\n".join(self.problems)

    def fault(self, method: str, pattern: str, kind: int | str, times: int = 1) -> None:
        """Let the next requests of a kind fail."""
        self.faults.append([method, re.compile(pattern), kind, times])

    @property
    def run(self) -> Run:
        """The only run."""
        (run,) = self.runs.values()
        return run

    # -- requests ----------------------------------------------------------------------------------------------------

    def _serve(self, handler: BaseHTTPRequestHandler, method: str) -> None:
        parts = urlsplit(handler.path)
        data = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
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
        if isinstance(kind, int):
            self._answer(handler, kind, b"<html>upstream is away</html>", "text/html")
            return
        try:
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            if self.tokens and handler.headers.get("Authorization", "")[7:] not in self.tokens:
                raise Refused(401, "who are you?")
            if parts.path.startswith("/api/v1/"):
                answer: Any = self._kubernetes(parts.path, query)
            elif parts.path.startswith("/apis/v1alpha1/"):
                answer = self._argo_log(parts.path)
            else:
                answer = self._checked(method, parts.path, query, data)
            status = 200
        except Refused as error:
            status = error.status
            answer = {"code": 5 if status == 404 else 13, "message": error.message, "details": []}
        except Exception:
            self.problems.append(f"{method} {handler.path}\n{traceback.format_exc()}")
            status, answer = 400, {"code": 3, "message": "bad request", "details": []}
        if kind == "drop-after":
            self._drop(handler)
            return
        if isinstance(answer, str):
            self._answer(handler, status, answer.encode(), "text/plain")
        else:
            self._answer(handler, status, json.dumps(answer).encode(), "application/json")

    def _fault(self, method: str, path: str) -> int | str | None:
        with self.lock:
            for fault in self.faults:
                if fault[0] == method and fault[1].search(path) and fault[3] > 0:
                    fault[3] -= 1
                    return fault[2]
        return None

    @staticmethod
    def _drop(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.connection.close()

    @staticmethod
    def _answer(handler: BaseHTTPRequestHandler, status: int, data: bytes, kind: str) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _checked(self, method: str, path: str, query: dict[str, str], data: bytes) -> Any:
        """Handle a request after it, and return an answer after that, was held next to the API's description."""
        for template, methods in _API["paths"].items():
            pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/:]+)", template)
            match = re.fullmatch(pattern, path)
            if match and method.lower() in methods:
                break
        else:
            raise AssertionError(f"the API has no {method} {path}")
        operation = methods[method.lower()]
        known = {p["name"]: p for p in operation["parameters"]}
        for name in query:
            assert known[name]["in"] == "query", name
        body: Any = json.loads(data) if data else None
        schema = next((p["schema"] for p in operation["parameters"] if p["in"] == "body"), None)
        if schema is not None:
            _validate(body, schema)
        try:
            answer = getattr(self, "_" + operation["operationId"])(
                query=query, body=body, **match.groupdict()
            )
        except Refused as error:
            _validate({"code": 13, "message": error.message}, operation["responses"]["default"]["schema"])
            raise
        _validate(answer, operation["responses"]["200"]["schema"])
        return answer

    # -- operations --------------------------------------------------------------------------------------------------

    def _ExperimentService_ListExperiments(self, query: dict, body: None) -> dict:
        return self._page("experiments", list(self.experiments.values()), query)

    def _ExperimentService_CreateExperiment(self, query: dict, body: dict) -> dict:
        with self.lock:
            if any(e["display_name"] == body["display_name"] for e in self.experiments.values()):
                raise Refused(409, "there is an experiment of that name")
            made = {**body, "experiment_id": str(uuid.uuid4()), "created_at": _now()}
            self.experiments[made["experiment_id"]] = made
        return made

    def _RunService_ListRuns(self, query: dict, body: None) -> dict:
        found = [
            run.as_dict()
            for run in self.runs.values()
            if query.get("experiment_id") in (None, run.body.get("experiment_id"))
        ]
        return self._page("runs", found, query)

    def _page(self, key: str, items: list[dict], query: dict) -> dict:
        for predicate in json.loads(query.get("filter", "{}")).get("predicates", []):
            assert predicate["operation"] == "EQUALS"
            items = [item for item in items if item[predicate["key"]] == predicate["stringValue"]]
        start, size = int(query.get("page_token") or 0), min(int(query.get("page_size", 10)), 2)
        page = items[start : start + size]
        more = {"next_page_token": str(start + size)} if start + size < len(items) else {}
        return {key: page, "total_size": len(items), **more} if page else {}

    def _RunService_CreateRun(self, query: dict, body: dict) -> dict:
        with self.lock:
            run_id = body.get("run_id") if self.honours_run_id else None
            run_id = run_id or str(uuid.uuid4())
            if run_id in self.runs:
                raise Refused(500, f"duplicate key value: {run_id}")
            assert body["experiment_id"] in self.experiments
            self.runs[run_id] = run = Run(self, run_id, body)
        run.thread.start()
        return run.as_dict()

    def _RunService_GetRun(self, run_id: str, query: dict, body: None) -> dict:
        return self._known(run_id).as_dict()

    def _RunService_TerminateRun(self, run_id: str, query: dict, body: Any) -> dict:
        self._known(run_id).terminate()
        return {}

    def _known(self, run_id: str) -> Run:
        if run_id not in self.runs:
            raise Refused(404, f"run {run_id} not found")
        return self.runs[run_id]

    def _argo_log(self, path: str) -> str:
        match = re.fullmatch(r"/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", path)
        assert match
        for task in self._known(match[1]).tasks.values():
            if task.pod == match[2] and self.argo_logs:
                return task.log
        raise Refused(404, "no log")

    # -- Kubernetes ----------------------------------------------------------------------------------------------------

    def _kubernetes(self, path: str, query: dict) -> Any:
        if not self.kubernetes:
            raise Refused(403, "pods is forbidden")
        if path.endswith("/log"):
            name = path.split("/")[-2]
            assert query["container"] == "main"
            for run in self.runs.values():
                for task in run.tasks.values():
                    if task.pod == name:
                        return task.log
            raise Refused(404, "no such pod")
        if path.endswith("/events"):
            return {"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": []}
        assert path == "/api/v1/namespaces/kubeflow/pods"
        key, _, run_id = query["labelSelector"].partition("=")
        assert key == "pipeline/runid"
        run = self.runs.get(run_id)
        pods = [self._pod(run, t) for t in run.tasks.values() if t.tries] if run else []
        return {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods}

    def _pod(self, run: Run, task: Task) -> dict:
        label = run.pipeline["components"][task.spec["componentRef"]["name"]]["executorLabel"]
        executors = run.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        labels = executors[label]["podMetadata"]["labels"]
        status: dict[str, Any] = {"phase": "Running"}
        if task.name in self.stuck:
            status = {"phase": "Pending", **self.stuck[task.name]}
        elif task.process is not None and task.process.returncode:
            code = task.process.returncode
            ended = {
                "exitCode": 137 if code < 0 else code,
                "reason": "OOMKilled" if code == -9 else "Error",
            }
            status = {"phase": "Failed", "containerStatuses": [container("main", terminated=ended)]}
        return {
            "metadata": {
                "name": task.pod,
                "labels": {**labels, "pipeline/runid": run.id},
                "creationTimestamp": _now(),
            },
            "status": status,
        }


def container(name: str, **state: dict) -> dict:
    """Return a container's status as Kubernetes tells it."""
    return {
        "name": name,
        "image": "registry.example.org/train:1",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": state,
    }


def _validate(value: Any, schema: dict) -> None:
    jsonschema.validate(value, {**schema, "definitions": _API["definitions"]})


def wait_for(check: Callable[[], Any], timeout: float = 60.0) -> Any:
    """Ask until the answer is true, and return it."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if value := check():
            return value
        time.sleep(0.02)
    raise AssertionError("it did not become true in time")
