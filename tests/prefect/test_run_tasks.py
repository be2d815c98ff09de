"""Runs on Kubeflow that flows retry, terminate and archive."""

from __future__ import annotations

from typing import Any

import pytest
from prefect import flow

from dvkf_prefect import (
    DvcRepository,
    archive_pipeline_run,
    retry_pipeline_run,
    terminate_pipeline_run,
    unarchive_pipeline_run,
)
from dvkf_prefect.errors import RunnerError, StageFailedError

from ..kubeflow.fake import FakeKfp, wait_for  # noqa: TID252 (tests are no package that could be named)
from ..kubeflow.test_fake import Client  # noqa: TID252
from ..kubeflow.test_fake import pipeline as spec  # noqa: TID252
from .test_repro_cluster_flow import STAGES, Pipeline, cluster, commit, pipeline

__all__ = ["pipeline"]  # a fixture


def test_a_flow_archives_and_retries_a_failed_run(pipeline: Pipeline, kfp: FakeKfp, tmp_path: Any) -> None:
    flag = tmp_path / "allowed"
    commit(pipeline, STAGES.replace("TRAIN", f"test -e {flag}"))
    block = cluster(kfp, pipeline)
    with pytest.raises(StageFailedError):
        pipeline.run(pipelines=block)
    run = kfp.run
    wait_for(lambda: run.workflow.idle)
    seen: list[str] = []

    @flow
    def tidy() -> None:
        archive_pipeline_run(block, run.id)
        seen.append(run.storage_state)
        unarchive_pipeline_run(block, run.id)
        seen.append(run.storage_state)
        terminate_pipeline_run(block, run.id)  # it has ended
        flag.touch()
        seen.append(retry_pipeline_run(block, run.id, DvcRepository(path=str(pipeline.root))))

    tidy()
    assert seen[:2] == ["ARCHIVED", "AVAILABLE"] and seen[2].endswith(f"#/runs/details/{run.id}")
    wait_for(lambda: run.state == "SUCCEEDED")
    assert (pipeline.outside / "prepare").read_text() == "x\n"

    @flow
    def wrong() -> None:
        with pytest.raises(RunnerError, match="only a failed run can be retried"):
            retry_pipeline_run(block, run.id)
        for verb in (
            archive_pipeline_run,
            unarchive_pipeline_run,
            terminate_pipeline_run,
            retry_pipeline_run,
        ):
            with pytest.raises(RunnerError, match=r"no run none|404"):
                verb(block, "none")

    wrong()
    assert len(kfp.runs) == 1


def test_a_flow_terminates_a_run(pipeline: Pipeline, kfp: FakeKfp) -> None:
    client = Client(kfp)
    run_id = client.run(spec(command="sleep 300"))
    wait_for(lambda: kfp.run.state == "RUNNING")

    @flow
    def stop() -> None:
        terminate_pipeline_run(cluster(kfp, pipeline), run_id)

    stop()
    assert client.ended(run_id)["state"] == "FAILED" and kfp.run.workflow.terminated
    client.http.close()
