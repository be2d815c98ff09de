"""Git's own locks are waited for when several commit at once, and never for ever."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dvkf_prefect.data.git import command as git_module
from dvkf_prefect.data.git.command import Git
from dvkf_prefect.errors import GitError
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.repo import Repo

_COMMITS = """
import sys
from pathlib import Path
from dvkf_prefect.data.git.command import Git
git = Git(Path.cwd())
for number in range(int(sys.argv[2])):
    name = f"{sys.argv[1]}-{number}.txt"
    Path(name).write_text(name)
    assert git.commit([name], f"{name}\\n")
"""
_TAGS = """
import sys
from dvkf_prefect.repo import Repo
from dvkf_prefect.models.registry import ModelRegistry
registry = ModelRegistry(Repo.open("."))
for _ in range(2):
    for stage in ("a", "b"):
        try:
            registry.assign("clf", "v1.0.0" if sys.argv[1] == "0" else "v2.0.0", stage)
        except Exception as error:
            assert "already" in str(error), error
"""


def run(root: Path, *args: str) -> str:
    done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    run(tmp_path, "init", "-q")
    run(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_processes_that_commit_at_once_lose_nothing(root: Path) -> None:
    """`Unable to create index.lock: File exists` ended all flows but one."""
    count, each = 6, 4
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _COMMITS, str(n), str(each)], stderr=subprocess.PIPE, text=True
        )
        for n in range(count)
    ]
    told = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * count, told
    expected = {f"{n}-{number}.txt" for n in range(count) for number in range(each)}
    assert set(run(root, "log", "--format=%s").splitlines()) == expected | {"first"}
    assert set(run(root, "ls-tree", "--name-only", "HEAD").splitlines()) == expected
    assert run(root, "status", "--porcelain") == ""


def test_a_lock_of_another_process_is_waited_for(root: Path) -> None:
    lock = root / ".git/index.lock"
    lock.touch()
    (root / "a").write_text("a")
    timer = threading.Timer(0.5, lock.unlink)
    timer.start()
    try:
        assert Git(root).commit(["a"], "a")
    finally:
        timer.join()


@pytest.mark.parametrize("name", ["index.lock", "HEAD.lock"])
def test_a_lock_that_stays_is_named(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git_module, "_LOCK_WAIT", 0.2)
    (root / ".git" / name).touch()
    (root / "a").write_text("a")
    with pytest.raises(GitError, match=rf"waited .*{name} is locked\. If no git process runs, remove"):
        Git(root).commit(["a"], "a")


def test_other_failures_are_told_at_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git_module, "_LOCK_WAIT", 3600.0)
    with pytest.raises(GitError, match="did not match any files"):
        Git(root).commit(["not-there"], "a")


def test_tags_made_at_once_each_get_a_number(root: Path) -> None:
    repo = Repo.init(root)
    (root / "f").write_text("1")
    repo.add(["f"])
    (root / "dvc.yaml").write_text("artifacts:\n  clf: {path: f, type: model}\n")
    run(root, "add", "-A")
    run(root, "commit", "-q", "-m", "second")
    registry = ModelRegistry(repo)
    registry.register("clf", version="v1.0.0")
    run(root, "commit", "-q", "--allow-empty", "-m", "third")
    registry.register("clf", version="v2.0.0")
    running = [subprocess.Popen([sys.executable, "-c", _TAGS, str(n)]) for n in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    counters = [event.counter for event in registry.history("clf") if event.stage]
    assert len(counters) == len(set(counters)) >= 4
