"""A small repository to run pipelines in."""

from __future__ import annotations

from pathlib import Path

import pytest
import repos

from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.pipeline.step.runner import LocalRunner


class Project(repos.Project):
    """A repository in a folder, with a short way to run its stages by plain processes."""

    def repro(self, *targets: str, in_place: bool = True, **options):
        with LocalRunner(echo=False, in_place=in_place) as runner:
            return repro(self.repo, targets, runner=runner, **options)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    repos.make_repo(tmp_path / "repo")
    return Project(tmp_path / "repo")
