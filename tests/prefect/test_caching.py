"""Cache policy by versions of data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task
from prefect.cache_policies import INPUTS, NO_CACHE, TASK_SOURCE
from prefect.context import TaskRunContext

from dvkf_prefect import DataVersion, DataVersionPolicy, DvcRemote, DvcRepository, Repo

from .conftest import git

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


def test_prefects_own_policies_know_no_place_either() -> None:
    elsewhere = dataclasses.replace(ONE, repo="/worker/b", rev=None)
    digits = {"data": ONE, "repository": DvcRepository(path="/a/digits")}
    signs = {"data": elsewhere, "repository": DvcRepository(path="/b/digits")}
    for policy in (
        INPUTS,
        INPUTS + TASK_SOURCE,
        TASK_SOURCE + DataVersionPolicy(),
        INPUTS + DataVersionPolicy(),
    ):
        assert _key(policy, **digits) == _key(policy, **signs)
    assert _key(INPUTS, data=ONE) != _key(INPUTS, data=dataclasses.replace(ONE, digest="b" * 32))


def test_a_sum_keeps_storage_locks_and_isolation() -> None:
    locks = DvcRemote(url="/store").locks()
    other = TASK_SOURCE.configure(isolation_level="SERIALIZABLE", lock_manager=locks)
    for policy in (DataVersionPolicy() + other, DataVersionPolicy() + (INPUTS + other)):
        assert policy.lock_manager is locks
        assert policy.isolation_level == "SERIALIZABLE"
    own = DataVersionPolicy().configure(key_storage="/keys")
    assert (own + other).key_storage == "/keys"
    assert (own + NO_CACHE) == own
    with pytest.raises(ValueError, match="different storage locations"):
        own + TASK_SOURCE.configure(key_storage="/others")


def test_clones_have_one_name_wherever_they_are(repo: Repo, tmp_path: Path) -> None:
    for name in ("a", "b"):
        git(tmp_path, "clone", "--quiet", str(repo.root), f"clone-{name}")
    one, two = (DvcRepository(path=str(tmp_path / f"clone-{name}")) for name in ("a", "b"))
    assert (one.name, two.name) == ("clone-a", "clone-b")
    assert one.shared_name == two.shared_name == "digits"
    for clone, url in (
        (one, "git@git.example.org:team/digits.git"),
        (two, "https://git.example.org/team/digits"),
    ):
        git(Path(clone.path), "remote", "set-url", "origin", url)
    fresh = DvcRepository(path="ssh://git@git.example.org/team/digits.git")
    assert one.shared_name == two.shared_name == fresh.shared_name == "git.example.org/team/digits"
    assert one.model_copy(update={"folder": "sub"}).shared_name == "git.example.org/team/digits/sub"
    assert DvcRepository(path=f"{one.path}/sub").shared_name == "git.example.org/team/digits/sub"
    assert one.model_copy(update={"label": "signs"}).shared_name == "signs"
    assert DvcRepository(path=str(repo.root)).shared_name == "digits"
    policy = DataVersionPolicy()
    keys = {_key(policy, repository=each, data=each.open().version("data/train")) for each in (one, two)}
    assert len(keys) == 1 and None not in keys
    git(Path(two.path), "remote", "set-url", "origin", "https://token@git.example.org/team/other")
    assert _key(policy, repository=two) not in keys
    assert "token" not in two.shared_name


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
