"""Locks next to a real `dvc` that runs at the same time: neither spoils what the other does, in both directions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dvkf_prefect.errors import LockedError
from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.pipeline.step.runner import LocalRunner
from dvkf_prefect.repo import Repo

# A stage whose command lasts until the test lets it go.
PIPELINE = """\
stages:
  slow:
    cmd: touch {started}; while [ ! -e {go} ]; do sleep 0.05; done; cp in out
    deps:
    - in
    outs:
    - out
"""


def run(root: Path, *args: str, code: int | None = 0) -> str:
    done = subprocess.run(args, cwd=root, capture_output=True, text=True)
    assert code is None or done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stderr


def until(true: Callable[[], bool]) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    root = tmp_path / "repo"
    root.mkdir()
    run(root, "git", "init", "-q")
    made = Repo.init(root)
    for name in ("in", "other"):
        (root / name).write_text(name)
    (root / "dvc.yaml").write_text(PIPELINE.format(started=tmp_path / "started", go=tmp_path / "go"))
    made.add(["in"])
    return made


@contextmanager
def dvc_repro(repo: Repo) -> Iterator[subprocess.Popen[str]]:
    """`dvc repro` in the middle of the stage's command; it must end well."""
    place = repo.root.parent
    process = subprocess.Popen(
        ["dvc", "repro"], cwd=repo.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        until(lambda: (place / "started").exists() or process.poll() is not None)
        yield process
        (place / "go").touch()
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
    finally:
        process.kill()
        process.wait()


def test_what_a_running_stage_of_dvc_uses_is_left_alone(repo: Repo) -> None:
    with dvc_repro(repo) as process:
        for path in ("out", "out/deeper", "in", ""):
            with (
                pytest.raises(LockedError, match=rf"process {process.pid} \(.*dvc repro\) (writes|reads) /"),
                repo.lock(timeout=0.2, write=[path]),
            ):
                pass
        # Everything else goes on.
        assert repo.add(["other"])[0].path == "other"
        assert repo.status().outputs == 3
        # What must wait does, and has its turn once dvc is done.
        waited: list[object] = []
        waiting = threading.Thread(target=lambda: waited.append(Repo(repo.root).checkout()))
        waiting.start()
        time.sleep(0.3)
        assert not waited
    waiting.join(60)
    assert waited
    assert (repo.root / "out").read_text() == "in"
    assert run(repo.root, "dvc", "status", "-q") == ""
    assert not json.loads((repo.root / ".dvc/tmp/rwlock").read_text()).get("write")


def test_dvc_gets_the_lock_back_when_its_stage_ends_while_we_work(repo: Repo) -> None:
    """It tries for three seconds."""
    with dvc_repro(repo), repo.lock(write=["other"]):
        (repo.root.parent / "go").touch()
        until((repo.root / "out").exists)
        time.sleep(0.7)
    assert "slow" in (repo.root / "dvc.lock").read_text()


def test_dvc_works_on_while_our_stage_runs(repo: Repo) -> None:
    place = repo.root.parent
    with LocalRunner() as runner:
        done: list[object] = []
        ours = threading.Thread(target=lambda: done.append(repro(repo, runner=runner)))
        ours.start()
        until((place / "started").exists)
        run(repo.root, "dvc", "add", "-q", "other")
        run(repo.root, "dvc", "checkout", "-q", "in.dvc")
        (place / "go").touch()
        ours.join(60)
    assert done
    run(repo.root, "dvc", "status", "-q")
    assert (repo.root / "out").read_text() == "in"


def test_entries_of_the_dead_do_not_count(repo: Repo) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    file = repo.dvc_dir / "tmp/rwlock"
    entry = {"pid": ended.pid, "cmd": "dvc repro"}
    file.write_text(json.dumps({"write": {str(repo.root / "other"): entry}, "read": {}}))
    repo.add(["other"])
    entry["pid"] = os.getppid()
    file.write_text(json.dumps({"read": {str(repo.root / "other"): [entry]}}))
    with (
        pytest.raises(LockedError, match=f"{os.getppid()} .*reads"),
        repo.lock(timeout=0, write=["other"]),
    ):
        pass
    file.write_text('{"read": ')
    with pytest.raises(LockedError, match="Remove it if no dvc runs"), repo.lock(timeout=0):
        pass


HOLD = "import sys;from dvc.repo import Repo\nwith Repo('.').lock: print('held',flush=True);sys.stdin.read()"


@pytest.mark.long
def test_locks_by_hard_links_are_dvcs(repo: Repo) -> None:
    run(repo.root, "dvc", "config", "core.hardlink_lock", "true")
    repo = Repo(repo.root)
    lock = repo.dvc_dir / "tmp/lock"
    # The other kind of lock leaves its file, at which dvc would wait for ever.
    assert lock.exists() and "lock" in run(repo.root, "dvc", "add", "other", code=1)
    with repo.lock():
        assert lock.stat().st_nlink == 2
        assert "Unable to acquire lock" in run(repo.root, "dvc", "add", "other", code=1)
        with (
            pytest.raises(LockedError, match=r"a hard link to .*remove both"),
            Repo(repo.root).lock(timeout=0.1),
        ):
            pass
    assert not lock.exists() and not [*lock.parent.glob("*.lock")]
    run(repo.root, "dvc", "add", "other")
    holding = subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=repo.root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holding.stdout and holding.stdout.readline() == "held\n"
    with pytest.raises(LockedError), repo.lock(timeout=0.3):
        pass
    holding.communicate()
    with repo.lock(timeout=5):
        pass
    assert not [*lock.parent.glob("*.lock")]


def test_a_lock_by_hard_link_does_not_replace_one_that_is_held(repo: Repo) -> None:
    with repo.lock():
        with (repo.dvc_dir / "config.local").open("w") as stream:
            stream.write("[core]\n    hardlink_lock = true\n")
        with pytest.raises(LockedError), Repo(repo.root).lock(timeout=0.1):
            pass
    with Repo(repo.root).lock(timeout=0):
        pass
