"""A repository whose dvc.yaml declares a model, and the real gto to compare with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.repo import Repo

# A module's fixture is made before the environment of its first test.
IDENTITY = {
    f"GIT_{role}_{field}": value
    for role in ("AUTHOR", "COMMITTER")
    for field, value in (("NAME", "Test"), ("EMAIL", "test@example.org"))
}


class Project:
    """A DVC repository in git; each `train` is a commit with another model."""

    def __init__(self, root: Path, *, subdir: str = "") -> None:
        root.mkdir()
        self.top = root
        self.git("init", "-q")
        self.root = root / subdir
        self.root.mkdir(exist_ok=True)
        self.repo = Repo.init(self.root, subdir=bool(subdir))
        (self.root / "dvc.yaml").write_text(
            "artifacts:\n  classifier:\n    path: model.bin\n    type: model\n"
        )
        self.registry = ModelRegistry(self.repo)

    def git(self, *args: str, **env: str) -> str:
        import os

        done = subprocess.run(
            ["git", *args],
            cwd=self.top,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, **IDENTITY, **env},
        )
        return done.stdout.strip()

    def train(self, content: str) -> str:
        """Write a model, track it and commit; return the commit."""
        (self.root / "model.bin").write_text(content)
        self.repo.add([self.root / "model.bin"])
        return self.commit()

    def commit(self) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "Change")
        return self.git("rev-parse", "HEAD")

    def gto(self, *args: str) -> Any:
        """Run the real gto; return its JSON where it prints any."""
        done = subprocess.run(
            [sys.executable, "-m", "gto.cli", *args],
            cwd=self.top,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout) if "--json" in args else done.stdout


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")
