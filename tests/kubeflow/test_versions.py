"""Pipelines as versions by the digest of their spec, and runs that are retried by the next start."""

from __future__ import annotations

import dataclasses

import pytest

from dvkf_prefect.errors import ConfigError, StageError
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
from dvkf_prefect.kubeflow.cluster.uploads import find_or_upload, pipeline_name, version_name

from .fake import VERSIONS, wait_for

every_version = pytest.mark.parametrize("version", VERSIONS)
SPEC = {"pipeline_spec": {"pipelineInfo": {"name": "x"}}, "platform_spec": {"platforms": {}}}


@pytest.fixture
def by_version(settings) -> ClusterSettings:
    return dataclasses.replace(settings, send_as="version")


@every_version
def test_runs_refer_to_a_version_that_is_uploaded_once(project, kfp, by_version, client):
    runs = []
    for key in ("one", "two"):
        with KfpClusterRunner(project.repo, by_version, run_key=key) as runner:
            found = runner.start_all(project.steps())
            assert not found["report"].wait(120).failed
            runs.append(found["report"].run_id)
    (pipeline,), (version,) = kfp.pipelines.values(), kfp.versions.values()
    assert pipeline["name"] == "repo" and version["name"] == version_name(version["pipeline_spec"])
    for run_id in runs:
        reference = kfp.runs[run_id].body["pipeline_version_reference"]
        assert reference == {k: version[k] for k in ("pipeline_id", "pipeline_version_id")}
        assert "pipeline_spec" not in kfp.runs[run_id].body
        # The key of the results is the id of the run, which the pods read from their label.
        assert project.repo.remote().storage.size(f"dvkf/runs/{run_id}/report/result.json")
    # KFP's own client sees the same.
    assert client.get_pipeline_id("repo") == pipeline["pipeline_id"]
    (seen,) = client.list_pipeline_versions(pipeline["pipeline_id"]).pipeline_versions
    assert seen.pipeline_version_id == version["pipeline_version_id"]
    again = client.run_pipeline(
        client.get_experiment(experiment_name="repo").experiment_id,
        "by hand",
        pipeline_id=pipeline["pipeline_id"],
        version_id=version["pipeline_version_id"],
    )
    wait_for(lambda: kfp.runs[again.run_id].state == "SUCCEEDED")


@pytest.mark.parametrize("refusal", ["rights", "no store"])
def test_without_the_right_to_upload_the_run_brings_its_pipeline(project, kfp, by_version, caplog, refusal):
    if refusal == "rights":
        kfp.multi_user, kfp.allowed, kfp.may_upload = True, {kfp.user: {"kubeflow"}}, False
    else:
        kfp.fault("GET", "/pipelines$", 404, 9)
    with KfpClusterRunner(project.repo, by_version) as runner:
        assert not runner.start(project.step("one", "echo 1 > o", outs=["o"])).wait(60).failed
    assert "pipeline_spec" in kfp.run.body and not kfp.versions
    assert "sent with its run, because it cannot be uploaded" in caplog.text


@every_version
def test_names_are_found_exactly_first_and_then_in_another_case(kfp, api):
    def upload(project: str):
        return find_or_upload(api, SPEC, project=project, namespace="kubeflow", about="größe 😀" * 100)

    kfp._new_pipeline("DIGITS", "DIGITS", {}, "")
    kfp.kubernetes_store = True
    first = upload("digits")
    assert (
        kfp.pipelines[first.pipeline_id]["name"] == "DIGITS"
    )  # its name is taken, as the database ignores case
    assert upload("digits") == first and len(kfp.versions) == 1
    other = upload("Digits/nlp")
    assert kfp.pipelines[other.pipeline_id]["name"] == pipeline_name("Digits/nlp") == "digits-nlp"
    (row,) = (v for v in kfp.versions.values() if v["pipeline_id"] == other.pipeline_id)
    assert len(row["description"]) == 255 and row["description"].isascii()


def test_what_another_uploads_meanwhile_is_found(kfp, api):
    """The first list does not have it, and the upload is refused with 409."""
    mine = find_or_upload(api, SPEC, project="p", namespace=None, about="")
    lists = api.listed
    seen = []

    def listed(path, key, query):
        seen.append(query)
        return iter(()) if "filter" in query else lists(path, key, query)

    api.listed = listed
    assert find_or_upload(api, SPEC, project="p", namespace=None, about="") == mine
    assert len(seen) == 4 and len(kfp.versions) == len(kfp.pipelines) == 1


def test_options_with_fixed_values_are_checked():
    with pytest.raises(ConfigError, match="send_as is 'zip', which is none of: inline, version"):
        ClusterSettings.from_environment({"DVKF_KUBEFLOW_HOST": "http://h", "DVKF_KUBEFLOW_SEND_AS": "zip"})


# -- the next start retries the run ----------------------------------------------------------------------------------


@every_version
def test_a_failed_run_is_retried_by_the_next_start(project, kfp, settings, tmp_path):
    """Pods of completed stages do not start again, attempts are counted anew, and the run keeps its id."""
    steps = [
        project.step("good", f"echo x >> {tmp_path}/count; echo 1 > good", outs=["good"]),
        project.step("bad", f"test -e {tmp_path}/allowed && cp good bad", deps=["good"], outs=["bad"]),
    ]
    settings = dataclasses.replace(settings, failed_run="retry")
    with KfpClusterRunner(project.repo, settings) as runner, pytest.raises(StageError):
        runner.start_all(steps)["bad"].wait(120)
    wait_for(lambda: kfp.run.workflow.idle)
    first = kfp.run.id
    (tmp_path / "allowed").touch()
    with KfpClusterRunner(project.repo, settings) as runner:
        runs = runner.start_all(steps)
        assert [runs[name].wait(120).failed for name in ("good", "bad")] == [False, False]
    assert kfp.run.id == first and (tmp_path / "count").read_text() == "x\n"
    assert [entry["state"] for entry in kfp.run.history][-3:] == ["FAILED", "RUNNING", "SUCCEEDED"]


def test_a_terminated_run_and_one_that_the_server_does_not_retry_start_anew(project, kfp, settings):
    settings = dataclasses.replace(settings, failed_run="retry")
    step = project.step("slow", "sleep 60", outs=["o"])
    with KfpClusterRunner(project.repo, settings) as runner:
        runner.start(step)
        wait_for(lambda: kfp.run.state == "RUNNING")
    wait_for(lambda: kfp.run.state == "FAILED")
    failing = project.step("bad", "false", outs=["b"])
    with KfpClusterRunner(project.repo, settings) as runner:
        assert runner.start(step).run_id != next(iter(kfp.runs))
        with pytest.raises(StageError):
            runner.start(failing).wait(60)
    wait_for(lambda: list(kfp.runs.values())[-1].state == "FAILED")
    kfp.fault("POST", ":retry$", 500, 1)
    with KfpClusterRunner(project.repo, settings) as runner, pytest.raises(StageError):
        runner.start(failing).wait(60)
    assert len(kfp.runs) == 4
