"""Stages on a cluster, whose pods are processes that have only the remote."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import alive

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.upkeep.gc import GcOptions, GcScope
from dvkf_prefect.errors import (
    CorruptObjectError,
    MissingObjectError,
    ParseError,
    RunnerError,
    StageCancelledError,
    StageError,
    StageFailedError,
    StageGraphError,
    StageOutputError,
    StageWriteError,
)
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.kubeflow.cluster import submit
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.pipeline.step.runner import BatchRunner, LocalRunner
from dvkf_prefect.pipeline.step.spec import StepContent, StepOutput, StepResult
from dvkf_prefect.repo import Repo

from .conftest import DVC_YAML, FAST
from .fake import ENDED, wait_for


def test_a_whole_pipeline_puts_out_what_the_local_runner_does(project, kfp, runner, tmp_path):
    kfp.popen = subprocess.Popen  # no forks: each pod starts from nothing
    specs = project.steps()
    runs = runner.start_all(specs)
    results = {stage: run.wait(120) for stage, run in runs.items()}
    assert len(kfp.runs) == 1 and kfp.run.state == "SUCCEEDED"
    # Data did not pass through this machine.
    assert project.repo.cache.missing(out.digest for r in results.values() for out in r.outs)
    here = project.locally(specs)
    for stage, result in results.items():
        assert result.outs == here[stage].outs
        assert (result.exit_code, result.error, result.commit) == (0, "", project.git("rev-parse", "HEAD"))
    assert results["train"].log_tail == here["train"].log_tail == "trained\n"
    # What stays out of the cache is brought for git, as by the local runner.
    (metrics,) = (out for out in results["train"].outs if out.path == "metrics.json")
    side = Cache(Path(results["train"].side_dir))
    assert b"0.9" in side.read_bytes(metrics.digest)
    assert not (tmp_path / "remote/store/files/md5" / metrics.digest[:2] / metrics.digest[2:]).exists()
    # What downstream stages found, which nobody knew before.
    found = {dep.path: dep.digest for dep in results["report"].deps}
    assert found == {out.path: out.digest for out in results["train"].outs}


def test_kfp_shows_metrics_and_models(project, kfp, runner):
    specs = project.steps()
    runs = runner.start_all(specs)
    model = next(o for o in runs["train"].wait(120).outs if o.path == "model.bin")
    wait_for(lambda: kfp.run.tasks["train"].artifacts)
    artifacts = kfp.run.tasks["train"].artifacts
    (shown,) = artifacts["metrics"]["artifacts"]
    assert shown["metadata"] == {"acc": 0.9, "n.files": 1}
    (shown,) = artifacts["model_0"]["artifacts"]
    assert shown["metadata"]["location"].endswith(f"/store/files/md5/{model.digest[:2]}/{model.digest[2:]}")
    assert shown["metadata"]["md5"] == model.digest and shown["metadata"]["path"] == "model.bin"
    components = kfp.run.pipeline["components"]
    kinds = components["comp-train"]["outputDefinitions"]["artifacts"]
    assert {name: kind["artifactType"]["schemaTitle"] for name, kind in kinds.items()} == {
        "metrics": "system.Metrics",
        "model_0": "system.Model",
        "metrics_json": "system.Dataset",
    }
    # The whole result is an output of the task, too.
    assert StepResult.from_json(kfp.run.tasks["train"].outputs["result"]).outs == runs["train"].wait(0).outs
    runs["report"].wait(120)


def test_a_failing_stage_tells_how_and_what_needs_it_is_not_run(project, kfp, runner):
    runs = runner.start_all(
        [
            project.step("a", "echo first", "echo 'no such luck' >&2; exit 7", outs=["a"]),
            project.step("b", "cp a b", deps=["a"], outs=["b"]),
        ]
    )
    with pytest.raises(StageFailedError) as caught:
        runs["a"].wait(120)
    assert (caught.value.status, caught.value.log_tail) == (7, "first\nno such luck\n")
    with pytest.raises(StageCancelledError, match="stage 'b' was not run, because its dependency 'a' failed"):
        runs["b"].wait(120)
    assert kfp.run.state == "FAILED"


@pytest.mark.parametrize(
    ("cmd", "error", "message"),
    [
        ("true", StageOutputError, "did not write 'out.txt'"),
        ("touch out.txt other.txt", StageWriteError, "'other.txt'"),
    ],
)
def test_other_failures_keep_their_class(project, runner, cmd, error, message):
    with pytest.raises(error, match=message):
        runner.start(project.step("a", cmd, outs=["out.txt"])).wait(120)


def test_one_stage_and_one_that_only_waits(project, kfp, runner):
    """An edge without a file, as from a stage that writes a parameter file to one that reads it."""
    specs = [project.step("a", "sleep 1; date > a", outs=["a"]), project.step("b", "echo b > b", outs=["b"])]
    runs = runner.start_all(specs, {"b": ["a"]})
    assert kfp.run.pipeline["root"]["dag"]["tasks"]["b"]["dependentTasks"] == ["a"]
    assert [runs[s].wait(120).outs[0].path for s in "ab"] == ["a", "b"]
    with pytest.raises(StageGraphError, match="cycle"):
        runner.start_all(specs, {"b": ["a"], "a": ["b"]})


def test_it_is_a_batch_runner(runner):
    assert isinstance(runner, BatchRunner) and not runner.fetches
    with LocalRunner() as local:
        assert not isinstance(local, BatchRunner)


def test_events_mirror_the_tasks(project, settings):
    events = []
    with KfpClusterRunner(project.repo, settings, on_event=events.append) as runner:
        runner.start(project.step("a", "sleep 0.5; echo > a", outs=["a"])).wait(120)
    states = [e.state for e in events if e.stage == "a" and e.state not in ("LOG", "STARTED")]
    assert states[-2:] == ["RUNNING", "SUCCEEDED"]
    assert events[-1].url.startswith(settings.host)


# -- a server and a network that fail ------------------------------------------------------------------------------


def test_bursts_of_failures_pass(project, kfp, runner):
    kfp.fault("GET", "experiments", 503, 1)
    kfp.fault("GET", "/runs", "drop", 2)
    kfp.fault("POST", "/runs$", "unsent", 1)
    kfp.fault("GET", "/runs/", 502, 3)
    result = runner.start(project.step("a", "echo 1 > a", outs=["a"])).wait(120)
    assert not result.failed and len(kfp.runs) == 1
    assert not any(fault[3] for fault in kfp.faults)


@pytest.mark.parametrize("honoured", [True, False])
def test_an_answer_that_is_lost_does_not_start_a_second_run(project, kfp, runner, honoured):
    kfp.honours_run_id = honoured
    kfp.fault("POST", "/runs$", "drop-after")
    run = runner.start(project.step("a", "echo 1 > a", outs=["a"]))
    assert len(kfp.runs) == 1 and run.run_id == kfp.run.id
    assert not run.wait(120).failed


def test_a_run_that_another_dispatcher_starts_meanwhile(project, kfp, runner, monkeypatch):
    """It does so between our look and our start; a second request would start a second workflow."""
    step = project.step("a", "sleep 1; echo 1 > a", outs=["a"])
    first = runner.start(step)
    # The start itself looks again, by another name of the function.
    monkeypatch.setattr(submit, "find_run", lambda *_: None)
    with KfpClusterRunner(project.repo, runner._settings) as other:
        second = other.start(step)
        assert first.run_id == second.run_id and len(kfp.runs) == 1
        assert kfp.requests.count(("POST", "/apis/v2beta1/runs")) == len(kfp.workflows) == 1
        assert first.wait(120).outs == second.wait(120).outs


def test_an_api_that_stays_away_is_given_up_and_the_run_found_again(project, kfp, settings):
    step = project.step("a", "sleep 2; echo 1 > a", outs=["a"])
    brief = dataclasses.replace(settings, outage=0.5)
    runner = KfpClusterRunner(project.repo, brief)
    run = runner.start(step)
    kfp.fault("GET", "/runs/", 503, 10_000)
    with pytest.raises(RunnerError, match="Run the command again to follow it"):
        run.wait(60)
    kfp.faults.clear()
    with KfpClusterRunner(project.repo, settings) as again:
        assert again.start(step).wait(120).outs[0].path == "a"
    assert len(kfp.runs) == 1
    runner.close()


def test_a_server_that_does_not_tell_of_tasks(project, kfp, runner):
    kfp.task_details = False
    runs = runner.start_all(project.steps()[1:])
    assert [runs[stage].wait(120).failed for stage in ("prepare", "train")] == [False, False]


def test_a_host_where_nothing_is(project, settings):
    with KfpClusterRunner(
        project.repo, dataclasses.replace(settings, host="http://127.0.0.1:1", outage=0.5)
    ) as runner:
        with pytest.raises(
            RunnerError, match=r"http://127\.0\.0\.1:1: no answer .* Check that the host is correct"
        ):
            runner.start(project.step("a", "true", outs=["a"]))


def test_waiting_has_an_end(project, kfp, settings):
    patience = dataclasses.replace(FAST, run=1.0)
    with KfpClusterRunner(project.repo, dataclasses.replace(settings, patience=patience)) as runner:
        run = runner.start(project.step("a", "sleep 300", outs=["a"]))
        with pytest.raises(TimeoutError, match="stage 'a' is still running after"):
            run.wait(0.05)
        with pytest.raises(RunnerError, match="did not end in 1 s"):
            run.wait(60)
    assert kfp.run.state == "FAILED" and kfp.run.workflow.terminated


# -- found again, ended ---------------------------------------------------------------------------------------------


def test_a_run_is_found_again_until_its_results_were_taken(project, kfp, settings):
    step = project.step("a", "echo 1 > a", outs=["a"])
    lost = KfpClusterRunner(project.repo, settings)
    lost.start(step)  # and nobody waits
    wait_for(lambda: kfp.run.state == "SUCCEEDED")
    with KfpClusterRunner(project.repo, settings) as runner:
        result = runner.start(step).wait(60)
    assert len(kfp.runs) == 1 and result.run == kfp.run.id
    with KfpClusterRunner(project.repo, settings) as runner:
        assert runner.start(step).wait(60).outs == result.outs
    assert len(kfp.runs) == 2
    with KfpClusterRunner(project.repo, settings, run_key="another flow run") as runner:
        runner.start(step).wait(60)
    assert len(kfp.runs) == 3
    lost.close()


def test_a_failed_run_is_not_found_again_and_neither_is_one_whose_outputs_are_gone(
    project, kfp, settings, tmp_path
):
    flag = tmp_path / "flag"
    step = project.step("a", f"test -e {flag} && echo 1 > a", outs=["a"])
    with KfpClusterRunner(project.repo, settings) as runner:
        with pytest.raises(StageFailedError):
            runner.start(step).wait(60)
    flag.touch()
    lost = KfpClusterRunner(project.repo, settings)
    out = lost.start(step).wait(60).outs[0]
    (tmp_path / "remote/store/files/md5" / out.digest[:2] / out.digest[2:]).unlink()
    with KfpClusterRunner(project.repo, settings) as runner:
        assert runner.start(step).wait(60).outs == (out,)
    assert [run.state for run in kfp.runs.values()] == ["FAILED", "SUCCEEDED", "SUCCEEDED"]
    lost.close()


DISPATCHER = """
import pickle, sys
from dvkf_prefect.repo import Repo
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
root, file = sys.argv[1:]
settings, specs = pickle.load(open(file, "rb"))
runs = KfpClusterRunner(Repo.open(root), settings).start_all(specs)
print("started", flush=True)
for run in runs.values():
    run.wait(120)
"""


@pytest.mark.parametrize("honoured", [True, False])
def test_a_killed_dispatcher_leaves_a_run_that_the_next_goes_on_with(
    project, kfp, settings, tmp_path, honoured
):
    kfp.honours_run_id = honoured
    kfp.delay = 1.0
    specs = project.steps()
    file = tmp_path / "job"
    file.write_bytes(pickle.dumps((settings, specs)))
    process = subprocess.Popen(
        [sys.executable, "-c", DISPATCHER, str(project.root), str(file)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "started\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert kfp.run.state not in ENDED
    with KfpClusterRunner(project.repo, settings) as runner:
        results = {stage: run.wait(120) for stage, run in runner.start_all(specs).items()}
    assert len(kfp.runs) == 1
    here = project.locally(specs)
    assert all(results[stage].outs == here[stage].outs for stage in results)


def test_cancel_ends_the_run_and_is_known_to_have(project, kfp, runner, tmp_path):
    mark = tmp_path / "mark"
    runs = runner.start_all(
        [
            project.step("a", "echo 1 > a", outs=["a"]),
            project.step("b", f"echo $$ > {mark}; sleep 300", deps=["a"], outs=["b"]),
        ]
    )
    runs["a"].wait(120)
    pid = int(wait_for(lambda: mark.exists() and mark.read_text().strip()))
    runs["b"].cancel()
    runs["b"].cancel()
    with pytest.raises(StageCancelledError, match="stage 'b' was stopped before its end"):
        runs["b"].wait(60)
    # The server ends a terminated run as failed, while its pods have their grace.
    assert kfp.run.state == "FAILED"
    wait_for(lambda: not alive(pid))
    assert runs["a"].wait(0).outs[0].path == "a"
    runs["a"].cancel()
    assert sum(path.endswith(":terminate") for _, path in kfp.requests) == 1


def test_cancel_gets_through_a_burst_of_failures(project, kfp, runner):
    run = runner.start(project.step("a", "sleep 300", outs=["a"]))
    wait_for(lambda: kfp.run.state == "RUNNING")
    kfp.fault("GET", "/runs/", 503, 5)
    kfp.fault("POST", ":terminate", 503, 2)
    run.cancel()
    with pytest.raises(StageCancelledError):
        run.wait(60)
    assert kfp.run.state == "FAILED" and kfp.run.workflow.terminated


def test_close_ends_what_runs(project, kfp, settings):
    runner = KfpClusterRunner(project.repo, settings)
    run = runner.start(project.step("a", "sleep 300", outs=["a"]))
    runner.close()
    runner.close()
    assert kfp.run.state == "FAILED" and kfp.run.workflow.terminated
    with pytest.raises(StageCancelledError):
        run.wait(60)
    with pytest.raises(RunnerError, match="closed"):
        runner.start(project.step("a", "true"))


def test_a_run_that_somebody_else_cancels(project, kfp, runner):
    run = runner.start(project.step("a", "sleep 300", outs=["a"]))
    wait_for(lambda: kfp.run.tasks["a"].process)
    kfp.run.terminate()
    with pytest.raises(StageCancelledError):
        run.wait(60)


# -- what runs leave on the remote ---------------------------------------------------------------------------------


def age(tmp_path: Path, days: float) -> None:
    """Make all that lies beside the objects of the remote older."""
    for path in (tmp_path / "remote/store/dvkf").rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - days * 86_400,) * 2)


def collect(project) -> tuple[int, int]:
    """Collect what old runs left; return how many files went, and how many stayed."""
    (row,) = (
        p
        for p in project.repo.gc(GcScope(workspace=True), GcOptions(cloud=True)).places
        if p.place == "store/dvkf"
    )
    return row.objects, row.kept


def test_a_collection_takes_nothing_that_a_run_needs(project, kfp, settings, tmp_path):
    """Sources and metrics of an older run are needed again by one that begins now."""
    specs = project.steps()
    with KfpClusterRunner(project.repo, settings) as runner:
        results = {stage: run.wait(120) for stage, run in runner.start_all(specs).items()}
    age(tmp_path, 9)
    report = dataclasses.replace(specs[0], cmd=("sleep 2", *specs[0].cmd), deps=results["report"].deps)
    with KfpClusterRunner(project.repo, settings) as runner:
        run = runner.start(report)
        # The results and logs of three stages go, and the record of their request; the sources and the metrics stay.
        assert collect(project) == (7, 5)
        assert run.wait(60).outs == results["report"].outs
    age(tmp_path, 9)
    assert collect(project) == (5, 0)


def test_what_comes_out_as_before_is_young_again(project, kfp, settings, tmp_path):
    """Between the end of a stage and its result being taken, a collection leaves the metrics it wrote."""
    specs = project.steps()
    with KfpClusterRunner(project.repo, settings) as runner:
        first = {stage: run.wait(120) for stage, run in runner.start_all(specs).items()}["train"]
    train = dataclasses.replace(specs[1], cmd=("sleep 1", *specs[1].cmd), deps=first.deps)
    with KfpClusterRunner(project.repo, settings) as runner:
        run = runner.start(train)
        age(tmp_path, 9)
        wait_for(lambda: kfp.runs[run.run_id].state in ENDED)
        collect(project)
        assert run.wait(60).outs == first.outs


# -- what cannot be run ----------------------------------------------------------------------------------------------


def test_uncommitted_sources_are_refused_or_told(project, kfp, settings):
    project.write("train.py", (project.root / "train.py").read_text().replace("* 2", "* 3"))
    specs = project.steps()[1:]
    with KfpClusterRunner(project.repo, settings) as runner:
        with pytest.raises(StageError, match=r"1 file\(s\) are not committed.*'train\.py'"):
            runner.start_all(specs)
        assert not kfp.runs
    allowed = dataclasses.replace(settings, allow_dirty=True)
    with KfpClusterRunner(project.repo, allowed) as runner:
        result = runner.start_all(specs)["train"].wait(120)
    assert result.outs == project.locally(specs)["train"].outs
    assert (result.commit, result.dirty) == (project.git("rev-parse", "HEAD"), ("train.py",))


def test_what_only_this_machine_has_goes_to_the_remote_first(project, kfp, settings, tmp_path):
    project.write("data/new", "new\n")
    project.repo.add(["data/new"])
    project.commit()
    (out,) = (o for o in project.repo.outputs() if o.path == "data/new")
    step = project.step("a", "cp data/new a", deps=[StepContent("data/new", Content(out.digest))], outs=["a"])
    with KfpClusterRunner(project.repo, dataclasses.replace(settings, push_missing=False)) as runner:
        with pytest.raises(MissingObjectError, match="'data/new' is not on remote 'store'"):
            runner.start(step)
    with KfpClusterRunner(project.repo, settings) as runner:
        assert runner.start(step).wait(60).outs[0].digest == out.digest


def test_what_no_pod_can_have_is_refused_before_anything_starts(project, kfp, runner):
    project.write("lib/a.py", "a = 1\n")
    project.commit()
    project.write("lib/b.py", "b = 1\n")
    folder = project.repo.workspace.look("lib").existing()
    with pytest.raises(StageError, match=r"'lib' \(\w+\.dir\) is neither .* that are not in git: lib/b\.py"):
        runner.start(project.step("a", "true", deps=[StepContent("lib", folder)], outs=["a"]))
    project.commit()
    folder = project.repo.workspace.look("lib").existing()
    step = project.step("a", "cp lib/b.py a", deps=[StepContent("lib", folder)], outs=["a"])
    assert not runner.start(step).wait(60).failed
    with pytest.raises(RunnerError, match="environment"):
        runner.start(project.step("b", "true", env={"TOKEN": "s3cr3t"}))


def test_a_step_too_large_for_a_parameter(project, kfp, runner):
    params = {"params.yaml": {f"key{i}": "x" * 1000 for i in range(100)}}
    result = runner.start(project.step("a", "wc -c < params.yaml > a", outs=["a"], params=params)).wait(60)
    assert not result.failed
    constant = kfp.run.pipeline["root"]["dag"]["tasks"]["a"]["inputs"]["parameters"]["spec"]
    assert constant["runtimeValue"]["constant"].startswith("remote:dvkf/runs/")


def test_unusual_names_and_bytes(project, kfp, runner):
    cmd = "printf '\\377 {{$.x}} \\0 end' | tee 'ä {{$}} \"q\".bin'"
    spec = project.step("Ünï/dvc.yaml:tr{{$}}ain@'x \"y\"'", cmd, outs=['ä {{$}} "q".bin'])
    result = runner.start(spec).wait(60)
    assert result.outs == project.locally([spec])[spec.stage].outs


def test_meta_of_a_stage_says_how_its_pod_runs(project, kfp, settings):
    project.write(
        "dvc.yaml",
        DVC_YAML.replace(
            "  train:\n",
            "  train:\n    meta:\n      kubeflow:\n        cpu: 2\n        memory: {request: 1Gi, limit: 2Gi}\n"
            "        gpu: 1\n        timeout: 2h\n        image: example.org/train:1\n"
            "        node_selector: {pool: gpu}\n        env: {EPOCHS: 3}\n        service_account: trainer\n"
            "        secrets:\n          - {name: hub, env: {token: HF_TOKEN}}\n"
            "        tolerations: [{key: gpu, operator: Exists, effect: NoSchedule}]\n",
        ),
    )
    project.commit()
    kfp.secrets["hub"] = {"token": "s3cr3t"}
    with KfpClusterRunner(project.repo, settings) as runner:
        runs = runner.start_all(project.steps()[1:])
        assert not runs["train"].wait(120).failed
    run = kfp.run
    assert run.body["service_account"] == "trainer"
    box = run.pipeline["deploymentSpec"]["executors"]["exec-train"]["container"]
    assert box["image"] == "example.org/train:1" and box["env"] == [{"name": "EPOCHS", "value": "3"}]
    resources = json.dumps(box["resources"])
    assert "nvidia.com/gpu" in resources and "2Gi" in resources
    pod = run.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"]
    text = json.dumps(pod)
    for part in ("7200", "pool", "NoSchedule", "HF_TOKEN"):
        assert part in text
    assert pod["podMetadata"]["labels"]["dvkf-task"] == "train"
    assert "cachingOptions" in run.pipeline["root"]["dag"]["tasks"]["train"]
    assert not run.pipeline["root"]["dag"]["tasks"]["train"]["cachingOptions"].get("enableCache")


def test_a_wrong_setting_is_told_by_file_line_and_key(project, kfp, runner):
    project.write(
        "dvc.yaml", DVC_YAML.replace("  train:\n", "  train:\n    meta:\n      kubeflow:\n        cpus: 2\n")
    )
    project.commit()
    with pytest.raises(
        ParseError, match=r"dvc\.yaml, line 9: stage 'train', key 'meta\.kubeflow\.cpus'.*did you mean 'cpu'"
    ):
        runner.start_all(project.steps()[1:])
    assert not kfp.runs


def test_repro_on_a_cluster_writes_the_lock_that_it_writes_here(project, kfp, settings, tmp_path):
    """Stage by stage, with what was written brought here, and nothing to do the second time."""
    project.write("dvc.yaml", DVC_YAML.replace("python ", f"{sys.executable} "))
    project.commit()
    twin = tmp_path / "twin"
    subprocess.run(["cp", "-a", str(project.root), str(twin)], check=True)
    with LocalRunner(echo=False) as local:
        repro(Repo.open(twin), runner=local)
    # Metrics stay out of git, the remote and the cache: those of here are handed to the pod of `report`.
    with KfpClusterRunner(project.repo, settings, fetch=True) as runner:
        done = repro(project.repo, ["prepare"], runner=runner)
        assert done.ran == ("prepare",)
    with LocalRunner(echo=False) as local:
        repro(project.repo, ["train"], runner=local)
    with KfpClusterRunner(project.repo, settings, fetch=True) as runner:
        done = repro(project.repo, runner=runner)
        assert (done.ran, done.skipped) == (("report",), ("prepare", "train"))
        assert repro(project.repo, runner=runner).ran == ()
    assert (project.root / "dvc.lock").read_text() == (twin / "dvc.lock").read_text()
    assert (project.root / "report.txt").read_text() == (twin / "report.txt").read_text()


def test_repro_brings_what_stays_out_of_the_cache(project, kfp, settings):
    project.write("dvc.yaml", DVC_YAML.replace("python ", f"{sys.executable} "))
    project.commit()
    with KfpClusterRunner(project.repo, settings, fetch=True) as runner:
        done = repro(project.repo, ["train"], runner=runner)
    assert done.ran == ("prepare", "train")
    assert json.loads((project.root / "metrics.json").read_text())["acc"] == 0.9
    assert not list((project.root / ".dvc/tmp/dvkf/kubeflow/cluster").rglob("side*"))


def test_content_that_is_wanted_twice_kept_or_executable(project, kfp, runner):
    """What was brought is moved to its place, unless another place wants it too."""
    project.write("data/one", "same\n")
    project.write("data/set/x", "same\n")
    project.write("data/set/y", "same\n")
    project.write("data/run", "#!/bin/sh\necho ran\n")
    (project.root / "data/run").chmod(0o755)
    project.repo.add(["data/one", "data/set", "data/run"])
    project.repo.push()
    project.commit()
    known = {o.path: o.digest for o in project.repo.outputs()}
    step = project.step(
        "a",
        "cat data/one data/set/x data/set/y kept >> kept; ./data/run >> kept; cp data/set/x copy; chmod +x copy",
        "rm data/one; echo same > data/one; chmod u+w data/set/y; touch data/set/y",
        deps=[
            StepContent("data/one", Content(known["data/one"])),
            StepContent("data/set", Content(known["data/set"])),
            StepContent("data/run", Content(known["data/run"], isexec=True)),
        ],
        outs=[StepOutput("kept", previous=known["data/one"]), "copy"],
    )
    result = runner.start(step).wait(60)
    assert result.outs == project.locally([step])["a"].outs
    assert result.outs[1].digest == known["data/one"] and result.outs[1].content.isexec


def test_data_that_is_damaged_on_the_remote_is_not_used(project, kfp, runner, tmp_path):
    specs = project.steps()
    (raw,) = (o for o in project.repo.outputs() if o.path == "data/raw")
    digest = project.repo.cache.read_tree(raw.digest).digests[0]
    path = tmp_path / "remote/store/files/md5" / digest[:2] / digest[2:]
    path.chmod(0o644)
    path.write_text("rotten\n")
    run = runner.start_all(specs)["prepare"]
    with pytest.raises(CorruptObjectError, match=f"{digest} is damaged on the remote"):
        run.wait(60)
