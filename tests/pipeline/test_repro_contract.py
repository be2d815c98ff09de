"""The contract of `repro` with plain processes: in the workspace, as `dvc` runs stages, and in clean folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from repro_contract import FEW, ReproContract, RunnerSite, make_project

from dvkf_prefect.pipeline.step.runner import LocalRunner


class TestInTheWorkspace(ReproContract):
    is_model = True

    @pytest.fixture
    def site(self, tmp_path: Path) -> RunnerSite:
        return RunnerSite(make_project(tmp_path), lambda repo: LocalRunner(echo=False))


class TestInCleanFolders(ReproContract):
    beside = "refused"
    few = FEW

    @pytest.fixture
    def site(self, tmp_path: Path) -> RunnerSite:
        return RunnerSite(make_project(tmp_path), lambda repo: LocalRunner(echo=False, in_place=False))
