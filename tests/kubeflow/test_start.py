"""Starts whose request was answered by nobody, or by a proxy: no run is started twice."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import threading

import pytest

from dvkf_prefect.errors import RunnerError
from dvkf_prefect.kubeflow.cluster import start
from dvkf_prefect.kubeflow.cluster.ending import end_runs_of
from dvkf_prefect.kubeflow.cluster.open_runs import open_runs
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.pipeline.step.runner import LocalRunner

from . import dispatcher
from .fake import wait_for

_POST = ("POST", "/apis/v2beta1/runs")


@pytest.fixture
def stage(project):
    return project.step("a", "echo 1 > a", outs=["a"])


@pytest.fixture
def known(project, asked):
    """Settings with which Kubernetes is asked, once it has a workflow of a run of the server."""
    with KfpClusterRunner(project.repo, asked) as runner:
        runner.start(project.step("other", "echo 1 > other", outs=["other"])).wait(60)
    return asked


def in_hurry(monkeypatch, deleted: float, arrives: float = 30.0) -> None:
    monkeypatch.setattr(start, "_DELETED_AFTER", deleted)
    monkeypatch.setattr(start, "_ARRIVES", arrives)


def sent(project) -> list[str]:
    """Return the records of requests for runs on the remote."""
    return [key for key in project.repo.remote().storage.keys("dvkf/runs") if key.endswith("/sent.json")]


@pytest.mark.parametrize(
    "fault", ["drop", 503, *(pytest.param(n, marks=pytest.mark.long) for n in (502, 504))]
)
def test_a_request_that_nobody_answered_is_not_sent_again(project, kfp, settings, stage, monkeypatch, fault):
    """Without Kubernetes, the time in which the server deletes workflows passes first; then the id is another."""
    in_hurry(monkeypatch, deleted=1.0)
    kfp.fault("POST", "/runs$", fault)
    with KfpClusterRunner(project.repo, settings) as runner:
        assert not runner.start(stage).wait(60).failed
    assert kfp.requests.count(_POST) == 2 and len(kfp.workflows) == 1
    assert len(sent(project)) == 2


def test_a_request_that_a_proxy_did_not_pass_on_is_sent_again(project, kfp, settings, stage):
    kfp.fault("POST", "/runs$", "unsent", 2)
    with KfpClusterRunner(project.repo, settings) as runner:
        assert not runner.start(stage).wait(60).failed
    assert kfp.requests.count(_POST) == 3 and len(kfp.workflows) == len(sent(project)) == 1


def test_a_run_that_is_stored_later_is_found(project, kfp, settings, stage):
    """The request was handled after the proxy had given it up."""
    kfp.fault("POST", "/runs$", "504-after")
    with KfpClusterRunner(project.repo, settings) as runner:
        assert not runner.start(stage).wait(60).failed
    assert kfp.requests.count(_POST) == len(kfp.workflows) == 1


def test_a_proxy_that_never_answers_is_told_after_three_requests(project, kfp, settings, stage, monkeypatch):
    in_hurry(monkeypatch, deleted=0.2)
    kfp.fault("POST", "/runs$", 502, 100)
    with KfpClusterRunner(project.repo, settings) as runner:
        with pytest.raises(RunnerError, match="POST /apis/v2beta1/runs was answered 502"):
            runner.start(stage)
    assert kfp.requests.count(_POST) == 3 and not kfp.workflows


def test_kubernetes_shows_that_nothing_was_started(project, kfp, known, stage, monkeypatch):
    """The wait is over long before the server would have deleted a workflow."""
    in_hurry(monkeypatch, deleted=3600.0, arrives=0.5)
    kfp.fault("POST", "/runs$", "drop")
    with KfpClusterRunner(project.repo, known) as runner:
        assert not runner.start(stage).wait(60).failed
    assert kfp.requests.count(_POST) == 3 and len(kfp.workflows) == 2
    assert any(path.endswith("/workflows") for path in kfp.asked_kubernetes)


@pytest.mark.parametrize("honoured", [True, False])
def test_a_workflow_without_a_run_is_waited_for_until_it_is_deleted(
    project, kfp, known, stage, monkeypatch, honoured
):
    in_hurry(monkeypatch, deleted=3600.0, arrives=0.1)
    kfp.honours_run_id = honoured
    kfp.gc_grace = 2.0
    kfp.fault("POST", "/runs$", "deadlock")
    with KfpClusterRunner(project.repo, known) as runner:
        with pytest.raises(RunnerError, match="within minutes"):
            runner.start(stage)
        assert not runner.start(stage).wait(60).failed
    lost, last = kfp.workflows[1:]
    assert lost.collected and lost.run_id != last.run_id
    assert last.started > lost.started + kfp.gc_grace


def test_a_workflow_that_goes_on_without_a_run_is_told(project, kfp, known, stage, monkeypatch):
    """The server's grace for such workflows was raised; the clock alone would start the stage beside it."""
    in_hurry(monkeypatch, deleted=1.0, arrives=0.1)
    kfp.fault("POST", "/runs$", "deadlock")
    with KfpClusterRunner(project.repo, known) as runner:
        with pytest.raises(RunnerError, match="within minutes"):
            runner.start(stage)
        name = kfp.workflows[-1].name
        with pytest.raises(RunnerError, match=f"Delete it: `kubectl delete workflow {name}`"):
            runner.start(stage)
        assert len(kfp.workflows) == 2
        kfp.workflows[-1].stop()
        assert not runner.start(stage).wait(60).failed


@pytest.mark.parametrize("away", ["empty", "forbidden", "another"])
def test_workflows_of_another_cluster_prove_nothing(project, kfp, asked, stage, monkeypatch, away):
    """A namespace without workflows, or with those of another server, may not be that of the runs."""
    in_hurry(monkeypatch, deleted=1.5, arrives=0.0)
    kfp.kubernetes = away != "forbidden"
    if away == "another":
        labels = {"pipeline/runid": "of-another-server"}
        metadata = {"name": "other", "namespace": kfp.namespace, "labels": labels}
        kfp.cluster.put({"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": metadata})
    kfp.gc_grace = 0.5
    kfp.fault("POST", "/runs$", "deadlock")
    with KfpClusterRunner(project.repo, asked) as runner:
        with pytest.raises(RunnerError, match="within minutes"):
            runner.start(stage)
        assert not runner.start(stage).wait(60).failed
    first, second = kfp.workflows
    assert second.started > first.started + 1.0


@pytest.fixture
def announced(project, kfp, settings, forks, tmp_path):
    """A dispatcher of stages `a` and `b` that is killed while the server has its request; returns a starter."""
    cmd = f"test -e {tmp_path}/go || sleep 300; echo 1 >"
    project.write(
        "dvc.yaml", "".join(["stages:\n", *(f"  {n}: {{cmd: '{cmd} {n}', outs: [{n}]}}\n" for n in "ab")])
    )
    project.commit()
    job = tmp_path / "job"
    job.write_bytes(pickle.dumps(settings))
    kfp.popen = forks.popen
    kfp.fault("POST", "/runs$", "late")

    def start(name: str):
        arguments = (str(job), str(project.root), str(tmp_path / name), False)
        place = {"cwd": tmp_path, "env": dict(os.environ), "log": tmp_path / "log"}
        return forks.call(dispatcher.__file__, "dispatch", *arguments, **place)

    first = start("first")
    wait_for(lambda: _POST in kfp.requests)
    first.kill()
    first.wait(60)
    return start


@pytest.mark.parametrize("late", [False, True], ids=["there", "late"])
def test_the_run_of_a_killed_dispatcher_is_followed_for_what_is_left(project, kfp, announced, tmp_path, late):
    """Another one has recorded a stage since: the key of what is left is that of no run."""
    (tmp_path / "go").touch()
    with LocalRunner(echo=False) as runner:
        repro(project.repo, targets=["b"], runner=runner)
    before = len(kfp.requests)
    if not late:
        kfp.let.set()
        wait_for(lambda: kfp.runs)
    second = announced("second")
    if late:
        wait_for(lambda: kfp.requests[before:].count(("GET", "/apis/v2beta1/runs")) >= 2)
        kfp.let.set()
    second.wait(60)
    assert json.loads((tmp_path / "second").read_text())["ran"] == ["a"]
    assert kfp.requests.count(_POST) == len(kfp.workflows) == 1
    storage = project.repo.remote().storage
    assert not [key for key in storage.keys("dvkf") if "/claims/" in key] and not list(open_runs(storage))


@pytest.mark.parametrize("late", [False, True], ids=["there", "late"])
def test_the_run_of_an_owner_that_was_killed_in_its_request_is_ended(project, kfp, settings, announced, late):
    """It had no interest in the run yet."""
    storage = project.repo.remote().storage
    (run,) = open_runs(storage)
    assert run.run_id == ""
    dataclasses.replace(run, owner="flow-1").write(storage)
    timer = threading.Timer(0.5 if late else 0.0, kfp.let.set)
    timer.start()
    if not late:
        wait_for(lambda: kfp.runs)
    assert end_runs_of("flow-2", settings, project.repo.remote()) == []
    assert end_runs_of("flow-1", settings, project.repo.remote()) == [kfp.run.id]
    assert kfp.run.workflow.terminated
    wait_for(lambda: kfp.run.state == "FAILED")
    assert end_runs_of("flow-1", settings, project.repo.remote()) == []
    timer.join()


def test_a_refused_run_is_not_announced_any_more(project, kfp, settings, stage):
    kfp.fault("POST", "/runs$", 400)
    with KfpClusterRunner(project.repo, settings) as runner, pytest.raises(RunnerError):
        runner.start(stage).wait(60)
    assert kfp.requests.count(_POST) == 1 and not list(open_runs(project.repo.remote().storage))
