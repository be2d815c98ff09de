"""The deployments of `dvkf prefect init` in a Docker work pool: a worker starts a container for each run."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import certifi
import pytest
from processes import wait_until
from repos import git, make_repo
from ruamel.yaml import YAML
from servers import PrefectServer, S3Server, free_ports

import dvkf_prefect
from dvkf_prefect.kubeflow.image.context import write_wheel
from dvkf_prefect.processes.leash import LeashedProcess, end
from dvkf_prefect.repo import Repo

from .images import make_image

pytestmark = [pytest.mark.docker, pytest.mark.long]

BASE, FLOWS = "python:3.11-slim", "dvkf-test/flows:1"
# The recipe installs git, which the base image has here, where Debian's mirrors may be out of reach.
BASE_RECIPE = """\
FROM dvkf-test/pool-base:1
COPY *.whl /wheels/
COPY apt-get /usr/bin/apt-get
COPY cacert.pem /etc/ssl/certs/ca-certificates.crt
"""
FILES = {
    "dvc.yaml": """\
stages:
  double:
    cmd: python double.py
    deps: [double.py, data.txt]
    outs: [doubled.txt]
""",
    "double.py": """\
import os

with open("doubled.txt", "w") as file:
    file.write(2 * open("data.txt").read())
print("in a container:", os.path.exists("/.dockerenv"))
""",
    "data.txt": "ab",
}


@pytest.fixture(scope="module")
def base(docker_engine: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The base image of the recipe, with what this package requires; its pip finds this package."""
    make_image("dvkf-test/pool-base:1", packages=True, programs=["git"])
    folder = tmp_path_factory.mktemp("base")
    write_wheel(folder, dvkf_prefect.__version__)
    (folder / "apt-get").write_text("#!/bin/sh\nexec git --version\n")
    (folder / "apt-get").chmod(0o755)
    shutil.copy(certifi.where(), folder)
    (folder / "Dockerfile").write_text(BASE_RECIPE)
    built = subprocess.run(["docker", "build", "-q", "-t", BASE, str(folder)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[str]:
    """The address of a git server with one bare repository, and the right to push."""
    folder = tmp_path / "git"
    git(tmp_path, "init", "-q", "--bare", "--initial-branch", "main", str(folder / "digits.git"))
    (port,) = free_ports(1)
    words = ["git", "daemon", "--export-all", "--enable=receive-pack", "--reuseaddr", "--listen=127.0.0.1"]
    daemon = LeashedProcess([*words, f"--port={port}", f"--base-path={folder}", str(folder)])
    url = f"git://127.0.0.1:{port}/digits.git"
    try:
        wait_until(
            lambda: subprocess.run(["git", "ls-remote", url], capture_output=True).returncode == 0, 120
        )
        yield url
    finally:
        end(daemon)


@pytest.fixture
def project(tmp_path: Path, origin: str, s3: S3Server) -> tuple[Repo, dict[str, str]]:
    """A repository with a stage that has not run, its data on S3, and the variables with the keys."""
    bucket = s3.make_bucket("work-pool")
    repo = make_repo(tmp_path / "tree", FILES, remote=f"{bucket}/digits", add=["data.txt"])
    with (repo.root / ".dvc/config").open("a") as config:
        config.write(f"    endpointurl = {s3.endpoint}\n    region = us-east-1\n")
    git(repo.root, "remote", "add", "origin", origin)
    keys = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
    return Repo.open(repo.root), keys


def test_each_run_has_a_container(
    base: None, project: tuple[Repo, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the printed commands: the flow clones the repository itself, then a step of the deployment does."""
    pytest.importorskip("prefect_docker")
    repo, keys = project
    server = PrefectServer(tmp_path)
    server.environment |= keys
    init = ["dvkf", "prefect", "init", "--type", "docker", "--image", FLOWS, "--name", "digits"]
    said = server.run(*init)
    build, pool, blocks, deploy, work = (line.strip() for line in said.splitlines() if line.startswith("\t"))
    path = repo.root / "prefect.yaml"
    document = YAML(typ="safe").load(path)
    (repro,) = document["deployments"]
    person = {"GIT_AUTHOR_NAME": "worker", "GIT_AUTHOR_EMAIL": "worker@example.org"}
    person |= {name.replace("AUTHOR", "COMMITTER"): value for name, value in person.items()}
    repro["work_pool"]["job_variables"]["env"] = {**keys, **person}
    step = {
        "dvkf_prefect.steps.pull_repository": {"repository": "digits", "targets": ["data.txt"], "id": "got"}
    }
    stays = {"prefect.deployments.steps.set_working_directory": {"directory": "{{ got.directory }}"}}
    document["deployments"].append({**repro, "name": "by-step", "pull": [step, stays]})
    with path.open("w") as file:
        YAML().dump(document, file)
    server.run(
        "bash", "-ec", "git add . && git commit -qm Deploy && git push -q origin HEAD:main && dvkf push -q"
    )
    server.run("bash", "-ec", build)
    with ExitStack() as started:
        started.enter_context(server.serving())
        for command in (pool, blocks, deploy):
            server.run("bash", "-ec", command)
        assert server.get("/work_pools/digits")["type"] == "docker"
        started.enter_context(server.running(*work.split()))

        run = server.run_deployment("repro/repro", {})
        assert run["state_type"] == "COMPLETED", server.logs()
        assert run["infrastructure_pid"], run
        assert "in a container: True" in logged(server, run)
        git(repo.root, "pull", "-q", "origin", "main")
        assert git(repo.root, "log", "-1", "--format=%an, %(trailers:key=Prefect-Flow-Run,valueonly)") == (
            f"worker, {run['id']}"
        )

        # The step pulls the data, and the flow is that of the clone.
        flow = repo.root / "flows/repro.py"
        flow.write_text(flow.read_text() + "\nprint('the flow of the clone')\n")
        (repo.root / "double.py").write_text(FILES["double.py"].replace("2 *", "3 *"))
        git(repo.root, "commit", "-qam", "Triple")
        git(repo.root, "push", "-q", "origin", "main")
        run = server.run_deployment("repro/by-step", {})
        assert run["state_type"] == "COMPLETED", server.logs()
        # What the container wrote reaches the worker's output after the run's end.
        log = tmp_path / "worker.log"
        wait_until(lambda: "the flow of the clone" in log.read_text(), 120, "it ran another flow")
        server.run("bash", "-ec", "git pull -q origin main && dvkf pull -q")
        assert (repo.root / "doubled.txt").read_text() == "ababab"
    listed = subprocess.run(
        ["docker", "ps", "-aq", "--filter", f"ancestor={FLOWS}"], capture_output=True, text=True
    )
    assert len(listed.stdout.split()) == 2


def logged(server: PrefectServer, run: dict[str, Any]) -> str:
    wanted = {"logs": {"flow_run_id": {"any_": [run["id"]]}}, "limit": 200}
    return "\n".join(line["message"] for line in server.post("/logs/filter", wanted))
