"""Stages on a server with the limits and habits of the real one, in each of its versions."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dvkf_prefect.errors import MissingObjectError, RunnerError, StageCancelledError, StageFailedError
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.kubeflow.cluster import start
from dvkf_prefect.kubeflow.cluster.api import KfpAnswerError, KfpApi
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
from dvkf_prefect.kubeflow.compile.compile import task_names
from dvkf_prefect.kubeflow.compile.pod_settings import parse_defaults
from dvkf_prefect.kubeflow.exchange.claims import Claim
from dvkf_prefect.kubeflow.pod.describe import describe
from dvkf_prefect.pipeline.step.spec import StepContent, StepOutput, StepResult, StepSpec
from dvkf_prefect.processes.holder import Holder
from dvkf_prefect.processes.identity import ProcessId

from .fake import VERSIONS, container, kill, launcher, wait_for

every_version = pytest.mark.parametrize("version", VERSIONS)
# The fake server does the same in each version; `make test` runs these on the newest.
newest_version = pytest.mark.parametrize(
    "version", [*(pytest.param(each, marks=pytest.mark.long) for each in VERSIONS[:-1]), VERSIONS[-1]]
)


def own(project, name: str, **more):
    return project.step(name, f"echo {name} > {name}.txt", outs=[f"{name}.txt"], **more)


# -- models ----------------------------------------------------------------------------------------------------------


@every_version
@pytest.mark.parametrize("url", ["s3://lake/data", "gs://lake/data", "/mnt/data"])
def test_a_model_keeps_the_uri_that_the_launcher_uploads_to(tmp_path, version, url):
    """It was set to the content on the remote, where the launcher refused to upload: the stage failed after its end."""
    step = StepSpec("train", ("true",), "", outs=(StepOutput("m.bin"),), models=("m.bin",))
    result = StepResult("train", outs=(StepContent("m.bin", Content("d" * 32, 3)),))
    task = launcher.Task("train", {}, tmp_path)
    task.work.mkdir()
    model = SimpleNamespace(uri=f"{task.work}/store/m", path=f"{task.work}/store/m", metadata={})
    describe({"model_0": model}, step, result, url=url)
    assert model.metadata["location"].startswith(url)
    written = {"artifacts": {"model_0": {"artifacts": [{"uri": model.uri, "metadata": model.metadata}]}}}
    (task.work / "executor_output.json").write_text(json.dumps(written))
    component = {
        "outputDefinitions": {"artifacts": {"model_0": {"artifactType": {"schemaTitle": "system.Model"}}}}
    }
    assert launcher.publish(task, component, "minio://mlpipeline/v2/artifacts") == ""
    assert task.published["model_0"]["uri"] == "minio://mlpipeline/v2/artifacts/m"
    assert b'path: "m.bin"' in task.stored["minio://mlpipeline/v2/artifacts/m"]


# -- one start, and what the server stores ---------------------------------------------------------------------------


@newest_version
def test_many_stages_with_long_and_unusual_names_fit_into_the_servers_columns(project, kfp, runner):
    kfp.pausing = True
    specs = [own(project, f"{'long-' * 6}{i}") for i in range(20)]
    specs.append(project.step("größe 😀 日本", "echo 1 > x", outs=["x"]))
    runner.start_all(specs)
    assert len(kfp.workflows) == len(kfp.runs) == 1
    body = kfp.run.body
    assert len(body["description"]) <= 255 and body["description"].startswith(
        f"dvkf-run {kfp.run.id}\ncommit "
    )
    assert body["description"].isascii() and body["display_name"].isascii()
    assert len(body["display_name"]) <= 255


@newest_version
def test_one_stage_with_a_very_long_name(project, kfp, runner):
    run = runner.start(own(project, "x" * 200))
    assert not run.wait(60).failed
    one = project.step(f"{'d' * 100}/dvc.yaml:{'é' * 200}", "echo 1 > y", outs=["y"])
    run = runner.start(one)
    assert len(kfp.runs[run.run_id].body["display_name"]) <= 255
    assert not run.wait(60).failed


@newest_version
def test_a_character_that_the_database_lacks_is_refused_before_anything_is_sent(project, kfp, settings):
    settings = dataclasses.replace(settings, defaults=dataclasses.replace(settings.defaults, env={"A": "😀"}))
    with KfpClusterRunner(project.repo, settings) as runner:
        with pytest.raises(RunnerError, match="contain 😀, which the database"):
            runner.start(own(project, "a"))
    assert not kfp.workflows


@newest_version
def test_a_refusal_is_told_at_once_and_not_repeated(project, kfp, settings):
    """The server answers 500 for it, as for a failure that passes."""
    with KfpClusterRunner(project.repo, settings) as runner:
        create = KfpApi.create_run

        def wrong(self, sent):
            spec = dict(sent["pipeline_spec"]["pipeline_spec"], schemaVersion="2.0.0")
            return create(self, {**sent, "pipeline_spec": {**sent["pipeline_spec"], "pipeline_spec": spec}})

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(KfpApi, "create_run", wrong)
            with pytest.raises(KfpAnswerError, match="invalid v2 pipeline: schemaVersion"):
                runner.start(own(project, "a"))
        assert kfp.requests.count(("POST", "/apis/v2beta1/runs")) == 1 and not kfp.workflows
        # It counts as none, so the next start sends it at once.
        assert not list((Path(project.repo.remote().storage.url) / "dvkf/runs").rglob("sent.json"))
        assert not runner.start(own(project, "a")).wait(60).failed


@newest_version
def test_a_run_that_was_not_stored_is_not_started_a_second_time(project, kfp, runner, monkeypatch):
    """The next start waits until the server has deleted the workflow, and has results of its own."""
    monkeypatch.setattr(start, "_DELETED_AFTER", 2.0)
    kfp.gc_grace = 0.5
    kfp.fault("POST", "/runs$", "deadlock")
    slow = project.step("a", "sleep 30", outs=["a"])
    with pytest.raises(RunnerError, match=r"Deadlock found.* deletes such a workflow within minutes"):
        runner.start(slow)
    assert len(kfp.workflows) == 1 and not kfp.runs
    assert runner.start(slow).run_id != kfp.workflows[0].run_id
    assert len(kfp.workflows) == 2 and kfp.workflows[0].collected


def test_a_run_that_was_deleted_in_the_ui_is_started_with_another_id(project, kfp, runner, monkeypatch):
    """Its results stay on the remote, so those of the next one have another place."""
    monkeypatch.setattr(start, "_DELETED_AFTER", 0.5)
    first = runner.start(own(project, "a"))
    assert not first.wait(60).failed
    api = KfpApi(kfp.host)
    api.delete_run(first.run_id)
    api.close()
    assert runner.start(own(project, "a")).run_id != first.run_id


def test_a_workflow_without_a_run_is_deleted_later(project, kfp, runner):
    kfp.gc_grace = 0.5
    kfp.fault("POST", "/runs$", "deadlock")
    with pytest.raises(RunnerError, match="Deadlock"):
        runner.start(project.step("a", "sleep 300", outs=["a"]))
    wait_for(lambda: kfp.workflows[0].collected)


@newest_version
def test_dispatchers_at_once_start_one_workflow(project, kfp, settings):
    """They may be on different machines: a claim on the remote is all that they share."""
    step = own(project, "a")
    runners = [KfpClusterRunner(project.repo, settings) for _ in range(4)]
    found: list[str] = []

    def start(runner):
        found.append(runner.start(step).run_id)

    threads = [threading.Thread(target=start, args=(runner,)) for runner in runners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert len(kfp.workflows) == 1 and found == [kfp.run.id] * 4
    assert not list((Path(project.repo.remote().storage.url) / "dvkf/runs").rglob("claims/*"))
    for runner in runners:
        runner.close()


def test_a_claim_of_an_ended_process_is_removed_and_that_of_another_is_told(project):
    storage = project.repo.remote().storage
    here = ProcessId.of(os.getpid())
    gone = Holder(Holder.here().machine, dataclasses.replace(here, started=here.started + 1))
    other = Holder("elsewhere", here)
    storage.write("dvkf/runs/k/claims/x.json", gone.to_json())
    claim = Claim(storage, "k")
    assert claim.take(60, lambda: False) is None and claim.held
    claim.release()
    storage.write("dvkf/runs/k/claims/y.json", other.to_json())
    holder = Claim(storage, "k").take(60, lambda: True)
    assert str(holder) == f"process {os.getpid()} on elsewhere"
    # A dispatcher that was killed on another machine is waited for, and then passed over.
    assert Claim(storage, "k").take(0.5, lambda: False) is None


# -- terminated runs -------------------------------------------------------------------------------------------------


@newest_version
@pytest.mark.parametrize("reached", [True, False])
def test_a_run_that_is_terminated_in_the_ui_is_cancelled_though_the_server_calls_it_failed(
    project, kfp, settings, reached
):
    kfp.term_reaches_python, kfp.grace = reached, 1.0
    slow = dataclasses.replace(
        settings, patience=dataclasses.replace(settings.patience, poll_from=1.0, poll_to=1.0)
    )
    with KfpClusterRunner(project.repo, slow) as runner:
        runs = runner.start_all(
            [project.step("a", "sleep 300", outs=["a"]), project.step("b", "cp a b", deps=["a"], outs=["b"])]
        )
        wait_for(lambda: kfp.run.tasks["a"].process)
        kfp.run.terminate()
        wait_for(lambda: kfp.run.state == "FAILED")
        for stage in "ab":
            with pytest.raises(StageCancelledError, match=f"stage '{stage}' was stopped before its end"):
                runs[stage].wait(60)


# -- stages that never start -----------------------------------------------------------------------------------------


@newest_version
def test_a_stage_that_never_started_is_not_told_as_failed(project, kfp, runner):
    """Kubeflow makes no node for it, and stops starting stages once one has failed."""
    runs = runner.start_all(
        [
            project.step("bad", "sleep 1; exit 3", outs=["bad"]),
            project.step("first", "sleep 3; echo 1 > first", outs=["first"]),
            project.step("later", "cp first later", deps=["first"], outs=["later"]),
        ]
    )
    with pytest.raises(StageFailedError):
        runs["bad"].wait(60)
    assert not runs["first"].wait(60).failed
    with pytest.raises(
        StageCancelledError, match=r"'later' was not run: the run failed \(stage 'bad' failed\)"
    ):
        runs["later"].wait(60)


@newest_version
def test_a_run_whose_first_driver_fails_tells_why(project, kfp, runner):
    kfp.broken_drivers["root"] = "failed to get kfp-launcher: configmaps is forbidden"
    runs = runner.start_all([own(project, "a"), own(project, "b")])
    for stage in "ab":
        with pytest.raises(StageCancelledError, match=f"'{stage}' was not run.*configmaps is forbidden"):
            runs[stage].wait(60)


@newest_version
@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"powerless": {"pipeline-runner"}}, 'configmaps "kfp-launcher" is forbidden'),
        ({"metadata": False}, "Unavailable"),
    ],
)
def test_a_first_driver_without_rights_or_metadata_tells_why(project, kfp, runner, broken, reason):
    """Its node has an exit code alone; the reason is in its log."""
    for name, value in broken.items():
        setattr(kfp, name, value)
    with pytest.raises(StageCancelledError, match=f"'a' was not run.*{reason}"):
        runner.start(own(project, "a")).wait(60)


def test_a_stage_whose_driver_fails_tells_why(project, kfp, runner):
    kfp.broken_drivers["a"] = "failed to make the pod's spec: no such claim"
    with pytest.raises(RunnerError, match=r"stage 'a' could not be started on the cluster .*no such claim"):
        runner.start(own(project, "a")).wait(60)


@newest_version
def test_a_service_account_that_is_not_there_is_named(project, kfp, settings):
    settings = dataclasses.replace(settings, service_account="nobody")
    with KfpClusterRunner(project.repo, settings) as runner:
        with pytest.raises(StageCancelledError, match='serviceaccount "nobody" not found'):
            runner.start(own(project, "a")).wait(60)


@newest_version
def test_names_that_are_argos_own(project, kfp, runner):
    """A stage took the states of Argo's nodes for its own, or made two tasks of one name."""
    stages = ["executor", "root", "x", "x-driver", "entrypoint"]
    names = task_names(stages)
    assert names["x"] == "x" and not {"executor", "root", "entrypoint"} & set(names.values())
    assert not any(name.endswith("-driver") for name in names.values())
    specs = [project.step(s, f"echo {s} > {s}.txt; sleep 0.5", outs=[f"{s}.txt"]) for s in stages]
    runs = runner.start_all(specs)
    assert not any(run.wait(90).failed for run in runs.values())


# -- pods ------------------------------------------------------------------------------------------------------------


@newest_version
@pytest.mark.parametrize("ui_host", [True, False])
def test_the_log_and_the_end_of_a_killed_pod_without_kubernetes(project, kfp, runner, ui_host):
    """Kubeflow tells both only by the workflow's nodes; its log route answers 200 with an error."""
    kfp.ui_host = ui_host
    run = runner.start(project.step("a", "echo working; sleep 300", outs=["a"]))
    wait_for(lambda: kfp.runs and "working" in kfp.run.tasks["a"].log.splitlines())
    kill(kfp.run.tasks["a"])
    with pytest.raises(RunnerError, match=r"(?s)OOMKilled \(exit code 137\).*The end of its log:\n.*working"):
        run.wait(60)


@newest_version
def test_a_log_that_is_nowhere_is_not_an_error_text(project, kfp, runner):
    kfp.ui_host, kfp.archived_logs = False, False
    run = runner.start(project.step("a", "echo working; sleep 300", outs=["a"]))
    wait_for(lambda: kfp.runs and "working" in kfp.run.tasks["a"].log.splitlines())
    kill(kfp.run.tasks["a"])
    with pytest.raises(RunnerError, match="Its pod left no log") as caught:
        run.wait(60)
    assert "error_message" not in str(caught.value)


@every_version
@pytest.mark.parametrize("stuck", ["a", "b"])
def test_a_pod_belongs_to_its_stage(project, kfp, asked, stuck):
    """Up to 2.5 all pods have the first stage's labels; since 2.17 names of nodes have numbers."""
    kfp.stuck[stuck] = {
        "containerStatuses": [
            container("main", waiting={"reason": "ErrImagePull", "message": "no such image"})
        ]
    }
    with KfpClusterRunner(project.repo, asked) as runner:
        runs = runner.start_all([own(project, "a"), own(project, "b")])
        with pytest.raises(
            RunnerError, match=rf"the pod of stage '{stuck}' did not start in .*no such image"
        ):
            runs[stuck].wait(60)


@newest_version
@pytest.mark.parametrize("kubernetes", [True, False])
def test_a_pod_that_kubernetes_does_not_make(project, kfp, asked, kubernetes):
    kfp.kubernetes = kubernetes
    kfp.refused_pods["a"] = "exceeded quota: gpus, requested: 1, used: 4, limited: 4"
    with KfpClusterRunner(project.repo, asked) as runner:
        with pytest.raises(
            RunnerError, match=r"the pod of stage 'a' did not start in .*exceeded quota: gpus"
        ):
            runner.start(own(project, "a")).wait(60)


@newest_version
def test_an_image_that_is_not_there_without_kubernetes(project, kfp, settings):
    settings = dataclasses.replace(settings, image="registry.nowhere.org/x:1")
    with KfpClusterRunner(project.repo, settings) as runner:
        with pytest.raises(RunnerError, match=r'ImagePullBackOff: Back-off pulling image "registry.nowhere'):
            runner.start(own(project, "a")).wait(60)


# -- retries -----------------------------------------------------------------------------------------------------------


def retried(settings, **retries: object):
    """Return settings with retries of every stage."""
    parsed = parse_defaults({"retries": {"count": 2, **retries}}).retries
    return dataclasses.replace(settings, defaults=dataclasses.replace(settings.defaults, retries=parsed))


@every_version
def test_a_command_that_fails_is_tried_again_in_its_pod(project, kfp, settings, tmp_path):
    """Since 2.17 a failed command is not retried by Argo; before, it is."""
    log = tmp_path / "log"
    cmd = f"echo try >> {log}; test $(wc -l < {log}) -ge 3 && echo 1 > a"
    with KfpClusterRunner(project.repo, retried(settings)) as runner:
        assert not runner.start(project.step("a", cmd, outs=["a"])).wait(120).failed
    assert log.read_text() == "try\n" * 3 and kfp.run.tasks["a"].tries == 1


@every_version
def test_a_command_is_tried_as_often_as_its_settings_say(project, kfp, settings, tmp_path):
    log = tmp_path / "log"
    with KfpClusterRunner(project.repo, retried(settings)) as runner:
        with pytest.raises(StageFailedError, match="exit code 3"):
            runner.start(project.step("a", f"echo try >> {log}; exit 3", outs=["a"])).wait(120)
    assert log.read_text() == "try\n" * 3


@every_version
def test_the_failure_of_an_earlier_attempt_is_not_told_for_a_killed_one(project, kfp, settings, tmp_path):
    flag = tmp_path / "flag"
    cmd = f"if test -e {flag}; then printf 'sec%s' ond; sleep 300; else touch {flag}; exit 3; fi"
    with KfpClusterRunner(project.repo, retried(settings, count=1)) as runner:
        run = runner.start(project.step("a", cmd, outs=["a"]))
        killed: set[int] = set()
        while not run._run.result().watch.done:
            task = kfp.run.tasks["a"] if kfp.runs else None
            if task and "second" in task.log and task.process and task.process.pid not in killed:
                time.sleep(0.5)
                killed.add(task.process.pid)
                task.end(signal.SIGKILL)
            time.sleep(0.05)
        with pytest.raises(RunnerError, match="OOMKilled"):
            run.wait(60)


def test_an_attempt_ends_at_its_timeout(project, kfp, settings, tmp_path):
    settings = retried(settings, count=1)
    settings = dataclasses.replace(settings, defaults=dataclasses.replace(settings.defaults, timeout=4))
    flag = tmp_path / "flag"
    cmd = f"if test -e {flag}; then echo 1 > a; else touch {flag}; sleep 300; fi"
    with KfpClusterRunner(project.repo, settings) as runner:
        assert not runner.start(project.step("a", cmd, outs=["a"])).wait(120).failed
    assert "the attempt did not end in 4 s" in kfp.run.tasks["a"].log


# -- the server's view lags ------------------------------------------------------------------------------------------


@every_version
def test_a_run_whose_tasks_are_stored_later_than_its_state(project, kfp, runner, monkeypatch):
    """The run has succeeded while its task is still stored as running, and the result is not visible at once."""
    kfp.agent_lag = 1.0
    storage = type(project.repo.remote().storage)
    read, asked = storage.read, {}

    def late(self, key, **more):
        if key.endswith("result.json") and time.monotonic() - asked.setdefault(key, time.monotonic()) < 1:
            raise MissingObjectError(key)
        return read(self, key, **more)

    monkeypatch.setattr(storage, "read", late)
    run = runner.start(project.step("a", "sleep 2; echo 1 > a", outs=["a"]))
    assert not run.wait(60).failed and asked


# -- names in filters ------------------------------------------------------------------------------------------------


@every_version
@pytest.mark.parametrize("name", ["a+b", "100%", "50%25", "a&b=c", 'quo"te', "ümlaut"])
def test_an_experiment_with_an_unusual_name_is_found_again(kfp, name):
    api = KfpApi(kfp.host, patience=5)
    for extra in ("x", "y", "z"):
        api.experiment(extra, "kubeflow")
    assert api.experiment(name, "kubeflow") == api.experiment(name, "kubeflow")
    assert len(kfp.experiments) == 4
    assert kfp.requests.count(("POST", "/apis/v2beta1/experiments")) == 4
    api.close()


@every_version
def test_an_experiment_whose_name_differs_in_case_is_the_same(kfp):
    api = KfpApi(kfp.host, patience=5)
    assert api.experiment("DVKF", "kubeflow") == api.experiment("dvkf", "kubeflow")
    api.close()


# -- sizes -----------------------------------------------------------------------------------------------------------


@newest_version
@pytest.mark.parametrize("text", ["plain ", '"', "\n", "\\", "é", "日本"])
def test_a_large_specification_fits_into_argos_template(project, kfp, runner, text):
    """Quotes and line breaks grow to many times their size there."""
    params = {"params.yaml": {"key": text * (24_000 // len(json.dumps(text)[1:-1]))}}
    result = runner.start(project.step("a", "wc -c < params.yaml > a", outs=["a"], params=params)).wait(60)
    assert not result.failed


@newest_version
def test_many_outputs_go_to_later_stages_by_the_remote(project, kfp, runner):
    names = [f"part-{i:04}-with-a-long-name.txt" for i in range(400)]
    write = "for i in $(seq 0 399); do printf $i > $(printf 'part-%04d-with-a-long-name.txt' $i); done"
    specs = [
        project.step("write", write, outs=names),
        project.step("read", "cat part-*.txt | wc -c > n", deps=names, outs=["n"]),
    ]
    runs = runner.start_all(specs)
    assert runs["read"].wait(120).outs[0].content.size == 5
    assert kfp.run.tasks["write"].outputs["outputs"] == "remote:write"


@newest_version
@pytest.mark.parametrize("count", [14, 60, 100])
def test_stages_of_one_run_fit_into_a_workflow(project, kfp, runner, count):
    """Each stage had the names of all in its parameters, so that the workflow grew with their square."""
    kfp.pausing = True
    raw = next(o for o in project.repo.outputs() if o.path == "data/raw")
    known = StepContent("data/raw", Content(raw.digest, raw.size))
    specs = [project.step(f"stage-{i}", "true", deps=[known], outs=[f"out-{i}"]) for i in range(count)]
    runner.start_all(specs)
    workflow = kfp.run.workflow
    values = [
        each["runtimeValue"]["constant"]
        for task in workflow.tasks.values()
        for each in task.spec["inputs"]["parameters"].values()
    ]
    assert sum(map(len, values)) < 384 * 1024
    assert workflow.spec_size < 450_000
    time.sleep(0.1)
    assert kfp.run.state != "FAILED"


def test_a_pipeline_that_argo_cannot_store_is_refused_before_it_is_sent(project, kfp, settings):
    variables = {f"V{i}": "x" * 1000 for i in range(20)}
    defaults = dataclasses.replace(settings.defaults, env=variables)
    with KfpClusterRunner(project.repo, dataclasses.replace(settings, defaults=defaults)) as runner:
        with pytest.raises(RunnerError, match=r"the pipeline of 60 stages has \d+ bytes, at most 655360"):
            runner.start_all([project.step(f"s{i}", "true", outs=[f"o{i}"]) for i in range(60)])
    assert not kfp.workflows


def test_a_request_that_a_proxy_does_not_pass_on_is_told_at_once(project, kfp, runner):
    kfp.body_limit = 1000
    with pytest.raises(KfpAnswerError, match="was answered 413"):
        runner.start(own(project, "a"))
    assert kfp.requests.count(("POST", "/apis/v2beta1/runs")) == 1


# -- more stages than one run can have -----------------------------------------------------------------------------


@newest_version
def test_stages_in_several_runs(project, kfp, settings, monkeypatch):
    """A later run has the digests that an earlier one wrote, of parts of a folder too."""
    monkeypatch.setattr("dvkf_prefect.kubeflow.cluster.runner.MOST_STAGES", 1)
    specs = project.steps()
    with KfpClusterRunner(project.repo, settings) as runner:
        runs = runner.start_all(specs)
        assert runs["report"].run_id == runs["report"].url == ""
        results = {stage: run.wait(120) for stage, run in runs.items()}
    assert len(kfp.runs) == len(kfp.workflows) == 3
    here = project.locally(specs)
    assert all(results[stage].outs == here[stage].outs for stage in results)
    assert len({run.run_id for run in runs.values()}) == 3


def test_a_later_run_is_not_started_after_a_failure_or_a_cancellation(project, kfp, settings, monkeypatch):
    monkeypatch.setattr("dvkf_prefect.kubeflow.cluster.runner.MOST_STAGES", 1)
    with KfpClusterRunner(project.repo, settings) as runner:
        runs = runner.start_all(
            [project.step("a", "exit 3", outs=["a"]), project.step("b", "cp a b", deps=["a"], outs=["b"])]
        )
        with pytest.raises(StageFailedError):
            runs["a"].wait(60)
        with pytest.raises(
            StageCancelledError, match=r"stage 'b' was not run: the run failed \(stage 'a' failed\)"
        ):
            runs["b"].wait(60)
        runs = runner.start_all([project.step("c", "sleep 300", outs=["c"]), own(project, "d")])
        wait_for(lambda: len(kfp.runs) == 2)
        with pytest.raises(TimeoutError, match="stage 'd' still runs after"):
            runs["d"].wait(0.1)
        runs["c"].cancel()
        for stage in "cd":
            with pytest.raises(StageCancelledError):
                runs[stage].wait(60)
    assert len(kfp.workflows) == 2


@newest_version
def test_five_hundred_stages_of_one_batch(project, kfp, runner):
    kfp.pausing = True
    specs = [
        project.step(f"s{i}", "true", deps=[f"o{i - 1}"] if i % 10 else [], outs=[f"o{i}"])
        for i in range(500)
    ]
    runs = runner.start_all(specs)
    assert len(runs) == 500 and len(kfp.run.tasks) == 100
    runner.close()
    assert len(kfp.workflows) == 1
