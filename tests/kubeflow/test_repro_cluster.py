"""The same pipeline by plain processes, by KFP's local runner and on a cluster: one dvc.lock, whoever ran it."""

from __future__ import annotations

import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dvkf_prefect.cli import main
from dvkf_prefect.errors import StageCancelledError, StageFailedError
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
from dvkf_prefect.kubeflow.local.runner import KfpLocalRunner
from dvkf_prefect.pipeline.plan.decide import Rules
from dvkf_prefect.pipeline.run.events import ReproResult, StageEvent
from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.pipeline.step.runner import LocalRunner, Runner

from .conftest import Project
from .fake_kfp import ENDED, wait_for

# The shape of DVC's get-started project, on numbers of our own.
DVC_YAML = """\
vars:
  - python: {python}
stages:
  prepare:
    cmd: ${{python}} src/prepare.py data/raw
    deps: [data/raw, src/prepare.py]
    params: [prepare.split, prepare.seed]
    outs: [data/prepared]
  featurize:
    cmd: ${{python}} src/featurize.py data/prepared data/features
    deps: [data/prepared, src/featurize.py]
    params: [featurize.degree]
    outs: [data/features]
  train:
    cmd: ${{python}} src/train.py data/features model.json
    deps: [data/features, src/train.py]
    params: [train.rate, train.steps]
    outs: [model.json]
  evaluate:
    cmd: ${{python}} src/evaluate.py model.json data/features
    deps: [data/features/test.csv, model.json, src/evaluate.py]
    metrics:
      - eval/metrics.json: {{cache: false}}
    plots:
      - eval/errors.csv: {{x: step, y: error}}
"""
PARAMS = """\
prepare:
  split: 0.25
  seed: 7
featurize:
  degree: 2
train:
  rate: 0.1
  steps: 50
"""
SOURCES = {
    "prepare.py": """\
import pathlib, random, sys
text = pathlib.Path("params.yaml").read_text()
split, seed = (float(text.split(key + ": ")[1].split()[0]) for key in ("split", "seed"))
rows = [line for path in sorted(pathlib.Path(sys.argv[1]).iterdir()) for line in path.read_text().split()]
random.Random(seed).shuffle(rows)
out, cut = pathlib.Path("data/prepared"), int(len(rows) * split)
out.mkdir(parents=True)
(out / "test.csv").write_text("\\n".join(rows[:cut]) + "\\n")
(out / "train.csv").write_text("\\n".join(rows[cut:]) + "\\n")
""",
    "featurize.py": """\
import pathlib, sys
source, out = map(pathlib.Path, sys.argv[1:])
degree = int(pathlib.Path("params.yaml").read_text().split("degree: ")[1].split()[0])
out.mkdir(parents=True)
for path in source.iterdir():
    pairs = [tuple(map(float, line.split(","))) for line in path.read_text().split()]
    lines = [",".join(f"{x ** n:.6f}" for n in range(1, degree + 1)) + f",{y:.6f}" for x, y in pairs]
    (out / path.name).write_text("\\n".join(lines) + "\\n")
""",
    # It reads a module that it does not declare, and writes what trackers, shells and people write beside outputs.
    "train.py": """\
import json, pathlib, sys
import helper
pathlib.Path("mlruns/0").mkdir(parents=True, exist_ok=True)
for name in ("mlruns/0/meta.yaml", "nohup.out", "src/helper.py", "src/notes.txt"):
    with open(name, "a") as file:
        file.write("# more\\n")
text = pathlib.Path("params.yaml").read_text()
rate, steps = float(text.split("rate: ")[1].split()[0]), int(text.split("steps: ")[1].split()[0])
rows = [list(map(float, line.split(","))) for line in open(sys.argv[1] + "/train.csv")]
weights, history = [0.0] * len(rows[0]), []
for _ in range(steps):
    errors = [sum(w * x for w, x in zip(weights, [*row[:-1], 1.0])) - row[-1] for row in rows]
    for n in range(len(weights)):
        weights[n] -= rate * sum(e * [*row[:-1], 1.0][n] for e, row in zip(errors, rows)) / len(rows)
    history.append(sum(e * e for e in errors) / len(rows))
model = {"weights": [round(w, 9) for w in weights], "history": [round(e, 9) for e in history]}
json.dump(model, open(sys.argv[2], "w"))
print("trained on", len(rows), "rows")
""",
    "helper.py": "N = 1\n",
    "evaluate.py": """\
import json, os, sys
model = json.load(open(sys.argv[1]))
rows = [list(map(float, line.split(","))) for line in open(sys.argv[2] + "/test.csv")]
errors = [sum(w * x for w, x in zip(model["weights"], [*row[:-1], 1.0])) - row[-1] for row in rows]
os.makedirs("eval", exist_ok=True)
error = round(sum(e * e for e in errors) / len(rows), 6)
json.dump({"error": error, "rows": len(rows)}, open("eval/metrics.json", "w"))
with open("eval/errors.csv", "w") as out:
    out.write("step,error\\n" + "".join(f"{n},{e}\\n" for n, e in enumerate(model["history"])))
""",
}
ALL = ("prepare", "featurize", "train", "evaluate")


@pytest.fixture
def started(tmp_path: Path) -> Project:
    """The project, its raw data tracked and pushed, everything committed."""
    (tmp_path / "remote").mkdir()
    project = Project(tmp_path / "repo", str(tmp_path / "remote" / "store"))
    shutil.rmtree(project.root / "data")
    (project.root / "data").mkdir()
    for name in ("prepare.py", "train.py"):
        (project.root / name).unlink()
    project.write("dvc.yaml", DVC_YAML.format(python=sys.executable))
    project.write("params.yaml", PARAMS)
    for name, text in SOURCES.items():
        project.write(f"src/{name}", text)
    for part in range(4):
        rows = [(n / 40, 1 + n / 40 - (n / 40) ** 2 / 2) for n in range(part * 10, part * 10 + 10)]
        project.write(f"data/raw/part-{part}.csv", "".join(f"{x},{y}\n" for x, y in rows))
    (project.root / "src/link").symlink_to("nowhere")
    project.repo.add(["data/raw"])
    project.commit()
    project.repo.push()
    return project


def copy_of(project: Project, name: str) -> Project:
    """The same repository elsewhere, with the same remote."""
    other = Project.__new__(Project)
    other.root = project.root.parent / name
    shutil.copytree(project.root, other.root, symlinks=True)
    return other


def runs(project: Project) -> dict[str, bytes]:
    """The run cache, by the place in it."""
    root = project.repo.cache.root / "runs"
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def lock(project: Project) -> bytes:
    return (project.root / "dvc.lock").read_bytes()


def dvc(project: Project, *args: str) -> str:
    done = subprocess.run(["dvc", *args], cwd=project.root, check=True, capture_output=True, text=True)
    return done.stdout


def on_cluster(project: Project, settings, *, fetch: bool = True, **options) -> ReproResult:
    with KfpClusterRunner(project.repo, settings, fetch=fetch) as runner:
        return repro(project.repo, runner=runner, **options)


def pods(kfp) -> list[list[str]]:
    """The stages of each run, in the order they were started."""
    return [sorted(run.tasks) for run in kfp.runs.values()]


def test_one_dvc_lock_whoever_ran_it(started: Project, kfp, settings, tmp_path) -> None:
    """Stages that ran with `dvc` failed with KFP's runners, for they wrote more than they declared."""
    here, local, far = started, copy_of(started, "local"), copy_of(started, "far")
    runners: dict[str, tuple[Project, Runner]] = {
        "processes": (here, LocalRunner(echo=False)),
        "kfp": (local, KfpLocalRunner(tmp_path / "kfp")),
        "cluster": (far, KfpClusterRunner(far.repo, settings)),
    }
    results = {}
    warned: dict[str, str] = {}
    for name, (project, runner) in runners.items():
        with runner:
            events: list[StageEvent] = []
            results[name] = repro(project.repo, runner=runner, on_event=events.append)
            warned[name] = "\n".join(text for event in events for text in event.warnings)
    for name in ("kfp", "cluster"):
        assert "'mlruns/0/meta.yaml', 'nohup.out', 'src/notes.txt'. They are lost" in warned[name]
        assert "changed what it only depends on: 'src/helper.py'" in warned[name]
    assert {result.ran for result in results.values()} == {ALL}
    assert lock(here) == lock(local) == lock(far)
    assert runs(here) == runs(local) == runs(far) and len(runs(here)) == 4
    assert len(kfp.runs) == 1
    for project in (here, local):
        assert "up to date" in dvc(project, "status")
    # What pods wrote is on the remote, and metrics are here, for git.
    assert (far.root / "eval/metrics.json").read_bytes() == (here.root / "eval/metrics.json").read_bytes()
    assert not (far.root / "model.json").exists()
    dvc(far, "pull")
    assert "up to date" in dvc(far, "status")
    assert dvc(far, "repro", "--dry").count("Stage '") == 4


@pytest.mark.parametrize("fetch", [True, False])
def test_only_what_must_run_runs(started: Project, kfp, settings, fetch: bool) -> None:
    project = started
    assert on_cluster(project, settings, fetch=fetch).ran == ALL
    assert on_cluster(project, settings, fetch=fetch).skipped == (ALL if fetch else ()) and len(kfp.runs) == 1

    other = copy_of(project, "other")
    for each in (project, other):
        each.write("params.yaml", PARAMS.replace("rate: 0.1", "rate: 0.2"))
        each.commit()
    result = on_cluster(project, settings, fetch=fetch)
    assert result.ran == ("train", "evaluate") and pods(kfp)[1:] == [["evaluate", "train"]]
    (why,) = (decision for decision in result.decisions if decision.stage == "train")
    assert [str(reason) for reason in why.reasons if reason.kind == "parameter"] == [
        "parameter 'params.yaml:train.rate': 0.1 → 0.2"
    ]
    with LocalRunner(echo=False) as runner:
        repro(other.repo, runner=runner)
    assert lock(project) == lock(other)

    # One file of a directory.
    for each in (project, other):
        with (each.root / "data/raw/part-0.csv").open("a") as file:
            file.write("0.9,1.4\n")
        each.repo.add(["data/raw"])
        each.repo.push()
        each.commit()
    assert on_cluster(project, settings, fetch=fetch).ran == ALL and len(pods(kfp)) == 3
    with LocalRunner(echo=False) as runner:
        repro(other.repo, runner=runner)
    assert lock(project) == lock(other)

    # One command.
    for each in (project, other):
        text = (each.root / "dvc.yaml").read_text()
        each.write("dvc.yaml", text.replace("model.json data/features\n", "model.json data/features --all\n"))
        each.commit()
    result = on_cluster(project, settings, fetch=fetch)
    assert result.ran == ("evaluate",) and pods(kfp)[3] == ["evaluate"]
    with LocalRunner(echo=False) as runner:
        repro(other.repo, runner=runner)
    assert lock(project) == lock(other) and runs(project) == runs(other)


@pytest.mark.parametrize("fetch", [True, False])
def test_a_stage_whose_inputs_come_out_as_before_does_not_run(started: Project, kfp, settings, fetch) -> None:
    """It is in the pipeline, since nobody knows that in advance; its pod takes what the last run wrote."""
    project = started
    twin = copy_of(project, "twin")
    with LocalRunner(echo=False) as runner:
        repro(twin.repo, runner=runner)
    on_cluster(project, settings, fetch=fetch)
    for each in (project, twin):
        each.write("src/featurize.py", SOURCES["featurize.py"] + "# a comment\n")
        each.commit()
    events: list[StageEvent] = []
    before = lock(project)
    result = on_cluster(project, settings, fetch=fetch, on_event=events.append)
    assert result.ran == ("featurize",) and pods(kfp)[1] == ["evaluate", "featurize", "train"]
    assert {"train", "evaluate"} <= {*result.skipped, *result.restored}
    assert [e.kind for e in events if e.stage == "train"][-1] in ("skip", "restore")
    assert lock(project).count(b"stages:") == 1 and lock(project) != before
    other = copy_of(project, "other")
    other.repo.pull()
    with LocalRunner(echo=False) as runner:
        assert repro(twin.repo, runner=runner).ran == ("featurize",)
        assert repro(other.repo, runner=runner).ran == ()
    assert lock(other) == lock(project) == lock(twin)
    assert runs(project) == runs(twin)


def test_what_is_gone_from_the_remote_is_no_hit(started: Project, kfp, settings, tmp_path) -> None:
    """Nothing is here but dvc.lock: whether a run can be taken, the remote says."""
    project = started
    on_cluster(project, settings, fetch=False)
    project.commit()
    clone = copy_of(project, "clone")
    shutil.rmtree(clone.repo.cache.root / "files")
    result = on_cluster(clone, settings, fetch=False)
    assert (result.ran, result.restored) == ((), ALL) and len(kfp.runs) == 1
    model = next(out for out in clone.repo.outputs() if out.path == "model.json").digest or ""
    (tmp_path / "remote/store/files/md5" / model[:2] / model[2:]).unlink()
    result = on_cluster(clone, settings, fetch=False)
    assert result.ran == ("train",) and pods(kfp)[1] in (["evaluate", "train"], ["train"])
    assert (tmp_path / "remote/store/files/md5" / model[:2] / model[2:]).exists()


def test_a_failure_blocks_what_needs_it_and_no_more(started: Project, kfp, settings) -> None:
    project = started
    text = (project.root / "dvc.yaml").read_text()
    project.write(
        "dvc.yaml", text + "  apart:\n    cmd: sleep 2; echo apart > apart.txt\n    outs: [apart.txt]\n"
    )
    project.write("src/featurize.py", "raise SystemExit('no such luck')\n")
    project.commit()
    result = on_cluster(project, settings, raise_failures=False)
    assert (result.failed, result.blocked) == (("featurize",), ("train", "evaluate"))
    assert set(result.ran) == {"prepare", "apart"}
    with pytest.raises(StageFailedError, match="no such luck"):
        on_cluster(project, settings)
    project.write("src/featurize.py", SOURCES["featurize.py"])
    project.commit()
    result = on_cluster(project, settings)
    assert (result.ran, set(result.skipped)) == (("featurize", "train", "evaluate"), {"prepare", "apart"})


def test_parameters_that_a_stage_writes_are_waited_for(started: Project, kfp, settings) -> None:
    """Their values are not known before, so the stage that reads them is in a later run."""
    project = started
    project.write(
        "dvc.yaml",
        "stages:\n"
        "  tune:\n    cmd: 'echo \"best: 3\" > best.yaml'\n    outs: [best.yaml: {cache: false}]\n"
        "  use:\n    cmd: cp best.yaml used.txt\n    params: [best.yaml: [best]]\n    outs: [used.txt]\n",
    )
    project.commit()
    assert on_cluster(project, settings).ran == ("tune", "use")
    assert pods(kfp) == [["tune"], ["use"]]
    assert "3" in (project.root / "used.txt").read_text()


def test_force_and_no_commit(started: Project, kfp, settings) -> None:
    project = started
    assert on_cluster(project, settings, commit=False).ran == ALL
    assert not runs(project) and (project.root / "model.json").exists()
    assert on_cluster(project, settings, rules=Rules(force=True)).ran == ALL
    assert len(runs(project)) == 4 and len(kfp.runs) == 2


DISPATCHER = """
import pickle, sys
from dvkf_prefect.data.repo import Repo
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
from dvkf_prefect.pipeline.run.repro import repro
repo = Repo.open(sys.argv[1])
with KfpClusterRunner(repo, pickle.load(open(sys.argv[2], "rb")), fetch=True) as runner:
    repro(repo, runner=runner, on_event=lambda event: print(event.stage, event.kind, flush=True))
"""


def killed_after(event: str, project: Project, settings, tmp_path) -> None:
    """Run all of it by another process, and kill that at an event."""
    file = tmp_path / "settings"
    file.write_bytes(pickle.dumps(settings))
    process = subprocess.Popen(
        [sys.executable, "-c", DISPATCHER, str(project.root), str(file)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while (line := process.stdout.readline()) and line.strip() != event:
        continue
    assert line
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("after", ["prepare start", "prepare done", "train start"])
def test_a_killed_dispatcher_is_followed_by_one_that_goes_on(
    started: Project, kfp, settings, tmp_path, after
) -> None:
    project = started
    kfp.delay = 0.5
    killed_after(after, project, settings, tmp_path)
    assert on_cluster(project, settings).ran == ALL
    assert len(kfp.runs) == 1
    assert "up to date" in dvc(project, "status")


def test_what_ended_well_before_a_failure_that_nobody_saw_is_not_done_again(
    started: Project, kfp, settings, tmp_path
) -> None:
    project, flag, count = started, tmp_path / "flag", tmp_path / "count"
    text = (project.root / "dvc.yaml").read_text()
    text = text.replace("cmd: ${python} src/train", f"cmd: sleep 1; test -e {flag} && ${{python}} src/train")
    project.write(
        "dvc.yaml", text.replace("cmd: ${python} src/pre", f"cmd: echo >> {count}; ${{python}} src/pre")
    )
    project.commit()
    killed_after("featurize done", project, settings, tmp_path)
    wait_for(lambda: kfp.run.state == "FAILED")
    flag.touch()
    result = on_cluster(project, settings)
    assert (result.restored, result.ran) == (("prepare", "featurize"), ("train", "evaluate"))
    assert len(kfp.runs) == 2 and count.read_text() == "\n"
    assert "up to date" in dvc(project, "status")
    # Once its results were taken, stages that are forced to run do run.
    assert on_cluster(project, settings, rules=Rules(force=True)).ran == ALL


def test_a_run_that_is_ended_elsewhere_is_a_failure(started: Project, kfp, settings) -> None:
    project = started
    project.write("src/prepare.py", "import time\ntime.sleep(300)\n")
    project.commit()
    with KfpClusterRunner(project.repo, settings) as runner:

        def end(event: StageEvent) -> None:
            if event.kind == "start":
                wait_for(lambda: kfp.run.state == "RUNNING")
                kfp.run.terminate()

        with pytest.raises(StageCancelledError):
            repro(project.repo, runner=runner, on_event=end)
    assert len(kfp.runs) == 1 and kfp.run.state in ENDED


def test_the_command_goes_to_the_cluster_that_the_environment_names(
    started: Project, kfp, monkeypatch, capsys, tmp_path
) -> None:
    project = started
    text = (project.root / "dvc.yaml").read_text()
    volume = f"    meta:\n      kubeflow: {{volumes: [{{claim: data, mount: {tmp_path / 'remote'}}}]}}\n"
    project.write(
        "dvc.yaml",
        text.replace("    params: [", volume + "    params: [").replace(
            "    metrics:", volume + "    metrics:"
        ),
    )
    project.commit()
    monkeypatch.setenv("DVKF_KUBEFLOW_HOST", kfp.host)
    assert main(["--cd", str(project.root), "repro", "--runner", "kubeflow"]) == 0
    out = capsys.readouterr().out
    assert "Stage 'evaluate' done in" in out and "(4 of 4 stages)" in out
    assert len(kfp.runs) == 1 and (project.root / "model.json").exists()
    assert main(["--cd", str(project.root), "repro", "--runner", "kubeflow"]) == 0
    assert capsys.readouterr().out.count("didn't change, skipping") == 4 + 1
