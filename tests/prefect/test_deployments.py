"""The deployments of prefect.yaml, each run once by a real worker against a real server."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from servers import PrefectServer

from dvkf_prefect.data.repo import Repo
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.processes.leash import end
from dvkf_prefect.serving.local import LocalServing

from .conftest import PREPARE, git

TREE = Path(__file__).parents[2]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PrefectServer]:
    server = PrefectServer(tmp_path)
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


def test_deployments_run_on_a_worker(server: PrefectServer, project: Repo) -> None:
    slugs = ["dvc-remote", "dvc-repository", "kubeflow-credentials", "kubeflow-pipelines", "model-server"]
    for slug in slugs:
        assert server.get(f"/block_types/slug/{slug}")["is_protected"] is False

    saved = server.run(sys.executable, "blocks/local.py", str(project.root))
    assert "dvc-repository/local" in saved
    server.run("prefect", "work-pool", "create", "local", "--type", "process")
    server.run("prefect", "--no-prompt", "deploy", "--all")
    train = server.get("/deployments/name/train/train")
    assert [schedule["schedule"]["cron"] for schedule in train["schedules"]] == ["0 3 * * *"]
    described = train["parameter_openapi_schema"]["properties"]["minimum"]["description"]
    assert described == "Minimum of that metric for the registration."

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


def test_a_schedule_fires(server: PrefectServer, project: Repo) -> None:
    """The server's scheduler makes runs of an interval, and the worker runs them."""
    server.run(sys.executable, "blocks/local.py", str(project.root))
    server.run("prefect", "work-pool", "create", "local", "--type", "process")
    server.run("prefect", "--no-prompt", "deploy", "--name", "repro")
    repro = server.get("/deployments/name/repro/repro")
    every = {"schedule": {"interval": 5.0, "timezone": "UTC"}, "active": True}
    (made,) = server.post(f"/deployments/{repro['id']}/schedules", [every])
    worker = server.start(
        "prefect", "worker", "start", "--pool", "local", "--type", "process", "--name", "test"
    )
    try:
        deadline = time.monotonic() + 400
        while True:
            found = server.post(
                "/flow_runs/filter",
                {
                    "deployments": {"id": {"any_": [repro["id"]]}},
                    "sort": "EXPECTED_START_TIME_ASC",
                    "limit": 5,
                },
            )
            ended = [run for run in found if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED")]
            if ended:
                break
            assert time.monotonic() < deadline, server.logs()
            time.sleep(0.5)
        assert ended[0]["state_type"] == "COMPLETED", server.logs()
        assert ended[0]["auto_scheduled"] and ended[0]["created_by"]["type"] == "SCHEDULE"
        assert ended[0]["created_by"]["id"] == made["id"]
        assert not Repo.open(project.root).status()
    finally:
        end(worker, grace=20)


def test_a_cancelled_run_leaves_no_process(server: PrefectServer, project: Repo, tmp_path: Path) -> None:
    """A person cancels the run in the UI; the worker ends its process, and the stage's command ends with it."""
    pid_file = tmp_path / "pid"
    (project.root / "prepare.py").write_text(
        "import pathlib, subprocess\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"pathlib.Path({str(pid_file)!r}).write_text(str(child.pid))\n"
        "child.wait()\n"
    )
    server.run(sys.executable, "blocks/local.py", str(project.root))
    server.run("prefect", "work-pool", "create", "local", "--type", "process")
    server.run("prefect", "--no-prompt", "deploy", "--name", "repro")
    repro = server.get("/deployments/name/repro/repro")
    properties = repro["parameter_openapi_schema"]["properties"]
    assert [name for name, shown in properties.items() if not shown.get("description")] == []
    worker = server.start(
        "prefect", "worker", "start", "--pool", "local", "--type", "process", "--name", "test"
    )
    try:
        run = server.post(f"/deployments/{repro['id']}/create_flow_run", {"parameters": {"retries": 3}})

        def wait_until(done: Callable[[], object], what: str) -> None:
            deadline = time.monotonic() + 300
            while not done():
                assert time.monotonic() < deadline, f"{what}\n{server.logs()}"
                time.sleep(0.2)

        wait_until(lambda: pid_file.exists() and pid_file.read_text(), "the stage did not begin")
        sleeper = Path("/proc", pid_file.read_text())
        server.post(f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}, "force": False})
        wait_until(lambda: not sleeper.exists(), "the stage outlived its flow")

        def ended() -> bool:
            return bool(server.get(f"/flow_runs/{run['id']}")["state_type"] == "CANCELLED")

        wait_until(ended, "the flow run was not cancelled")
        found = server.post("/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        states = {task["name"]: task["state_type"] for task in found}
        assert states["prepare"] == "CANCELLED"
        assert "train" not in states
        with project.lock(timeout=1):
            pass

        # Nothing hinders the next one.
        (project.root / "prepare.py").write_text(PREPARE)
        run = server.run_deployment("repro/repro", {"message": "All of it"})
        assert run["state_type"] == "COMPLETED", server.logs()
        assert git(project.root, "log", "-1", "--format=%s") == "All of it"
        assert not Repo.open(project.root).status()
    finally:
        end(worker, grace=20)
