"""Flow runs that are late, crash, and are paused, suspended and resumed, while Kubeflow runs their stages."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import get_current_settings
from prefect.states import AwaitingRetry, Crashed, Scheduled, State, Suspended

from ..kubeflow.fake import FakeKfp, wait_for  # noqa: TID252 (tests are no package that could be named)
from .test_repro_cluster_flow import STAGES, commit, pipeline, settings
from .test_repro_flow import Pipeline

__all__ = ["pipeline"]  # a fixture

# Runs an existing flow run, as the process that a worker starts.
SCRIPT = """\
import json
import sys
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.flow_runs import pause_flow_run
from dvkf_prefect import DvcRepository, KubeflowPipelines, repro_pipeline

def stages():
    return repro_pipeline(DvcRepository(path=sys.argv[1]), KubeflowPipelines(**json.loads(sys.argv[2])))

@flow(name="stages")
def direct():
    return stages()

@flow(name="stages")
def paused():
    future = task(stages).submit()
    pause_flow_run(timeout=120, poll_interval=1)
    return future.result()

with get_client(sync_client=True) as client:
    known = client.read_flow_run(sys.argv[3])
result = run_flow({"direct": direct, "paused": paused}[sys.argv[4]], flow_run=known)
print("done", *result.ran, *result.skipped, *result.restored)
"""


@flow(name="stages")
def stages() -> None:
    """Give flow runs their flow."""


@pytest.fixture
def prefect(pipeline: Pipeline) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def attempt(prefect: SyncPrefectClient, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process that runs a flow run in a clone."""
    script = tmp_path / "attempt.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, **get_current_settings().to_environment_variables(exclude_unset=True)}
    environment["PREFECT_API_URL"] = str(prefect.api_url)
    started: list[subprocess.Popen[str]] = []

    def run(flow_run: UUID, root: Path, block: str, shape: str = "direct") -> subprocess.Popen[str]:
        arguments = [sys.executable, str(script), str(root), block, str(flow_run), shape]
        started.append(subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


class Held:
    """A pipeline whose second stage waits for a file, and a clone of it."""

    def __init__(self, pipeline: Pipeline, kfp: FakeKfp) -> None:
        commit(pipeline, STAGES.replace("TRAIN", f"sh {pipeline.outside}/await go"))
        self.pipeline = pipeline
        self.kfp = kfp
        self.root = pipeline.root
        self.clone = Path(shutil.copytree(self.root, self.root.parent / "clone", symlinks=True))
        self.block = json.dumps({"backend": "kubeflow", **settings(kfp, pipeline)})

    def wait_for_train(self, process: subprocess.Popen[str]) -> None:
        """Wait until the first stage is recorded and the second one runs."""

        def ready() -> bool:
            assert process.poll() is None
            lock = self.root / "dvc.lock"
            return bool(self.pipeline.count("train")) and lock.exists() and "prepare:" in lock.read_text()

        wait_for(ready, timeout=120)

    def wait_for_followers(self, count: int) -> None:
        places = self.root.parent / "remote/store/dvkf/runs"
        wait_for(lambda: len(list(places.glob("*/interests/*.json"))) == count, timeout=120)

    def go(self) -> None:
        (self.pipeline.outside / "go").touch()

    def check(self, *roots: Path) -> None:
        """Check that each stage ran once, in one run that was not terminated, and is recorded in these clones."""
        assert [self.pipeline.count(name) for name in ("prepare", "train")] == [1, 1]
        assert len(self.kfp.workflows) == len(self.kfp.runs) == 1
        assert self.kfp.run.state == "SUCCEEDED" and not self.kfp.run.workflow.terminated
        for root in roots:
            text = (root / "dvc.lock").read_text()
            assert all(f"{name}:" in text for name in ("prepare", "train", "report"))


@pytest.fixture
def held(pipeline: Pipeline, kfp: FakeKfp) -> Held:
    return Held(pipeline, kfp)


def ended(process: subprocess.Popen[str]) -> list[str]:
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return said.split("done", 1)[1].split()


def state(prefect: SyncPrefectClient, flow_run: UUID) -> str:
    return str(prefect.read_flow_run(flow_run).state_name)


def set_state(prefect: SyncPrefectClient, flow_run: UUID, new: State) -> None:
    prefect.set_flow_run_state(flow_run, new, force=True)


@pytest.mark.long
def test_a_late_flow_run_that_crashed_is_resumed_elsewhere(
    prefect: SyncPrefectClient, attempt: Callable[..., subprocess.Popen[str]], held: Held
) -> None:
    """No worker took it in time, the one that did was killed, and another one goes on in a clone of its own."""
    due = datetime.now(timezone.utc) - timedelta(hours=1)
    flow_run = prefect.create_flow_run(stages, state=Scheduled(scheduled_time=due, name="Late")).id
    assert state(prefect, flow_run) == "Late"
    first = attempt(flow_run, held.root, held.block)
    held.wait_for_train(first)
    assert state(prefect, flow_run) == "Running"
    first.send_signal(signal.SIGKILL)
    first.wait(30)
    set_state(prefect, flow_run, Crashed(message="the worker's machine is gone"))
    assert held.kfp.run.state == "RUNNING"
    set_state(prefect, flow_run, AwaitingRetry())
    second = attempt(flow_run, held.clone, held.block)
    held.wait_for_followers(2)  # that of the killed one is left
    held.go()
    assert ended(second) == ["prepare", "train", "report"]
    found = prefect.read_flow_run(flow_run)
    assert (found.state_name, found.run_count) == ("Completed", 2)
    held.check(held.clone)


@pytest.mark.long
def test_a_suspended_flow_run_that_is_resumed_elsewhere_follows_the_same_run(
    prefect: SyncPrefectClient, attempt: Callable[..., subprocess.Popen[str]], held: Held, kfp: FakeKfp
) -> None:
    """Prefect ends the process of a suspended flow run at its next task run; the run on Kubeflow goes on."""
    # Prefect suspends runs of deployments only.
    deployment = prefect.create_deployment(prefect.create_flow(stages), "suspended")
    flow_run = prefect.create_flow_run_from_deployment(deployment).id
    kfp.pausing = True
    first = attempt(flow_run, held.root, held.block)
    held.wait_for_followers(1)
    set_state(prefect, flow_run, Suspended(timeout_seconds=300))
    time.sleep(2)  # until the process has the event of it
    kfp.pausing = False
    wait_for(lambda: first.poll() is not None, timeout=60)
    wait_for(lambda: held.pipeline.count("train"))
    assert state(prefect, flow_run) == "Suspended"
    prefect.resume_flow_run(flow_run)
    second = attempt(flow_run, held.clone, held.block)
    held.wait_for_followers(1)
    held.go()
    assert ended(second) == ["prepare", "train", "report"]
    held.check(held.clone)
    assert state(prefect, flow_run) == "Completed"


def test_a_paused_flow_run_leaves_its_stages_running(
    prefect: SyncPrefectClient, attempt: Callable[..., subprocess.Popen[str]], held: Held
) -> None:
    """They are recorded before it is resumed."""
    flow_run = prefect.create_flow_run(stages).id
    process = attempt(flow_run, held.root, held.block, "paused")
    held.wait_for_train(process)
    wait_for(lambda: state(prefect, flow_run) == "Paused")
    held.go()
    wait_for(lambda: "report:" in (held.root / "dvc.lock").read_text(), timeout=120)
    assert state(prefect, flow_run) == "Paused" and process.poll() is None
    prefect.resume_flow_run(flow_run)
    assert ended(process) == ["prepare", "train", "report"]
    held.check(held.root)
