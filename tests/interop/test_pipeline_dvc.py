"""Pipelines run by us and by the real `dvc`, on the same project: neither can tell who ran it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import repro_contract

from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.pipeline.run.dry_run import plan
from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.pipeline.step.runner import LocalRunner
from dvkf_prefect.repo import Repo

DVC = Path(sys.executable).with_name("dvc")


def run(folder: Path, *argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=300)
    if check and done.returncode:
        raise AssertionError(f"{argv} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def dvc(folder: Path, *args: str) -> str:
    return run(folder, str(DVC), *args)


def ours(folder: Path, *targets: str, in_place: bool = True, **options):
    with LocalRunner(echo=False, in_place=in_place) as runner:
        return repro(Repo.open(folder), targets, runner=runner, **options)


def make(folder: Path, files: dict[str, str], *, add: tuple[str, ...] = ()) -> Path:
    folder.mkdir(parents=True)
    run(folder, "git", "init", "-q")
    dvc(folder, "init", "-q")
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if text.startswith("#!"):
            path.chmod(0o755)
    if add:
        dvc(folder, "add", "-q", *add)
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", "start")
    return folder


def agree(folder: Path) -> None:
    """The real `dvc` finds nothing to do."""
    assert json.loads(dvc(folder, "status", "--json")) == {}
    dry = dvc(folder, "repro", "--dry")
    assert "Running stage" not in dry and "didn't change, skipping" in dry
    assert "uncommitted" not in json.loads(dvc(folder, "data", "status", "--json"))


def run_cache(folder: Path) -> dict[str, bytes]:
    base = folder / ".dvc" / "cache" / "runs"
    return {str(p.relative_to(base)): p.read_bytes() for p in base.rglob("*") if p.is_file()}


def tree(folder: Path) -> dict[str, bytes]:
    skip = {".git", ".dvc"}
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not skip & set(p.relative_to(folder).parts)
    }


def both(tmp_path: Path, files: dict[str, str], *, add: tuple[str, ...] = ()) -> tuple[Path, Path]:
    mine = make(tmp_path / "a" / "repo", files, add=add)
    theirs = tmp_path / "b" / "repo"
    theirs.parent.mkdir()
    shutil.copytree(mine, theirs, symlinks=True)
    return mine, theirs


def same(mine: Path, theirs: Path) -> None:
    assert tree(mine) == tree(theirs)
    assert run_cache(mine) == run_cache(theirs)
    agree(mine)


PIPELINE = {
    "params.yaml": """\
split: 0.2
seed: 7
train:
  lr: 0.001
  layers: [64, 32]
  sched: {kind: cos, warm: null}
flag: yes
name: 'on'
""",
    "conf/other.json": '{"depth": 3, "nested": {"a": [1, 2.5, null, "x"]}}',
    "conf/t.toml": 'title = "héllo"\n[opt]\nmomentum = 0.9\neps = 1e-08\n',
    "conf/p.py": """\
BATCH = 16
class Net:
    WIDTH = (3, 4)
    def __init__(self):
        self.drop = 0.5
""",
    "data/raw/a.txt": "a\n",
    "data/raw/b/c.txt": "c\n",
    "src/prepare.sh": """\
#!/bin/sh
mkdir -p out/prepared
cat data/raw/a.txt data/raw/b/c.txt > out/prepared/all
""",
    "src/train.sh": """\
#!/bin/sh
cat ../out/prepared/all > model.bin
chmod +x model.bin
echo '{"acc": 0.9}' > metrics.json
echo x,y > curve.csv
""",
    "dvc.yaml": """\
stages:
  prepare:
    desc: make it
    cmd: ./src/prepare.sh
    deps:
      - src/prepare.sh
      - data/raw
    params:
      - split
      - conf/other.json:
          - nested.a
          - depth
      - seed
    outs:
      - out/prepared
  train:
    wdir: models
    cmd:
      - ../src/train.sh
      - echo "second command that is quite long so that the lock file has to fold its line" > long.txt
    deps:
      - ../out/prepared
      - ../src/train.sh
    params:
      - ../params.yaml:
          - train
          - name
          - flag
      - ../conf/t.toml:
      - ../conf/p.py:
          - Net.WIDTH
          - BATCH
    outs:
      - model.bin
      - long.txt:
          push: false
          desc: long
    metrics:
      - metrics.json:
          cache: false
    plots:
      - curve.csv:
          cache: false
          x: x
    meta: {any: thing}
  note:
    cmd: |
      echo 'one: two'
      cat models/model.bin > "with space.txt"
      cat models/note-source > /dev/null 2>&1 || true
    deps: [models/model.bin]
    outs:
      - with space.txt
metrics: [models/metrics.json]
""",
    "models/.keep": "",
}


def test_the_same_files_as_dvc_and_nothing_left_to_do(tmp_path):
    mine, theirs = both(tmp_path, PIPELINE, add=("data/raw",))
    dvc(theirs, "repro")
    result = ours(mine, jobs=1)
    assert result.ran == ("prepare", "train", "note")
    same(mine, theirs)
    again = ours(mine)
    assert again.skipped == ("prepare", "train", "note")


def test_what_each_runner_has_to_record_is_what_dvc_records(tmp_path):
    """The lock and the run cache that the contract of `repro` expects of all runners."""
    root = make(tmp_path / "repo", repro_contract.FILES)
    dvc(root, "repro", "-q")
    assert (root / "dvc.lock").read_text() == repro_contract.DVC_LOCK
    assert repro_contract.runs_of(root) == repro_contract.RUNS
    assert {name: (root / name).read_text() for name in repro_contract.WRITTEN} == repro_contract.WRITTEN


def test_what_dvc_ran_is_skipped(tmp_path):
    mine = make(tmp_path / "repo", PIPELINE, add=("data/raw",))
    dvc(mine, "repro", "-q")
    before = tree(mine)
    assert [d.action for d in plan(Repo.open(mine))] == ["skip"] * 3
    result = ours(mine)
    assert result.skipped == ("prepare", "train", "note") and not result.ran
    assert tree(mine) == before


CHANGES = {
    "parameter": ("params.yaml", "split: 0.2", "split: 0.3"),
    "equal number": ("params.yaml", "seed: 7", "seed: 7.0"),
    "other parameter": ("params.yaml", "lr: 0.001", "lr: 1.0e-05"),
    "dependency": ("src/prepare.sh", "data/raw/b/c.txt >", "data/raw/b/c.txt data/raw/a.txt >"),
    "comment in the code": ("src/prepare.sh", "#!/bin/sh\n", "#!/bin/sh\n# no other output\n"),
    "command": ("dvc.yaml", "cmd: ./src/prepare.sh", "cmd: sh ./src/prepare.sh"),
    "desc": ("dvc.yaml", "desc: make it", "desc: make it so"),
    "data": ("data/raw/a.txt", "a\n", "b\n"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_the_same_stages_run_as_with_dvc(tmp_path, change):
    mine, theirs = both(tmp_path, PIPELINE, add=("data/raw",))
    dvc(theirs, "repro", "-q")
    ours(mine, jobs=1)
    name, old, new = CHANGES[change]
    for folder in (mine, theirs):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
    said = dvc(theirs, "repro")
    result = ours(mine, jobs=1)
    assert list(result.ran) == [s for s in ("prepare", "train", "note") if f"Running stage '{s}'" in said]
    same(mine, theirs)


def test_a_run_that_either_knows_is_restored_by_both(tmp_path):
    mine, theirs = both(tmp_path, PIPELINE, add=("data/raw",))
    for value in ("0.2", "0.5", "0.2"):
        for folder in (mine, theirs):
            text = (folder / "params.yaml").read_text().splitlines()
            (folder / "params.yaml").write_text("\n".join([f"split: {value}", *text[1:]]) + "\n")
        said = dvc(theirs, "repro")
        result = ours(mine, jobs=1)
    assert "Stage 'prepare' is cached" in said
    assert result.restored == ("prepare",) and not result.ran
    same(mine, theirs)
    # Outputs gone from the workspace come from the cache, whoever put them there.
    for folder in (mine, theirs):
        shutil.rmtree(folder / "out")
        (folder / "models" / "model.bin").unlink()
        (folder / "dvc.lock").unlink()
    shutil.rmtree(mine / ".dvc" / "cache")
    shutil.copytree(theirs / ".dvc" / "cache", mine / ".dvc" / "cache")
    dvc(theirs, "repro", "-q")
    assert ours(mine, jobs=1).restored == ("prepare", "train", "note")
    same(mine, theirs)


def test_dvc_restores_what_we_ran(tmp_path):
    mine = make(tmp_path / "repo", PIPELINE, add=("data/raw",))
    ours(mine)
    (mine / "dvc.lock").unlink()
    (mine / "with space.txt").unlink()
    said = dvc(mine, "repro")
    assert "Running stage" not in said and said.count("is cached - skipping run") == 3
    agree(mine)


DIAMOND = {
    "dvc.yaml": "stages:\n"
    + "".join(
        f"  {name}:\n    cmd: {wait}echo {name} > {name}.txt\n    deps: [{deps}]\n    outs: [{name}.txt]\n"
        for name, wait, deps in [
            ("last", "", "left.txt, right.txt"),
            # The one that dvc.lock has first ends last.
            ("left", "sleep 1; ", "first.txt"),
            ("first", "", "in.txt"),
            ("alone", "", "in.txt"),
            ("right", "", "first.txt"),
        ]
    ),
    "in.txt": "1\n",
}


def test_stages_that_end_out_of_order_are_recorded_in_order(tmp_path):
    mine, theirs = both(tmp_path, DIAMOND)
    dvc(theirs, "repro", "-q")
    ours(mine, jobs=4)
    # Git's lines are in the order in which stages ended, which means nothing to git.
    lines = [sorted((folder / ".gitignore").read_text().splitlines()) for folder in (mine, theirs)]
    assert lines[0] == lines[1]
    (mine / ".gitignore").write_bytes((theirs / ".gitignore").read_bytes())
    same(mine, theirs)


ODD = {
    "sub/dvc.yaml": """\
stages:
  inner:
    cmd: cat in > out.txt; mkdir -p d; echo t > ../top.txt; touch "d/é ü" d/empty
    deps: [in, ./in2]
    outs: [out.txt, d, ../top.txt: {cache: false}]
""",
    "sub/in": "x",
    "sub/in2": "y\r\nz\r\n",
    "dvc.yaml": """\
stages:
  keep:
    cmd: echo more >> log.txt; echo > e
    deps: [sub/d]
    outs:
      - log.txt: {persist: true}
      - e
  outer:
    cmd: echo $(ls sub/d | wc -l) > n; printf '' > none
    deps:
      - sub/d
      - sub/out.txt
    outs: [n, none]
  each:
    cmd: echo always
    always_changed: true
  lone:
    cmd: echo "no inputs" > lone.txt
    outs: [lone.txt]
  cold:
    cmd: exit 1
    frozen: true
    deps: [sub/in]
    outs: [cold.txt: {cache: false}]
  multi:
    cmd: >-
      echo one > multi.txt;

      echo 'quote: "x"' >> multi.txt
    deps: [sub/in]
    outs: [multi.txt]
  only_params:
    cmd: wc -l < params.yaml > /dev/null; echo > op
    params: [a.b, c, l, size]
    outs: [op]
""",
    "cold.txt": "cold\n",
    "params.yaml": "a: {b: 1e5, z: 3}\nc: 'multi\n\n  line'\nl: [[1, 2], {x: ~}]\nsize: 3\n",
}


def test_odd_stages(tmp_path):
    mine, theirs = both(tmp_path, ODD)
    dvc(theirs, "repro", "-q")
    ours(mine, jobs=1)
    assert tree(mine) == tree(theirs)
    assert run_cache(mine) == run_cache(theirs)
    status = json.loads(dvc(mine, "status", "--json"))
    assert status == {"each": ["always changed"]}
    assert [d.stage for d in plan(Repo.open(mine)) if d.action != "skip"] == ["each"]


def test_a_comment_in_dvc_lock_stays(tmp_path):
    mine, theirs = both(tmp_path, DIAMOND)
    dvc(mine, "repro", "-q")
    lock = (mine / "dvc.lock").read_text().replace("stages:\n", "# mine\nstages:\n", 1)
    for folder in (mine, theirs):
        (folder / "dvc.lock").write_text(lock)
        (folder / "in.txt").write_text("2\n")
    dvc(theirs, "repro", "-q")
    ours(mine, jobs=1)
    assert (mine / "dvc.lock").read_bytes() == (theirs / "dvc.lock").read_bytes()
    assert "# mine" in (mine / "dvc.lock").read_text()


def test_dvcs_gc_and_push_leave_our_folders_alone_and_need_nothing_of_them(tmp_path):
    mine = make(tmp_path / "repo", DIAMOND)
    ours(mine)
    lock = (mine / "dvc.yaml").read_text()
    (mine / "dvc.yaml").write_text(lock.replace("echo alone > alone.txt", "echo > elsewhere"))
    result = ours(mine, raise_failures=False, in_place=False)
    assert result.failed == ("alone",)
    (mine / "dvc.yaml").write_text(lock)
    kept = list((mine / ".dvc/cache/dvkf-steps").rglob("elsewhere"))
    assert len(kept) == 1
    dvc(mine, "remote", "add", "-d", "-q", "store", str(tmp_path / "store"))
    dvc(mine, "push", "-q", "--run-cache")
    dvc(mine, "gc", "-w", "-f", "-q")
    assert kept[0].exists()
    agree(mine)
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == ["files", "runs"]


def test_legacy_entries_of_dvc_2_stay_while_nothing_changed(tmp_path):
    """DVC 2.x recorded md5 after turning line ends into Unix ones, without `hash: md5`."""
    mine, theirs = both(tmp_path, ODD)
    for folder in (mine, theirs):
        dvc(folder, "repro", "-q", "sub/dvc.yaml:inner")
        lock = folder / "sub" / "dvc.lock"
        new = digest_bytes(b"y\r\nz\r\n")
        text = lock.read_text().replace(new, digest_bytes(b"y\nz\n"))
        deps, _, outs = text.partition("    outs:")
        lock.write_text(deps.replace("      hash: md5\n", "") + "    outs:" + outs)
        assert "hash: md5" not in deps.replace("      hash: md5\n", "")
    assert json.loads(dvc(theirs, "status", "--json", "sub/dvc.yaml")) == {}
    assert plan(Repo.open(mine), ["sub/dvc.yaml"])[0].action == "skip"
    for folder in (mine, theirs):
        (folder / "sub" / "in").write_text("changed")
    dvc(theirs, "repro", "-q", "sub/dvc.yaml:inner")
    assert ours(mine, "sub/dvc.yaml").ran == ("sub/dvc.yaml:inner",)
    assert tree(mine) == tree(theirs)
