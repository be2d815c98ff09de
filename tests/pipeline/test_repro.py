"""What runs, what does not, why, and what is left when something goes wrong."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest

from dvkf_prefect.errors import (
    MissingObjectError,
    OutputInGitError,
    OutputNotFoundError,
    ParseError,
    StageError,
    StageFailedError,
    StageNotFoundError,
    StageOutputError,
    StageWriteError,
)
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.pipeline.plan.why import Reason, stage_status, status_report
from dvkf_prefect.pipeline.report import metrics
from dvkf_prefect.pipeline.run.commit import commit_stages
from dvkf_prefect.pipeline.run.dry_run import plan
from dvkf_prefect.processes import leash
from dvkf_prefect.repo import Repo

from .test_leash import alive, pids_in, wait_until

CHAIN = """\
stages:
  prepare:
    cmd: cat raw > clean
    deps: [raw]
    outs: [clean]
  train:
    cmd: wc -c < clean > model; grep -c lr params.yaml >> model
    deps: [clean]
    params: [lr, net.layers, gone]
    outs: [model]
  evaluate:
    cmd: printf '{"acc":0.5}' > m.json
    deps: [model]
    metrics: [m.json: {cache: false}]
"""
PARAMS = "lr: 1\nnet: {layers: [64, 32]}\ngone: null\n"


@pytest.fixture
def chain(project):
    project.write("dvc.yaml", CHAIN)
    project.write("params.yaml", PARAMS)
    project.write("raw", "abc\n")
    return project


def reasons(project, **options) -> dict[str, list[str]]:
    return {d.stage: [d.action, *map(str, d.reasons)] for d in plan(project.repo, **options)}


def test_reasons_name_old_and_new(chain):
    assert reasons(chain)["prepare"] == ["run", "it has no entry in dvc.lock"]
    assert chain.repro().ran == ("prepare", "train", "evaluate")
    assert reasons(chain) == {"prepare": ["skip"], "train": ["skip"], "evaluate": ["skip"]}

    for same in ("lr: 1.0", "lr: 1"):
        chain.write("params.yaml", PARAMS.replace("lr: 1", same))
        assert reasons(chain)["train"] == ["skip"]
    chain.write("params.yaml", PARAMS.replace("lr: 1", "lr: 2").replace("32", "16").replace("null", "~"))
    assert reasons(chain)["train"] == [
        "run",
        "parameter 'params.yaml:lr': 1 → 2",
        "parameter 'params.yaml:net.layers': [64, 32] → [64, 16]",
    ]
    chain.write("params.yaml", PARAMS)

    chain.write("raw", "abcd\n")
    said = reasons(chain)
    assert said["prepare"] == ["run", "dependency 'raw': 0bee89b0 → f5ac8127"]
    assert said["train"] == ["skip"]  # as in DVC: what is there now has not changed
    chain.write("raw", "abc\n")

    chain.write("dvc.yaml", CHAIN.replace("cat raw > clean", "cat raw >clean"))
    assert reasons(chain)["prepare"] == ["run", "command changed: cat raw > clean → cat raw >clean"]
    chain.write("dvc.yaml", CHAIN)

    (chain.root / "model").write_text("by hand")
    assert reasons(chain)["train"][0] == "restore"
    assert "output 'model': " in reasons(chain)["train"][1]
    (chain.root / "model").unlink()
    assert reasons(chain)["train"] == ["restore", "output 'model' is missing"]
    assert stage_status(chain.repo)["train"][0].kind == "output"
    assert chain.repro().restored == ("train",)
    assert reasons(chain, force=True)["prepare"] == ["run", "it was forced"]


def test_a_target_with_its_file_and_one_that_is_none(chain):
    assert chain.repro("dvc.yaml:prepare").ran == ("prepare",)
    with pytest.raises(StageNotFoundError, match="'nope' is not a stage"):
        chain.repro("nope")


def test_a_change_by_hand_goes_into_the_cache_before_it_is_overwritten(chain):
    chain.repro()
    chain.write("clean", "by hand\n")
    chain.repro()
    assert chain.read("clean") == "abc\n"
    assert chain.repo.cache.read_bytes(digest_bytes(b"by hand\n")) == b"by hand\n"


def test_an_output_that_left_the_cache_is_taken_in_again_without_a_run(chain):
    chain.repro()
    shutil.rmtree(chain.root / ".dvc/cache/files")
    result = chain.repro()
    assert not result.ran and set(result.restored) == {"prepare", "train"}
    assert str(result.decisions[0].reasons[0]) == "output 'clean' is not in the cache"
    assert not chain.repo.status()


def test_no_more_than_jobs_run_at_once(project, tmp_path):
    text = "stages:\n"
    for n in range(6):
        text += (
            f"  s{n}:\n    cmd: mkdir {tmp_path}/only-one && sleep 0.05 && rmdir {tmp_path}/only-one && echo > o{n}\n"
            f"    outs: [o{n}]\n"
        )
    project.write("dvc.yaml", text)
    assert len(project.repro(jobs=1).ran) == 6


def test_what_a_stage_needs_but_does_not_declare_is_named_in_a_clean_folder(project):
    project.write("src/lib.py", "X = 1\n")
    project.write("src/run.py", "import lib\nopen('o', 'w')\n")
    text = "stages:\n  a:\n    cmd: {python} src/run.py\n    deps: [{deps}]\n    outs: [o]\n"
    project.write("dvc.yaml", text.format(python=sys.executable, deps=""))
    with pytest.raises(StageFailedError, match=r"'src/run\.py' is in the repository but not in `deps`"):
        project.repro(in_place=False)
    project.write("dvc.yaml", text.format(python=sys.executable, deps="src/run.py"))
    with pytest.raises(StageFailedError, match=r"No module named 'lib'"):
        project.repro(in_place=False)
    project.write("dvc.yaml", text.format(python=sys.executable, deps="src"))
    project.repro(in_place=False)


def test_a_dataset_is_known_by_its_version(project):
    """A stage that depends on one runs when dvc.lock tells another version of it."""
    datasets = "datasets:\n- {name: corpus, type: dvc, url: ./corpus, path: d}\n"
    project.write("dvc.yaml", datasets + "stages:\n  s: {cmd: date > o, deps: ['ds://corpus'], outs: [o]}\n")
    with pytest.raises(StageError, match=r"dvc\.lock has no version of its dataset 'ds://corpus'"):
        project.repro()
    locked = "schema: '2.0'\n" + datasets.replace("{", "{rev_lock: %s, ")
    project.write("dvc.lock", locked % ("a" * 40))
    assert project.repro().ran == ("s",)
    assert project.read("dvc.lock").count("a" * 40) == 2
    assert subprocess.run(["dvc", "status", "-q"], cwd=project.root, check=False).returncode == 0
    assert project.repro().ran == ()
    project.write("dvc.lock", project.read("dvc.lock").replace("a" * 40, "b" * 40, 1))
    assert project.repro().ran == ("s",)


def test_less_or_more_than_the_outputs_in_a_clean_folder(project):
    project.write("in", "1\n")
    project.write("keep", "mine\n")
    text = "stages:\n  a:\n    cmd: {cmd}\n    deps: [in]\n    outs: [a]\n"
    before = [*(p.name for p in project.root.iterdir()), "dvc.yaml"]
    project.write("dvc.yaml", text.format(cmd="'true'"))
    with pytest.raises(StageOutputError, match="did not write 'a'"):
        project.repro(in_place=False)
    project.write("dvc.yaml", text.format(cmd="echo > a; echo > keep; echo > b/c 2>/dev/null || echo > b"))
    with pytest.raises(StageWriteError, match="wrote undeclared files: 'b', 'keep'"):
        project.repro(in_place=False)
    project.write("dvc.yaml", text.format(cmd="echo > a; echo 2 >> in"))
    with pytest.raises(StageWriteError, match="changed its dependencies: 'in'"):
        project.repro(in_place=False)
    assert sorted(p.name for p in project.root.iterdir()) == sorted(before)
    assert (project.read("in"), project.read("keep")) == ("1\n", "mine\n")
    assert not (project.root / "dvc.lock").exists()


def test_what_cannot_be_run_is_said_before_it_runs(project):
    project.write("dvc.yaml", "stages:\n  a:\n    cmd: cp in a\n    deps: [in]\n    outs: [a]\n")
    with pytest.raises(StageError, match="missing dependencies: in "):
        project.repro()
    project.write("dvc.yaml", "stages:\n  a:\n    cmd: cp in a\n    params: [x, y]\n    outs: [a]\n")
    with pytest.raises(StageError, match=r"missing parameters: params\.yaml\."):
        project.repro()
    project.write("params.yaml", "x: 1\n")
    with pytest.raises(StageError, match=r"missing parameters: params\.yaml:y\."):
        project.repro()
    project.write("dvc.yaml", "stages:\n  a:\n    cmd: cp in a\n    deps: [/no/such]\n    outs: [a]\n")
    with pytest.raises(StageError, match="missing dependencies: /no/such "):
        project.repro()
    project.write("dvc.yaml", "stages:\n  a:\n    cmd: cp in a\n    deps: [../in]\n    outs: [a]\n")
    (project.root.parent / "in").touch()
    with pytest.raises(StageError, match=r"'\.\./in' does not lead outside the repository"):
        project.repro(in_place=False)
    project.write("dvc.yaml", "stages:\n  a:\n    cmd: echo > a\n    outs: [a]\n")
    project.write("a", "tracked\n")
    subprocess.run(["git", "add", "a"], cwd=project.root, check=True)
    with pytest.raises(OutputInGitError, match="git tracks its output 'a'"):
        project.repro()
    assert project.read("a") == "tracked\n"


def test_data_changed_since_it_was_added_is_recorded_and_missing_data_brought_back(project):
    project.write("data/x", "1\n")
    project.repo.add([project.root / "data"])
    project.write("dvc.yaml", "stages:\n  a:\n    cmd: cat data/x > a\n    deps: [data/x]\n    outs: [a]\n")
    project.repro()
    project.write("data/x", "2\n")
    assert project.repro().ran == ("a",)
    assert not project.repo.status()
    shutil.rmtree(project.root / "data")
    (project.root / "a").unlink()
    assert project.repro().restored == ("a",)
    assert (project.read("data/x"), project.read("a")) == ("2\n", "2\n")


def test_recorded_data_need_not_be_checked_out_to_plan(project):
    project.write("data/d/x", "1\n")
    project.repo.add([project.root / "data"])
    project.write(
        "dvc.yaml",
        "stages:\n  a:\n    cmd: cat data/d/x > a\n    deps: [data/d/x]\n    outs: [a]\n"
        "  b:\n    cmd: ls data/d > b\n    deps: [data/d]\n    outs: [b]\n",
    )
    project.repro()
    shutil.rmtree(project.root / "data")
    assert [d.action for d in plan(project.repo)] == ["skip", "skip"]
    shutil.rmtree(project.root / ".dvc/cache")
    assert str(plan(project.repo)[0].reasons[0]) == "dependency 'data/d/x' is missing"


def test_a_missing_object_names_itself(project):
    project.write("x", "1\n")
    project.repo.add([project.root / "x"])
    (project.root / "x").unlink()
    shutil.rmtree(project.root / ".dvc/cache")
    project.write("dvc.yaml", "stages:\n  a:\n    cmd: cat x > a\n    deps: [x]\n    outs: [a]\n")
    with pytest.raises((StageError, MissingObjectError), match="x"):
        project.repro()


def test_commit_records_what_is_there(chain):
    with pytest.raises(OutputNotFoundError, match="its output 'clean' is not in the workspace"):
        commit_stages(chain.repo)
    chain.repro()
    assert commit_stages(chain.repo) == []
    chain.write("raw", "other\n")
    chain.write("clean", "by hand\n")
    assert commit_stages(chain.repo, ["prepare"]) == ["prepare"]
    assert "prepare" not in stage_status(chain.repo)
    assert set(stage_status(chain.repo)) == {"train"}


def test_status_report_is_dvcs(chain):
    chain.repro()
    chain.write("raw", "other\n")
    chain.write("params.yaml", PARAMS.replace("lr: 1", "lr: 3"))
    (chain.root / "m.json").unlink()
    report = status_report(chain.repo, chain.repo.status())
    assert report == {
        "prepare": [{"changed deps": {"raw": "modified"}}],
        "train": [{"changed deps": {"params.yaml": {"lr": "modified"}}}],
        "evaluate": [{"changed outs": {"m.json": "deleted"}}],
    }


def test_a_frozen_stage_never_runs(chain):
    chain.repro()
    chain.write("dvc.yaml", CHAIN.replace("cmd: cat raw > clean", "cmd: exit 1\n    frozen: true"))
    chain.write("raw", "other\n")
    (chain.root / "clean").unlink()
    # As in DVC, an output that is gone is not made again, and does not come back by itself.
    with pytest.raises(OutputNotFoundError, match="'clean' is not in the workspace"):
        chain.repro()
    chain.repo.checkout(["clean"])
    result = chain.repro()
    assert result.skipped == ("prepare", "train", "evaluate")
    assert chain.read("clean") == "abc\n"
    assert "exit 1" in chain.read("dvc.lock")


def test_metrics_of_two_versions(chain):
    chain.repro()
    git = ["git", "-C", str(chain.root)]
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    chain.write("dvc.yaml", CHAIN.replace('"acc":0.5', '"acc":0.75,"n":{"k":"v"}'))
    chain.repro()
    assert metrics.show(chain.repo) == {"m.json": {"acc": 0.75, "n.k": "v"}}
    assert metrics.show(chain.repo, "HEAD") == {"m.json": {"acc": 0.5}}
    rows = metrics.diff(chain.repo)
    assert [(r.name, r.old, r.new, r.change) for r in rows] == [
        ("acc", 0.5, 0.75, 0.25),
        ("n.k", None, "v", None),
    ]


def test_cached_metrics_of_a_revision_come_from_the_cache(project):
    project.write(
        "dvc.yaml",
        "stages:\n  a:\n    cmd: \"mkdir m && echo 'x: 1' > m/a.yaml && echo 2 > m/b.txt\"\n    metrics: [m]\n",
    )
    project.repro()
    git = ["git", "-C", str(project.root)]
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    shutil.rmtree(project.root / "m")
    assert metrics.show(project.repo, "HEAD") == {"m/a.yaml": {"x": 1}}


def test_interrupting_ends_the_stages(project, tmp_path):
    pids = tmp_path / "pids"
    project.write("dvc.yaml", f"stages:\n  a:\n    cmd: echo $$ >> {pids}; sleep 300\n    outs: [a]\n")
    code = (
        "import sys; from dvkf_prefect.repo import Repo\n"
        "from dvkf_prefect.pipeline.run.repro import repro; from dvkf_prefect.pipeline.step.runner import LocalRunner\n"
        "with LocalRunner() as runner: repro(Repo.open(sys.argv[1]), runner=runner)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(project.root)], stderr=subprocess.DEVNULL)
    (pid,) = pids_in(pids, 1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60)
    assert not alive(pid)
    assert not (project.root / "dvc.lock").exists()


KILLED = """\
import sys
from dvkf_prefect.repo import Repo
from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.pipeline.step.runner import LocalRunner
with LocalRunner(echo=False) as runner:
    repro(Repo.open(sys.argv[1]), runner=runner)
"""
KILLED_APART = KILLED.replace("echo=False", "echo=False, in_place=False")


@pytest.mark.parametrize("code", [KILLED, KILLED_APART], ids=["in place", "clean folder"])
@pytest.mark.parametrize("moment", ["a", "b", "c"])
def test_sigkill_leaves_no_process_and_the_next_run_completes(project, tmp_path, moment, code):
    pids = tmp_path / "pids"
    slow = f"if [ ! -e {tmp_path}/killed ]; then echo $$ >> {pids}; sleep 300; fi; "
    text = "stages:\n"
    for name, dep in (("a", "in"), ("b", "a"), ("c", "b")):
        wait = slow if name == moment else ""
        text += f"  {name}:\n    cmd: '{wait}cat {dep} > {name}; echo {name} >> {name}'\n"
        text += f"    deps: [{dep}]\n    outs: [{name}]\n"
    project.write("dvc.yaml", text)
    project.write("in", "1\n")
    process = subprocess.Popen([sys.executable, "-c", code, str(project.root)])
    try:
        (pid,) = pids_in(pids, 1)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not alive(pid))
    (tmp_path / "killed").touch()
    done = "abc"[: "abc".index(moment)]
    result = project.repro(in_place=code == KILLED)
    assert result.skipped == tuple(done)
    assert result.ran == tuple("abc"[len(done) :])
    assert project.read("c") == "1\na\nb\nc\n"
    assert not project.repo.status()
    assert not list((project.root / ".dvc/cache").glob("dvkf-steps/*"))


def test_sigkill_at_any_moment(project, tmp_path):
    """Killed while nothing waits: in decisions, copies, writes. What dvc.lock names is always in the cache."""
    text = "stages:\n"
    for n in range(4):
        text += f"  s{n}:\n    cmd: mkdir d{n} && cp in d{n}/x && echo {n} > d{n}/n\n    deps: [in]\n    outs: [d{n}]\n"
    project.write("dvc.yaml", text)
    for round_ in range(6):
        project.write("in", f"{round_}\n")
        process = leash.LeashedProcess([sys.executable, "-c", KILLED, str(project.root)])
        try:
            process.wait(0.15 + 0.12 * round_)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        repo = Repo.open(project.root)
        for output in repo.outputs():
            if output.digest:
                assert not repo.cache.missing([output.digest, *repo.cache.read_tree(output.digest).digests])
    project.repro()
    assert not project.repo.status() and not stage_status(project.repo)


def test_a_reason_prints_well():
    assert (
        str(Reason("dependency", "a", "0" * 32, "1" * 32 + ".dir")) == "dependency 'a': 00000000 → 11111111"
    )
    assert str(Reason("command", "cmd", ["a", "b"], ("a",))) == "command changed: a && b → a"
    assert str(Reason("output", "m", "0" * 32, None, "is missing")) == "output 'm' is missing"


UNTRACKED = {
    "p.py": "A = 1\nTAGS = {'x', 'y'}\nMAGIC = b'PK'\nPAIR = (1, {2})\n",
    "p.yaml": "A: 1\nreleased: 2023-01-01\nat: 2023-01-01 10:00:00\nnone: .nan\n",
    "p.toml": "A = 1\nreleased = 2023-01-01\nat = 10:00:00\n[table]\nlist = [2023-01-01]\n",
}


@pytest.mark.parametrize("file", UNTRACKED)
def test_values_that_no_stage_tracks_may_be_anything(project, file):
    project.write(file, UNTRACKED[file])
    stage = "{cmd: echo > %s, params: [%s: [%s]], outs: [%s]}"
    key = {"p.py": "TAGS", "p.yaml": "released", "p.toml": "table"}[file]
    tracked, other = stage % ("a", file, "A", "a"), stage % ("b", file, key, "b")
    project.write("dvc.yaml", f"stages:\n  a: {tracked}\n")
    assert project.repro().ran == ("a",)
    assert project.repro().skipped == ("a",)
    assert stage_status(project.repo) == {}
    # One that a stage does track fails that stage, and no other.
    project.write("dvc.yaml", f"stages:\n  b: {other}\n  a: {tracked}\n")
    result = project.repro(raise_failures=False)
    assert (result.failed, result.skipped) == (("b",), ("a",))
    with pytest.raises(ParseError, match=r"which dvc\.lock cannot store"):
        project.repro()
