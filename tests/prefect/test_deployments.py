"""The deployments of prefect.yaml, each run once by a real worker against a real server."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from servers import PrefectServer

from dvkf_prefect.data.repo import Repo
from dvkf_prefect.kubeflow.serving import LocalServing
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.pipeline.leash import end

from .conftest import git

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
