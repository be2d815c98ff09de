"""Prefect's assets: what tasks write is materialised, what they read is upstream, on a real server."""

from __future__ import annotations

import asyncio
import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from prefect import flow, task
from prefect.assets import Asset, materialize
from prefect.client.orchestration import get_client
from prefect.context import AssetContext
from prefect.events.worker import EventsWorker
from prefect.runtime import flow_run
from processes import wait_until

from dvkf_prefect import (
    DvcRepository,
    commit_results,
    pull_data,
    push_data,
    register_model,
    repro_pipeline,
    write_data,
)
from dvkf_prefect.blocks import KubeflowPipelines
from dvkf_prefect.repo import Repo
from dvkf_prefect.tasks._assets import asset_key

from .conftest import write_rows

# Prefect 3.8 leaves a socket of its client open at the end of each async flow, empty ones too.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture(autouse=True)
def collect_sockets() -> Iterator[None]:
    """Collect those sockets here: they must not warn in another test."""
    yield
    gc.collect()


MADE = "prefect.asset.materialization.succeeded"
READ = "prefect.asset.referenced"


def events(run: str, at_least: int) -> list[dict[str, Any]]:
    """The asset events of a flow run, the oldest first."""
    EventsWorker.instance().wait_until_empty()
    found: list[dict[str, Any]] = []

    def read() -> bool:
        wanted = {"filter": {"event": {"prefix": ["prefect.asset."]}, "order": "ASC"}, "limit": 50}
        with get_client(sync_client=True) as client:
            every = client._client.post("/events/filter", json=wanted).json()["events"]
        found[:] = [
            each
            for each in every
            if any(one["prefect.resource.id"] == f"prefect.flow-run.{run}" for one in each["related"])
        ]
        return len(found) >= at_least

    wait_until(read)
    return found


def key_of(event: dict[str, Any]) -> str:
    return str(event["resource"]["prefect.resource.id"])


def upstream(event: dict[str, Any]) -> set[str]:
    return {one["prefect.resource.id"] for one in event["related"] if one["prefect.resource.role"] == "asset"}


@pytest.mark.parametrize("kind", [pytest.param("sync", marks=pytest.mark.long), "async"])
def test_writes_are_materialised_with_what_they_read_upstream(
    kind: str, repo: Repo, tmp_path: Path, prefect_server: None
) -> None:
    block = DvcRepository(path=str(repo.root), label="wares")
    repo.push()

    @task
    def count(versions: Any) -> pd.DataFrame:
        return pd.DataFrame({"files": [versions[0].nfiles]})

    @materialize(Asset(key="s3://bucket/report"))
    def report(version: Any) -> str:
        return str(version)

    def work() -> str:
        pulled = pull_data(block, "data/train")
        version = write_data(block, count(pulled), "counts.csv")
        report(version)
        push_data(block)
        return str(flow_run.get_id())

    @flow
    def in_sync() -> str:
        return work()

    @flow
    async def in_async() -> str:
        return work()

    run = in_sync() if kind == "sync" else asyncio.run(in_async())
    place = f"file://{tmp_path / 'store'}/wares"
    found = events(run, 5)
    made = [each for each in found if each["event"] == MADE]
    counts = f"{place}/counts.csv"
    # Of the two versions on the remote, only the new one arrived by this push.
    assert [key_of(each) for each in made] == [counts, "s3://bucket/report", counts]
    assert [upstream(each) for each in made] == [{f"{place}/data/train"}, {counts}, set()]
    assert [key_of(each) for each in found if each["event"] == READ] == [f"{place}/data/train", counts]
    (version,) = (each for each in repo.outputs() if each.path == "counts.csv")
    assert (made[0]["payload"]["digest"], made[0]["payload"]["size"]) == (version.digest, version.size)
    assert made[0]["resource"]["prefect.resource.name"] == "counts.csv"
    assert {"prefect.resource.id": "dvkf", "prefect.resource.role": "asset-materialized-by"} in made[0][
        "related"
    ]


def test_stages_and_models_have_the_lineage_of_dvc(
    project: Repo, tmp_path: Path, prefect_server: None
) -> None:
    block = DvcRepository(path=str(project.root), label="lineage-of-dvc")
    # With one file alone, rows.csv would be equal to it, and on the remote already.
    write_rows(project.root / "data/train", "b", shift=1)
    project.add(["data/train"])

    @flow
    def train() -> tuple[str, str, str]:
        repro_pipeline(block, KubeflowPipelines(backend="local"))
        commit = commit_results(block, "Train")
        push_data(block)
        version = register_model(block, "signs")
        return str(flow_run.get_id()), str(commit), version.version

    run, commit, version = train()
    place = f"file://{tmp_path / 'store'}/lineage-of-dvc"
    made = {key_of(each): each for each in events(run, 7) if each["event"] == MADE}
    assert {name.removeprefix(f"{place}/"): upstream(each) for name, each in made.items()} == {
        "data/train": set(),
        "rows.csv": {f"{place}/data/train"},
        "model.joblib": {f"{place}/rows.csv"},
        "model:signs": {f"{place}/model.joblib"},
    }
    payload = made[f"{place}/model:signs"]["payload"]
    assert (payload["version"], payload["commit"], payload["path"]) == (version, commit, "model.joblib")


def test_stages_that_run_or_are_restored_materialise_their_outputs_and_skipped_ones_nothing(
    project: Repo, tmp_path: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = DvcRepository(path=str(project.root), label="made-by-stages")

    @materialize("s3://bucket/end")
    def end() -> None: ...

    @flow
    def train() -> str:
        repro_pipeline(block, KubeflowPipelines(backend="local"), pull=True)
        end()
        return str(flow_run.get_id())

    run = train()
    place = f"file://{tmp_path / 'store'}/made-by-stages"
    found = events(run, 5)
    made = {key_of(each): each for each in found if each["event"] == MADE}
    rows, model = made[f"{place}/rows.csv"], made[f"{place}/model.joblib"]
    assert len(made) == 3 and upstream(rows) == {f"{place}/data/train"} and upstream(model) == {key_of(rows)}
    assert {key_of(each) for each in found if each["event"] == READ} == {f"{place}/data/train", key_of(rows)}
    with get_client(sync_client=True) as client:
        names = {f"prefect.task-run.{each.id}": each.name for each in client.read_task_runs()}
    for event, stage in ((rows, "prepare"), (model, "train")):
        runs = [names.get(each["prefect.resource.id"]) for each in event["related"]]
        assert stage in runs and event["payload"]["stage"].endswith(stage)
    assert [key_of(each) for each in events(train(), 1)] == ["s3://bucket/end"]
    # The remote alone has the outputs and the run cache.
    project.push(run_cache=True)
    shutil.rmtree(project.cache.root)
    for output in ("rows.csv", "model.joblib"):
        (project.root / output).unlink()
    found = events(train(), 5)
    restored = {key_of(each): each for each in found if each["event"] == MADE}
    assert set(restored) == {key_of(rows), key_of(model), "s3://bucket/end"}
    for event in (rows, model):
        again = restored[key_of(event)]
        assert (upstream(again), again["payload"]) == (upstream(event), event["payload"])
    monkeypatch.setenv("PREFECT_INTEGRATIONS_DVKF_ASSETS", "false")
    (project.root / "params.yaml").write_text("depth: 3\n")
    assert [key_of(each) for each in events(train(), 1)] == ["s3://bucket/end"]


def test_nothing_is_emitted_when_off(
    repo: Repo, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_DVKF_ASSETS", "false")
    block = DvcRepository(path=str(repo.root), label="off")
    noted: list[Any] = []

    @task
    def look(version: Any) -> None:
        context = AssetContext.get()
        noted.append(context and context.upstream_assets)

    @materialize("s3://bucket/last")
    def last() -> None: ...

    @flow
    def work() -> str:
        look(pull_data(block))
        write_data(block, pd.DataFrame({"id": [1]}), "users.csv")
        push_data(block)
        last()
        return str(flow_run.get_id())

    repo.push()
    assert [key_of(each) for each in events(work(), 1)] == ["s3://bucket/last"]
    assert noted == [set()]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("s3://bucket/digits/data/train", "s3://bucket/digits/data/train"),
        ("s3://bucket/digits/data/my train", "s3://bucket/digits/data/my-train-"),
        ("git+ssh://host/a", "gitssh://host/a-"),
        ("s3://bucket/" + "a" * 600, "s3://bucket/aaaa"),
    ],
)
def test_keys_that_prefect_accepts(text: str, key: str) -> None:
    made = Asset(key=asset_key(text)).key
    assert made.startswith(key) and len(made) <= 512
    assert (made == text) == (key == text)


def test_a_key_has_no_credentials_and_needs_no_remote(
    repo: Repo, prefect_server: None, tmp_path: Path
) -> None:
    from dvkf_prefect.tasks._assets import Assets

    (repo.root / ".dvc/config").write_text(
        "[core]\n    remote = web\n['remote \"web\"']\n    url = https://me:secret@host/store?sig=x\n"
    )
    block = DvcRepository(path=str(repo.root), label="wares")
    assert (
        Assets(block, Repo.open(repo.root))._make(None, "data", "data").key == "https://host/store/wares/data"
    )
    (repo.root / ".dvc/config").write_text("")
    assert Assets(block, Repo.open(repo.root))._make(None, "data", "data").key == "dvkf://wares/data"
