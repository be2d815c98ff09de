"""The tasks on models: registered, served, rolled back, with a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from model_registry.fake import FakeRegistry
from prefect import flow
from prefect.runtime import flow_run

from dvkf_prefect.blocks import (
    DvcRepository,
    KubeflowCredentials,
    KubeflowModelRegistry,
    KubeflowPipelines,
    ModelServer,
)
from dvkf_prefect.cards import artifact_key
from dvkf_prefect.errors import ModelDigestError, ModelNotFoundError, PredictionError
from dvkf_prefect.repo import Repo
from dvkf_prefect.serving.whereabouts import with_services
from dvkf_prefect.tasks import (
    abort_canary,
    check_model_ref,
    commit_results,
    deploy_model,
    deprecate_model,
    deregister_model,
    list_model_events,
    mirror_models,
    promote_canary,
    promote_model,
    register_model,
    repro_pipeline,
    request_predictions,
    rollback_model,
    show_model,
    start_canary,
    trace_data,
    trace_model,
    unassign_model,
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
        request_predictions(block, server, "signs", [[-2, 0], [0.25, 0], [2, 0]]),
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
        return back, request_predictions(block, server, "signs", [[0.25, 0]])

    back, predictions = go_back()
    assert (back.version, predictions) == ("v0.0.1", (1,))

    @flow
    def try_again() -> Any:
        tried = start_canary(block, server, "signs", "v0.0.2", percent=10)
        aborted = abort_canary(block, server, "signs")
        start_canary(block, server, "signs", "v0.0.2", percent=10)
        promoted = promote_canary(block, server, "signs")
        answers = request_predictions(block, server, "signs", [[0.25, 0]])
        start_canary(block, server, "signs", "v0.0.1", percent=10)
        return tried, aborted, promoted, answers, promote_canary(block, server, "signs")

    tried, aborted, promoted, predictions, last = try_again()
    assert (tried.version, tried.canary, tried.percent) == ("v0.0.1", "v0.0.2", 10)
    assert (aborted.version, promoted.version, predictions) == ("v0.0.1", "v0.0.2", (0,))
    assert (last.version, last.pid) == ("v0.0.1", tried.pid)
    assert "Rolled prod of signs back to v0.0.1." in artifacts("model-signs--signs")[-1].description
    assert "v0.0.1" in artifacts("endpoint-signs--signs")[-1].description
    # Other tests of this server have a repository of the same name.
    assert any(
        "not changed since v0.0.2" in card.description for card in artifacts("model-signs--signs")[-3:]
    )
    # A server has its model in memory; nothing of it is left on disk.
    assert not list((server.folder).glob("model-*"))

    @flow
    def ask_nonsense() -> Any:
        return request_predictions(block, server, "signs", [[1, 2, 3]])

    with pytest.raises(PredictionError):
        ask_nonsense()


def test_the_other_verbs_of_the_registry(project: Repo, artifacts: Artifacts) -> None:
    block = DvcRepository(path=str(project.root), label="verbs")

    @flow
    def verbs() -> Any:
        repro_pipeline(block, KubeflowPipelines(backend="local"))
        commit_results(block, "Train")
        version = register_model(block, "signs")
        promote_model(block, "signs", version.version, "prod")
        shown = show_model(block, "signs", "#prod")
        left = unassign_model(block, "signs", "latest", "prod", message="Not yet")
        gone = deregister_model(block, "signs", version.version, message="Wrong labels")
        deprecate_model(block, "signs")
        event = check_model_ref(block, "refs/tags/signs#prod!#2")
        return shown, left, gone, event, list_model_events(block, "signs"), flow_run.get_id()

    shown, left, gone, event, events, run = verbs()
    assert (shown.version, shown.stages, left.stages, gone.active) == ("v0.0.1", ("prod",), (), False)
    assert (event.action, event.version, event.message) == ("unassign", "v0.0.1", "Not yet")
    actions = ["deprecate", "deregister", "unassign", "assign", "register"]
    assert [each.action for each in events] == actions
    assert all(each.trailers["Prefect-Flow-Run"] == run for each in events)
    rows = artifacts("events-verbs--signs")[-1].data.splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows] == [each.as_dict()["event"] for each in events]
    assert "Withdrew v0.0.1" in artifacts("model-verbs--signs")[-1].description


def test_lineage_and_mirror(project: Repo, server: ModelServer, artifacts: Artifacts) -> None:
    block = DvcRepository(path=str(project.root), label="traced")
    fake = FakeRegistry("v1")

    @flow
    def release_and_trace(registry: KubeflowModelRegistry) -> Any:
        repro_pipeline(block, KubeflowPipelines(backend="local"))
        commit_results(block, "Train")
        register_model(block, "signs")
        deploy_model(block, server, "signs")
        report = mirror_models(block, registry)
        return (
            report,
            trace_model(block, "signs"),
            trace_data(block, "data/train/a.csv", rev="HEAD"),
            flow_run.get_id(),
        )

    with fake.served() as url:
        credentials = KubeflowCredentials(host="http://unused", token="secret")
        registry = KubeflowModelRegistry(host=url, credentials=credentials, prefix="team/", api="v1")
        report, lineage, learned, run = release_and_trace(registry)
    assert [record.name for record in report.records] == ["signs", "signs@v0.0.1"]
    assert all(headers["Authorization"] == "Bearer secret" for headers in fake.headers)
    assert fake.contexts["1"]["name"] == "team/signs"
    assert fake.contexts["2"]["customProperties"]["dvkf.run.Prefect-Flow-Run"]["string_value"] == run
    assert lineage.runs["Prefect-Flow-Run"] == run
    assert [service.url for service in lineage.services] == [server.endpoint("signs").url]
    assert [each.version for each in learned] == [lineage.version]
    assert {fact["kind"] for fact in lineage.facts} == {"registry", "service"}
    card = artifacts(artifact_key("lineage", "traced", "signs v0.0.1"))
    assert "data/train" in card[-1].data and f"| service | {lineage.services[0].url} |" in card[-1].data
    assert card[-1].data.startswith("![Lineage of signs v0.0.1](data:image/svg+xml;base64,")
    mirrored = artifacts(artifact_key("mirror", "traced", url))[-1]
    # A word joiner keeps V2 from making an address of the name.
    assert "2 records, 2 changed" in mirrored.description and "signs\u2060@v0.0.1" in mirrored.data
    server.serving().stop("signs")
    again = with_services([lineage])
    assert again[0].services == ()


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
