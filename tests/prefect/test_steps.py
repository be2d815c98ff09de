"""Steps of deployments, as Prefect calls them from prefect.yaml."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.deployments.steps.core import StepExecutionError, run_steps
from servers import PrefectServer

from dvkf_prefect.blocks import DvcRemote, DvcRepository
from dvkf_prefect.repo import Repo

from .conftest import git

Steps = list[dict[str, Any]]

FLOW = """\
from pathlib import Path

from prefect import flow


@flow
def count() -> int:
    found = sorted(path.read_text() for path in Path("data/train").iterdir())
    assert found == ["image 0\\n", "image 1\\n", "image 2\\n"], found
    return len(found)
"""


def _run(steps: Steps) -> dict[str, Any]:
    return asyncio.run(run_steps(steps))


def _block(repo: Repo, store: Path) -> DvcRepository:
    return DvcRepository(path=f"file://{repo.root}", remote=DvcRemote(url=str(store)))


def test_data_is_pushed_and_repository_and_data_are_pulled(
    prefect_server: None, repo: Repo, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    _block(repo, store).save("steps", overwrite=True)
    pushed = _run([{"dvkf_prefect.steps.push_data": {"directory": str(repo.root), "id": "push"}}])
    assert pushed["push"]["files"] == 4
    assert 0 < pushed["push"]["size"] <= store_size(store)
    steps: Steps = [
        {
            "dvkf_prefect.steps.pull_repository": {
                "id": "code",
                "repository": "{{ prefect.blocks.dvc-repository.steps }}",
                "data": False,
            }
        },
    ]
    code = _run(steps)
    directory = Path(code["directory"])
    assert directory != repo.root
    assert (code["code"]["commit"], code["code"]["root"]) == (
        git(repo.root, "rev-parse", "HEAD"),
        str(directory),
    )
    assert not (directory / "data" / "train").exists()
    by_name = _run([{"dvkf_prefect.steps.pull_repository": {"repository": "steps", "targets": "data/train"}}])
    assert (by_name["directory"], by_name["files"]) == (str(directory), 4)
    assert by_name["versions"] == {"data/train": repo.version("data/train").digest}
    assert (directory / "data" / "train" / "2.txt").read_text() == "image 2\n"

    shutil.rmtree(repo.root / "data" / "train")
    shutil.rmtree(repo.cache.root)
    pulled = _run(
        [{"dvkf_prefect.steps.pull_data": {"directory": str(repo.root), "targets": ["data/train"]}}]
    )
    assert "directory" not in pulled
    assert (repo.root / "data" / "train" / "2.txt").exists()


def store_size(store: Path) -> int:
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("step", "inputs", "message"),
    [
        ("pull_repository", {}, "either repository or url"),
        ("pull_repository", {"repository": "steps", "url": "/x"}, "either repository or url"),
        ("pull_repository", {"repository": "steps", "rev": "main"}, "rev is a field of the block"),
        ("push_data", {"repository": "no-such"}, "no DVC Repository block is named 'no-such'"),
    ],
)
def test_steps_refuse_what_is_not_clear(
    prefect_server: None, step: str, inputs: dict[str, Any], message: str
) -> None:
    with pytest.raises(StepExecutionError) as caught:
        _run([{f"dvkf_prefect.steps.{step}": inputs}])
    assert message in str(caught.value.__cause__)


@pytest.mark.long  # a server and a worker of its own; the steps themselves are tried above
def test_a_worker_runs_a_deployment_from_its_repository(repo: Repo, tmp_path: Path) -> None:
    """`prefect deploy` pushes the data; the worker clones the repository, pulls the data, and finds the flow there."""
    (repo.root / "count.py").write_text(FLOW)
    git(repo.root, "add", "--all")
    git(repo.root, "commit", "--quiet", "--message", "Flow")
    shutil.rmtree(tmp_path / "store", ignore_errors=True)
    tree = tmp_path / "tree"
    tree.mkdir()
    server = PrefectServer(tmp_path)
    with ExitStack() as started:
        started.enter_context(server.serving())
        save = (
            "from dvkf_prefect import *\n"
            f"DvcRepository(path='file://{repo.root}', remote=DvcRemote(url='{tmp_path / 'store'}')).save('digits')"
        )
        server.run("python", "-c", save)
        (tree / "count.py").write_text(FLOW)
        deployment = {
            "name": "count",
            "entrypoint": "count.py:count",
            "work_pool": {"name": "steps"},
            "push": [{"dvkf_prefect.steps.push_data": {"directory": str(repo.root)}}],
            "pull": [{"dvkf_prefect.steps.pull_repository": {"repository": "digits"}}],
        }
        (tree / "prefect.yaml").write_text(yaml.safe_dump({"name": "digits", "deployments": [deployment]}))
        server.run("prefect", "work-pool", "create", "steps", "--type", "process")
        server.run("prefect", "--no-prompt", "deploy", "--all")
        assert store_size(tmp_path / "store") > 0
        started.enter_context(server.running("prefect", "worker", "start", "--pool", "steps"))
        run = server.run_deployment("count/count", {})
        assert run["state_type"] == "COMPLETED", server.logs()
