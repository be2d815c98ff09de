"""Stages run in the workspace, as `dvc` runs them; each test is run by the real `dvc` on a copy, and compared."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from processes import alive, wait_until
from repos import make_repo

from dvkf_prefect.errors import LockedError, ParseError, StageFailedError, StageWriteError
from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.pipeline.step.runner import LocalRunner
from dvkf_prefect.repo import Repo

_DVC = Path(sys.executable).with_name("dvc")

# Name: what dvc.yaml says, and other files. All is run twice: the second time with another `in`.
CASES = {
    "an undeclared module": (
        "a: {cmd: PYTHON run.py > a.txt, deps: [in], outs: [a.txt]}",
        {"run.py": "from lib.mod import N\nprint(N)\n", "lib/__init__.py": "", "lib/mod.py": "N = 1\n"},
    ),
    "undeclared writes": (
        "a: {cmd: 'mkdir -p mlruns; cat in >> mlruns/log; cat in > a', deps: [in], outs: [a]}",
        {},
    ),
    "git": ("a: {cmd: 'git rev-parse HEAD > /dev/null && git ls-files in > a', deps: [in], outs: [a]}", {}),
    "undeclared parameters": (
        "a: {cmd: 'grep ^b params.yaml > a; cat in >> a', deps: [in], params: [a], outs: [a]}",
        {"params.yaml": "a: 1\nb: 2  # not declared\n"},
    ),
    "a folder to work in": (
        "a: {cmd: 'cat ../in up > o', wdir: sub, deps: [../in], outs: [o]}",
        {"sub/up": "undeclared\n"},
    ),
    "several commands": ("a: {cmd: ['cat in > tmp', 'cat tmp tmp > a'], deps: [in], outs: [a]}", {}),
    "what git keeps": ("a: {cmd: 'cat in > m.json', deps: [in], metrics: [m.json: {cache: false}]}", {}),
    "a dependency that it changes": (
        "a: {cmd: 'echo 9 >> n; cat in > a', deps: [in, n], outs: [a]}",
        {"n": "1\n"},
    ),
    "a directory": ("a: {cmd: 'mkdir d; cat in > d/x; echo > d/y', deps: [in], outs: [d]}", {}),
    "a persistent one": ("a: {cmd: 'cat in >> log', deps: [in], outs: [log: {persist: true}]}", {}),
    "an undeclared order": (
        "a: {cmd: 'cat in > x; echo > a', deps: [in], outs: [a]}\n  b: {cmd: cat x > b, deps: [a, in], outs: [b]}",
        {},
    ),
    "environment": (
        'a: {cmd: \'echo $DVC_STAGE $PYTHONPATH > a; test "$DVC_ROOT" = "$(pwd)"\', deps: [in], outs: [a]}',
        {},
    ),
}


def make(root: Path, stages: str, files: dict[str, str]) -> None:
    make_repo(root)
    (root / "dvc.yaml").write_text(f"stages:\n  {stages}\n".replace("PYTHON", sys.executable))
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "in").write_text("1\n")
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)
    subprocess.run(["git", "commit", "-qm", "one"], cwd=root, check=True)


def content(root: Path) -> dict[str, bytes]:
    """Return every file of a workspace and of the caches, but for what is temporary and git's own."""
    found = {}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if (
            path.is_file()
            and not name.startswith((".git/", ".dvc/tmp/", ".dvc/cache/tmp-dvkf/"))
            and "__pycache__" not in name
        ):
            found[name] = path.read_bytes()
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_same_as_dvc(tmp_path: Path, name: str) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    make(mine, *CASES[name])
    shutil.copytree(mine, theirs, symlinks=True)
    for text in ("1\n", "2\n"):
        for root in (mine, theirs):
            (root / "in").write_text(text)
        done = subprocess.run([_DVC, "repro", "-q"], cwd=theirs, capture_output=True, text=True)
        with LocalRunner(echo=False) as runner:
            result = repro(Repo.open(mine), runner=runner, jobs=1, raise_failures=False)
        assert bool(result.failed) == bool(done.returncode), done.stderr
        assert content(mine) == content(theirs)
    assert not result.failed


def test_what_a_failed_stage_wrote_stays(project) -> None:
    project.write("dvc.yaml", "stages:\n  a: {cmd: 'echo half > a; echo > b; exit 3', outs: [a]}\n")
    with pytest.raises(StageFailedError):
        project.repro()
    assert project.read("a") == "half\n"
    assert (project.root / "b").exists()
    assert not (project.root / "dvc.lock").exists()


@pytest.mark.parametrize("in_place", [True, False])
def test_a_persistent_output_goes_on_after_failures(project, in_place: bool) -> None:
    cmd = "echo x >> ckpt; test $(wc -l < ckpt) -ge 3"
    project.write("dvc.yaml", f"stages:\n  a: {{cmd: '{cmd}', outs: [ckpt: {{persist: true}}]}}\n")
    for _ in range(2):
        with pytest.raises(StageFailedError):
            project.repro(in_place=in_place)
    project.repro(in_place=in_place)
    assert project.read("ckpt") == "x\n" * 3


def test_a_persistent_output_that_changed_is_not_brought_back(project) -> None:
    """What a killed run left there is where the next one goes on."""
    text = "stages:\n  a: {cmd: 'cat in >> ckpt', deps: [in], outs: [ckpt: {persist: true}]}\n"
    project.write("dvc.yaml", text)
    project.write("in", "1\n")
    project.repro()
    (project.root / "ckpt").unlink()
    project.write("ckpt", "left\n")
    assert project.repro().ran == ("a",)
    assert project.read("ckpt") == "left\n1\n"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_killed_run_keeps_checkpoints_and_leaves_no_process(
    project, tmp_path: Path, how: signal.Signals, in_place: bool
) -> None:
    pids = tmp_path / "pids"
    # A child in a session of its own, as launchers start their workers.
    cmd = f"echo x >> ckpt; setsid sleep 300 & echo $! >> {pids}; test -e {tmp_path}/go || sleep 300; echo done >> ckpt"
    project.write("dvc.yaml", f"stages:\n  a:\n    cmd: '{cmd}'\n    outs: [ckpt: {{persist: true}}]\n")
    code = textwrap.dedent(f"""
        from dvkf_prefect.repo import Repo
        from dvkf_prefect.pipeline.run.repro import repro
        from dvkf_prefect.pipeline.step.runner import LocalRunner
        with LocalRunner(echo=False, in_place={in_place}) as runner:
            repro(Repo.open({str(project.root)!r}), runner=runner)
    """)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: pids.exists() and pids.read_text().strip())
        worker = int(pids.read_text())
        wait_until(lambda: alive(worker))
        process.send_signal(how)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not alive(worker))
    (tmp_path / "go").touch()
    project.repro(in_place=in_place)
    assert project.read("ckpt") == "x\nx\ndone\n"
    last = int(pids.read_text().split()[-1])
    if alive(last):  # a daemon with a session of its own is left by a stage that ended well
        os.kill(last, signal.SIGKILL)


def test_hermetic_by_the_stage_itself(project) -> None:
    text = "stages:\n  a:\n    cmd: echo > a; echo > b\n    outs: [a]\n    meta: {dvkf: {hermetic: true}}\n"
    project.write("dvc.yaml", text)
    with pytest.raises(StageWriteError, match="wrote undeclared files: 'b'"):
        project.repro()
    project.write("dvc.yaml", text.replace("true", "yes please"))
    with pytest.raises(ParseError, match=r"meta\.dvkf\.hermetic"):
        project.repro()


def test_a_stage_that_another_process_runs_is_not_started(project, tmp_path: Path) -> None:
    project.write("dvc.yaml", "stages:\n  a: {cmd: 'echo x >> runs; echo > a', outs: [a]}\n")
    other = subprocess.Popen(["sleep", "60"])
    try:
        rwlock = project.root / ".dvc/tmp/rwlock"
        note = {"pid": other.pid, "cmd": "dvc repro"}
        rwlock.write_text(json.dumps({"write": {str(project.root / "a"): note}}))
        repo = project.repo
        with pytest.raises(LockedError, match="a stage is being run on the same paths"):
            repo.note_stages(read=[], write=[str(project.root / "a")], timeout=0.1)
        other.kill()
        other.wait()
        project.repro()
        assert project.read("runs") == "x\n"
        assert '"write": {}' in rwlock.read_text()
    finally:
        other.kill()
        other.wait()


def test_a_dependency_that_is_only_in_the_cache_is_checked_out(project) -> None:
    project.write("d/x", "1\n")
    project.repo.add([project.root / "d"])
    shutil.rmtree(project.root / "d")
    project.write("dvc.yaml", "stages:\n  a: {cmd: cat d/x > a, deps: [d], outs: [a]}\n")
    project.repro()
    assert project.read("a") == project.read("d/x") == "1\n"


def test_a_part_of_a_directory_that_is_gone_is_missed(project) -> None:
    project.write("d/x", "1\n")
    project.write("d/y", "1\n")
    project.repo.add([project.root / "d"])
    project.write("dvc.yaml", "stages:\n  a: {cmd: cat d/x d/y > a, deps: [d/x, d/y], outs: [a]}\n")
    project.repro()
    (project.root / "d/y").unlink()
    with pytest.raises(Exception, match="d/y"):
        project.repro()
