"""The contract of `repro` through a flow, each stage a task run: plain processes, and a cluster."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from repos import Project
from repro_contract import ReproContract, make_project

from dvkf_prefect import DvcRepository, KubeflowPipelines, repro_pipeline
from dvkf_prefect.pipeline.run.events import ReproResult

from ..kubeflow.fake import FakeKfp  # noqa: TID252 (tests are no package that could be named)


class FlowSite:
    """A site whose stages are task runs of a flow run."""

    def __init__(self, project: Project, pipelines: KubeflowPipelines) -> None:
        self.project = project
        self._pipelines = pipelines
        self.events = None
        self._logged: list[str] = []

    @property
    def warnings(self) -> str:
        return "\n".join(self._logged)

    def repro(self, *targets: str, **options: Any) -> ReproResult:
        @flow(name="contract")
        def stages() -> ReproResult:
            block = DvcRepository(path=str(self.project.root), label="contract")
            return repro_pipeline(block, self._pipelines, targets, **options)

        self.project.commit()
        self._logged.clear()
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: self._logged.append(record.getMessage())  # type: ignore[method-assign]
        logger = logging.getLogger("prefect.flow_runs")
        logger.addHandler(handler)
        try:
            return stages()
        finally:
            logger.removeHandler(handler)


class Flow(ReproContract):
    """What a flow can be asked for; a failure is an error of the flow."""

    options = frozenset({"force", "downstream", "pull", "on_error"})
    returns_failures = False
    few = frozenset({"changed", "downstream", "force"})


@pytest.mark.long
class TestFlow(Flow):
    """In `make test`, test_repro_flow.py and the contract of its runner stand for it."""

    @pytest.fixture
    def site(self, tmp_path: Path, prefect_server: None) -> FlowSite:
        return FlowSite(make_project(tmp_path), KubeflowPipelines(backend="local", jobs=2))


@pytest.mark.long
class TestFlowOnACluster(Flow):
    """In `make test`, test_repro_cluster_flow.py and the cluster's own contract stand for it."""

    beside = "lost"
    few = frozenset({"changed"})

    @pytest.fixture
    def site(self, tmp_path: Path, prefect_server: None, kfp: FakeKfp) -> FlowSite:
        pipelines = KubeflowPipelines(
            backend="kubeflow",
            credentials={"host": kfp.host},  # type: ignore[arg-type]
            image="registry.example.org/stages:1",
            ask_kubernetes=False,
            fetch=True,
            defaults={"volumes": [{"claim": "data", "mount": str(tmp_path / "remote")}]},
        )
        return FlowSite(make_project(tmp_path), pipelines)
