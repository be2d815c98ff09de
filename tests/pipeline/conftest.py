"""A small repository to run pipelines in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dvkf_prefect.data.repo import Repo
from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.pipeline.step.runner import LocalRunner


class Project:
    """A repository in a folder, with short ways to write to it and run it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def repo(self) -> Repo:
        return Repo.open(self.root)

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def read(self, name: str) -> str:
        return (self.root / name).read_text()

    def repro(self, *targets: str, in_place: bool = True, **options):
        with LocalRunner(echo=False, in_place=in_place) as runner:
            return repro(self.repo, targets, runner=runner, **options)


@pytest.fixture
def project(tmp_path) -> Project:
    root = tmp_path / "repo"
    root.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    Repo.init(root)
    return Project(root)
