"""One stage in a clean folder: exactly what it declares goes in, exactly what it declares comes out."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dvkf_prefect import leftovers
from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.errors import (
    MissingObjectError,
    StageCancelledError,
    StageFailedError,
    StageOutputError,
    StageWriteError,
    UnsafePathError,
)
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.pipeline.step.folder import StepFolder
from dvkf_prefect.pipeline.step.runner import LocalRunner
from dvkf_prefect.pipeline.step.step import (
    StepContent,
    StepOutput,
    StepResult,
    StepSpec,
    clean_log,
    run_step,
)

from .test_leash import alive, pids_in, wait_until


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def make(cache):
    def make(*cmd: str, outs=(), **more) -> StepSpec:
        outs = tuple(StepOutput(o) if isinstance(o, str) else o for o in outs)
        return StepSpec("train", cmd, str(cache.root), outs=outs, **more)

    return make


def steps_left(cache: Cache) -> list[str]:
    home = cache.root / "dvkf-steps"
    return [p.name for p in home.iterdir()] if home.exists() else []


def test_inputs_by_digest_outputs_by_digest(make, cache, tmp_path):
    (tmp_path / "in").write_text("1\n")
    data = cache.add_file(tmp_path / "in")
    tree = Tree.from_pairs([("x", data), ("sub/y", data)])
    folder = cache.add_bytes(tree.to_bytes(), tree=True)
    spec = make(
        "find . -type f ! -name listing | sort > listing; cat data/sub/y n > sum",
        "mkdir d; cp listing d/a; chmod +x sum",
        deps=(StepContent("w/n", Content(data)), StepContent("w/data", Content(folder))),
        outs=("w/listing", "w/d", "w/sum"),
        wdir="w",
    )
    result = run_step(spec)
    result.check()
    by_path = {out.path: out for out in result.outs}
    listing = cache.read_bytes(by_path["w/listing"].digest).decode().split()
    assert listing == ["./data/sub/y", "./data/x", "./n"]
    assert cache.read_bytes(by_path["w/sum"].digest) == b"1\n1\n"
    assert by_path["w/sum"].content.isexec and not by_path["w/listing"].content.isexec
    assert by_path["w/d"].content.nfiles == 1
    assert cache.read_tree(by_path["w/d"].digest).relpaths == ["a"]
    assert steps_left(cache) == []


def test_json_round_trip(make):
    spec = make(
        "true",
        outs=("a",),
        deps=(StepContent("b", Content("0" * 32, 3)),),
        params={"p.yaml": {"a.b": [1, None]}},
    )
    assert StepSpec.from_json(spec.to_json()) == spec
    result = run_step(make("echo a > a", outs=("a",)))
    assert StepResult.from_json(result.to_json()) == result


def test_the_environment_is_dvcs_and_its_values_stay_out_of_sight(make, cache):
    spec = make(
        'printf "%s %s" "$DVC_STAGE" "$TOKEN" > a; [ "$DVC_ROOT" = "$PWD" ]',
        outs=("a",),
        env={"TOKEN": "s3cr3t"},
    )
    result = run_step(spec)
    result.check()
    assert cache.read_bytes(result.outs[0].digest) == b"train s3cr3t"
    assert "s3cr3t" not in repr(spec)


@pytest.mark.parametrize("name", ["params.yaml", "p.json", "p.toml", "conf/params.py"])
def test_a_parameter_file_holds_just_the_declared_values(make, cache, name):
    spec = make(
        f"cp {name} seen", outs=("seen",), params={name: {"train.lr": 0.1, "seed": 1, "layers.1": 32}}
    )
    result = run_step(spec)
    result.check()
    from dvkf_prefect.formats.params import parse_params

    seen = parse_params(cache.read_bytes(result.outs[0].digest), name)
    if name.endswith(".py"):
        assert seen == {"seed": 1, "layers": [None, 32], "_Values": {}}  # mappings are read by importing it
    else:
        padding = "" if name.endswith(".toml") else None
        assert seen == {"train": {"lr": 0.1}, "seed": 1, "layers": [padding, 32]}


def test_a_python_parameter_file_can_be_imported(make):
    spec = make(
        f"{sys.executable} -c 'import params as p; assert p.Train.lr == 0.1 and p.T[\"a\"] == [1] and p.Net().n == 2'",
        params={"params.py": {"Train.lr": 0.1, "T": {"a": [1]}, "Net.n": 2}},
    )
    run_step(spec).check()


def test_code_comes_from_the_workspace_verified(make, cache, tmp_path):
    work = tmp_path / "repo"
    (work / "src").mkdir(parents=True)
    script = work / "run.sh"
    script.write_text("#!/bin/sh\ncat src/a > out\n")
    script.chmod(0o755)
    (work / "src" / "a").write_text("a")
    (work / "src" / "b.tmp").write_text("ignored")
    (work / ".dvcignore").write_text("*.tmp\n")
    other = Cache(tmp_path / "other")
    code = other.add_file(script)
    tree = Tree.from_pairs([("a", other.add_file(work / "src" / "a"))])
    deps = (StepContent("run.sh", Content(code)), StepContent("src", Content(tree.digest)))
    spec = make("./run.sh; ls src", deps=deps, outs=("out",), workspace=str(work))
    result = run_step(spec)
    result.check()
    assert result.log_tail == "a\n"
    script.write_text("#!/bin/sh\necho changed > out\n")
    with pytest.raises(Exception, match=r"'run\.sh' is neither in the cache nor in the workspace"):
        run_step(spec).check()


def test_failing_command(make, cache):
    result = run_step(
        make(
            "echo fine", "echo oops >&2; printf '\\033[31mred\\033[0m\\n'; exit 3", "echo never", outs=("a",)
        )
    )
    with pytest.raises(StageFailedError) as caught:
        result.check()
    assert caught.value.status == 3
    assert caught.value.command.startswith("echo oops")
    assert caught.value.log_tail == "fine\noops\nred\n"
    assert steps_left(cache) == []


def test_an_output_that_is_not_written(make, cache):
    result = run_step(make("echo a > b", outs=("a", "d")))
    with pytest.raises(StageOutputError, match="did not write 'a', 'd'; it wrote 'b' instead") as caught:
        result.check()
    kept = Path(str(caught.value).rsplit(": ", 1)[1])
    assert (kept / "b").read_text() == "a\n"
    run_step(make("echo a > a", outs=("a",))).check()
    assert steps_left(cache) == []


def test_writing_elsewhere_and_changing_a_dependency(make, cache, tmp_path):
    (tmp_path / "in").write_text("1\n")
    data = cache.add_file(tmp_path / "in")
    tree = cache.add_bytes(Tree.from_pairs([("x", data)]).to_bytes(), tree=True)
    deps = (StepContent("data", Content(tree)), StepContent("n", Content(data)))
    result = run_step(
        make(
            "echo a > a; mkdir logs; echo 1 > logs/l; mkdir __pycache__; touch __pycache__/x m.pyc",
            outs=("a",),
        )
    )
    with pytest.raises(StageWriteError, match=r"wrote undeclared files: 'logs/l'\."):
        result.check()
    result = run_step(make("echo a > a; echo 2 >> data/x; rm n", outs=("a",), deps=deps))
    with pytest.raises(StageWriteError, match=r"changed its dependencies: 'data/x', 'n'"):
        result.check()
    assert cache.read_bytes(data) == b"1\n"
    run_step(make("touch data/x n; echo 1 > n; echo a > a", outs=("a",), deps=deps)).check()


def test_uncached_and_persistent_outputs(make, cache, tmp_path):
    (tmp_path / "in").write_text("1\n")
    old = cache.add_file(tmp_path / "in")
    spec = make(
        "echo 2 >> log; echo m > m", outs=(StepOutput("log", previous=old), StepOutput("m", cached=False))
    )
    result = run_step(spec)
    result.check()
    log, metric = result.outs
    assert cache.read_bytes(log.digest) == b"1\n2\n"
    assert not cache.exists(metric.digest)
    assert Cache(Path(result.side_dir)).read_bytes(metric.digest) == b"m\n"


def test_an_output_linked_to_a_dependency_is_a_copy(make, cache, tmp_path):
    (tmp_path / "in").write_text("1\n")
    data = cache.add_file(tmp_path / "in")
    result = run_step(
        make("ln -s n a; mkdir d; ln n d/x", outs=("a", "d"), deps=(StepContent("n", Content(data)),))
    )
    result.check()
    assert result.outs[0].digest == data
    assert not cache.path(data).is_symlink()


def test_a_missing_object_and_an_unsafe_path(make):
    with pytest.raises(MissingObjectError):
        run_step(make("true", deps=(StepContent("n", Content("0" * 32)),))).check()
    with pytest.raises(UnsafePathError):
        run_step(make("true", outs=("../a",))).check()


def test_a_process_left_in_the_background_does_not_hold_the_stage_up(make, tmp_path):
    result = run_step(make(f"sleep 300 & echo $! > {tmp_path}/pid; echo a > a", outs=("a",)))
    result.check()
    (left,) = pids_in(tmp_path / "pid", 1)
    wait_until(lambda: not alive(left))


def test_a_long_log_is_cut_and_a_progress_bar_is_one_line(make, tmp_path):
    log = tmp_path / "log"
    result = run_step(
        make("i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo end", log=str(log))
    )
    assert result.log_tail.endswith("line 1999\nend\n")
    assert result.log_tail.count("\n") < 100
    assert log.read_text().count("\n") == 2002
    assert clean_log(b" 1%\r50%\r100%\n\x1b[1mdone\x1b[0m\r\n") == "100%\ndone\n"


def test_runner_runs_at_the_same_time_and_raises_the_stages_error(make, tmp_path):
    # Each waits for the other's mark: they can only end if they run at the same time.
    a = make(f"touch {tmp_path}/a; while [ ! -e {tmp_path}/b ]; do sleep 0.01; done; echo a > a", outs=("a",))
    b = make(f"touch {tmp_path}/b; while [ ! -e {tmp_path}/a ]; do sleep 0.01; done; exit 4")
    with LocalRunner(echo=False) as runner:
        runs = [runner.start(a), runner.start(b)]
        assert runs[0].wait(60).outs[0].path == "a"
        with pytest.raises(StageFailedError, match="exit code 4"):
            runs[1].wait(60)


def test_runner_cancels_and_close_ends_the_rest(make, tmp_path):
    pids = tmp_path / "pids"
    spec = make(f"echo $$ >> {pids}; sleep 300")
    with LocalRunner(echo=False) as runner:
        first, second = runner.start(spec), runner.start(spec)
        family = pids_in(pids, 2)
        first.cancel()
        with pytest.raises(StageCancelledError):
            first.wait(60)
        with pytest.raises(TimeoutError):
            second.wait(0.01)
    wait_until(lambda: not any(alive(pid) for pid in family))
    with pytest.raises(StageCancelledError):
        second.wait(60)


def test_sigkill_of_the_runners_process_leaves_nothing(make, tmp_path, cache):
    pids = tmp_path / "pids"
    spec = make(f"echo $$ >> {pids}; sleep 300 & echo $! >> {pids}; wait")
    script = (
        "import sys\nfrom dvkf_prefect.pipeline.step.runner import LocalRunner\n"
        "from dvkf_prefect.pipeline.step.step import StepSpec\n"
        "LocalRunner().start(StepSpec.from_json(sys.argv[1])).wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, spec.to_json()], stdout=subprocess.DEVNULL)
    try:
        family = pids_in(pids, 2)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not any(alive(pid) for pid in family))
    (left,) = steps_left(cache)
    wait_until(lambda: is_free(cache.root / "dvkf-steps" / left))
    run_step(make("true"))
    assert steps_left(cache) == []


def is_free(folder: Path) -> bool:
    """Tell whether no process holds a folder, as another one would find out."""
    with open(folder / "owner") as owner:
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_the_owner_of_a_stages_folder_is_told_by_its_lock_and_not_by_a_number(make, cache, tmp_path):
    """Leftovers were told by the process number in their names, which another container's process may have."""
    workspace = tmp_path / "repo"
    workspace.mkdir()
    spec = make("cat keep; echo 2 >> keep; false", outs=[StepOutput("keep", persist=True)])
    spec = replace(spec, workspace=str(workspace))
    living, dead = (StepFolder(spec) for _ in range(2))
    for folder, number in ((living, "999999999"), (dead, str(os.getppid()))):
        # A number that says the opposite of what the lock does.
        (folder.root).mkdir()
        (folder.root / "keep").write_text(f"{number}\n")
        (folder.path / number).touch()
    kept = living.path
    os.close(dead._owned._descriptor)  # as the end of its process does
    dead._owned._end.detach()
    leftovers._held.pop(dead._owned._descriptor)
    result = run_step(spec)
    assert not dead.path.exists() and (kept / "work/keep").exists()
    # What the dead one had is where the run went on, and is kept again although that failed.
    assert result.error == "StageFailedError" and result.log_tail == f"{os.getppid()}\n"
    assert (workspace / "keep").read_text() == f"{os.getppid()}\n2\n"
    living.release(keep=False)
    assert steps_left(cache) == []


def test_a_stage_of_another_repository_with_the_same_cache_leaves_its_own(make, cache, tmp_path):
    """Checkpoints of a killed run came into the workspace of whichever repository ran a stage of that name next."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    spec = make("test ! -e keep; echo 1 > keep", outs=[StepOutput("keep", persist=True)])
    for folder in (mine, other):
        folder.mkdir()
    left = StepFolder(replace(spec, workspace=str(other)))
    left.root.mkdir()
    (left.root / "keep").write_text("theirs")
    left._owned.release(keep=True)
    run_step(replace(spec, workspace=str(mine))).check()
    assert steps_left(cache) == [left.path.name] and not (mine / "keep").exists()
    os.utime(left.path, (1, 1))
    run_step(replace(spec, workspace=str(mine))).check()
    assert steps_left(cache) == []


def test_a_stage_of_any_name_has_a_folder(make, cache):
    """Names of more than 255 bytes could not be run in a folder of their own."""
    run_step(replace(make("true"), stage="é" * 120 + "/x@" + "y" * 200)).check()
    assert steps_left(cache) == []


def test_the_repositorys_own_modules_do_not_get_in_the_way(make, tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise RuntimeError('not me')")
    monkeypatch.chdir(tmp_path)
    with LocalRunner(echo=False) as runner:
        assert runner.start(make("true")).wait(60).exit_code == 0
    assert json.loads("1") == 1 and os.getcwd() == str(tmp_path)
