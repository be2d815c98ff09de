"""Randomised runs against the strict server: dispatchers are killed, requests fail, pods are evicted, runs stopped.

Whatever happened, of each run one workflow was started, nothing runs on, and all that is reported and recorded is what
truly ran. ``DVKF_KUBEFLOW_RUNS`` is the number of runs, ``DVKF_KUBEFLOW_SEED`` the first seed.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from pathlib import Path

import pytest
from sizes import size

from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner

from . import dispatcher
from .chaos import Scene, shown
from .fake import VERSIONS, wait_for

_FIRST = int(os.environ.get("DVKF_KUBEFLOW_SEED", "1"))
_SEEDS = range(_FIRST, _FIRST + int(size("DVKF_KUBEFLOW_RUNS", "2", "40")))


@pytest.mark.parametrize(("seed", "version"), [(seed, VERSIONS[seed % 3]) for seed in _SEEDS])
def test_a_random_run(tmp_path, kfp, forks, seed, version):
    scene = Scene(seed, tmp_path, kfp, forks, dict(os.environ))
    scene.play()
    print(f"seed {seed}, KFP {version}: {shown(scene.figures)}")


def test_a_request_that_a_killed_dispatcher_sent_is_waited_for(tmp_path, kfp, forks, project, settings):
    """The server still had it in hand when the next dispatcher looked for the run, and was sent a second one."""
    project.write("dvc.yaml", "stages:\n  a:\n    cmd: echo 1 > a\n    outs: [a]\n")
    project.commit()
    job, reports = tmp_path / "job", [tmp_path / "first", tmp_path / "second"]
    job.write_bytes(pickle.dumps(settings))
    kfp.popen = forks.popen
    kfp.fault("POST", "/runs$", "late")

    def start(report: Path):
        arguments = (str(job), str(project.root), str(report), False)
        env, log = dict(os.environ), tmp_path / "log"
        return forks.call(dispatcher.__file__, "dispatch", *arguments, cwd=tmp_path, env=env, log=log)

    first = start(reports[0])
    wait_for(lambda: ("POST", "/apis/v2beta1/runs") in kfp.requests)
    first.kill()
    before = len(kfp.requests)
    second = start(reports[1])

    def looked() -> bool:
        return kfp.requests[before:].count(("GET", "/apis/v2beta1/runs")) >= 2

    wait_for(looked)  # before its claim, and with it
    time.sleep(0.1)  # for the answer
    kfp.let.set()
    second.wait(60)
    assert json.loads(reports[1].read_text())["ran"] == ["a"]
    assert kfp.requests.count(("POST", "/apis/v2beta1/runs")) == len(kfp.workflows) == 1


def test_a_run_that_the_server_lost_is_not_started_again_by_another_clone(
    tmp_path, kfp, forks, project, settings
):
    """The dispatcher that started it has ended; the other clone waits until its workflow is deleted."""
    project.write("dvc.yaml", "stages:\n  a:\n    cmd: sleep 1; echo 1 > a\n    outs: [a]\n")
    project.commit()
    clone = Path(shutil.copytree(project.root, tmp_path / "clone", symlinks=True))
    job = tmp_path / "job"
    job.write_bytes(pickle.dumps(settings))
    kfp.popen, kfp.gc_grace = forks.popen, 1.0
    kfp.fault("POST", "/runs$", "deadlock")
    outcomes = []
    for root in (project.root, clone):
        report = tmp_path / f"report-{root.name}"
        arguments, log = (str(job), str(root), str(report)), tmp_path / "log"
        worker = forks.call(
            dispatcher.__file__, "dispatch", *arguments, cwd=tmp_path, env=dict(os.environ), log=log
        )
        worker.wait(60)
        outcomes.append(json.loads(report.read_text()))
    assert "within minutes" in outcomes[0]["error"]
    assert (outcomes[1]["error"], outcomes[1].get("ran")) == ("", ["a"])
    first, second = kfp.workflows
    assert first.run_id != second.run_id and first.collected


def test_a_start_that_a_proxy_sends_twice_is_one_run(kfp, project, settings):
    """The server makes a workflow for each request, and refuses to store the second run."""
    kfp.fault("POST", "/runs$", "twice")
    with KfpClusterRunner(project.repo, settings) as runner:
        run = runner.start(project.step("a", "echo 1 > a", outs=["a"]))
        assert run.run_id == kfp.run.id and not run.wait(60).failed
    assert [workflow.run_id for workflow in kfp.workflows] == [kfp.run.id] * 2
