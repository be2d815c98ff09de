"""The tasks on data, on real repositories and a real Prefect server."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task, unmapped
from prefect.runtime import flow_run

from dvkf_prefect.blocks import DvcRemote, DvcRepository, find_block
from dvkf_prefect.errors import (
    ConfigError,
    GitError,
    OutputChangedError,
    RemoteNotFoundError,
    RemoteUnreachableError,
)
from dvkf_prefect.repo import Repo
from dvkf_prefect.tasks.data import (
    add_data,
    checkout_data,
    commit_results,
    diff_data,
    pull_data,
    push_commits,
    push_data,
)

from .conftest import git

Artifacts = Callable[[str], list[Any]]


@pytest.fixture
def block(repo: Repo) -> DvcRepository:
    return DvcRepository(path=str(repo.root))


def test_new_version_is_added_compared_committed_and_pushed(
    block: DvcRepository, repo: Repo, artifacts: Artifacts
) -> None:
    (repo.root / "data" / "train" / "3.txt").write_text("image 3\n")
    (repo.root / "data" / "train" / "0.txt").write_text("image 0, better\n")
    (repo.root / "code.py").write_text("not a result\n")

    @flow
    def update() -> Any:
        added = add_data(block, ["data/train"])
        diff = diff_data(block)
        commit = commit_results(block, "Add images")
        return added, diff, commit, push_data(block), flow_run.get_id()

    added, diff, commit, pushed, run = update()
    assert [(v.path, v.nfiles, v.rev) for v in added] == [("data/train", 4, None)]
    assert [e.path for e in diff.added] == ["data/train/3.txt"]
    assert pushed.files == 5
    message = git(repo.root, "log", "-1", "--format=%B", commit)
    assert message == f"Add images\n\nPrefect-Flow-Run: {run}"
    assert git(repo.root, "show", "--name-only", "--format=", commit) == "data/train.dvc"
    assert "code.py" in git(repo.root, "status", "--porcelain")

    (card,) = artifacts("data-digits-data-train")
    assert card.type == "markdown"
    assert "4 files" in card.description
    assert f"at commit `{commit[:10]}`" in card.description
    assert "The version before" in card.description
    (card,) = artifacts("diff-digits")
    assert "1 added" in card.description
    assert "data/train/3.txt" in card.data


def test_each_version_of_the_data_is_one_more_on_its_timeline(repo: Repo, artifacts: Artifacts) -> None:
    block = DvcRepository(path=str(repo.root), label="timeline")

    @flow
    def update(number: int) -> None:
        (repo.root / "data" / "train" / f"new-{number}.txt").write_text(f"{number}\n")
        add_data(block, ["data/train"])
        assert "not committed" in artifacts("data-timeline-data-train")[-1].description
        commit_results(block, f"Images up to {number}")
        checkout_data(block)
        push_data(block)
        pull_data(block)
        add_data(block, ["data/train"])

    update(1)
    update(2)
    cards = artifacts("data-timeline-data-train")
    assert [re.findall(r"\d files", card.description)[0] for card in cards] == ["4 files", "5 files"]
    commits = git(repo.root, "log", "--format=%H", "--", "data/train.dvc").split()
    versions = cards[-1].data.partition("### Versions")[2]
    assert [commit[:10] for commit in commits] == re.findall(r"`([0-9a-f]{10})`", versions)

    @flow
    def add_twice() -> None:
        (repo.root / "data" / "train" / "new-3.txt").write_text("3\n")
        add_data(block, ["data/train"])
        git(repo.root, "commit", "--quiet", "--all", "--message", "By hand")
        assert "not committed" in artifacts("data-timeline-data-train")[-1].description
        add_data(block, ["data/train"])

    add_twice()
    *_, card = artifacts("data-timeline-data-train")
    assert f"at commit `{git(repo.root, 'rev-parse', 'HEAD')[:10]}`" in card.description
    assert len(artifacts("data-timeline-data-train")) == len(cards) + 1


def test_blocks_may_be_given_by_name(repo: Repo, artifacts: Artifacts) -> None:
    DvcRepository(path=str(repo.root), label="by-name").save("by-name", overwrite=True)

    @flow
    def push(name: str) -> Any:
        return push_data(name)

    assert push("by-name").files == 4
    assert push("dvc-repository/by-name").files == 0
    with pytest.raises(
        ConfigError, match=r"no DVC Repository block is named 'by-nam' .*Did you mean 'by-name'\?"
    ):
        push("by-nam")
    with pytest.raises(
        TypeError, match=r"repository is PosixPath\. Pass a DVC Repository block, or its name"
    ):
        find_block(DvcRepository, repo.root, "repository")  # type: ignore[type-var]

    @flow
    def unset() -> Any:
        return push_data(None)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match=r"repository is NoneType\. Pass a DVC Repository block, or its name"):
        unset()
    with pytest.raises(ValueError, match=r"no field is named 'remoet'\. Did you mean 'remote'\?"):
        DvcRepository(path=str(repo.root), remoet=None)  # type: ignore[call-arg]


def test_tasks_are_mapped_and_submitted_on_one_repository(repo: Repo, artifacts: Artifacts) -> None:
    """Those that write wait for each other; a later task takes their versions as values."""
    block = DvcRepository(path=str(repo.root), label="mapped")
    names = [f"{number}.csv" for number in range(4)]
    for name in names:
        (repo.root / name).write_text(f"number\n{name}\n")

    @task
    def lines(repository: DvcRepository, versions: Any) -> int:
        return len((repository.open().root / versions[0].path).read_text().splitlines())

    @flow
    def at_once() -> list[int]:
        added = add_data.map(unmapped(block), [[name] for name in names])
        pushed = [push_data.submit(block, [name], wait_for=[added]) for name in names]
        assert sum(each.result().files for each in pushed) == len(names)
        commit_results.submit(block, "Add tables", wait_for=pushed).result()
        for name in names:
            (repo.root / name).unlink()
        pulled = pull_data.map(unmapped(block), [[name] for name in names])
        return lines.map(unmapped(block), pulled).result()

    assert at_once() == [2] * len(names)
    assert set(names) <= {output.path for output in repo.outputs()}


def test_a_version_that_came_from_elsewhere_gets_its_card_at_the_first_pull(
    repo: Repo, artifacts: Artifacts
) -> None:
    block = DvcRepository(path=str(repo.root), label="arrived")

    @flow
    def pull() -> None:
        checkout_data(block)
        assert artifacts("data-arrived-data-train") == []
        repo.push()
        pull_data(block)
        pull_data(block)

    pull()
    (card,) = artifacts("data-arrived-data-train")
    assert "3 files" in card.description


def test_pull_brings_what_was_pushed(block: DvcRepository, repo: Repo, artifacts: Artifacts) -> None:
    @flow
    def there_and_back() -> Any:
        push_data(block)
        shutil.rmtree(repo.root / ".dvc" / "cache")
        shutil.rmtree(repo.root / "data" / "train")
        return pull_data(block)

    (version,) = there_and_back()
    assert version == repo.version("data/train")
    assert (repo.root / "data" / "train" / "2.txt").read_text() == "image 2\n"
    progress = artifacts("transfer-digits")[-1]
    assert (progress.type, progress.data) == ("progress", 100.0)


def test_checkout_refuses_to_lose_changes(block: DvcRepository, repo: Repo) -> None:
    (repo.root / "data" / "train" / "0.txt").write_text("not in the cache\n")

    @flow
    def bring(force: bool) -> Any:
        return checkout_data(block, force=force)

    with pytest.raises(OutputChangedError):
        bring(False)
    bring(True)
    assert (repo.root / "data" / "train" / "0.txt").read_text() == "image 0\n"


def test_nothing_to_commit(block: DvcRepository, repo: Repo) -> None:
    @flow
    def commit() -> Any:
        return commit_results(block, "Nothing")

    head = git(repo.root, "rev-parse", "HEAD")
    assert commit() is None
    assert git(repo.root, "rev-parse", "HEAD") == head


def test_results_of_a_repository_inside_another(tmp_path: Path, prefect_server: None) -> None:
    top = tmp_path / "top"
    inner = top / "in[n]er"
    inner.mkdir(parents=True)
    git(top, "init", "--quiet")
    repo = Repo.init(inner, subdir=True)
    (top / "other.dvc").write_text("not of this repository\n")
    (inner / "file.txt").write_text("content\n")
    repo.add([inner / "file.txt"])

    @flow
    def commit() -> Any:
        return commit_results(DvcRepository(path=str(inner)), "First")

    assert commit()
    listed = git(top, "show", "--name-only", "--format=", "HEAD").splitlines()
    assert "in[n]er/file.txt.dvc" in listed
    assert "other.dvc" not in listed


def test_commits_go_to_the_origin_of_a_clone(
    repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: None
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_DVKF_HOME", str(tmp_path / "home"))
    git(tmp_path, "clone", "--quiet", "--bare", str(repo.root), "origin.git")
    repo.push()
    store = DvcRemote(url=str(tmp_path / "store"))
    block = DvcRepository(path=f"file://{tmp_path}/origin.git", remote=store)

    @flow
    def update() -> Any:
        pull_data(block)
        clone = block.open()
        (clone.root / "data" / "train" / "9.txt").write_text("image 9\n")
        add_data(block, ["data/train"])
        commit = commit_results(block, "Add 9")
        return commit, push_commits(block)

    commit, pushed = update()
    assert pushed == ("main", "tags")
    assert git(tmp_path / "origin.git", "rev-parse", "main") == commit
    assert git(block.open().root, "rev-parse", "HEAD") == commit


def test_push_commits_without_an_origin(block: DvcRepository, prefect_server: None) -> None:
    @flow
    def push() -> Any:
        return push_commits(block)

    assert push() == ()


def test_repository_without_git(tmp_path: Path, prefect_server: None) -> None:
    Repo.init(tmp_path, no_scm=True)

    @flow
    def commit() -> Any:
        return commit_results(DvcRepository(path=str(tmp_path)), "Nothing")

    with pytest.raises(GitError, match="not in a git repository"):
        commit()


def test_unknown_remote_is_not_tried_again(block: DvcRepository, repo: Repo, prefect_server: None) -> None:
    with repo.config.edit() as sections:
        sections["core"].clear()
        sections["remote"].clear()
    runs = []

    @flow
    def push() -> None:
        runs.append(1)
        push_data(block)

    with pytest.raises(RemoteNotFoundError):
        push()


def test_unreachable_remote_is_tried_again_and_no_secret_is_told(
    repo: Repo, prefect_server: None, caplog: pytest.LogCaptureFixture
) -> None:
    remote = DvcRemote(
        url="s3://bucket/data",
        endpointurl="http://127.0.0.1:9",
        region="us-east-1",
        access_key_id="key-of-the-remote",
        secret_access_key="secret-of-the-remote",
        connect_timeout=1,
    )
    block = DvcRepository(path=str(repo.root), remote=remote)
    impatient = push_data.with_options(retries=1, retry_delay_seconds=0)

    @flow
    def push() -> None:
        impatient(block)

    with caplog.at_level(logging.DEBUG), pytest.raises(RemoteUnreachableError) as caught:
        push()
    assert "Retry 1/1" in caplog.text
    assert "of-the-remote" not in caplog.text + str(caught.value) + repr(caught.value)
