"""Batches of requests: their bounds, and answers that equal those of requests alone."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from dvkf_prefect.blocks import ModelServer
from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.serving.answering import Answer, Request
from dvkf_prefect.serving.intake import Budget
from dvkf_prefect.serving.lanes import Batching, Lane
from dvkf_prefect.serving.model import Model


class _Recording:
    """An estimator that notes the rows of each call, and refuses negative numbers."""

    n_features_in_ = 1

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def predict(self, rows: Any) -> Any:
        self.gate.wait(30)
        self.calls.append(len(rows))
        if (rows < 0).any():
            raise ValueError("negative")
        return rows[:, 0] * 2


def _v1(*values: float) -> Request:
    return Request("v1", json.dumps({"instances": [[value] for value in values]}).encode())


async def _ask(lane: Lane, requests: list[Request]) -> list[Answer]:
    shares = [Budget().share() for _ in requests]
    opened = [share.__enter__() for share in shares]
    return await asyncio.gather(
        *(lane.answer(request, 1 << 20, share) for request, share in zip(requests, opened, strict=True))
    )


def _answers(model: Any, batching: Batching, requests: list[Request]) -> list[Any]:
    async def run() -> list[Answer]:
        return await _ask(Lane(Model(model, "m", "v1"), batching=batching), requests)

    return [json.loads(answer.body) for answer in asyncio.run(run())]


def test_requests_that_wait_make_one_computation() -> None:
    model = _Recording()
    requests = [_v1(1), _v1(2, 3), _v1(4), _v1(5)]
    expected = [{"predictions": [value * 2 for value in row]} for row in ([1], [2, 3], [4], [5])]
    assert _answers(model, Batching(3, 5.0), requests[:3]) == expected[:3]
    # One row is the probe of the model's types; a full batch does not wait 5 seconds.
    assert model.calls == [1, 4]
    model.calls.clear()
    assert _answers(model, Batching(3, 0.01), requests) == expected
    assert model.calls == [1, 4, 1]
    model.calls.clear()
    assert _answers(model, Batching(), requests) == expected
    assert sorted(model.calls) == [1, 1, 1, 1, 2]


def test_requests_that_arrive_during_a_computation_make_the_next_batch() -> None:
    model = _Recording()

    async def run() -> list[Answer]:
        lane = Lane(Model(model, "m", "v1"), batching=Batching(8))
        model.calls.clear()
        model.gate.clear()
        first = asyncio.ensure_future(_ask(lane, [_v1(1)]))
        await asyncio.sleep(0.05)
        rest = asyncio.ensure_future(_ask(lane, [_v1(n) for n in (2, 3, 4)]))
        await asyncio.sleep(0.05)
        assert lane.running == 4
        model.gate.set()
        answers = [*await first, *await rest]
        await lane.close()
        assert lane.batches == 2
        return answers

    assert [json.loads(a.body)["predictions"] for a in asyncio.run(run())] == [[2], [4], [6], [8]]
    assert model.calls == [1, 3]


def test_a_bad_request_spoils_no_other() -> None:
    model = _Recording()
    requests = [_v1(1), _v1(-1), Request("v1", b"{"), _v1(2), Request("v1", b'{"instances": [[1, 2]]}')]
    found = _answers(model, Batching(5, 1.0), requests)
    assert [list(answer) for answer in found] == [
        ["predictions"],
        ["error"],
        ["error"],
        ["predictions"],
        ["error"],
    ]
    assert "refused the input: negative" in found[1]["error"]
    assert (found[0]["predictions"], found[3]["predictions"]) == ([2], [4])


@pytest.mark.parametrize("named", [False, True])
def test_protocols_and_shapes_are_kept_apart(named: bool) -> None:
    rows = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    table = pd.DataFrame(rows, columns=["a", "b"]) if named else rows
    model = LogisticRegression().fit(table, [0, 1, 0, 1])
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP64", "data": [0, 0, 1, 1]}
    requests = [
        Request("v1", json.dumps({"instances": [[1, 1]]}).encode()),
        Request("v2", json.dumps({"id": "a", "inputs": [tensor]}).encode()),
        Request("v2", json.dumps({"id": "b", "inputs": [{**tensor, "data": [1, 1, 0, 0]}]}).encode()),
        Request("v2", json.dumps({"inputs": [tensor], "outputs": [{"name": "predict"}]}).encode()),
        Request("v1", json.dumps({"instances": [[0, 0], [1, 0]]}).encode()),
    ]
    assert _answers(model, Batching(5, 1.0), requests) == _answers(model, Batching(), requests)


def test_a_server_with_batches(tmp_path: Path) -> None:
    import joblib
    from sklearn.dummy import DummyClassifier

    file = tmp_path / "m.bin"
    joblib.dump(DummyClassifier().fit([[0.0]], [7]), file)
    block = ModelServer(state_dir=str(tmp_path / "state"), batch_size=8, batch_wait=0.3)
    endpoint = block.serving().deploy("m", "v1", file, digest_file(file), model_format="sklearn")
    try:
        found: list[Any] = []
        threads = [threading.Thread(target=lambda: found.append(endpoint.predict([[0.0]]))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert found == [[7]] * 8
        metrics = httpx.get(f"{endpoint.url}/metrics", trust_env=False).text
        batches = next(line for line in metrics.splitlines() if line.startswith("dvkf_batches_total{"))
        assert float(batches.split()[-1]) < 8
        canary = block.serving().start_canary("m", "v2", file, digest_file(file), 10, model_format="sklearn")
        assert canary.metadata()["versions"] == ["v2", "v1"]
        # Other bounds are another server.
        other = ModelServer(state_dir=str(tmp_path / "state"))
        assert (
            other.serving().deploy("m", "v1", file, digest_file(file), model_format="sklearn").pid
            != endpoint.pid
        )
    finally:
        block.serving().stop("m")
