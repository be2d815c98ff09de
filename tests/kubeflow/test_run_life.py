"""The life of runs after their start: listed, shown, retried, archived, deleted; on each version of the server."""

from __future__ import annotations

import json

import httpx
import pytest

from dvkf_prefect.errors import StageError
from dvkf_prefect.kubeflow.cluster.api import KfpAnswerError
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner

from .fake import VERSIONS, wait_for

every_version = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture
def failed(project, kfp, settings, tmp_path) -> str:
    """A run of two stages, the second of which fails unless a file exists outside."""
    (tmp_path / "count").write_text("")
    steps = [
        project.step("good", f"echo x >> {tmp_path}/count; echo 1 > good", outs=["good"]),
        project.step("bad", f"test -e {tmp_path}/allowed && cp good bad", deps=["good"], outs=["bad"]),
    ]
    with KfpClusterRunner(project.repo, settings) as runner:
        run = runner.start_all(steps)["bad"]
        with pytest.raises(StageError):
            run.wait(120)
    wait_for(lambda: kfp.run.workflow.idle)
    return run.run_id


@every_version
def test_runs_are_listed_shown_archived_and_deleted(shell, kfp, failed):
    code, said = shell("runs", "list")
    assert code == 0 and said.startswith("FAILED") and failed in said and f"#/runs/details/{failed}" in said
    assert shell("runs", "list", "--archived") == (0, "No runs.\n")

    code, said = shell("runs", "show", failed, "--json")
    about = json.loads(said)
    assert code == 0 and about["stages"] == {"good": "SUCCEEDED", "bad": "FAILED"}
    assert about["experiment_url"].endswith(kfp.run.body["experiment_id"])
    code, said = shell("runs", "show", failed)
    assert code == 0 and "FAILED     bad" in said and "state:       FAILED" in said

    assert shell("runs", "archive", failed)[0] == 0
    assert shell("runs", "list") == (0, "No runs.\n")
    assert [row["archived"] for row in json.loads(shell("runs", "list", "--archived", "--json")[1])] == [True]
    assert "(archived)" in shell("runs", "show", failed)[1]
    assert shell("runs", "unarchive", failed) == (0, f"Moved run {failed} back from the archive.\n")
    assert failed in shell("runs", "list", "--all", "-n", "1")[1]

    assert shell("runs", "delete", failed)[0] == 0 and not kfp.runs
    code, said = shell("runs", "show", failed)
    assert code == 255 and f"no run {failed}" in said


@every_version
def test_a_failed_run_is_retried_in_place(shell, project, kfp, failed, tmp_path):
    """The stage that succeeded does not run again, and the run keeps its id."""
    (tmp_path / "allowed").touch()
    code, said = shell("runs", "retry", failed)
    assert code == 0 and f"Retrying run {failed}. See {kfp.host}" in said
    wait_for(lambda: kfp.run.state == "SUCCEEDED")
    assert (tmp_path / "count").read_text() == "x\n"
    assert project.repo.remote().storage.size(f"dvkf/runs/{failed}/bad/result.json")
    code, said = shell("runs", "retry", failed)
    assert code == 255 and "only a failed run can be retried" in said


def test_a_running_run_is_terminated_and_not_retried(shell, project, kfp, settings, api):
    with KfpClusterRunner(project.repo, settings) as runner:
        run = runner.start(project.step("slow", "sleep 60", outs=["o"]))
        wait_for(lambda: kfp.run.state == "RUNNING")
        with pytest.raises(KfpAnswerError) as refused:
            api.retry(run.run_id)
        assert refused.value.status == 409
        assert shell("runs", "terminate", run.run_id)[0] == 0
        wait_for(lambda: kfp.run.workflow.terminated)
    wait_for(lambda: kfp.run.state == "FAILED")


@pytest.mark.parametrize("verb", ["archive", "unarchive", "retry", "terminate", "delete"])
def test_each_verb_refuses_an_unknown_run(shell, kfp, verb):
    code, said = shell("runs", verb, "none")
    assert code == 255 and ("no run none" in said or "404" in said)


def test_a_run_of_an_archived_experiment_stays_in_the_archive(shell, kfp, failed):
    httpx.post(
        f"{kfp.host}/apis/v2beta1/experiments/{kfp.run.body['experiment_id']}:archive"
    ).raise_for_status()
    code, said = shell("runs", "unarchive", failed)
    assert code == 255 and "must be un-archived first" in said


def test_the_rights_of_each_verb_are_asked_for(kfp, api, failed):
    kfp.multi_user, kfp.allowed = True, {}
    for call in (api.archive, api.unarchive, api.delete_run, api.retry):
        with pytest.raises(KfpAnswerError) as refused:
            call(failed)
        assert refused.value.status == 403


def test_a_token_belongs_to_its_filter_and_order(kfp, api):
    for name in "abcde":
        api.experiment(name, None)
    url = f"{kfp.host}/apis/v2beta1/experiments"
    first = httpx.get(url, params={"sort_by": "display_name desc"}).json()
    assert [e["display_name"] for e in first["experiments"]] == ["e", "d"]
    token = first["next_page_token"]
    assert httpx.get(url, params={"sort_by": "display_name", "page_token": token}).status_code == 400
    # Without a filter and an order, those of the token hold (list_request_util.go:168-195).
    assert [
        e["display_name"] for e in httpx.get(url, params={"page_token": token}).json()["experiments"]
    ] == ["c", "b"]


def test_kfps_own_client_sees_the_same_runs(kfp, failed, client):
    (run,) = client.list_runs(page_size=10).runs
    assert run.run_id == failed and client.get_run(failed).state == "FAILED"
    (experiment,) = client.list_experiments().experiments
    assert experiment.display_name == "repo" == client.get_experiment(experiment_name="repo").display_name
    client.archive_run(failed)
    assert client.get_run(failed).storage_state == "ARCHIVED"
    client.unarchive_run(failed)
    client.delete_run(failed)
    assert not kfp.runs
