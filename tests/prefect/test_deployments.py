"""The deployments of prefect.yaml, each run once by a real worker against a real server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from dvkf_prefect.data.repo import Repo
from dvkf_prefect.kubeflow.serving import LocalServing
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.pipeline.leash import end, spawn

from .conftest import git

TREE = Path(__file__).parents[2]


class Server:
    """A Prefect server of its own, and commands against it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_UI_API_URL": self.api,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_CLI_COLORS": "false",
            "PYTHONWARNINGS": "default",
        }
        self.http = httpx.Client(base_url=self.api, timeout=30, trust_env=False)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{command[1]}.log").open("wb") as log:
            return spawn(
                command, env=self.environment, cwd=self.folder / "tree", stdout=log, stderr=subprocess.STDOUT
            )

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=self.folder / "tree",
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def get(self, path: str) -> Any:
        answer = self.http.get(path)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, document: object) -> Any:
        answer = self.http.post(path, json=document)
        answer.raise_for_status()
        return answer.json()

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-8000:]}" for path in self.folder.glob("*.log"))

    def wait_until_up(self, process: subprocess.Popen[bytes], timeout: float = 120) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                if self.http.get("/health").status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            assert process.poll() is None and time.monotonic() < deadline, self.logs()
            time.sleep(0.25)

    def run_deployment(self, name: str, parameters: dict[str, Any], timeout: float = 180) -> Any:
        """Run a deployment by the worker and return the flow run as it ended."""
        deployment = self.get(f"/deployments/name/{name}")
        run = self.post(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
        deadline = time.monotonic() + timeout
        while run["state_type"] not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.5)
            run = self.get(f"/flow_runs/{run['id']}")
        return run

    def artifacts(self, key: str) -> list[Any]:
        wanted = {"artifacts": {"key": {"any_": [key]}}}
        found: list[Any] = self.post("/artifacts/filter", wanted)
        return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    for name in ("flows", "blocks"):
        shutil.copytree(TREE / name, tmp_path / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(TREE / "prefect.yaml", tmp_path / "tree")
    with ExitStack() as started:
        started.callback(server.http.close)
        process = server.start(
            "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(server.port)
        )
        started.callback(end, process)
        server.wait_until_up(process)
        yield server


def test_deployments_run_on_a_worker(server: Server, project: Repo) -> None:
    slugs = ["data-remote", "data-repository", "kubeflow-pipelines", "model-server"]
    for slug in slugs:
        assert server.get(f"/block_types/slug/{slug}")["is_protected"] is False

    saved = server.run(sys.executable, "blocks/local.py", str(project.root))
    assert "data-repository/local" in saved
    server.run("prefect", "work-pool", "create", "local", "--type", "process")
    server.run("prefect", "--no-prompt", "deploy", "--all")
    train = server.get("/deployments/name/train/train")
    assert [schedule["schedule"]["cron"] for schedule in train["schedules"]] == ["0 3 * * *"]
    described = train["parameter_openapi_schema"]["properties"]["minimum"]["description"]
    assert described == "The least that metric must be."

    worker = server.start(
        "prefect", "worker", "start", "--pool", "local", "--type", "process", "--name", "test"
    )
    serving = LocalServing(server.folder / "prefect" / "dvkf" / "serving")
    try:
        run = server.run_deployment(
            "train/train", {"model": "signs", "stage": "prod", "metric": "accuracy", "minimum": 0.5}
        )
        assert run["state_type"] == "COMPLETED", server.logs()
        assert f"Prefect-Flow-Run: {run['id']}" in git(project.root, "log", "-1", "--format=%B")
        assert ModelRegistry(project).show("signs", "#prod").version == "v0.0.1"
        assert not Repo.open(project.root).status()
        keys = ["data-train", "diff-signs", "metrics-signs", "model-signs", "pipeline-signs", "stage-train"]
        assert [key for key in keys if not server.artifacts(key)] == []

        run = server.run_deployment("serve/serve", {"model": "signs", "instances": [[2, 0]]})
        assert run["state_type"] == "COMPLETED", server.logs()
        endpoint = serving.get("signs")
        assert endpoint is not None
        assert (endpoint.version, endpoint.predict([[-2, 0], [2, 0]])) == ("v0.0.1", [0, 1])
        (card,) = server.artifacts("endpoint-signs")
        assert endpoint.url in card["data"]

        git(project.root, "commit", "--quiet", "--allow-empty", "--message", "The same model again")
        registry = ModelRegistry(project)
        registry.assign("signs", registry.register("signs").version, "prod")
        run = server.run_deployment("rollback/rollback", {"model": "signs"})
        assert run["state_type"] == "COMPLETED", server.logs()
        assert registry.show("signs", "#prod").version == "v0.0.1"

        run = server.run_deployment("train/train", {"model": "signs", "metric": "accuracy", "minimum": 2})
        assert (run["state_type"], run["state_name"]) == ("COMPLETED", "Rejected"), server.logs()
    finally:
        serving.stop("signs")
        end(worker, grace=20)
