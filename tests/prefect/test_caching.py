"""Cache policy by versions of data."""

from __future__ import annotations

import dataclasses
from typing import Any

from prefect import flow, task
from prefect.cache_policies import INPUTS, TASK_SOURCE
from prefect.context import TaskRunContext

from dvkf_prefect import DataVersion, DataVersionPolicy, DvcRepository

ONE = DataVersion("/worker/a", "1" * 40, "data/train", "a" * 32, 10, 1)


def _key(policy: Any, **inputs: Any) -> str | None:
    context = TaskRunContext.model_construct(task=task(_key))
    key: str | None = policy.compute_key(context, inputs, {})
    return key


def test_keys_know_content_and_no_place() -> None:
    policy = DataVersionPolicy()
    elsewhere = dataclasses.replace(ONE, repo="/worker/b", rev=None)
    first = _key(policy, data=(ONE,), repository=DvcRepository(path="/a/digits"), depth=2)
    assert first is not None
    assert first == _key(policy, data=(elsewhere,), repository=DvcRepository(path="/b/digits"), depth=2)
    digits, signs = DvcRepository(path="/digits"), DvcRepository(path="/signs")
    others = [
        _key(policy, data=(dataclasses.replace(ONE, digest="b" * 32),), repository=digits, depth=2),
        _key(policy, data=(dataclasses.replace(ONE, path="data/test"),), repository=digits, depth=2),
        _key(policy, data=(ONE,), repository=signs, depth=2),
        _key(policy, data=(ONE,), repository=digits, depth=3),
    ]
    assert len({first, *others}) == 5
    assert _key(policy, data={"a": [ONE]}) == _key(policy, data={"a": [elsewhere]})


def test_the_policy_combines_with_prefects_own() -> None:
    both = DataVersionPolicy() + TASK_SOURCE - "seed"
    assert _key(both, data=ONE, seed=1) == _key(both, data=ONE, seed=2)
    elsewhere = dataclasses.replace(ONE, repo="/worker/b", rev=None)
    whole = DataVersionPolicy() + (INPUTS + TASK_SOURCE - "seed")
    assert _key(whole, data=ONE, seed=1) == _key(whole, data=elsewhere, seed=2)
    assert _key(both, data=ONE, seed=1) != _key(DataVersionPolicy() - "seed", data=ONE, seed=1)


def test_a_task_runs_once_for_equal_content(prefect_server: None) -> None:
    calls = []

    @task(cache_policy=DataVersionPolicy() + TASK_SOURCE)
    def rows(data: DataVersion) -> int:
        calls.append(data)
        return data.nfiles

    @flow
    def count() -> list[int]:
        moved = dataclasses.replace(ONE, repo="/worker/b", rev=None)
        return [rows(ONE), rows(moved), rows(dataclasses.replace(ONE, digest="b" * 32))]

    assert count() == [1, 1, 1]
    assert len(calls) == 2
