"""Stages as task runs while a cluster, a server of Kubeflow's API, runs them as one Kubeflow pipeline."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from dvkf_prefect import DvcRepository, KubeflowPipelines, end_pipeline_runs
from dvkf_prefect.errors import StageFailedError
from dvkf_prefect.flows import pipelines as flows
from dvkf_prefect.processes.holder import Holder
from dvkf_prefect.repo import Repo

from ..kubeflow.fake import FakeKfp, wait_for  # noqa: TID252 (tests are no package that could be named)
from .conftest import git
from .test_repro_flow import Pipeline, start

__all__ = ["start"]  # a fixture

Artifacts = Callable[[str], list[Any]]

STAGES = """\
prepare: {cmd: "echo x >> OUTSIDE/prepare; cat in/a > rows", deps: [in], outs: [rows]}
train: {cmd: "echo x >> OUTSIDE/train; TRAIN && cat rows rows > model", deps: [rows], outs: [model]}
report: {cmd: "echo trained; cat model > report", deps: [model], outs: [report]}
"""


@pytest.fixture
def pipeline(tmp_path: Path, prefect_server: None) -> Pipeline:
    """A repository whose data is on a remote that pods see as a mounted folder."""
    made = Pipeline(tmp_path / "repo")
    repo = made.repo
    with repo.config.edit() as sections:
        sections["core"]["remote"] = "store"
        sections["remote"]["store"] = {"url": str(tmp_path / "remote" / "store")}
    (tmp_path / "remote").mkdir()
    made.repo.add(["in"])
    made.repo.push()
    return made


def commit(pipeline: Pipeline, stages: str) -> None:
    pipeline.write(stages)
    git(pipeline.root, "add", "--all")
    git(pipeline.root, "commit", "--quiet", "--message", "Stages")


def settings(kfp: FakeKfp, pipeline: Pipeline) -> dict[str, Any]:
    mount = str(pipeline.root.parent / "remote")
    volumes = [{"claim": "data", "mount": mount}]
    return {
        "credentials": {"host": kfp.host},
        "image": "registry.example.org/stages:1",
        "ask_kubernetes": False,
        "defaults": {"volumes": volumes},
    }


def cluster(kfp: FakeKfp, pipeline: Pipeline, **more: Any) -> KubeflowPipelines:
    return KubeflowPipelines(backend="kubeflow", **settings(kfp, pipeline), **more)


def test_a_pipeline_run_is_mirrored(pipeline: Pipeline, kfp: FakeKfp, artifacts: Artifacts) -> None:
    commit(pipeline, STAGES.replace("TRAIN", "true"))
    result = pipeline.run(pipelines=cluster(kfp, pipeline))
    assert result.ran == ("prepare", "train", "report")
    assert (pipeline.root / "report").read_text() == "1\n1\n"
    runs = pipeline.task_runs()
    assert {name: run.state_name for name, run in runs.items()} == dict.fromkeys(result.ran, "Completed")
    assert {item.id for item in runs["report"].task_inputs["stage"]} == {runs["train"].id}
    log = pipeline.log(runs["report"], "trained")
    assert "Stage 'report': succeeded on Kubeflow" in log
    (link,) = artifacts("kubeflow-stages")
    assert kfp.run.id in link.data
    assert not Repo.open(pipeline.root).status()

    assert pipeline.run(pipelines=cluster(kfp, pipeline)).skipped == result.ran
    assert {run.state_name for run in pipeline.task_runs().values()} == {"Skipped"}
    assert len(kfp.runs) == 1


def test_task_runs_follow_their_pods(pipeline: Pipeline, kfp: FakeKfp) -> None:
    """They are pending as long as their pods are, and have the times of the cluster, and each line of the log once."""
    commit(pipeline, STAGES.replace("TRAIN", "echo hello; sleep 3; echo bye"))
    kfp.pausing = True
    seen: set[str] = set()

    def watch() -> None:
        deadline = time.monotonic() + 90
        with get_client(sync_client=True) as client:
            while len(seen) < 3 and time.monotonic() < deadline:
                wanted = FlowRunFilter(id=FlowRunFilterId(any_=[pipeline.flow_run or uuid4()]))
                runs = client.read_task_runs(flow_run_filter=wanted)
                seen.update(run.name for run in runs if run.state_name == "Pending")
                time.sleep(0.2)
        kfp.pausing = False

    watching = threading.Thread(target=watch)
    watching.start()
    pipeline.run(pipelines=cluster(kfp, pipeline))
    watching.join()
    assert len(seen) == 3
    runs = pipeline.task_runs()
    for name, run in runs.items():
        (pod,) = (n for n in kfp.run.workflow.pods() if n.task is kfp.run.tasks[name])
        assert run.start_time.strftime("%Y-%m-%dT%H:%M:%SZ") == pod.created
        assert run.start_time <= run.end_time and run.run_count == 1
        (dag,) = (n for n in kfp.run.workflow.nodes.values() if n.display == name)
        assert run.end_time.strftime("%Y-%m-%dT%H:%M:%SZ") in (pod.ended, dag.ended)
    log = pipeline.log(runs["train"], "bye").splitlines()
    assert (log.count("hello"), log.count("bye")) == (1, 1)


def test_a_failed_stage_is_tried_again_and_what_is_done_is_not(pipeline: Pipeline, kfp: FakeKfp) -> None:
    commit(pipeline, STAGES.replace("TRAIN", "test $(wc -l < OUTSIDE/train) -gt 1"))
    result = pipeline.run(pipelines=cluster(kfp, pipeline), retries=1)
    assert set(result.ran) | set(result.restored) | set(result.skipped) == {"prepare", "train", "report"}
    assert not result.failed
    assert (pipeline.count("prepare"), pipeline.count("train"), len(kfp.runs)) == (1, 2, 2)
    runs = pipeline.task_runs()
    assert runs["train"].run_count == 2
    assert {run.state_type.value for run in runs.values()} == {"COMPLETED"}
    assert not Repo.open(pipeline.root).status()


def test_stages_that_need_a_failed_one_are_not_run(pipeline: Pipeline, kfp: FakeKfp) -> None:
    commit(pipeline, STAGES.replace("TRAIN", "false"))
    with pytest.raises(StageFailedError, match="train"):
        pipeline.run(pipelines=cluster(kfp, pipeline))
    runs = {name: run.state_name for name, run in pipeline.task_runs().items()}
    assert runs == {"prepare": "Completed", "train": "Failed", "report": "NotReady"}


def test_a_retry_follows_the_run_that_is_there(pipeline: Pipeline, kfp: FakeKfp) -> None:
    """Kubeflow is away for longer than is waited for; its run goes on, and the next try finds it."""
    commit(pipeline, STAGES.replace("TRAIN", f"sh {pipeline.outside}/await go"))

    def fail() -> None:
        while not pipeline.count("train"):
            time.sleep(0.1)
        kfp.fault("GET", r"/runs/", 503, times=10**6)
        time.sleep(6)
        kfp.faults.clear()
        time.sleep(3)
        (pipeline.outside / "go").touch()

    failing = threading.Thread(target=fail)
    failing.start()
    result = pipeline.run(pipelines=cluster(kfp, pipeline, outage=1), retries=20, retry_delay_seconds=0.5)
    failing.join()
    assert not result.failed
    assert (pipeline.count("prepare"), pipeline.count("train"), len(kfp.runs)) == (1, 1, 1)
    assert max(run.run_count for run in pipeline.task_runs().values()) > 1


@pytest.mark.long  # processes of their own with flow runs that are cancelled, one for each row of Prefect's ways
@pytest.mark.parametrize("shape", ["async", "task", "submit"])
def test_a_cancelled_flow_ends_its_run_wherever_it_waits(
    pipeline: Pipeline, kfp: FakeKfp, start: Callable[..., subprocess.Popen[str]], shape: str
) -> None:
    """Prefect's runner sends SIGTERM. It kills a flow whose tasks wait in threads, and calls the hook."""
    commit(pipeline, STAGES.replace("TRAIN", f"sh {pipeline.outside}/await go"))
    options = settings(kfp, pipeline)
    process = start("kubeflow", shape, **options)
    deadline = time.monotonic() + 150
    while not pipeline.count("train"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    if shape == "submit":
        time.sleep(1)
        process.kill()
    process.wait(120)
    if shape == "submit":
        (place,) = (pipeline.root.parent / "remote/store/dvkf/runs").glob("*/interests/*.json")
        flow_run = SimpleNamespace(
            id=Holder.from_json(place.read_bytes()).owner, parameters={"pipelines": "far"}
        )
        assert flow_run.id
        KubeflowPipelines(backend="kubeflow", **options).save("far", overwrite=True)
        DvcRepository(path=str(pipeline.root)).save("local", overwrite=True)
        end_pipeline_runs(None, flow_run, None)
    wait_for(lambda: kfp.run.state == "FAILED")
    assert kfp.run.workflow.terminated


def test_the_flows_of_the_package_end_their_runs() -> None:
    assert [hook.__name__ for hook in flows.repro.on_cancellation_hooks] == ["end_pipeline_runs"]
    assert [hook.__name__ for hook in flows.train.on_cancellation_hooks] == ["end_pipeline_runs"]


@pytest.mark.parametrize("sign", [pytest.param(signal.SIGTERM, marks=pytest.mark.long), signal.SIGKILL])
def test_an_ended_flow_ends_its_run_or_leaves_it_to_the_next(
    pipeline: Pipeline, kfp: FakeKfp, start: Callable[..., subprocess.Popen[str]], sign: signal.Signals
) -> None:
    """Who is cancelled has the run terminated; who is killed cannot, and the next one goes on with it."""
    commit(pipeline, STAGES.replace("TRAIN", f"sh {pipeline.outside}/await go"))
    process = start("kubeflow", **settings(kfp, pipeline))
    deadline = time.monotonic() + 120
    lock = pipeline.root / "dvc.lock"
    while not (pipeline.count("train") and lock.exists() and "prepare:" in lock.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(sign)
    process.wait(120)
    if sign == signal.SIGTERM:
        assert kfp.run.workflow.terminated
    (pipeline.outside / "go").touch()
    again = start("kubeflow", **settings(kfp, pipeline))
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0
    killed = sign == signal.SIGKILL
    assert said.splitlines()[-1].strip() == "ran train report skipped prepare"
    assert pipeline.count("prepare") == 1
    runs = 1 if killed else 2
    assert (pipeline.count("train"), len(kfp.runs)) == (runs, runs)
    assert not Repo.open(pipeline.root).status()
