"""Cards of versions that stages make: published once, by the run that made them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from repos import make_repo

from dvkf_prefect import (
    DvcRepository,
    KubeflowPipelines,
    add_data,
    artifact_key,
    flows,
    pull_data,
    push_data,
    watch_data,
)
from dvkf_prefect.errors import ConfigError
from dvkf_prefect.repo import Repo

from .conftest import git

PIPELINE = """\
stages:
  rows:
    cmd: cat params.yaml > rows.csv; cat params.yaml > score.yaml
    params: [depth]
    outs: [rows.csv]
    metrics:
      - score.yaml:
          cache: false
"""


def test_repro_shows_the_new_versions_their_metrics_and_their_difference(
    tmp_path: Path, artifacts: Callable[[str], list[Any]]
) -> None:
    root = tmp_path / "cards"
    make_repo(root)
    (root / "dvc.yaml").write_text(PIPELINE)
    DvcRepository(path=str(root)).save("cards", overwrite=True)
    KubeflowPipelines().save("cards", overwrite=True)
    key = artifact_key("data", "cards", "rows.csv")
    commits = []
    for depth in (1, 2, 2):
        (root / "params.yaml").write_text(f"depth: {depth}\n")
        git(root, "add", "--all")
        git(root, "commit", "--quiet", "--allow-empty", "--message", f"Depth {depth}")
        commits.append(flows.repro("cards", "cards", push=False)["commit"])
    assert commits[2] is None
    cards = artifacts(key)
    assert [
        f"at commit `{commit[:10]}`" in card.description for commit, card in zip(commits, cards, strict=False)
    ] == [
        True,
        True,
    ]
    stages = artifacts("stage-cards--rows")
    assert [card.task_run_id for card in cards] == [card.task_run_id for card in stages[:2]]
    assert ["depth 1 → **2** (+1)" in card.description for card in artifacts("metrics-cards")] == [
        False,
        True,
    ]
    assert ["1 added" in card.description for card in artifacts("diff-cards")] == [True, False]
    assert artifacts(artifact_key("data", "cards", "score.yaml")) == []
    # The first version comes back from the run cache: it was published when it was made.
    (root / "params.yaml").write_text("depth: 1\n")
    assert flows.repro("cards", "cards", push=False)["restored"] == ["rows"]
    assert len(artifacts(key)) == 2


def test_pulls_of_two_branches_in_turn_publish_nothing(
    repo: Repo, artifacts: Callable[[str], list[Any]]
) -> None:
    """A pull published each version that was not the last one published, again and again."""
    block = DvcRepository(path=str(repo.root), label="branches")
    repo.push()

    @flow
    def work() -> None:
        pull_data(block)
        git(repo.root, "switch", "--quiet", "--create", "other")
        (repo.root / "data/train/9.txt").write_text("image 9\n")
        add_data(block, "data/train")
        git(repo.root, "commit", "--quiet", "--all", "--message", "Version 2")
        push_data(block)
        for branch in ("main", "other", "main", "other"):
            git(repo.root, "switch", "--quiet", branch)
            pull_data(block)

    work()
    cards = artifacts("data-branches-data-train")
    assert [card.description.partition(":")[2].split(",")[0] for card in cards] == [" 3 files", " 4 files"]


def test_another_repository_of_the_same_name_is_told(
    tmp_path: Path, artifacts: Callable[[str], list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """The second repository's version had no card, as the first one's had the same content."""
    blocks = []
    for place in "ab":
        root = tmp_path / place / "twins"
        made = make_repo(root, {"data/train/0.txt": b"image"}, remote=tmp_path / f"{place}-store")
        made.add(["data/train"])
        git(root, "add", "--all")
        git(root, "commit", "--quiet", "--message", "Data")
        blocks.append(DvcRepository(path=str(root)))

    @flow
    def add(block: DvcRepository) -> None:
        add_data(block, "data/train")

    for block in (blocks[0], blocks[0], blocks[1]):
        assert "another repository" not in caplog.text
        add(block)
    said = f"another repository named 'twins', {tmp_path}/a/twins, has the same cards. Set the label of the block."
    assert said in caplog.text
    assert len(artifacts("data-twins-data-train")) == 2

    @flow
    def look(block: DvcRepository) -> None:
        watch_data(block)

    look(blocks[0])
    look(blocks[0])
    with pytest.raises(ConfigError, match=r"named 'twins' is watched: .*/a/twins\. Set the label"):
        look(blocks[1])
    look(blocks[1].model_copy(update={"label": "other"}))
