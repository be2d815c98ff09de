"""Where the stages of a pipeline run."""

from __future__ import annotations

from typing import ClassVar, Literal

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl

from dvkf_prefect.blocks._common import DOCUMENTATION_URL
from dvkf_prefect.data.repo import Repo
from dvkf_prefect.kubeflow.local import KfpLocalRunner
from dvkf_prefect.pipeline.runner import LocalRunner, Runner


class KubeflowPipelines(Block):
    """Runs the stages of a dvc.yaml: on Kubeflow Pipelines' local runner, or as plain processes.

    Either way a stage runs in a clean folder that holds just its dependencies, and its outputs have the same digests.

    Example:
        Load it and bring a pipeline up to date with it:
        ```python
        from dvkf_prefect import KubeflowPipelines
        from dvkf_prefect.data.repo import Repo
        from dvkf_prefect.pipeline.repro import repro

        pipelines = KubeflowPipelines.load("BLOCK_NAME")
        repo = Repo.open(".")
        with pipelines.runner(repo) as runner:
            repro(repo, runner=runner, jobs=pipelines.jobs)
        ```
    """

    _block_type_name = "Kubeflow Pipelines"
    _block_type_slug = "kubeflow-pipelines"
    _documentation_url: ClassVar[HttpUrl | None] = DOCUMENTATION_URL

    backend: Literal["kubeflow-local", "local"] = Field(
        default="kubeflow-local",
        description="kubeflow-local: KFP compiles each stage and its local runner runs it. local: plain processes.",
    )
    jobs: int = Field(
        default=2, ge=1, description="How many stages that do not need each other run at the same time."
    )

    def runner(self, repo: Repo) -> Runner:
        """Return what runs stages of a repository, a context manager that ends all it started.

        Args:
            repo: The repository; logs and KFP's own files go below its temporary folder.

        Example:
            ``KubeflowPipelines(backend="local").runner(repo)``
        """
        if self.backend == "local":
            return LocalRunner()
        return KfpLocalRunner(repo.tmp_dir / "kubeflow")
