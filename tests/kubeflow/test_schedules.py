"""Recurring runs: their cron, their life on the server, and the results of their runs."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from dvkf_prefect.errors import ConfigError, RunnerError
from dvkf_prefect.kubeflow.export.cron import kubeflow_cron
from dvkf_prefect.kubeflow.export.schedules import Schedules

from .fake import VERSIONS, wait_for
from .fake.recurring import Cron

every_version = pytest.mark.parametrize("version", VERSIONS)


# -- cron ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "zone", "wanted"),
    [
        ("0 3 * * *", "UTC", "0 0 3 * * *"),
        ("*/20 8-10 1,15 jan-mar *", "UTC", "0 0,20,40 8,9,10 1,15 1,2,3 *"),
        ("5/30 22-1 * * 7", "UTC", "0 5,35 0,1,22,23 * * 0"),
        ("0 0 13 * FRI", "UTC", "0 0 0 13 * 5"),
        ("@weekly", "UTC", "0 0 0 * * 0"),
        ("0 3 * * 1", "Asia/Tokyo", "0 0 18 * * 0"),
        ("30 2 * * mon-fri", "Asia/Kolkata", "0 0 21 * * 0,1,2,3,4"),
        ("0 1,20 * * *", "Asia/Tokyo", "0 0 11,16 * * *"),
        ("15 * * * *", "Europe/Berlin", "0 15 * * * *"),
        ("0 12 5 * *", "Asia/Tokyo", "0 0 3 5 * *"),
    ],
)
def test_a_crontab_becomes_six_fields_in_the_servers_zone(text, zone, wanted):
    assert kubeflow_cron(text, zone) == wanted
    # The same moments, by Prefect's own reader of crontabs and by the server's grammar.
    from prefect._vendor.croniter import croniter

    start = datetime(2026, 2, 26, tzinfo=ZoneInfo("UTC"))
    found = Cron(wanted).times(start, 20)
    moments = croniter(text, start.astimezone(ZoneInfo(zone)) - timedelta(minutes=1))
    expected = [moments.get_next(datetime).astimezone(ZoneInfo("UTC")) for _ in found]
    assert found == expected


def test_five_fields_would_be_read_from_the_second_on():
    """The server takes a crontab, and runs it each hour: the reason for a conversion."""
    moments = Cron("0 3 * * *").times(datetime(2026, 1, 1), 1)
    assert len(moments) == 24 and all(moment.minute == 3 for moment in moments)


@pytest.mark.parametrize(
    ("text", "zone", "message"),
    [
        ("0 3 * *", "UTC", "has 4 fields"),
        ("0 0 3 * * *", "UTC", "has 6 fields"),
        ("0 3 L * *", "UTC", "the day of the month 'L'"),
        ("0 3 * * fri#2", "UTC", "the weekday 'fri#2'"),
        ("0 24 * * *", "UTC", "the hour '24'"),
        ("*/0 * * * *", "UTC", r"the minute '\*/0'"),
        ("0 3 * * *", "Europe/Berlin", "changes between summer and winter"),
        ("0 3 1 * *", "Asia/Tokyo", "fall on different days"),
        ("0 1,20 * * 1", "Asia/Tokyo", "fall on different days"),
        ("0,45 3 * * *", "Asia/Kolkata", "fall on different days or minutes"),
        ("0 3 * * *", "Mars/Olympus", "no time zone 'Mars/Olympus'"),
    ],
)
def test_times_that_kubeflow_cannot_express_are_refused(text, zone, message):
    with pytest.raises(ConfigError, match=message):
        kubeflow_cron(text, zone)


def test_a_server_in_the_zone_of_the_schedule_needs_no_shift():
    assert kubeflow_cron("0 3 1 * *", "Europe/Berlin", server_zone="Europe/Berlin") == "0 0 3 1 * *"
    with pytest.raises(ConfigError, match="both must match"):
        kubeflow_cron("0 3 1 * 1", day_or=False)


# -- recurring runs --------------------------------------------------------------------------------------------------


@every_version
def test_a_recurring_run_is_created_paused_resumed_and_deleted(shell, kfp, client):
    code, said = shell("schedule", "create", "prepare", "--cron", "0 3 * * *")
    (row,) = kfp.recurring.values()
    assert code == 0 and said.startswith("repo prepare: 0 0 3 * * * (enabled, ") and "repro --pull" in said
    assert f"{kfp.host}/#/recurringrun/details/{row['recurring_run_id']}" in said
    assert (row["max_concurrency"], row["no_catchup"], row["status"]) == ("1", True, "ENABLED")
    assert len(row["description"]) <= 255 and row["description"].isascii()

    # An equal one stays; another time replaces it.
    assert shell("schedule", "create", "prepare", "--cron", "0 3 * * *")[0] == 0
    assert list(kfp.recurring) == [row["recurring_run_id"]]
    assert shell("schedule", "create", "prepare", "--cron", "@daily", "--paused")[0] == 0
    (row,) = kfp.recurring.values()
    assert row["trigger"]["cron_schedule"]["cron"] == "0 0 0 * * *" and row["status"] == "DISABLED"
    assert kfp.fire(row["recurring_run_id"]) is None

    assert shell("schedule", "resume", "repo prepare") == (0, "Resumed 'repo prepare'.\n")
    assert row["status"] == "ENABLED"
    assert shell("schedule", "pause", row["recurring_run_id"])[0] == 0 and row["status"] == "DISABLED"
    (listed,) = json.loads(shell("schedule", "list", "--json")[1])
    assert (listed["schedule_id"], listed["paused"]) == (row["recurring_run_id"], True)
    # KFP's own client sees the same.
    (seen,) = client.list_recurring_runs(
        experiment_id=client.get_experiment(experiment_name="repo").experiment_id
    ).recurring_runs
    assert (seen.recurring_run_id, seen.status) == (row["recurring_run_id"], "DISABLED")
    client.enable_recurring_run(seen.recurring_run_id)
    assert row["status"] == "ENABLED"

    code, said = shell("schedule", "delete", "other")
    assert code == 255 and "there is no recurring run 'other'" in said and "'repo prepare'" in said
    assert shell("schedule", "delete", "repo prepare")[0] == 0 and not kfp.recurring
    assert shell("schedule", "list") == (0, "No recurring runs.\n")


@pytest.mark.parametrize("send_as", ["inline", "version"])
def test_its_runs_record_their_results_for_the_next_repro(shell, project, kfp, settings, send_as, api):
    """The pods add their runs to the run cache of the remote, from which `repro --pull` restores them."""
    Schedules(project.repo, dataclasses.replace(settings, send_as=send_as), api).create("0 0 3 * * *")
    (row,) = kfp.recurring.values()
    assert ("pipeline_version_reference" in row) == (send_as == "version")
    run = kfp.fire(row["recurring_run_id"])
    wait_for(lambda: run.state == "SUCCEEDED")
    assert run.as_dict()["recurring_run_id"] == row["recurring_run_id"]
    assert not (project.root / "dvc.lock").exists()
    code, said = shell("repro", "--pull", "report")
    assert code == 0 and said.count("is cached - skipping run") == 3, said
    assert (project.root / "report.txt").exists() and (project.root / "dvc.lock").exists()


def test_what_the_server_refuses_is_said(project, kfp, settings, api):
    with pytest.raises(RunnerError, match="Schedule cron is not a supported format"):
        Schedules(project.repo, settings, api).create("0 0 25 * * *", ["prepare"])
    kfp.multi_user, kfp.allowed = True, {}
    with pytest.raises(RunnerError, match="not authorized"):
        Schedules(project.repo, settings, api).all()


def test_a_run_in_progress_outlives_its_schedule(project, kfp, settings, api):
    schedules = Schedules(project.repo, settings, api)
    made = schedules.create("0 0 3 * * *", ["prepare"])
    run = kfp.fire(made.schedule_id)
    schedules.delete(made.schedule_id)
    wait_for(lambda: run.state == "SUCCEEDED")
