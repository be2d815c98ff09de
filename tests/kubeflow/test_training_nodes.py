"""A distributed training from the dispatcher to its nodes: the stage's pod and the processes of its nodes run."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import repos
from kube_api import KubeApi, TrainerController, install_trainer
from servers import free_ports

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.errors import StageCancelledError, StageFailedError
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
from dvkf_prefect.kubeflow.trainer.nodes import Nodes as TrainingNodes
from dvkf_prefect.pipeline.step.spec import Distributed, StepMeta, StepResult, StepSpec

from .fake import wait_for

GROUP = "trainer.kubeflow.org"
TORCHRUN = """#!/bin/sh
[ "$1" = --no-python ] || exit 64
shift
export RANK="$PET_NODE_RANK" WORLD_SIZE="$PET_NNODES"
exec "$@"
"""


class Nodes:
    """Trainer, JobSet and kubelet: a process for each node of a TrainJob, ended with it."""

    def __init__(self, api: KubeApi, folder) -> None:
        self.api = api
        self.folder = folder
        self.processes: list[subprocess.Popen] = []
        self.jobs: list[dict] = []
        self.threads: list[threading.Thread] = []
        api.store.on_change.append(self.seen)

    def seen(self, kind: str, resource, obj: dict) -> None:
        if resource.kind != "TrainJob":
            return
        if kind == "ADDED":
            self.jobs.append(obj)
            self.threads.append(threading.Thread(target=self.work, args=(obj,), daemon=True))
            self.threads[-1].start()
        elif kind == "DELETED":
            self.kill()

    def work(self, job: dict) -> None:
        trainer = TrainerController(self.api, job)
        port = str(free_ports(1)[0])
        running = []
        for rank, pod in enumerate(trainer.start()):
            (container,) = pod["spec"]["containers"]
            values = {e["name"]: e["value"] for e in container["env"] if "value" in e}
            values |= {
                "PATH": os.environ["PATH"],
                "PYTHONPATH": os.environ["PYTHONPATH"],
                "HOME": str(self.folder),
            }
            values |= {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port, "TMPDIR": str(self.folder)}
            with (self.folder / f"node-{rank}.log").open("wb") as log:
                running.append(
                    subprocess.Popen(
                        container["command"], env=values, cwd=self.folder, stdout=log, stderr=log,
                        start_new_session=True,
                    )
                )  # fmt: skip
        self.processes += running
        trainer.report(active=1, ready=1)
        codes = [process.wait() for process in running]
        if self.api.get("trainjobs", "kubeflow", trainer.name, GROUP) is not None:
            trainer.fail() if any(codes) else trainer.complete()

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        for thread in self.threads:
            thread.join(20)


@pytest.fixture
def nodes(kfp, tmp_path, monkeypatch) -> Iterator[Nodes]:
    folder = tmp_path / "nodes"
    repos.write(folder, {"bin/torchrun": TORCHRUN})
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    with KubeApi() as api:
        install_trainer(api)
        kfp.cluster = api
        found = Nodes(api, folder)
        try:
            yield found
        finally:
            found.close()


@pytest.fixture
def runner(project, settings):
    with KfpClusterRunner(project.repo, settings, fetch=True) as runner:
        yield runner


@pytest.fixture
def training(project, nodes, tmp_path):
    """Makes a stage with nodes."""

    def make(*cmd: str, deps=(), outs=(), count: int = 2, **more) -> StepSpec:
        config = nodes.api.kubeconfig(tmp_path / "kubeconfig")
        values = {"trainer": {"nodes": count}, "env": {"KUBECONFIG": config}, **more}
        step = project.step("train", *cmd, deps=deps, outs=outs, distributed=Distributed(count, 1))
        return StepSpec(
            **{f: getattr(step, f) for f in step.__slots__ if f != "meta"},
            meta=StepMeta({"kubeflow": values}),
        )

    return make


def test_the_first_node_keeps_the_outputs_and_the_others_join(project, runner, kfp, nodes, training):
    before = project.step("prepare", "mkdir data/clean; echo rows > data/clean/a", outs=["data/clean"])
    spec = training(
        "read rows < data/clean/a; echo $rows of $RANK in $WORLD_SIZE > model.bin; echo said by $RANK",
        deps=["data/clean/a"], outs=["model.bin"],
    )  # fmt: skip
    runs = runner.start_all([before, spec])
    result = runs["train"].wait(120)
    content = Cache(project.repo.cache.root).read_bytes(result.outs[0].digest)
    assert content == b"rows of 0 in 2\n"
    assert result.log_tail.strip().endswith("said by 0")
    (job,) = nodes.jobs
    assert job["metadata"]["ownerReferences"][0]["kind"] == "Pod" and len(nodes.processes) == 2
    assert [p.wait(10) for p in nodes.processes] == [0, 0]
    # What the pipeline and the job show of the settings is small, and the nodes' start is on the remote.
    assert '\\"nodes\\": 2' in json.dumps(kfp.run.body) and len(json.dumps(job)) < 20_000
    # Digests of inputs are recorded as of any stage.
    assert [dep.path for dep in result.deps] == ["data/clean/a"] and result.deps[0].digest


def test_a_node_that_fails_ends_the_stage_and_the_others(project, runner, nodes, training):
    spec = training("test $RANK = 0 && sleep 60; echo broken; exit 3", outs=["model.bin"])
    with pytest.raises(StageFailedError) as caught:
        runner.start_all([spec])["train"].wait(120)
    assert (
        caught.value.status == 3 and "(log of node 1)" in str(caught.value) and "broken" in str(caught.value)
    )
    assert wait_for(lambda: all(p.poll() is not None for p in nodes.processes), 30)
    assert nodes.api.all("trainjobs", GROUP) == []


def test_a_node_that_failed_precedes_those_that_were_stopped_for_it(monkeypatch):
    """The first node may have recorded that it was stopped before the results are read again."""
    about = SimpleNamespace(task="train", key="k")
    stopped = StepResult("train", error="StageCancelledError", message="stopped")
    failed = StepResult("train", error="StageFailedError", exit_code=3)
    for found, rank in (({0: stopped, 1: failed, 2: stopped}, 1), ({0: StepResult("train"), 1: stopped}, 1)):
        monkeypatch.setattr(TrainingNodes, "results", lambda self, found=found: found)
        assert TrainingNodes(None, about, 1).failure() == (rank, found[rank])
    monkeypatch.setattr(TrainingNodes, "results", lambda self: {0: StepResult("train")})
    assert TrainingNodes(None, about, 1).failure() is None


def test_a_terminated_run_deletes_its_nodes(project, settings, nodes, training):
    with KfpClusterRunner(project.repo, settings) as runner:
        run = runner.start_all([training("sleep 60", outs=["model.bin"])])["train"]
        wait_for(lambda: len(nodes.processes) == 2, 60)
        run.cancel()
        with pytest.raises(StageCancelledError):
            run.wait(60)
    assert wait_for(lambda: nodes.api.all("trainjobs", GROUP) == [], 30)
    assert wait_for(lambda: all(p.poll() is not None for p in nodes.processes), 30)


def test_a_second_attempt_is_a_second_training(project, runner, nodes, training, tmp_path):
    mark = tmp_path / "once"
    cmd = f"if [ $RANK = 0 ] && ! [ -e {mark} ]; then touch {mark}; exit 1; fi; echo done > model.bin"
    spec = training(cmd, outs=["model.bin"], count=1, retries=1)
    result = runner.start_all([spec])["train"].wait(120)
    assert Cache(project.repo.cache.root).read_bytes(result.outs[0].digest) == b"done\n"
    assert len({job["metadata"]["name"] for job in nodes.jobs}) == 2
