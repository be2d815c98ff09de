"""Cards of versions that stages make: published once, by the run that made them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
)
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
