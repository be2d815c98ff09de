"""What a stage in the workspace reads and writes without declaring it: told once, and never a failure."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dvkf_prefect.cli import main
from dvkf_prefect.errors import GitError
from dvkf_prefect.pipeline.plan.snapshot import Snapshot
from dvkf_prefect.pipeline.run.events import StageEvent
from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.pipeline.run.undeclared import warn_of_undeclared
from dvkf_prefect.pipeline.step.runner import LocalRunner

from .conftest import Project

TRAIN = """\
import pathlib
import json, helper
from lib import inner
from lib.deep import more as _
try:
    import absent
except ImportError:
    pass
pathlib.Path("mlruns/0").mkdir(parents=True, exist_ok=True)
for name in ("mlruns/0/a", "mlruns/b", "nohup.out", "ignored.log", "notes.md", ".0123456789abcdef.dvkf-tmp"):
    with open(name, "a") as file:
        file.write("more")
"""


@pytest.fixture
def stage(project: Project) -> Project:
    """A stage that declares its script and its output, and no more."""
    for name, text in {
        "src/train.py": TRAIN,
        "src/helper.py": "import sys\n",
        "src/lib/__init__.py": "",
        "src/lib/inner.py": "from . import other\n",
        "src/lib/other.py": "",
        "src/lib/deep/__init__.py": "",
        "src/lib/deep/more.py": "",
        "src/unused.py": "",
        "rows.csv": "1\n",
        "notes.md": "tracked by git\n",
        ".gitignore": "*.log\n",
    }.items():
        project.write(name, text)
    python = sys.executable
    project.write(
        "dvc.yaml",
        f"stages:\n  a:\n    cmd: {python} src/train.py && cat rows.csv > a && cat a > scratch\n"
        "    deps: [src/train.py]\n    outs: [a]\n"
        "  b: {cmd: cat a > b, deps: [a], outs: [b]}\n",
    )
    subprocess.run(["git", "add", "-A"], cwd=project.root, check=True)
    return project


def warned(project: Project, jobs: int = 1) -> dict[str, tuple[str, ...]]:
    events: list[StageEvent] = []
    with LocalRunner(echo=False) as runner:
        repro(project.repo, runner=runner, jobs=jobs, force=True, on_event=events.append)
    return {event.stage: event.warnings for event in events if event.kind == "done"}


def test_what_is_not_declared_is_told(stage: Project) -> None:
    """Nothing was told in the workspace: a stage was up to date although a module that it imports had changed."""
    found = warned(stage)
    assert found["b"] == ()
    reads, writes = found["a"]
    assert reads.startswith("stage 'a' reads undeclared files: 'rows.csv', 'src/helper.py', ")
    assert "and 2 more. Changes of them do not rerun the stage" in reads
    assert "unused" not in reads
    assert (
        "wrote undeclared files: 'mlruns/', 'nohup.out', 'notes.md', 'scratch'. Add them to `outs`" in writes
    )
    assert stage.read("mlruns/b") == "more"
    lock = stage.read("dvc.lock")
    stage.write(
        "dvc.yaml",
        stage.read("dvc.yaml").replace("deps: [src/train.py]", "deps: [src, rows.csv]"),
    )
    (reads,) = (text for text in warned(stage)["a"])
    assert "wrote undeclared files" in reads  # and reads nothing else
    assert stage.read("dvc.lock") != lock


def test_warnings_can_be_turned_off(stage: Project, monkeypatch, capfd) -> None:
    monkeypatch.chdir(stage.root)
    assert main(["repro"]) == 0
    assert "WARNING: stage 'a' reads undeclared files" in capfd.readouterr().err
    assert main(["repro", "-f", "-q"]) == 0
    assert "WARNING" not in capfd.readouterr().err
    monkeypatch.setenv("DVKF_UNDECLARED", "0")
    assert main(["repro", "-f"]) == 0
    assert "WARNING" not in capfd.readouterr().err


def test_what_cannot_be_seen_cheaply_is_not_looked_at(stage: Project, monkeypatch) -> None:
    monkeypatch.setattr("dvkf_prefect.pipeline.run.undeclared._ENTRIES", 5)
    (only,) = warned(stage)["a"]
    assert "reads undeclared files" in only


def test_files_that_no_module_is_made_of_are_no_failure(stage: Project) -> None:
    stage.write("src/lib/inner.py", "def broken(:\n")
    stage.write(
        "dvc.yaml", "stages:\n  a: {cmd: 'cat src/lib/inner.py > a', deps: [src/lib/inner.py], outs: [a]}\n"
    )
    assert warned(stage) == {"a": ()}


def test_a_look_that_fails_is_no_failure(stage: Project, monkeypatch) -> None:
    def fail(*_: object) -> bool:
        raise GitError("git is broken")

    repo = stage.repo
    (wanted,) = (each for name, each in Snapshot(repo).graph.stages.items() if name == "a")
    monkeypatch.setattr("dvkf_prefect.formats.dvcignore.Ignore.matches", fail)
    assert warn_of_undeclared(repo, wanted, outputs=(), since=0, alone=True) == ()
