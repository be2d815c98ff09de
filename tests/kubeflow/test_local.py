"""Stages through KFP's local runner, as a caller of the runner sees them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from processes import alive, wait_until

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.errors import (
    RunnerError,
    StageCancelledError,
    StageError,
    StageFailedError,
    StageOutputError,
    StageWriteError,
)
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.kubeflow.local.runner import KfpLocalRunner
from dvkf_prefect.leftovers import OwnedFolder
from dvkf_prefect.pipeline.step.runner import LocalRunner, Runner
from dvkf_prefect.pipeline.step.spec import StepContent, StepOutput, StepSpec


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    with KfpLocalRunner(tmp_path_factory.mktemp("kfp")) as runner:
        yield runner


@pytest.fixture
def step(tmp_path):
    def make(cmd, *, stage="train", outs=(), **more) -> StepSpec:
        cmds = (cmd,) if isinstance(cmd, str) else tuple(cmd)
        outs = tuple(o if isinstance(o, StepOutput) else StepOutput(o) for o in outs)
        return StepSpec(stage, cmds, str(tmp_path / "cache"), outs=outs, **more)

    return make


def content(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def test_a_stage_runs_through_kfp(runner, step, tmp_path):
    cache = Cache(tmp_path / "cache")
    dep = StepContent("data/in.txt", Content(cache.add_bytes(b"a\nb\n"), 4))
    spec = step(
        "wc -l < ../data/in.txt > count.txt; cat ../params.yaml; echo done >&2",
        outs=[StepOutput("src/count.txt", kind="metric")],
        deps=(dep,),
        wdir="src",
        params={"params.yaml": {"train.lr": 0.5}},
        log=str(tmp_path / "train.log"),
    )
    run = runner.start(spec)
    result = run.wait(120)
    assert (result.stage, result.exit_code, result.error) == ("train", 0, "")
    (out,) = result.outs
    assert (out.path, out.content.size, cache.read_bytes(out.digest)) == ("src/count.txt", 2, b"2\n")
    assert "lr: 0.5" in result.log_tail and "done" in result.log_tail
    assert "done" in (tmp_path / "train.log").read_text()
    # KFP's own record of it, and nothing temporary.
    (written,) = run.folder.glob("pipeline/*/train/executor_output.json")
    assert out.digest in json.loads(written.with_name("outputs").read_text())["src/count.txt"]
    assert "KFP Executor" in (run.folder / "kfp.log").read_text()
    assert sorted(p.name for p in run.folder.iterdir()) == ["kfp.log", "owner", "pipeline", "result.json"]
    assert run.wait(0) == result


def test_the_stage_log_has_a_place_of_its_own(runner, step):
    run = runner.start(step("echo hello; echo bye >&2"))
    assert run.wait(120).log_tail == "hello\nbye\n"
    log = (run.folder / "stage.log").read_text()
    assert log.endswith("hello\nbye\n") and "KFP" not in log


def test_the_same_as_the_local_runner(runner, step):
    spec = step("mkdir d; echo 1 > d/a; echo 2 > d/b; printf x > f; chmod +x f", outs=["d", "f"])
    with LocalRunner(echo=False) as local:
        expected = local.start(spec).wait(120)
    checked: Runner = runner
    assert checked.start(spec).wait(120).outs == expected.outs


def test_a_failing_command(runner, step):
    cmd = r"printf '\033[31mred\033[0m alert\n' >&2; (exit 7)"
    with pytest.raises(StageFailedError) as caught:
        runner.start(step(["echo first", cmd, "echo never"])).wait(120)
    assert (caught.value.stage, caught.value.command, caught.value.status) == ("train", cmd, 7)
    assert caught.value.log_tail == "first\nred alert\n"
    assert "\x1b" not in str(caught.value).replace(cmd, "") and "KFP" not in str(caught.value)


@pytest.mark.parametrize(
    ("cmd", "error", "message"),
    [
        ("true", StageOutputError, "did not write 'out.txt'"),
        ("touch out.txt other.txt", StageWriteError, "'other.txt'"),
        ("kill -9 $$", StageFailedError, "exit code -9"),
    ],
)
def test_other_failures_keep_their_class(runner, step, cmd, error, message):
    with pytest.raises(error, match=message):
        runner.start(step(cmd, outs=["out.txt"])).wait(120)


def test_a_dependency_that_is_nowhere(runner, step):
    spec = step("true", deps=(StepContent("in.txt", Content("0" * 32)),))
    with pytest.raises(Exception, match="0" * 32) as caught:
        runner.start(spec).wait(120)
    assert not isinstance(caught.value, (RunnerError, TimeoutError))


def test_the_command_sees_the_environment_of_the_caller(runner, step, monkeypatch, tmp_path):
    """Not KFP's: its flag would break a stage that uses KFP, its temporary folder is gone too soon."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("SET_AFTER_THE_START_OF_THE_HOST", "yes")
    monkeypatch.delenv("HOME")
    run = runner.start(
        step("env -0 > env", outs=["env"], env={"TOKEN": "s3cr3t", "PYTHONWARNINGS": "ignore"})
    )
    out = run.wait(120).outs[0]
    data = Cache(tmp_path / "cache").read_bytes(out.digest).decode()
    seen = dict(line.split("=", 1) for line in data.strip("\0").split("\0"))
    expected = {**os.environ, "TOKEN": "s3cr3t", "PYTHONWARNINGS": "ignore"}
    ours = {"DVC_ROOT", "DVC_STAGE", "PWD", "OLDPWD", "SHLVL", "_"}
    assert {k: v for k, v in seen.items() if k not in ours} == {
        k: v for k, v in expected.items() if k not in ours
    }
    written = [p for p in run.folder.rglob("*") if p.is_file()]
    assert written and not any(b"s3cr3t" in p.read_bytes() for p in written)


def test_unusual_names_and_bytes(runner, step, tmp_path):
    cache = Cache(tmp_path / "cache")
    cmd = "printf '\\377\\376 {{$.x}} \\0 end' | tee 'ä {{$}} \"q\".bin'"
    spec = step(cmd, stage="Ünï/dvc.yaml:tr{{$}}ain@'x \"y\"'", outs=['ä {{$}} "q".bin'])
    result = runner.start(spec).wait(120)
    assert result.stage == spec.stage
    assert cache.read_bytes(result.outs[0].digest) == b"\xff\xfe {{$.x}} \0 end"


def test_a_big_log(runner, step):
    run = runner.start(step("yes 'a line of a very long log' | head -n 400000; echo the end"))
    assert run.wait(120).log_tail.endswith("long log\nthe end\n")
    assert (run.folder / "stage.log").stat().st_size > 10_000_000
    assert (run.folder / "kfp.log").stat().st_size < 10_000


def test_a_step_too_large_for_a_command_line(runner, step, tmp_path):
    cache = Cache(tmp_path / "cache")
    deps = tuple(StepContent(f"d/{i:04d}", Content(cache.add_bytes(b"%d" % i))) for i in range(1500))
    result = runner.start(step("ls d | wc -l > n", outs=["n"], deps=deps)).wait(120)
    assert cache.read_bytes(result.outs[0].digest).strip() == b"1500"


def test_stages_run_at_the_same_time(runner, step, tmp_path):
    """Each waits for the marks of all the others; were they to run in turn, none would end."""
    marks = tmp_path / "marks"
    marks.mkdir()
    count = 4
    cmd = f"touch {marks}/$DVC_STAGE; until [ $(ls {marks} | wc -l) = {count} ]; do sleep 0.02; done"
    with ThreadPoolExecutor(count) as pool:
        runs = list(pool.map(lambda n: runner.start(step(cmd, stage=f"s{n}")), range(count)))
        results = list(pool.map(lambda run: run.wait(120), runs))
    assert [r.stage for r in results] == ["s0", "s1", "s2", "s3"]


def test_waiting_has_an_end(runner, step):
    run = runner.start(step("sleep 300"))
    with pytest.raises(TimeoutError, match="stage 'train' is still running after"):
        run.wait(0.05)
    run.cancel()
    with pytest.raises(StageCancelledError):
        run.wait(120)


def test_cancel_lets_the_command_end_in_its_own_way_and_leaves_others_alone(runner, step, tmp_path):
    pid = tmp_path / "pid"
    cmd = f"trap 'echo bye > {tmp_path}/bye; exit 3' TERM; echo $$ > {pid}; while :; do sleep 0.05; done"
    run = runner.start(step(cmd))
    other = runner.start(step(f"until [ -e {tmp_path}/go ]; do sleep 0.02; done", stage="other"))
    number = int(wait_until(lambda: content(pid)))
    run.cancel()
    run.cancel()
    with pytest.raises(StageCancelledError, match="stage 'train' was stopped before its end"):
        run.wait(120)
    assert content(tmp_path / "bye") == "bye"
    assert not alive(number)
    (tmp_path / "go").touch()
    assert not other.wait(120).failed
    other.cancel()
    assert not other.wait(0).failed


def test_cancel_ends_a_command_that_ignores_it_and_its_children(step, tmp_path):
    pids = tmp_path / "pids"
    cmd = f"trap '' TERM; echo $$ >> {pids}; (sleep 300 & echo $! >> {pids}; wait) & sleep 301"
    with KfpLocalRunner(tmp_path / "kfp", grace=0.3) as runner:
        run = runner.start(step(cmd))
        family = wait_until(
            lambda: len(content(pids).split()) == 2 and [int(p) for p in content(pids).split()]
        )
        run.cancel()
        with pytest.raises(StageCancelledError):
            run.wait(120)
        wait_until(lambda: not any(alive(pid) for pid in family))


def test_what_a_stage_leaves_in_the_background_ends_with_it(runner, step, tmp_path):
    pids = tmp_path / "pids"
    result = runner.start(step(f"sleep 300 & echo $! >> {pids}; (sleep 301 & echo $! >> {pids})")).wait(120)
    assert not result.failed
    family = [int(pid) for pid in content(pids).split()]
    assert len(family) == 2
    wait_until(lambda: not any(alive(pid) for pid in family))


def test_close_ends_what_runs(step, tmp_path):
    pid = tmp_path / "pid"
    runner = KfpLocalRunner(tmp_path / "kfp")
    run = runner.start(step(f"echo $$ > {pid}; sleep 300"))
    number = int(wait_until(lambda: content(pid)))
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            run.wait(120)
        except StageError as error:
            caught.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    runner.close()
    waiter.join(60)
    assert [type(error) for error in caught] == [StageCancelledError]
    wait_until(lambda: not alive(number))
    runner.close()
    with pytest.raises(RunnerError, match="the runner is closed"):
        runner.start(step("true"))


def test_nothing_starts_before_the_first_stage(tmp_path):
    with KfpLocalRunner(tmp_path / "kfp"):
        assert not (tmp_path / "kfp").exists()


def test_only_the_last_runs_are_kept(step, tmp_path):
    root = tmp_path / "kfp"
    (root / "mine").mkdir(parents=True)
    for _ in range(2):
        with KfpLocalRunner(root, keep=3) as runner:
            runs = [runner.start(step("true")) for _ in range(3)]
            for run in runs:
                run.wait(120)
    left = sorted(p.name for p in root.iterdir())
    assert left == sorted([*(run.folder.name for run in runs), "mine"])


def test_folders_of_runs_are_told_by_their_locks(tmp_path):
    """A folder was another process's by the number in its name, whoever has that number in this container."""
    root = tmp_path / "kfp"
    held = OwnedFolder(root, "20200101T000000.000000000-999999999-")
    free = root / f"20200101T000000.000000001-{os.getppid()}-name"
    free.mkdir()
    (free / "kfp.log").touch()
    KfpLocalRunner(root, keep=0)._sweep()
    assert [path.name for path in root.iterdir()] == [held.path.name]


def test_a_relative_cache_belongs_to_the_caller(step, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with KfpLocalRunner(Path("kfp")) as runner:
        spec = StepSpec("a", ("echo 1 > x",), "cache", outs=(StepOutput("x"),))
        digest = runner.start(spec).wait(120).outs[0].digest
    assert Cache(tmp_path / "cache").exists(digest)
    assert not (tmp_path / "kfp" / "cache").exists()


def test_a_stage_has_the_sources_that_git_tracks_and_of_the_data_what_it_declares(runner, step, tmp_path):
    root = tmp_path / "repo"
    (root / "lib").mkdir(parents=True)
    for name, text in {
        "run.py": "from lib.mod import N\nprint(N, open('params.yaml').read())\n",
        "lib/__init__.py": "",
        "lib/mod.py": "N = 1\n",
        "params.yaml": "a: 1\nb: 2  # not declared\n",
        "data.csv": "not in git\n",
        "out": "an older one\n",
    }.items():
        (root / name).write_text(text)
    for args in (["init", "-q"], ["add", "run.py", "lib", "params.yaml", "out"], ["commit", "-qm", "one"]):
        subprocess.run(["git", *args], cwd=root, check=True)
    (root / "lib/mod.py").write_text("N = 3\n")  # as it is now, committed or not
    cache = Cache(tmp_path / "cache")
    spec = replace(
        step(
            f"test ! -e data.csv && test ! -e out && {sys.executable} run.py > out", outs=[StepOutput("out")]
        ),
        workspace=str(root),
        params={"params.yaml": {"a": 1}},
    )
    (out,) = runner.start(spec).wait(120).outs
    assert cache.read_bytes(out.digest).decode().split() == [
        "3",
        "a:",
        "1",
        "b:",
        "2",
        "#",
        "not",
        "declared",
    ]
    with pytest.raises(StageWriteError, match=r"changed its dependencies: 'lib/mod\.py'"):
        runner.start(replace(spec, cmd=("echo > lib/mod.py; echo > out",))).wait(120)
    assert (root / "lib/mod.py").read_text() == "N = 3\n"
