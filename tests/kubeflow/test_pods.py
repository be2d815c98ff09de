"""Pods that do not start, or are killed: told, and not taken for running."""

from __future__ import annotations

import logging

import pytest

from dvkf_prefect.errors import RunnerError
from dvkf_prefect.kubeflow.cluster.pods import Pods
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner

from .fake import container, kill, wait_for

PULL = {
    "containerStatuses": [
        container("main", waiting={"reason": "ImagePullBackOff", "message": "Back-off pulling image"}),
    ]
}
FULL = {
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/3 nodes are available: insufficient nvidia.com/gpu",
        }
    ]
}


@pytest.mark.parametrize(
    ("status", "message"),
    [(PULL, "ImagePullBackOff: Back-off pulling image"), (FULL, "Unschedulable: 0/3 nodes are available")],
)
def test_a_pod_that_does_not_start(project, kfp, asked, status, message):
    kfp.stuck["b"] = status
    events = []
    with KfpClusterRunner(project.repo, asked, on_event=events.append) as runner:
        runs = runner.start_all(
            [
                project.step("a", "echo 1 > a", outs=["a"]),
                project.step("b", "cp a b", deps=["a"], outs=["b"]),
            ]
        )
        assert not runs["a"].wait(60).failed
        with pytest.raises(
            RunnerError, match=f"the pod of stage 'b' did not start in 0 s: {message}|{message}"
        ):
            runs["b"].wait(60)
    waiting = [event for event in events if event.state == "WAITING"]
    assert [event.stage for event in waiting] == ["b"] and message in waiting[0].message
    assert kfp.run.state == "FAILED" and kfp.run.workflow.terminated


def test_a_pod_that_is_killed(project, kfp, asked):
    """Its log is Kubernetes' to tell: it could leave nothing itself."""
    with KfpClusterRunner(project.repo, asked) as runner:
        run = runner.start(project.step("a", "echo working; sleep 300", outs=["a"]))
        wait_for(lambda: kfp.runs and "working" in kfp.run.tasks["a"].log.splitlines())
        kill(kfp.run.tasks["a"])
        with pytest.raises(
            RunnerError, match=r"(?s)OOMKilled, exit code 137.*The end of its log:\n.*working"
        ):
            run.wait(60)


def test_without_kubernetes_argo_tells_the_log(project, kfp, asked):
    kfp.kubernetes = False
    with KfpClusterRunner(project.repo, asked) as runner:
        run = runner.start(project.step("a", "echo working; sleep 300", outs=["a"]))
        wait_for(lambda: kfp.runs and "working" in kfp.run.tasks["a"].log.splitlines())
        kill(kfp.run.tasks["a"])
        with pytest.raises(RunnerError, match=r"(?s)without a result.*The end of its log:\n.*working"):
            run.wait(60)
    assert any("/k8s/pod/logs" in path for _, path in kfp.requests)


def test_the_log_on_the_remote_comes_first(project, kfp, asked, monkeypatch):
    with KfpClusterRunner(project.repo, asked) as runner:
        run = runner.start(project.step("a", "echo working; sleep 300", outs=["a"]))
        wait_for(lambda: kfp.runs and "working" in kfp.run.tasks["a"].log.splitlines())
        project.repo.remote().storage.write(f"dvkf/runs/{kfp.run.id}/a/log.txt", b"shipped\n")
        kill(kfp.run.tasks["a"])
        with pytest.raises(RunnerError, match=r"The end of its log:\nshipped"):
            run.wait(60)


def test_kubernetes_that_is_not_there_is_no_failure(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    pods = Pods("kubeflow", config_file=str(tmp_path / "none"))
    assert pods.problems("x") == [] and pods.log("x", "a") == "" and pods.name("x", "a") == ""
    assert sum("cannot query" in record.message for record in caplog.records) == 1
