"""The tasks on models: registered, served, rolled back, with a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.runtime import flow_run

from dvkf_prefect.blocks import DvcRepository, KubeflowPipelines, ModelServer
from dvkf_prefect.data.repo import Repo
from dvkf_prefect.errors import ModelDigestError, ModelNotFoundError, PredictionError
from dvkf_prefect.tasks import (
    commit_results,
    deploy_model,
    promote_model,
    register_model,
    repro_pipeline,
    request_predictions,
    rollback_model,
)

from .conftest import git, write_rows

Artifacts = Callable[[str], list[Any]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ModelServer]:
    block = ModelServer(state_dir=str(tmp_path / "serving"))
    yield block
    block.serving().stop("signs")


@flow
def release(block: DvcRepository, server: ModelServer) -> Any:
    repro_pipeline(block, KubeflowPipelines(backend="local"))
    commit_results(block, "Train")
    version = register_model(block, "signs")
    assigned = promote_model(block, "signs", version.version, "prod")
    endpoint = deploy_model(block, server, "signs", "#prod")
    return (
        assigned,
        endpoint,
        request_predictions(server, "signs", [[-2, 0], [0.25, 0], [2, 0]]),
        flow_run.get_id(),
    )


def test_release_new_data_and_rollback(project: Repo, server: ModelServer, artifacts: Artifacts) -> None:
    block = DvcRepository(path=str(project.root))
    first, endpoint, predictions, run = release(block, server)
    assert (first.version, first.stages) == ("v0.0.1", ("prod",))
    assert predictions == (0, 1, 1)
    assert f"Prefect-Flow-Run: {run}" in git(
        project.root, "tag", "--list", "--format=%(contents)", "signs@v0.0.1"
    )

    (project.root / "data" / "train" / "a.csv").unlink()
    write_rows(project.root / "data" / "train", "b", shift=1)
    second, moved, predictions, _ = release(block, server)
    assert second.version == "v0.0.2"
    assert (moved.url, moved.version) == (endpoint.url, "v0.0.2")
    assert predictions == (0, 0, 1)

    same, _, _, _ = release(block, server)
    assert same.version == "v0.0.2"

    @flow
    def go_back() -> Any:
        back = rollback_model(block, "signs", "prod")
        deploy_model(block, server, "signs", "#prod")
        return back, request_predictions(server, "signs", [[0.25, 0]])

    back, predictions = go_back()
    assert (back.version, predictions) == ("v0.0.1", (1,))
    assert "Rolled prod of signs back to v0.0.1." in artifacts("model-signs")[-1].description
    assert "v0.0.1" in artifacts("endpoint-signs")[-1].description
    assert "not changed since v0.0.2" in artifacts("model-signs")[4].description
    # A server has its model in memory; nothing of it is left on disk.
    assert not list((server.folder).glob("model-*"))

    @flow
    def ask_nonsense() -> Any:
        return request_predictions(server, "signs", [[1, 2, 3]])

    with pytest.raises(PredictionError):
        ask_nonsense()


def test_unknown_version_and_damaged_file(project: Repo, server: ModelServer, prefect_server: None) -> None:
    block = DvcRepository(path=str(project.root))

    @flow
    def train() -> Any:
        repro_pipeline(block, KubeflowPipelines(backend="local"))
        commit_results(block, "Train")
        return register_model(block, "signs")

    @flow
    def deploy(which: str) -> Any:
        return deploy_model(block, server, "signs", which)

    version = train()
    with pytest.raises(ModelNotFoundError):
        deploy("v9.9.9")
    cached = project.cache.path(version.digest)
    cached.chmod(0o644)
    cached.write_bytes(b"not the model")
    with pytest.raises(ModelDigestError):
        deploy("latest")
    assert server.serving().list() == []
