"""Folders of killed downloads and clones go with the next one; those in use stay."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect.cli import main
from dvkf_prefect.repo import Repo

# Makes what `get` makes, and is killed in the midst of it, or waits.
_KILLED = """
import os, signal, sys
from pathlib import Path
from dvkf_prefect.scratch import put_in_place, scratch_beside, scratch_folder
with scratch_folder("dvkf-clone-") as clone, scratch_beside(Path("dest").absolute(), ".dvkf-get-") as folder:
    (clone / "repository").mkdir()
    (folder / "out").mkdir()
    if sys.argv[1] == "wait":
        print("ready", flush=True)
        sys.stdin.read()
    if sys.argv[1] == "replace":
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        put_in_place(folder / "out", Path("dest").absolute(), folder)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def git(root: Path, *args: str) -> None:
    subprocess.run(["git", *args], cwd=root, capture_output=True, check=True)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    root = tmp_path / "source"
    repo = make_repo(root)
    (root / "d").mkdir()
    (root / "d/a").write_text("a")
    repo.add(["d"])
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return repo


def left(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in [*(tmp_path / "tmp").iterdir(), *(tmp_path / "here").glob(".dvkf-*")])


def killed(how: str) -> None:
    assert subprocess.run([sys.executable, "-c", _KILLED, how], check=False).returncode == -9


def test_what_killed_commands_left_goes_with_the_next(source: Repo, tmp_path: Path) -> None:
    """Whole clones and half data sets stayed for ever."""
    for _ in range(3):
        killed("die")
    assert len(left(tmp_path)) == 2  # each run took away what the one before left
    assert main(["get", str(source.root), "d", "--rev", "HEAD", "-o", "out"]) == 0
    assert left(tmp_path) == []
    assert Path("out/a").read_text() == "a"


def test_a_command_that_runs_keeps_its_folders(source: Repo, tmp_path: Path) -> None:
    """Told by a lock, not by a process number, which a container numbers anew."""
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout and other.stdin
        other.stdout.readline()
        kept = left(tmp_path)
        assert main(["get", str(source.root), "d", "--rev", "HEAD", "-o", "out"]) == 0
        assert left(tmp_path) == kept
        assert len(kept) == 2
        other.stdin.close()
        other.wait()
    assert main(["get", str(source.root), "d", "--rev", "HEAD", "-o", "again"]) == 0
    assert left(tmp_path) == []


def test_what_was_to_be_replaced_is_put_back(source: Repo, tmp_path: Path) -> None:
    """A kill between the two renames of `get --force` left the old folder in a place that is swept."""
    dest = Path("dest")
    dest.mkdir()
    (dest / "own").write_text("own")
    killed("replace")
    assert not dest.exists()
    assert main(["get", str(source.root), "d", "-o", "out"]) == 0
    assert (dest / "own").read_text() == "own"
    assert not list(Path().glob(".dvkf-get-*"))


def test_a_clone_is_for_its_user_only(source: Repo, tmp_path: Path) -> None:
    from dvkf_prefect.scratch import scratch_folder

    with scratch_folder("dvkf-clone-") as folder:
        assert folder.stat().st_mode & 0o777 == 0o700


def test_the_folders_of_killed_runs_of_stages_go_with_the_next(source: Repo, tmp_path: Path) -> None:
    from dvkf_prefect.pipeline.step.runner import LocalRunner

    killed = "import os, signal; from dvkf_prefect.pipeline.step.runner import LocalRunner as R; r = R()"
    died = subprocess.run(
        [sys.executable, "-c", f"{killed}; os.kill(os.getpid(), signal.SIGKILL)"], check=False
    )
    assert died.returncode == -9
    assert len(left(tmp_path)) == 1
    with LocalRunner():
        assert len(left(tmp_path)) == 1
    assert left(tmp_path) == []
