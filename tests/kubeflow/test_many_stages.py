"""Many stages, from the dispatch to dvc.lock: bytes of what is sent and stored, requests, memory of the worker."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import time
from collections import Counter
from pathlib import Path

import pytest
import repos

from dvkf_prefect.kubeflow.cluster.chain import MOST_STAGES
from dvkf_prefect.kubeflow.cluster.patience import Patience

from . import dispatcher
from .fake import launcher, store

_MEBI = 1 << 20


def long(count: int):
    return pytest.param(count, marks=pytest.mark.long)  # a process for each stage


@pytest.mark.parametrize("count", [14, long(60), long(120), long(500)])
def test_stages_run_to_the_end(tmp_path, kfp, forks, settings, count):
    """Each in chains of ten; more than one run carries are several runs, in order."""
    kfp.popen = forks.popen
    text = "stages:\n"
    for i in range(count):
        deps = f"    deps: [o{i - 1}]\n" if i % 10 else ""
        text += f"  stage-{i}:\n    cmd: echo {i} > o{i}\n{deps}    outs: [o{i}]\n"
    root = tmp_path / "repo"
    (tmp_path / "remote").mkdir()
    repos.make_repo(root, {"dvc.yaml": text}, remote=tmp_path / "remote/store", commit="Start")
    job, report = tmp_path / "job", tmp_path / "report"
    patience = Patience(poll_from=0.2, poll_to=1.0, run=900)
    job.write_bytes(pickle.dumps(dataclasses.replace(settings, patience=patience)))
    began = time.monotonic()
    arguments = (str(job), str(root), str(report))
    env = dict(os.environ)
    worker = forks.call(
        dispatcher.__file__, "dispatch", *arguments, cwd=tmp_path, env=env, log=tmp_path / "log"
    )
    worker.wait(900)
    seconds = time.monotonic() - began
    outcome = json.loads(report.read_text())
    assert (outcome["error"], outcome["failed"], len(outcome["ran"])) == ("", {}, count)
    assert (root / "dvc.lock").read_text().count("\n  stage-") == count
    runs = list(kfp.runs.values())
    assert len(runs) == len(kfp.workflows) == -(-count // MOST_STAGES)

    bodies = [len(json.dumps(run.body)) for run in runs]
    workflows = [run.workflow for run in runs]
    given = [
        (workflow.container(task), workflow.given(task))
        for workflow in workflows
        for task in workflow.tasks.values()
    ]
    of_tasks = [len(json.dumps(each["inputs"])) for _, each in given]
    templates = [launcher.template_size(*each) for each in given]
    # Argo compresses what is larger than 1 MiB with its nodes, and gives up what is larger even so.
    assert max(bodies) < 640 * 1024 and max(w.packed_size for w in workflows) < _MEBI
    assert max(of_tasks) < 32 * 1024 and max(templates) < launcher.TEMPLATE
    assert all(len(run.tasks_seen) * store.TASK_ROW < store.JOINED for run in runs)
    # Beside the polls of a run's state, what is asked depends neither on the number of stages nor on the time.
    asked = Counter(_kind(method, path) for method, path in kfp.requests)
    polls, reads = asked.pop("poll"), asked.pop("workflow", 0)
    assert sum(asked.values()) <= 8 * len(runs), asked
    assert reads <= 2 * len(runs) + polls / 30
    print(
        f"{count} stages, {len(runs)} runs: bytes of a request {max(bodies)}, of a workflow's spec "
        f"{max(w.spec_size for w in workflows)}, of it with nodes {max(w.size for w in workflows)}, compressed "
        f"{max(w.packed_size for w in workflows)}, of a task's inputs {max(of_tasks)}, "
        f"of a template {max(templates)}; requests {polls} polls, {reads} of workflows, {sum(asked.values())} others; "
        f"worker {outcome['rss'] / _MEBI:.0f} MiB at its start {outcome['rss_before'] / _MEBI:.0f}; {seconds:.0f} s"
    )


def _kind(method: str, path: str) -> str:
    parts = Path(path).parts
    if method == "GET" and parts[2] == "v1beta1":
        return "workflow"
    return "poll" if method == "GET" and parts[3] == "runs" and len(parts) == 5 else f"{method} {parts[3]}"
