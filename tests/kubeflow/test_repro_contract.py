"""The contract of `repro` with KFP's local runner and on a cluster, with outputs brought here or left on the remote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from repro_contract import FEW, ReproContract, RunnerSite, make_project

from dvkf_prefect.kubeflow.cluster.runner import ClusterSettings, KfpClusterRunner
from dvkf_prefect.kubeflow.local.runner import KfpLocalRunner
from dvkf_prefect.pipeline.run.events import ReproResult

from .fake import FakeKfp


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KfpLocalRunner]:
    with KfpLocalRunner(tmp_path_factory.mktemp("kfp")) as runner:
        yield runner


class ClusterSite(RunnerSite):
    """Stages on the fake cluster; what pods need of the sources is committed."""

    def repro(self, *targets: str, **options: Any) -> ReproResult:
        self.project.commit()
        return super().repro(*targets, **options)


def started(kfp: FakeKfp) -> list[str]:
    """The stages whose pods were started, run by run."""
    return ["".join(sorted(run.tasks)) for run in kfp.runs.values()]


class TestKfpLocal(ReproContract):
    beside = "lost"
    few = FEW

    @pytest.fixture
    def site(self, tmp_path, local) -> RunnerSite:
        return RunnerSite(make_project(tmp_path), lambda repo: nullcontext(local))


class TestCluster(ReproContract):
    beside = "lost"

    @pytest.fixture
    def site(self, tmp_path, settings: ClusterSettings) -> RunnerSite:
        return ClusterSite(make_project(tmp_path), lambda repo: KfpClusterRunner(repo, settings, fetch=True))

    def test_the_first_run_is_recorded_as_by_dvc(self, site, kfp) -> None:
        super().test_the_first_run_is_recorded_as_by_dvc(site)
        assert started(kfp) == ["abcde"]

    def test_only_what_must_run_runs(self, site, kfp) -> None:
        super().test_only_what_must_run_runs(site)
        assert started(kfp)[:4] == ["abcde", "c", "abcd", "d"]

    def test_parameters_that_a_stage_writes_are_waited_for(self, site, kfp) -> None:
        """The stage that reads them is in a later run."""
        super().test_parameters_that_a_stage_writes_are_waited_for(site)
        assert [sorted(run.tasks) for run in kfp.runs.values()] == [["tune"], ["use"]]


class TestClusterThatBringsNothing(ReproContract):
    brings = False
    beside = "lost"
    few = frozenset({"changed", "comes-out-as-before"})
    test_outputs_that_are_gone_come_back_without_a_run = None  # they stay on the remote

    @pytest.fixture
    def site(self, tmp_path, settings: ClusterSettings) -> RunnerSite:
        return ClusterSite(make_project(tmp_path), lambda repo: KfpClusterRunner(repo, settings))
