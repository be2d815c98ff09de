"""Every task, block and helper in sync and in async flows: equal results, equal cards."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest
from model_registry.fake import FakeRegistry
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.runtime import flow_run
from prefect.tasks import Task
from pydantic import ValidationError

from dvkf_prefect import tasks
from dvkf_prefect.blocks import (
    DvcRemote,
    DvcRepository,
    KubeflowCredentials,
    KubeflowModelRegistry,
    KubeflowPipelines,
    ModelServer,
)
from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.repo import Repo

from .conftest import write_rows

# Prefect 3.8 leaves a socket of its client open at the end of each async flow, empty ones too.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture(autouse=True)
def collect_sockets() -> Iterator[None]:
    """Collect those sockets here: they must not warn in another test."""
    yield
    gc.collect()


# Kinds of cards that the flow below publishes.
KINDS = {
    "candidate",
    "collected",
    "data",
    "diff",
    "endpoint",
    "events",
    "incoming",
    "lineage",
    "metrics",
    "mirror",
    "model",
    "overview",
    "pipeline",
    "predictions",
    "progress",
    "promotion",
    "published",
    "stage",
    "table",
    "transfer",
    "unpublished",
    "verified",
    "watch",
}


# These need a cluster: test_schedule_tasks, test_run_tasks, test_repro_cluster_flow and test_kserve_tasks call them.
ON_A_CLUSTER = {
    "abort_canary",
    "archive_pipeline_run",
    "end_pipeline_runs",
    "judge_canary",
    "promote_canary",
    "retry_pipeline_run",
    "schedule_pipeline",
    "start_canary",
    "terminate_pipeline_run",
    "unarchive_pipeline_run",
    "unschedule_pipeline",
}


class Verbs:
    """The tasks by name; records which were called."""

    def __init__(self) -> None:
        self.called: set[str] = set()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        self.called.add(name)
        return cast("Callable[..., Any]", getattr(tasks, name))


def work(do: Verbs, block: DvcRepository, pipelines: KubeflowPipelines, server: ModelServer) -> str:
    """Call each task and helper once or more."""
    do.check_commit(block, uncommitted="refuse")
    do.pull_data(block, "data/train")
    assert do.repro_pipeline(block, pipelines).ran == ("prepare", "train")
    do.compare_metrics(block)
    assert do.show_plots(block) == ()
    do.write_data(block, pd.DataFrame({"id": [1]}), "tables/users.csv")
    do.diff_data(block)
    do.commit_results(block, "Train")
    assert not do.compare_table(block, "tables/users.csv", key="id")
    first = do.register_model(block, "signs")
    do.promote_model(block, "signs", first.version, "prod")
    write_rows(block.open().root / "data" / "train", "b", shift=1)
    do.add_data(block, ["data/train"])
    repo = block.open()
    with do.stage_tasks(repo, lambda on_event: pipelines.runner(repo, on_event=on_event)) as runner:
        repro(repo, runner=runner, on_event=runner.on_event)
    do.commit_results(block, "Train again")
    do.push_data(block)
    do.push_commits(block)
    inbox = repo.root.parent / "inbox"
    inbox.mkdir()
    (inbox / "users.csv").write_text("id\n1\n")
    (inbox / "bad.csv").write_text("id\nx\n")
    (repo.root / "users.json").write_text('{"columns": {"id": {"dtype": "int64"}}}')
    found = do.check_incoming(block, str(inbox), "data/users", "users.json", settle_seconds=0)
    assert (len(found.accepted), len(found.refused)) == (1, 1)
    assert [version.path for version in do.add_incoming(block, found)] == ["data/users", "quality-reports"]
    assert do.announce_data(block, "data/users") == ()
    assert do.clear_incoming(block, found) == ("users.csv",)
    assert do.watch_data(block) == ()
    do.checkout_data(block)
    do.promote_model(block, "signs", do.register_model(block, "signs").version, "prod")
    assert do.compare_versions(block, "signs", first.version, "prod").differences
    assert do.data_trigger(block, "train").expect
    assert do.rollback_model(block, "signs", "prod").version == first.version
    do.deploy_model(block, server, "signs", "#prod")
    assert do.request_predictions(block, server, "signs", [[2, 0]]) == (1,)
    place = str(repo.root.parent / "published")
    assert do.publish_model(block, "signs", to=place).new
    assert do.show_model(block, "signs", "#prod").version == first.version
    assert do.trace_model(block, "signs", "#prod").services
    assert any(shown.services for shown in do.show_overview(block).models)
    assert len(do.trace_data(block, "data/train")) == 2
    with FakeRegistry().served() as url:
        assert len(do.mirror_models(block, KubeflowModelRegistry(host=url)).records) == 3
    assert do.undeploy_model(server, "signs") is True
    do.unassign_model(block, "signs", first.version, "prod")
    do.deregister_model(block, "signs", first.version)
    assert not do.collect_models(block, place=place).unused
    do.unassign_model(block, "signs", "v0.0.2", "prod")
    assert do.unpublish_model(block, "signs", "v0.0.2", place=place).removed
    assert do.verify_data(block)
    assert not do.collect_data(block).places[0].remote
    do.deprecate_model(block, "signs")
    events = do.list_model_events(block, "signs")
    assert do.check_model_ref(block, events[-1].tag) == events[-1]
    return str(flow_run.get_id())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ModelServer]:
    block = ModelServer(state_dir=str(tmp_path / "serving"))
    yield block
    block.serving().stop("signs")


# Tests of each task call it in sync flows, too.
@pytest.mark.parametrize("kind", [pytest.param("sync", marks=pytest.mark.long), "async"])
def test_a_flow_has_all_its_cards(
    kind: str, project: Repo, server: ModelServer, tmp_path: Path, prefect_server: None
) -> None:
    """The card of a pipeline was lost in an async flow: its coroutine was not awaited."""
    # The folders of both kinds have one name.
    DvcRepository(path=str(project.root), label=f"signs-{kind}").save("async", overwrite=True)
    KubeflowPipelines().save("async", overwrite=True)
    server.save("async", overwrite=True)
    do = Verbs()

    @flow
    def in_sync() -> str:
        return work(
            do,
            cast(DvcRepository, DvcRepository.load("async")),
            cast(KubeflowPipelines, KubeflowPipelines.load("async")),
            cast(ModelServer, ModelServer.load("async")),
        )

    @flow
    async def in_async() -> str:
        blocks = [await made.aload("async") for made in (DvcRepository, KubeflowPipelines, ModelServer)]
        return work(do, *blocks)  # type: ignore[arg-type]

    run = in_sync() if kind == "sync" else asyncio.run(in_async())
    helpers = {name for name in tasks.__all__ if name[0].islower()}
    assert do.called == helpers - ON_A_CLUSTER
    with get_client(sync_client=True) as client:
        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
        found = client.read_artifacts(artifact_filter=wanted, limit=200)
    assert {str(artifact.key).split("-")[0] for artifact in found} == KINDS
    assert [artifact.key for artifact in found if "signs" not in str(artifact.key)] == []
    # The card and the progress of a pipeline belong to the flow run, all others to a task run.
    of_flow = {artifact.key for artifact in found if artifact.task_run_id is None}
    assert of_flow == {f"pipeline-signs-{kind}", f"progress-signs-{kind}"}


def test_blocks_load_in_async_code(prefect_server: None) -> None:
    blocks = [
        DvcRemote(url="/store"),
        DvcRepository(path="."),
        KubeflowCredentials(host="http://kf"),
        KubeflowModelRegistry(host="http://registry"),
        KubeflowPipelines(),
        ModelServer(),
    ]

    async def load() -> None:
        for block in blocks:
            await block.asave("in-async", overwrite=True)
            loaded = await type(block).aload("in-async")
            assert loaded.model_dump(exclude={"remote"}) == block.model_dump(exclude={"remote"})

    asyncio.run(load())


REPOSITORY_TASKS = [
    name
    for name in tasks.__all__
    if isinstance(made := getattr(tasks, name), Task)
    and "repository" in inspect.signature(made.fn).parameters
]


def test_a_block_that_was_not_awaited_is_named(prefect_server: None) -> None:
    """`load` gives a coroutine in async code; tasks once said that it has no attribute 'name'."""

    @flow
    async def forget(call: Callable[..., Any]) -> None:
        arguments: dict[str, Any] = {
            "targets": (), "name": "signs", "message": "m", "version": "v1", "stage": "prod", "path": "a.csv",
            "frame": None, "server": None, "instances": (), "pipelines": KubeflowPipelines(),
            "ref": "signs@v1", "registry": None, "gates": (), "cron": "0 3 * * *", "run_id": "r",
            "inbox": "in", "dataset": "data", "table_schema": "s.yaml", "incoming": None,
        }  # fmt: skip
        taken = call.fn if isinstance(call, Task) else call
        names = inspect.signature(taken).parameters
        call(
            repository=DvcRepository.load("any"),
            **{name: value for name, value in arguments.items() if name in names},
        )

    assert len(REPOSITORY_TASKS) >= 14
    for name in [*REPOSITORY_TASKS, "repro_pipeline"]:
        with pytest.raises(TypeError, match=r"repository is a coroutine.*aload"):
            asyncio.run(forget(getattr(tasks, name)))


def test_a_nested_block_that_was_not_awaited_is_named(prefect_server: None) -> None:
    async def forget() -> None:
        with pytest.raises(ValidationError, match=r"remote is a coroutine.*aload"):
            DvcRepository(path=".", remote=DvcRemote.load("any"))
        with pytest.raises(ValidationError, match=r"credentials is a coroutine.*aload"):
            KubeflowPipelines(credentials=KubeflowCredentials.load("any"))

    asyncio.run(forget())
