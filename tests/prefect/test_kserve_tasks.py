"""The tasks on services of a cluster with KServe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kserve_world import World, patch_waits, world
from kube_api import Model
from prefect import flow

from dvkf_prefect import (
    DvcRepository,
    KServeModelServer,
    ModelServer,
    abort_canary,
    deploy_model,
    judge_canary,
    promote_canary,
    register_model,
    start_canary,
    undeploy_model,
)
from dvkf_prefect.cards import artifact_key
from dvkf_prefect.errors import ConfigError, GateError, ServingError
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.repo import Repo
from dvkf_prefect.serving.kserve import deployment

from .conftest import git

Artifacts = Callable[[str], list[Any]]
URI = "s3://models/signs/{}/"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with world("0.20", mode="Knative") as w:
        patch_waits(monkeypatch, w)
        monkeypatch.setattr(deployment, "_manifest", lambda place, version: None)
        w.config = w.api.kubeconfig(tmp_path / "kubeconfig", namespace="ml")  # type: ignore[attr-defined]
        yield w


def train(repo: Repo, block: DvcRepository, content: bytes) -> str:
    (repo.root / "signs.joblib").write_bytes(content)
    (repo.root / "dvc.yaml").write_text("artifacts:\n  signs: {path: signs.joblib}\n")
    repo.add([repo.root / "signs.joblib"])
    git(repo.root, "add", "-A")
    git(repo.root, "commit", "-qm", "Train")
    version = register_model.fn(block, "signs")
    facts = {"where": URI.format(version.version), "format": "sklearn"}
    ModelRegistry(block.open()).note(version, "published", facts)
    return version.version


def test_a_release_by_a_canary(cluster: World, repo: Repo, artifacts: Artifacts) -> None:
    block = DvcRepository(path=str(repo.root), label="cluster")
    server = KServeModelServer(namespace="ml", config_file=cluster.config, service_account="lake")  # type: ignore[attr-defined]

    @flow
    def release() -> Any:
        train(repo, block, b"one")
        server.save("cluster", overwrite=True)
        first = deploy_model(block, "cluster", "signs")
        train(repo, block, b"two")
        tried = start_canary(block, server, "signs", percent=30)
        aborted = abort_canary(block, server, "signs")
        start_canary(block, server, "signs", percent=30)
        return first, tried, aborted, promote_canary(block, server, "signs"), server.endpoint("signs")

    first, tried, aborted, promoted, found = release()
    assert (first.version, aborted.version, promoted.version) == ("v0.0.1", "v0.0.1", "v0.0.2")
    assert (tried.percent, tried.stable, tried.version) == (30, "v0.0.1", "v0.0.2") and found == promoted
    assert (
        "http://signs.ml.example.com"
        in artifacts(artifact_key("endpoint", "cluster", "signs"))[0].description
    )

    @flow
    def fail_and_remove() -> bool:
        version = train(repo, block, b"three")
        cluster.kserve.models[URI.format(version)] = Model("missing")
        with pytest.raises(ConfigError, match="server: no Model Server block is named 'other'"):
            deploy_model(block, "other", "signs")
        with pytest.raises(ServingError, match=r"No model found in models/iris/1/\. v0\.0\.2 serves\."):
            deploy_model(block, server, "signs")
        return undeploy_model(server, "signs")

    assert fail_and_remove() is True
    with pytest.raises(ServingError, match=r"'signs' is not served in namespace 'ml' \(running: none\)"):
        server.endpoint("signs")


def test_gates_are_shown_on_a_card(cluster: World, repo: Repo, artifacts: Artifacts) -> None:
    block = DvcRepository(path=str(repo.root), label="gated")
    server = KServeModelServer(namespace="ml", config_file=cluster.config, service_account="lake")  # type: ignore[attr-defined]

    @flow
    def release() -> Any:
        train(repo, block, b"one")
        deploy_model(block, server, "signs")
        train(repo, block, b"two")
        start_canary(block, server, "signs", gates=["metric:accuracy>=0.9,optional"])
        with pytest.raises(GateError, match="has no metric 'accuracy'"):
            judge_canary(block, server, "signs", ["metric:accuracy>=0.9"])
        return server.state("signs")

    state = release()
    assert (state.version, state.canary) == ("v0.0.1", "")
    shown = artifacts(artifact_key("gates", "gated", "signs"))
    assert {"no gate refused it" in each.description for each in shown} == {True, False}


def test_a_release_behind_a_graph(cluster: World, repo: Repo, artifacts: Artifacts) -> None:
    """The tasks and their cards name the address of the graph, which is that of callers."""
    block = DvcRepository(path=str(repo.root), label="split")
    server = KServeModelServer(
        namespace="ml",
        config_file=cluster.config,  # type: ignore[attr-defined]
        service_account="lake",
        split="graph",
    )
    url = "http://signs-split.ml.example.com"

    @flow
    def release() -> Any:
        train(repo, block, b"one")
        assert deploy_model(block, server, "signs").graph == ""  # type: ignore[attr-defined]
        train(repo, block, b"two")
        tried = start_canary(block, server, "signs", percent=30)
        state = server.state("signs")
        aborted = abort_canary(block, server, "signs")
        start_canary(block, server, "signs", percent=30)
        with pytest.raises(GateError, match="has no metric 'accuracy'"):
            judge_canary(block, server, "signs", ["metric:accuracy>=0.9"])
        start_canary(block, server, "signs", percent=30)
        promoted = promote_canary(block, server, "signs")
        return tried, state, aborted, promoted, deploy_model(block, server, "signs", "v0.0.1")

    tried, state, aborted, promoted, back = release()
    assert (tried.percent, tried.stable, tried.version, tried.url) == (30, "v0.0.1", "v0.0.2", url)
    assert (state.version, state.canary, state.url) == ("v0.0.1", "v0.0.2", url)
    assert [(each.version, each.graph) for each in (aborted, promoted, back)] == [
        ("v0.0.1", url),
        ("v0.0.2", url),
        ("v0.0.1", url),
    ]
    assert server.endpoint("signs") == back
    shown = artifacts(artifact_key("endpoint", "split", "signs"))
    tries = [str(each.data) for each in shown if "the canary v0.0.2 has 30 %" in str(each.description)]
    assert len(tries) == 3 and all("//signs-split.ml.example.com" in text for text in tries)
    assert url not in str(shown[0].data) and f"`{url}`" in str(shown[-1].data)


def test_a_local_server_is_removed_by_the_same_task(tmp_path: Path, prefect_server: None) -> None:
    server = ModelServer(state_dir=str(tmp_path / "serving"))
    assert flow(lambda: undeploy_model(server, "signs"), name="remove")() is False


def test_a_login_that_is_absent(tmp_path: Path) -> None:
    server = KServeModelServer(namespace="ml", config_file=str(tmp_path / "none"))
    with pytest.raises(ServingError, match="there is no login to Kubernetes"):
        server.endpoint("signs")
