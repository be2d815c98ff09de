"""A DVC remote as the storage of results: written by one worker, read by others, which have nothing but the remote."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from prefect import flow, task
from prefect.blocks.core import Block
from prefect.cache_policies import INPUTS, TASK_SOURCE
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL
from pydantic import SecretStr
from servers import S3Server

from dvkf_prefect import DvcRemote, Repo
from dvkf_prefect.data.remotes import open_storage
from dvkf_prefect.errors import MissingObjectError

from .conftest import git

WORKER = """\
import json, sys, time
from datetime import timedelta
from prefect import flow, task
from prefect.cache_policies import TASK_SOURCE
from prefect.runtime import flow_run
from dvkf_prefect import DataVersion, DataVersionPolicy, DvcRemote, DvcRepository

block, clone = sys.argv[1:]
policy = (DataVersionPolicy() + TASK_SOURCE).configure(
    isolation_level="SERIALIZABLE", lock_manager=DvcRemote.load(block, _sync=True).locks()
)

@task(cache_policy=policy, cache_expiration=timedelta(days=1), result_serializer="dvkf-arrow")
def rows(repository, data):
    import pandas as pd
    time.sleep(1)
    print("rows ran", file=sys.stderr, flush=True)
    files = sorted((repository.open().root / data.path).iterdir())
    return pd.DataFrame({"text": pd.Categorical([file.read_text() for file in files])})

@flow(result_storage=f"dvc-remote/{block}", result_serializer="dvkf-arrow", persist_result=True)
def count():
    repository = DvcRepository(path=clone)
    frame = rows(repository, repository.open().version("data/train"))
    print(json.dumps({"run": flow_run.get_id(), "rows": len(frame)}))
    return frame.assign(number=range(len(frame)))

count()
"""


# Prefect 3.8 leaves a socket of its client open at the end of each async flow, empty ones too.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture(autouse=True)
def collect_sockets() -> Iterator[None]:
    """Collect those sockets here: they must not warn in another test."""
    yield
    gc.collect()


class Workers:
    """Processes with a home and a clone of their own, as on other machines."""

    def __init__(self, repo: Repo, folder: Path, block: str) -> None:
        self.repo, self.folder, self.block = repo, folder, block
        (folder / "worker.py").write_text(WORKER)

    def run(self, name: str) -> tuple[dict[str, Any], int]:
        """Return what the flow printed, and the number of times that its task ran."""
        home = self.folder / name
        git(self.folder, "clone", "--quiet", str(self.repo.root), f"{name}/clone")
        Repo.open(home / "clone", config=DvcRemote(url=str(self.folder / "store")).as_config()).pull()
        environment = {
            **os.environ,
            "HOME": str(home),
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_API_URL": PREFECT_API_URL.value(),
        }
        command = [sys.executable, str(self.folder / "worker.py"), self.block, str(home / "clone")]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr.count("rows ran")


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.long)])
def saved(request: pytest.FixtureRequest, prefect_server: None, tmp_path: Path) -> tuple[str, DvcRemote]:
    """Name of a saved block, and the block."""
    name = f"results-{uuid.uuid4()}"
    if request.param == "folder":
        remote = DvcRemote(url=str(tmp_path / "results"))
    else:
        s3: S3Server = request.getfixturevalue("s3")
        remote = DvcRemote(
            url=s3.make_bucket(name) + "/data",
            endpointurl=s3.endpoint,
            region="us-east-1",
            access_key_id=SecretStr(s3.access_key),
            secret_access_key=SecretStr(s3.secret_key),
        )
    remote.save(name, _sync=True)
    return name, remote


@pytest.mark.long
def test_workers_with_their_own_clones_share_results(
    repo: Repo, saved: tuple[str, DvcRemote], tmp_path: Path, s3: S3Server
) -> None:
    repo.push()
    name, remote = saved
    workers = Workers(repo, tmp_path, name)
    # Two at once: by the lock on the remote, the task runs once.
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(workers.run, ("one", "two")))
    assert sum(ran for _, ran in both) == 1
    printed, ran = workers.run("three")
    assert (printed["rows"], ran) == (3, 0)

    with get_client(sync_client=True) as client:
        for printed, _ in both:
            frame = client.read_flow_run(printed["run"]).state.result()
            assert list(frame["number"]) == [0, 1, 2]
            assert frame["text"].dtype == "category"

    storage = remote._open()
    keys = list(storage.keys("results-dvkf"))
    texts = [storage.read(key, limit=1 << 20) for key in keys]
    for secret in (s3.secret_key, s3.access_key, str(tmp_path)):
        assert not any(secret.encode() in text for text in [*texts, "".join(keys).encode()])
    # Both entries of the flow's results name one object, that of the task's another one.
    assert len([key for key in keys if "/objects/" in key]) <= 2


def test_a_cached_task_expires_and_is_collected(saved: tuple[str, DvcRemote]) -> None:
    name, remote = saved
    calls = []

    @task(cache_policy=INPUTS + TASK_SOURCE, cache_expiration=timedelta(hours=1))
    def double(number: int) -> int:
        calls.append(number)
        return 2 * number

    @flow(result_storage=f"dvc-remote/{name}", persist_result=True)
    def work() -> list[int]:
        return [double(number) for number in (1, 2, 1)]

    assert work() == [2, 4, 2]
    assert calls == [1, 2]
    assert work() == [2, 4, 2]
    assert calls == [1, 2]
    # The results of the two flow runs have no expiration.
    assert not remote.expire_results()
    assert remote.expire_results(dry_run=True, older_than=timedelta(0)).results == 4
    assert work() == [2, 4, 2]
    assert remote.expire_results(older_than=timedelta(0)).results == 5
    assert work() == [2, 4, 2]
    assert calls == [1, 2, 1, 2]


def test_an_async_flow_stores_frames(saved: tuple[str, DvcRemote]) -> None:
    name, _ = saved
    frame = pd.DataFrame({"x": [1.5, 2.5]}, index=pd.Index(["a", "b"], name="id"))

    @task(cache_policy=INPUTS, result_serializer="dvkf-parquet")
    async def make(number: int) -> pd.DataFrame:
        return frame * number

    @flow(result_storage=f"dvc-remote/{name}", persist_result=True, result_serializer="dvkf-arrow")
    async def work() -> pd.DataFrame:
        await make(2)
        return await make(2)

    state = asyncio.run(work(return_state=True))  # type: ignore[arg-type]
    with get_client(sync_client=True) as client:
        stored = client.read_flow_run(state.state_details.flow_run_id).state
    pd.testing.assert_frame_equal(stored.result(), frame * 2)


def test_the_reason_why_a_result_is_not_stored_is_in_the_log(
    saved: tuple[str, DvcRemote], caplog: pytest.LogCaptureFixture
) -> None:
    name, remote = saved

    @flow(result_storage=f"dvc-remote/{name}", persist_result=True, result_serializer="dvkf-arrow")
    def work() -> pd.DataFrame:
        return pd.DataFrame({"x": [(1, 2)]})

    assert len(work()) == 1
    assert "cannot store this DataFrame: column 'x': the tuple in row 0 would be ndarray" in caplog.text
    assert remote.expire_results().kept == 0


def test_the_block_reads_and_writes_by_both_apis(saved: tuple[str, DvcRemote]) -> None:
    name, remote = saved
    remote.write_path("a", b"1" * 10_000)
    loaded = Block.load(f"dvc-remote/{name}", _sync=True)
    assert isinstance(loaded, DvcRemote)
    assert loaded.read_path("a") == b"1" * 10_000

    async def run() -> bytes:
        await loaded.awrite_path("a", b"2")
        return await remote.aread_path("a")

    assert asyncio.run(run()) == b"2"
    with pytest.raises(MissingObjectError):
        remote.read_path("b")


def test_a_relative_folder_is_that_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    DvcRemote(url="store").write_path("a", b"1")
    assert open_storage(str(tmp_path / "store")).size("results-dvkf") is None
    assert (tmp_path / "store/results-dvkf/keys").is_dir()


@pytest.mark.long
def test_dvc_leaves_results_on_the_remote(repo: Repo, tmp_path: Path) -> None:
    """`dvc gc --cloud` removes unused data, and knows nothing of the results beside it."""
    repo.push()
    remote = DvcRemote(url=str(tmp_path / "store"))
    remote.write_path("k", b"x" * 10_000)
    kept = sorted((tmp_path / "store/results-dvkf").rglob("*"))
    (repo.root / "data/train.dvc").unlink()
    subprocess.run(["dvc", "gc", "-w", "-c", "-f"], cwd=repo.root, check=True, capture_output=True)
    assert not [path for path in (tmp_path / "store/files").rglob("*") if path.is_file()]
    assert sorted((tmp_path / "store/results-dvkf").rglob("*")) == kept
    assert remote.read_path("k") == b"x" * 10_000
