"""The same pipeline by plain processes, by KFP's local runner and on a cluster: one dvc.lock, whoever ran it."""

from __future__ import annotations

import errno
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from repos import Project, commit_all, make_repo

from dvkf_prefect.cli import main
from dvkf_prefect.errors import DvkfError, LockedError, StageCancelledError
from dvkf_prefect.kubeflow.cluster import runner as runners
from dvkf_prefect.kubeflow.cluster.chain import MOST_STAGES
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
from dvkf_prefect.pipeline.plan.decide import Rules
from dvkf_prefect.pipeline.run import repro as repro_module
from dvkf_prefect.pipeline.run.events import ReproResult, StageEvent
from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.pipeline.step.runner import LocalRunner

from .fake import ENDED, wait_for

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
    root = tmp_path / "repo"
    files = {"dvc.yaml": DVC_YAML.format(python=sys.executable), "params.yaml": PARAMS}
    for part in range(4):
        rows = [(n / 40, 1 + n / 40 - (n / 40) ** 2 / 2) for n in range(part * 10, part * 10 + 10)]
        files[f"data/raw/part-{part}.csv"] = "".join(f"{x},{y}\n" for x, y in rows)
    files.update((f"src/{name}", text) for name, text in SOURCES.items())
    repo = make_repo(root, files, remote=tmp_path / "remote" / "store", add=["data/raw"])
    (root / "src/link").symlink_to("nowhere")
    commit_all(root)
    repo.push()
    return Project(root)


def copy_of(project: Project, name: str) -> Project:
    """The same repository elsewhere, with the same remote."""
    return Project(project.copy_to(name))


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


def test_a_file_of_a_directory_of_data(started: Project, kfp, settings) -> None:
    project = started
    twin = copy_of(project, "twin")
    on_cluster(project, settings)
    with LocalRunner(echo=False) as runner:
        repro(twin.repo, runner=runner)
        for each in (project, twin):
            with (each.root / "data/raw/part-0.csv").open("a") as file:
                file.write("0.9,1.4\n")
            each.repo.add(["data/raw"])
            each.repo.push()
            each.commit()
        assert on_cluster(project, settings).ran == repro(twin.repo, runner=runner).ran == ALL
    assert lock(project) == lock(twin) and runs(project) == runs(twin) and len(pods(kfp)) == 2


def test_a_stage_whose_inputs_come_out_as_before_has_a_pod(started: Project, kfp, settings) -> None:
    """It is in the pipeline, since nobody knows that in advance; its pod takes what the last run wrote."""
    project = started
    twin = copy_of(project, "twin")
    with LocalRunner(echo=False) as runner:
        repro(twin.repo, runner=runner)
    on_cluster(project, settings)
    for each in (project, twin):
        each.write("src/featurize.py", SOURCES["featurize.py"] + "# a comment\n")
        each.commit()
    events: list[StageEvent] = []
    before = lock(project)
    result = on_cluster(project, settings, on_event=events.append)
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


DISPATCHER = """
import pickle, sys
from dvkf_prefect.repo import Repo
from dvkf_prefect.kubeflow.cluster import runner as runners
from dvkf_prefect.pipeline.run.repro import repro
repo = Repo.open(sys.argv[1])
runners.MOST_STAGES = int(sys.argv[3])
with runners.KfpClusterRunner(repo, pickle.load(open(sys.argv[2], "rb")), fetch=True) as runner:
    repro(repo, sys.argv[4:], runner=runner, on_event=lambda event: print(event.stage, event.kind, flush=True))
"""


def killed_after(
    event: str, project: Project, settings, tmp_path, *targets: str, most: int = MOST_STAGES
) -> None:
    """Run targets, or all, by another process, with most so many stages a run, and kill it at an event."""
    file = tmp_path / "settings"
    file.write_bytes(pickle.dumps(settings))
    process = subprocess.Popen(
        [sys.executable, "-c", DISPATCHER, str(project.root), str(file), str(most), *targets],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while (line := process.stdout.readline()) and line.strip() != event:
        continue
    assert line
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("after", ["prepare start", "prepare done", "train start", "evaluate done"])
def test_a_killed_dispatcher_is_followed_by_one_that_goes_on(
    started: Project, kfp, settings, tmp_path, after
) -> None:
    """What it recorded stays; the next one has the other stages, and finds the run that runs them."""
    project = started
    kfp.delay = 0.5
    killed_after(after, project, settings, tmp_path)
    result = on_cluster(project, settings)
    assert result.skipped + result.ran == ALL
    recorded = {"prepare start": 0, "prepare done": 1, "train start": 2, "evaluate done": 4}[after]
    assert len(result.skipped) >= recorded
    assert len(kfp.runs) == 1
    assert "up to date" in dvc(project, "status")
    assert not list((tmp_path / "remote/store/dvkf/open").glob("*")) or recorded == 4
    # The run was taken: stages that are forced to run do run.
    if after == "prepare done":
        assert on_cluster(project, settings, rules=Rules(force=True)).ran == ALL
        assert len(kfp.runs) == 2


def counted(project: Project, count: Path, wait: str = "") -> None:
    """Let each command write its stage's name to a file; one of them then waits for the file `go` beside it."""
    text = (project.root / "dvc.yaml").read_text()
    text = re.sub(r"cmd: \$\{python\} src/(\w+).py", rf"cmd: echo \1 >> {count}; ${{python}} src/\1.py", text)
    held = f"{wait} >> {count}; until test -e {count}-go; do sleep 0.1; done;"
    project.write("dvc.yaml", text.replace(f"{wait} >> {count};", held) if wait else text)
    project.commit()


def test_a_killed_chain_of_runs_is_followed_where_it_was(
    started: Project, kfp, settings, tmp_path, monkeypatch
) -> None:
    """A part of its first run is left to record; the rest of that is not started again with the stages after it."""
    project, count = started, tmp_path / "count"
    counted(project, count, wait="train")
    killed_after("prepare done", project, settings, tmp_path, most=3)
    monkeypatch.setattr(runners, "MOST_STAGES", 3)

    def go(event: StageEvent) -> None:
        if event.kind == "start":
            Path(f"{count}-go").touch()

    result = on_cluster(project, settings, on_event=go)
    assert "prepare" in result.skipped and result.skipped + result.ran == ALL
    assert sorted(count.read_text().split()) == sorted(ALL)
    assert pods(kfp) == [["featurize", "prepare", "train"], ["evaluate"]] and len(kfp.workflows) == 2
    assert "up to date" in dvc(project, "status")
    assert not list((tmp_path / "remote/store/dvkf/open").glob("*"))


def test_more_targets_after_a_kill_follow_the_stages_that_run(
    started: Project, kfp, settings, tmp_path
) -> None:
    project, count = started, tmp_path / "count"
    counted(project, count, wait="featurize")
    killed_after("featurize start", project, settings, tmp_path, "featurize")

    def go(event: StageEvent) -> None:
        if event.kind == "start":
            Path(f"{count}-go").touch()

    result = on_cluster(project, settings, on_event=go)
    assert result.skipped + result.ran == ALL
    assert sorted(count.read_text().split()) == sorted(ALL)
    assert pods(kfp) == [["featurize", "prepare"], ["evaluate", "train"]] and len(kfp.workflows) == 2
    assert "up to date" in dvc(project, "status")


def test_a_stage_that_needs_nothing_of_a_run_that_is_followed_does_not_wait_for_it(
    started: Project, kfp, settings, tmp_path
) -> None:
    """The stage that is followed ends only after the other one has."""
    project, count = started, tmp_path / "count"
    counted(project, count, wait="prepare")
    beside = f"  beside:\n    cmd: echo beside >> {count}; echo 1 > beside.txt\n    outs: [beside.txt]\n"
    project.write("dvc.yaml", (project.root / "dvc.yaml").read_text() + beside)
    project.commit()
    killed_after("prepare start", project, settings, tmp_path, "prepare")
    ended = []

    def go(event: StageEvent) -> None:
        ended.append((event.stage, event.kind))
        if (event.stage, event.kind) == ("beside", "done"):
            Path(f"{count}-go").touch()

    listed = []
    storage = project.repo.remote().storage
    keys = type(storage).keys

    def counting(self, prefix: str = "", *more, **options):
        listed.append(prefix)
        return keys(self, prefix, *more, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(storage), "keys", counting)
        on_cluster(project, settings, on_event=go)
    assert ended.index(("beside", "done")) < ended.index(("prepare", "done"))
    assert sorted(count.read_text().split()) == sorted([*ALL, "beside"])
    assert pods(kfp) == [["prepare"], ["beside"], ["evaluate", "featurize", "train"]]
    # The open runs: at the start, and before the run that waited.
    assert listed.count("dvkf/open") == 2


class Killed(BaseException):
    """The end of a dispatcher that has no time to clean up."""


class Unclosed(KfpClusterRunner):
    """A runner whose process is killed: nothing is terminated or noted as collected."""

    def __exit__(self, *error: object) -> None:
        for chain in self._chains:
            chain.cancel = lambda: None  # type: ignore[method-assign]

    def start_all(self, specs, edges=None):
        runs = super().start_all(specs, edges)
        for run in runs.values():
            run.cancel = self.kill  # type: ignore[method-assign]
        self._started_runs = runs
        return runs

    def end(self) -> None:
        """Release what a real end would have."""
        for chain in self._chains:
            chain.runs[0].result().watch.join()
        self._api.close()

    def kill(self) -> None:
        for run in self._started_runs.values():
            run._run.result().watch._close(StageCancelledError("killed"))


@pytest.mark.parametrize(
    "stages", [("prepare",), ("prepare", "featurize"), ("prepare", "featurize", "train")]
)
def test_stages_of_a_run_that_went_on_without_its_dispatcher(
    started: Project, kfp, settings, tmp_path, stages
) -> None:
    """It succeeded meanwhile; the rest of its results is collected, and no stage runs a second time."""
    project = started

    def kill(event: StageEvent) -> None:
        if (event.stage, event.kind) == (stages[-1], "done"):
            raise Killed

    with pytest.raises(Killed), Unclosed(project.repo, settings, fetch=True) as runner:
        repro(project.repo, runner=runner, on_event=kill)
    # Stages that had ended by then may be recorded as well.
    recorded = tuple(part for part in ALL if f"  {part}:".encode() in lock(project))
    assert recorded[: len(stages)] == stages
    wait_for(lambda: kfp.run.state == "SUCCEEDED")
    runner.end()
    result = on_cluster(project, settings)
    assert (result.skipped, result.skipped + result.ran) == (recorded, ALL) and len(kfp.workflows) == 1
    assert "up to date" in dvc(project, "status")
    assert not list((tmp_path / "remote/store/dvkf/open").glob("*"))


def test_a_run_with_another_version_of_a_recorded_stage_is_not_taken(started: Project, kfp, settings) -> None:
    """The first stage was recorded again here meanwhile, with other content than the run's other stages read."""
    project = started

    def kill(event: StageEvent) -> None:
        if (event.stage, event.kind) == ("prepare", "done"):
            raise Killed

    with pytest.raises(Killed), Unclosed(project.repo, settings, fetch=True) as runner:
        repro(project.repo, runner=runner, on_event=kill)
    wait_for(lambda: kfp.run.state == "SUCCEEDED")
    runner.end()
    (project.root / "data/prepared/test.csv").write_text("0.5,0.5\n")
    project.repo.commit(["prepare"])
    project.repo.push()
    result = on_cluster(project, settings)
    assert (result.skipped, result.ran) == (("prepare",), ALL[1:]) and len(kfp.runs) == 2


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
    assert (result.skipped, result.ran) == (("prepare", "featurize"), ("train", "evaluate"))
    assert len(kfp.runs) == 2 and count.read_text() == "\n"
    assert "up to date" in dvc(project, "status")
    # Once its results were taken, stages that are forced to run do run.
    assert on_cluster(project, settings, rules=Rules(force=True)).ran == ALL


@pytest.mark.parametrize("unrecorded", ["train", "evaluate"])
@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, "No space left on device"), LockedError("held")])
def test_a_stage_that_could_not_be_recorded_is_recorded_by_the_next_run(
    started: Project, kfp, settings, tmp_path, monkeypatch, unrecorded, problem
) -> None:
    """Its result is on the remote, so it does not run again: the disk was full, or another process held the lock."""
    project, count = started, tmp_path / "count"
    counted(project, count)

    def fail(repo, stage, *arguments, **more):
        if stage.address == unrecorded:
            raise problem
        return record(repo, stage, *arguments, **more)

    record = repro_module.record
    with monkeypatch.context() as patch:
        patch.setattr(repro_module, "record", fail)
        with pytest.raises((OSError, DvkfError)):
            on_cluster(project, settings)
    assert count.read_text().split().count(unrecorded) == 1
    result = on_cluster(project, settings)
    assert set(result.ran + result.restored + result.skipped) == set(ALL) and unrecorded not in result.skipped
    assert count.read_text().split().count(unrecorded) == 1
    assert "up to date" in dvc(project, "status")


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
    monkeypatch.setenv("DVKF_KUBEFLOW_IMAGE", "registry.example.org/stages:1")
    assert main(["--cd", str(project.root), "repro", "--runner", "kubeflow"]) == 0
    out = capsys.readouterr().out
    assert "Stage 'evaluate' done in" in out and "(4 of 4 stages)" in out
    assert len(kfp.runs) == 1 and (project.root / "model.json").exists()
    assert main(["--cd", str(project.root), "repro", "--runner", "kubeflow"]) == 0
    assert capsys.readouterr().out.count("didn't change, skipping") == 4 + 1
