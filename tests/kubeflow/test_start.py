"""Starts whose request was answered by nobody, or by a proxy: no run is started twice."""

from __future__ import annotations

import pytest

from dvkf_prefect.errors import RunnerError
from dvkf_prefect.kubeflow.cluster import start
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner

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
