"""The tasks on pipelines: real stages on KFP's local runner and in plain processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
from prefect import flow

from dvkf_prefect.blocks import DvcRepository, KubeflowPipelines
from dvkf_prefect.errors import StageFailedError
from dvkf_prefect.repo import Repo
from dvkf_prefect.tasks import commit_results, compare_metrics, repro_pipeline

from .conftest import git, write_rows

Artifacts = Callable[[str], list[Any]]


@flow
def bring_up_to_date(block: DvcRepository, pipelines: KubeflowPipelines) -> Any:
    return repro_pipeline(block, pipelines), compare_metrics(block), commit_results(block, "Train")


@pytest.mark.parametrize("backend", ["kubeflow-local", "local"])
def test_cards_say_what_ran_and_why(
    project: Repo, artifacts: Artifacts, backend: Literal["kubeflow-local", "local"]
) -> None:
    block = DvcRepository(path=str(project.root), label=backend)
    pipelines = KubeflowPipelines(backend=backend)
    result, rows, commit = bring_up_to_date(block, pipelines)
    assert result.ran == ("prepare", "train")
    assert {(row.name, row.old) for row in rows} == {("accuracy", None), ("rows", None)}
    listed = git(project.root, "show", "--name-only", "--format=", commit).splitlines()
    assert listed == [".gitignore", "dvc.lock", "metrics.json"]

    write_rows(project.root / "data" / "train", "b", shift=0.5)
    (project.root / "params.yaml").write_text("depth: 1\n")
    result, rows, commit = bring_up_to_date(block, pipelines)
    assert result.ran == ("prepare", "train")
    assert ("rows", 6, 12) in {(row.name, row.old, row.new) for row in rows}

    result, rows, nothing = bring_up_to_date(block, pipelines)
    assert (result.ran, result.skipped, nothing) == ((), ("prepare", "train"), None)

    assert [card.description for card in artifacts(f"pipeline-{backend}")] == [
        f"2 stages of **{backend}**: 2 ran.",
        f"2 stages of **{backend}**: 2 ran.",
        f"2 stages of **{backend}**: 2 skipped.",
    ]
    first, second, third = artifacts(f"stage-{backend}--train")
    assert "no entry in dvc.lock" in first.description
    assert "params.yaml:depth" in second.data.replace("\\", "")
    assert "skipped" in third.description
    assert "prepared 12 rows" in artifacts(f"stage-{backend}--prepare")[1].data
    metrics = artifacts(f"metrics-{backend}")
    assert "rows 6 → **12** (+6)" in metrics[1].description
    assert "| rows | 6 | 12 | +6 |" in metrics[1].data
    assert "![rows over 2 versions](data:image/svg+xml;base64," in metrics[1].data


def test_failing_stage_tells_command_and_log(project: Repo, artifacts: Artifacts) -> None:
    (project.root / "train.py").write_text("import sys\nprint('no such luck')\nsys.exit(3)\n")
    block = DvcRepository(path=str(project.root), label="failing")

    @flow
    def run() -> Any:
        return repro_pipeline(block, KubeflowPipelines(backend="kubeflow-local"))

    with pytest.raises(StageFailedError, match="exit code 3"):
        run()
    (pipeline,) = artifacts("pipeline-failing")
    assert pipeline.description == "2 stages of **failing**: 1 ran, 1 failed."
    (stage,) = artifacts("stage-failing--train")
    assert "failed" in stage.description
    assert "no such luck" in stage.data
