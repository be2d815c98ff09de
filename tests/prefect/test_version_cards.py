"""Cards of versions that stages make: published once, by the run that made them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from repos import make_repo

from dvkf_prefect import DvcRepository, KubeflowPipelines, artifact_key, flows

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
