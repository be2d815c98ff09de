"""The programs in the README run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dvkf_prefect.data.repo import Repo
from dvkf_prefect.models.registry import ModelRegistry

TREE = Path(__file__).parents[2]
PROGRAMS = re.findall(r"```python\n(.*?)```", (TREE / "README.md").read_text(), re.DOTALL)


def image(shade: int) -> bytes:
    return b"P5 8 8 16\n" + bytes([shade]) * 64


@pytest.fixture
def project(tmp_path: Path) -> Repo:
    """The demo's pipeline on a handful of images, with a remote, committed."""
    root = tmp_path / "repo"
    shutil.copytree(TREE / "flows/digits", root, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    repo = Repo.init(root)
    with repo.config.edit() as sections:
        sections["remote"]["store"] = {"url": str(tmp_path / "store")}
        sections["core"]["remote"] = "store"
    for part in ("train", "holdout"):
        for digit in range(10):
            folder = root / "data" / part / str(digit)
            folder.mkdir(parents=True)
            for number in range(3):
                (folder / f"{number}.pgm").write_bytes(image((digit + number) % 16))
    repo.add(["data/train", "data/holdout"])
    repo.push()
    subprocess.run(["git", "-C", str(root), "add", "-A"], check=True)
    subprocess.run(["git", "-C", str(root), "commit", "-q", "-m", "one"], check=True)
    return repo


def test_the_readmes_programs_run(
    prefect_server: None,
    project: Repo,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    flow_program, repo_program, _ = PROGRAMS
    # A flow is found by its file, so the program needs one.
    file = tmp_path / "program.py"
    file.write_text(flow_program)
    names: dict[str, Any] = {"__name__": "program", "__file__": str(file)}
    exec(compile(flow_program, str(file), "exec"), names)  # the README's own text
    names["train"](str(project.root))
    (version,) = ModelRegistry(project).list("digits")
    assert version.version == "v0.0.1"
    assert version.rev == project.git.head() if project.git else False
    # Nothing has changed: nothing runs and nothing is registered.
    names["train"](str(project.root))
    assert len(ModelRegistry(project).list("digits")) == 1
    exec(repo_program.replace(".demo/repo", str(project.root)), {})  # the README's own text
    said = capsys.readouterr().out
    assert "data/train (" in said
    assert "False 0" in said


def test_the_readmes_tables_are_read_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "repo"
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    repo = Repo.init(root)
    (root / "data").mkdir()
    for rev, rows in (("v1", "1,a\n2,b\n9,old\n"), ("v2", "1,a\n2,c\n3,d\n")):
        (root / "data/users.csv").write_text("id,name\n" + rows)
        repo.add(["data/users.csv"])
        subprocess.run(["git", "-C", str(root), "add", "-A"], check=True)
        subprocess.run(["git", "-C", str(root), "commit", "-q", "-m", rev], check=True)
        subprocess.run(["git", "-C", str(root), "tag", rev], check=True)
    monkeypatch.chdir(root)
    exec(PROGRAMS[2], {})  # the README's own text
    assert "1 rows added, 1 rows changed (3 to 4 rows)" in capsys.readouterr().out
