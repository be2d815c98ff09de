"""The tasks on pipelines: real stages on KFP's local runner and in plain processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from prefect import flow

from dvkf_prefect.blocks import DvcRepository, KubeflowPipelines
from dvkf_prefect.data.repo import Repo
from dvkf_prefect.errors import StageFailedError
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
    assert {row["metric"]: row["change"] for row in json.loads(metrics[1].data)}["rows"] == "+6"


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


def test_cancelled_flow_leaves_no_process(project: Repo, tmp_path: Path, prefect_server: None) -> None:
    """A worker cancels a run by SIGTERM: the stage, and what the stage started, must end with it."""
    pid_file = tmp_path / "pid"
    (project.root / "prepare.py").write_text(
        textwrap.dedent(
            f"""
            import pathlib, subprocess
            child = subprocess.Popen(["sleep", "600"])
            pathlib.Path({str(pid_file)!r}).write_text(str(child.pid))
            child.wait()
            """
        )
    )
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            f"""
            from prefect import flow
            from prefect.utilities.engine import capture_sigterm
            from dvkf_prefect import DvcRepository, KubeflowPipelines, repro_pipeline

            @flow
            def run():
                repro_pipeline(DvcRepository(path={str(project.root)!r}), KubeflowPipelines(backend="kubeflow-local"))

            with capture_sigterm():
                run()
            """
        )
    )
    from prefect.settings import get_current_settings

    environment = {**os.environ, **get_current_settings().to_environment_variables(exclude_unset=True)}
    environment["PREFECT_API_URL"] = _api_url()
    process = subprocess.Popen([sys.executable, str(script)], env=environment)
    try:
        deadline = time.monotonic() + 120
        while not pid_file.exists() or not pid_file.read_text():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        sleeper = int(pid_file.read_text())
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 20
    while _alive(sleeper):
        assert time.monotonic() < deadline, "the stage outlived its flow"
        time.sleep(0.1)
    # What the interrupted run left behind does not hinder the next one.
    assert not (project.root / "rows.csv").exists()
    with project.lock(timeout=1):
        pass


def _api_url() -> str:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return str(client.api_url)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
