"""Worker processes of the model server: spread, replaced, ended with the server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import wait_until

from dvkf_prefect.errors import ModelDigestError, ServingError
from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.processes.identity import ProcessId
from dvkf_prefect.serving import launch
from dvkf_prefect.serving.answering import Answer, Request
from dvkf_prefect.serving.intake import Budget
from dvkf_prefect.serving.lanes import Batching, Lane
from dvkf_prefect.serving.local import LocalServing
from dvkf_prefect.serving.workers import WorkerPool

# Answers the worker's process id; 6 waits for a file, 7 ends the process, 8 fails.
_MODEL = """
import os, time
import numpy
class Model:
    n_features_in_ = 1
    def load(self, folder):
        self.gate = folder / "gate"
        if (folder / "broken").exists():
            os._exit(9)
    def predict(self, rows):
        value = int(rows[0][0])
        if value == 6:
            with open(os.environ["TEST_GATE"] + f".{os.getpid()}", "w"):
                pass
            while not os.path.exists(os.environ["TEST_GATE"]):
                time.sleep(0.01)
        if value == 7:
            os._exit(7)
        if value == 8:
            raise KeyError("no such thing")
        return numpy.full(len(rows), os.getpid() if value == 5 else len(rows))
"""


def _model(folder: Path, *more: str) -> tuple[Path, str]:
    folder.mkdir()
    (folder / "model.py").write_text(_MODEL)
    for name in more:
        (folder / name).touch()
    pairs = [(file.name, digest_file(file)) for file in folder.iterdir()]
    return folder, Tree.from_pairs(pairs).digest


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEST_GATE", str(tmp_path / "gate"))
    return tmp_path / "gate"


@pytest.fixture
def serving(tmp_path: Path, gate: Path) -> Iterator[LocalServing]:
    serving = LocalServing(tmp_path / "state", workers=2)
    yield serving
    gate.touch()
    for endpoint in serving.list():
        serving.stop(endpoint.model)


def _post(url: str, value: int) -> httpx.Response:
    body = {"instances": [[value]]}
    return httpx.post(f"{url}/v1/models/m:predict", json=body, trust_env=False, timeout=120)


def _workers(url: str) -> str:
    text = httpx.get(f"{url}/metrics", trust_env=False, timeout=60).text
    return next(line.split()[-1] for line in text.splitlines() if line.startswith("dvkf_workers{"))


def test_workers_compute_at_the_same_time_and_end_with_the_server(
    serving: LocalServing, tmp_path: Path, gate: Path
) -> None:
    endpoint = serving.deploy("m", "v1", *_model(tmp_path / "a"))
    assert _workers(endpoint.url) == "2.0" and endpoint.metadata()["platform"] == "python"
    threads = [threading.Thread(target=_post, args=(endpoint.url, 6)) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(list(tmp_path.glob("gate.*"))) == 2)
    gate.touch()
    for thread in threads:
        thread.join()
    workers = [ProcessId.of(int(file.suffix[1:])) for file in tmp_path.glob("gate.*")]
    assert len(workers) == 2 and all(workers) and endpoint.pid not in [w.pid for w in workers if w]
    assert _post(endpoint.url, 8).status_code == 500
    # The deployment with another number of workers is another one, on the same port.
    more = LocalServing(serving.state_dir, workers=1).deploy("m", "v1", *_model(tmp_path / "b"))
    assert more.url == endpoint.url and more.pid != endpoint.pid and _workers(more.url) == "1.0"
    wait_until(lambda: not any(worker and worker.alive for worker in workers))
    one = ProcessId.of(_post(more.url, 5).json()["predictions"][0])
    assert one and one.alive
    # Killed, a server takes its workers along.
    os.kill(more.pid, signal.SIGKILL)
    wait_until(lambda: not one.alive)
    launch._children.pop(more.pid).wait()


def test_a_worker_that_ends_is_replaced(serving: LocalServing, tmp_path: Path) -> None:
    endpoint = serving.deploy("m", "v1", *_model(tmp_path / "a"))
    # The request that ends a worker is not given to another one.
    answer = _post(endpoint.url, 7)
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert "lost the worker process" in answer.json()["error"]
    assert _post(endpoint.url, 1).json() == {"predictions": [1]}
    wait_until(lambda: _workers(endpoint.url) == "2.0")
    # One that is killed while it waits costs no request.
    for _ in range(3):
        pid = _post(endpoint.url, 5).json()["predictions"][0]
        os.kill(pid, signal.SIGKILL)
        assert [_post(endpoint.url, 1).status_code for _ in range(3)] == [200] * 3
    assert endpoint.ready()


def test_what_does_not_load_in_a_worker(serving: LocalServing, tmp_path: Path) -> None:
    model = _model(tmp_path / "a")
    with pytest.raises(ModelDigestError):
        serving.deploy("m", "v1", model[0], "0" * 32 + ".dir")
    with pytest.raises(ServingError, match="a worker process ended while it loaded the model"):
        serving.deploy("m", "v1", *_model(tmp_path / "b", "broken"))
    with pytest.raises(ServingError, match="cannot be read"):
        serving.deploy("m", "v1", tmp_path / "none", model[1])
    assert serving.list() == []


@pytest.fixture
def pool(tmp_path: Path, gate: Path) -> Iterator[WorkerPool]:
    folder, digest = _model(tmp_path / "model")
    pool = WorkerPool(folder, {"name": "m", "version": "v1", "digest": digest, "format": None}, 2)
    yield pool
    gate.touch()
    pool.close()


def test_batches_are_spread_over_workers(pool: WorkerPool, gate: Path) -> None:
    def request(value: int) -> Request:
        return Request("v1", json.dumps({"instances": [[value]]}).encode())

    async def run() -> list[Answer]:
        lane = Lane(pool, batching=Batching(3, 0.05))
        budget = Budget()

        async def ask(value: int) -> Answer:
            with budget.share() as share:
                return await lane.answer(request(value), 1 << 20, share)

        answers = [asyncio.create_task(ask(6)) for _ in range(6)]
        while len(list(gate.parent.glob("gate.*"))) < 2:
            await asyncio.sleep(0.01)
        gate.touch()
        found = await asyncio.gather(*answers)
        assert lane.batches == 2
        return found

    found: list[Any] = [json.loads(answer.body)["predictions"] for answer in asyncio.run(run())]
    assert found == [[3]] * 6  # each was predicted with two others


def test_a_pool_without_workers_is_not_ready(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    from dvkf_prefect.serving import workers

    monkeypatch.setattr(workers, "_PATIENCE", 0.05)
    monkeypatch.setattr(workers, "_BACKOFF", (0.05, 0.1))
    lane = Lane(pool)
    assert lane.ready and lane.workers == 2
    # No new worker loads, until the files are there again.
    copy = Path(pool._fields["path"])
    os.rename(copy, copy.with_name("away"))
    for worker in list(pool._workers):
        os.kill(worker.process.pid, signal.SIGKILL)
    wait_until(lambda: not lane.ready)
    (answer,) = pool.answer([Request("v1", b'{"instances": [[1]]}')], 1 << 20)
    assert answer.status == 503 and b"has no worker process" in answer.body
    os.rename(copy.with_name("away"), copy)
    wait_until(lambda: lane.workers == 2)
    (answer,) = pool.answer([Request("v1", b'{"instances": [[1]]}')], 1 << 20)
    assert answer.status == 200
