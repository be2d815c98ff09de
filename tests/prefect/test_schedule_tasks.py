"""Recurring runs on Kubeflow from flows and from deployments."""

from __future__ import annotations

from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

from dvkf_prefect import DvcRepository, schedule_pipeline, unschedule_pipeline
from dvkf_prefect.errors import ConfigError
from dvkf_prefect.tasks.kubeflow import schedule_of

from .test_repro_cluster_flow import STAGES, Pipeline, cluster, commit, pipeline

__all__ = ["pipeline"]  # a fixture


def test_a_flow_creates_and_deletes_a_recurring_run(pipeline: Pipeline, kfp: Any, artifacts: Any) -> None:
    commit(pipeline, STAGES.replace("TRAIN", "true"))

    @flow
    def plan() -> None:
        block = cluster(kfp, pipeline)
        made = schedule_pipeline(
            DvcRepository(path=str(pipeline.root), label="stages"),
            block,
            cron="0 3 * * 1",
            timezone="Asia/Tokyo",
            name="weekly",
        )
        assert made.cron == "0 0 18 * * 0" and made.schedule_id in kfp.recurring

    plan()
    (card,) = artifacts("schedule-stages")
    assert "recurringrun/details" in card.data

    @flow
    def stop() -> None:
        unschedule_pipeline(
            DvcRepository(path=str(pipeline.root), label="stages"), cluster(kfp, pipeline), "weekly"
        )

    stop()
    assert not kfp.recurring


def test_the_schedule_of_a_deployment_is_read(prefect_server: Any) -> None:
    cron = CronSchedule(cron="0 3 * * *", timezone="Europe/Berlin")
    every = IntervalSchedule(interval=3600)
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow_from_name("scheduled")
        for name, schedules in (("one", [cron]), ("none", []), ("interval", [every]), ("two", [cron, cron])):
            client.create_deployment(
                flow_id,
                name,
                schedules=[
                    DeploymentScheduleCreate(schedule=s, active=False, slug=f"s{i}")
                    for i, s in enumerate(schedules)
                ],
            )
    found = schedule_of("scheduled/one")
    assert (found.cron, found.timezone, found.day_or, found.active) == (
        "0 3 * * *",
        "Europe/Berlin",
        True,
        False,
    )
    for name in ("none", "interval", "two"):
        with pytest.raises(ConfigError, match="needs one with a cron"):
            schedule_of(f"scheduled/{name}")
    for name in ("scheduled/other", "no-slash"):
        with pytest.raises(ConfigError, match="there is no deployment"):
            schedule_of(name)
