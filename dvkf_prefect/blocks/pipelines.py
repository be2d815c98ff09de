"""Backends of pipelines: plain processes, a Kubeflow cluster, or KFP's local runner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, ClassVar, Literal

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, HttpUrl, field_validator, model_validator

from dvkf_prefect.blocks._common import documentation_url, drop_empty, logo_url, plain_fields, values_of
from dvkf_prefect.blocks.credentials import KubeflowCredentials
from dvkf_prefect.data.upkeep.doctor import Check, check_remote
from dvkf_prefect.kubeflow.cluster.patience import RUN_LIMIT
from dvkf_prefect.kubeflow.cluster.runner import ClusterSettings, KfpClusterRunner, TaskEvent
from dvkf_prefect.kubeflow.cluster.runs import Runs
from dvkf_prefect.kubeflow.compile.pod_settings import parse_defaults
from dvkf_prefect.kubeflow.compile.workspace import parse_workspace
from dvkf_prefect.kubeflow.doctor.doctor import check_cluster
from dvkf_prefect.kubeflow.export.export import ExportedPipeline, ExportOptions, export_pipeline
from dvkf_prefect.kubeflow.local.runner import KfpLocalRunner
from dvkf_prefect.pipeline.step.runner import LocalRunner, Runner
from dvkf_prefect.repo import Repo

_NO_CREDENTIALS = (
    "backend 'kubeflow' without credentials. Set `credentials` to a Kubeflow Credentials block with the "
    "server's host."
)
# Fields that choose and drive a runner; all others are settings of the cluster.
_NOT_OF_CLUSTER = frozenset({"backend", "credentials", "fetch", "hermetic", "jobs"})


class KubeflowPipelines(Block):
    """Runs the stages of a dvc.yaml: as plain processes, on a Kubeflow cluster, or on KFP's local runner.

    Plain processes run in the workspace, as `dvc` runs them, or in clean folders (`hermetic`). On Kubeflow, a stage
    gets the files that git tracks and the data that it declares. Its outputs have the same digests on every backend.
    On a cluster, pods read from the remote and write to it. The worker downloads the outputs only with `fetch`.

    Example:
        Load it and bring a pipeline up to date with it:
        ```python
        from dvkf_prefect import KubeflowPipelines, Repo, repro

        pipelines = KubeflowPipelines.load("BLOCK_NAME")
        repo = Repo.open(".")
        with pipelines.runner(repo) as runner:
            repro(repo, runner=runner, jobs=pipelines.parallel)
        ```
    """

    _block_type_name = "Kubeflow Pipelines"
    _block_type_slug = "kubeflow-pipelines"
    _documentation_url: ClassVar[HttpUrl | None] = documentation_url("KubeflowPipelines")
    _logo_url: ClassVar[HttpUrl | None] = logo_url()

    # A message about a wrong value would repeat the value, which may be a secret of a pod's environment.
    model_config = ConfigDict(hide_input_in_errors=True, json_schema_extra=plain_fields)

    backend: Literal["kubeflow", "kubeflow-local", "local"] = Field(
        default="local",
        description="local: plain processes. kubeflow: on a cluster, all stages as one pipeline. kubeflow-local: KFP "
        "compiles each stage and its local runner runs it, to check on one machine what a cluster would get.",
    )
    hermetic: bool = Field(
        default=False,
        description="Run each stage of plain processes in a clean folder with only its declared dependencies, instead "
        "of the workspace. A stage's `meta: {dvkf: {hermetic: true}}` does so for that stage.",
    )
    jobs: int | None = Field(
        default=None,
        ge=1,
        description="Maximum number of independent stages that run in parallel. If empty: one in the workspace, as "
        "with dvc, and two in clean folders.",
    )
    credentials: KubeflowCredentials | None = Field(
        default=None,
        description="Server of Kubeflow Pipelines and the login for it. Needed by backend kubeflow.",
    )
    namespace: str = Field(default="kubeflow", description="Namespace that runs belong to.")
    experiment: str = Field(
        default="", description="Experiment that runs are listed under; the name of the repository if empty."
    )
    image: str | None = Field(
        default=None,
        description="Container image of stages without one in dvc.yaml. It must contain this package, KFP and what the "
        "stages import; `dvkf image build` makes one. On a cluster, a stage without an image is refused.",
    )
    service_account: str | None = Field(default=None, description="Kubernetes service account of the pods.")
    pipeline_root: str | None = Field(
        default=None, description="Location of KFP's own artifacts; KFP's default if empty."
    )
    defaults: dict[str, Any] = Field(
        default_factory=dict,
        description="Default settings of pods, in the form of a stage's `meta: kubeflow:`: cpu, memory, gpu, "
        "node_selector, tolerations, env, secrets, volumes, retries, timeout and others.",
    )
    workspace: dict[str, Any] = Field(
        default_factory=dict,
        description="Volume that the pods of a run share, for large outputs that later stages read: size, access_mode "
        "(ReadWriteMany or ReadWriteOnce) and storage_class. None if empty; needs Kubeflow Pipelines 2.15.",
    )
    remote_secret: str | None = Field(
        default=None, description="Kubernetes secret with the remote's credentials for the pods."
    )
    remote_secret_keys: dict[str, str] = Field(
        default_factory=dict,
        description="Option of the remote for each key of that secret, such as "
        '{"AWS_ACCESS_KEY_ID": "access_key_id"}. If empty, keys are named like the options.',
    )
    remote_url: str | None = Field(
        default=None, title="Remote URL", description="Url of the remote inside the cluster, if different."
    )
    remote_options: dict[str, str] = Field(
        default_factory=dict,
        description="Options of the remote that differ inside the cluster, such as endpointurl. No secrets.",
    )
    outage: float = Field(
        default=300.0,
        ge=0,
        description="Maximum seconds without an answer from Kubeflow Pipelines while a run is followed.",
    )
    run_timeout: float = Field(
        default=RUN_LIMIT,
        gt=0,
        le=RUN_LIMIT,
        description="Seconds until a run is terminated, at most seven days: `gc -c` removes objects of older runs.",
    )
    start_timeout: float = Field(
        default=300.0,
        gt=0,
        description="Seconds until a run is terminated if a pod cannot be created or pull its image.",
    )
    schedule_timeout: float = Field(
        default=1800.0, gt=0, description="Seconds until a run is terminated if a pod fits on no node."
    )
    ask_kubernetes: bool = Field(
        default=True,
        description="Query Kubernetes for the reason when a pod does not start (needs RBAC).",
    )
    fetch: bool = Field(
        default=True,
        description="Download the outputs of stages on a cluster to the worker's workspace; otherwise they stay on the "
        "remote.",
    )
    allow_dirty: bool = Field(default=False, description="Run stages even if files have uncommitted changes.")

    send_as: Literal["inline", "version"] = Field(
        default="inline",
        description="inline: each run brings its pipeline. version: the pipeline is uploaded as a version of the "
        "repository's pipeline, once for each content, and runs refer to it. It needs the right to create pipelines.",
    )
    failed_run: Literal["new", "retry"] = Field(
        default="new",
        description="new: stages whose run failed start as another run. retry: the same run on Kubeflow is retried, "
        "where the pods of its completed stages do not start again.",
    )

    _drop_empty = model_validator(mode="before")(drop_empty)

    @field_validator("defaults")
    @classmethod
    def _check_defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        parse_defaults(values)
        return values

    @field_validator("workspace")
    @classmethod
    def _check_workspace(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values:
            parse_workspace(values)
        return values

    @model_validator(mode="after")
    def _check_credentials(self) -> KubeflowPipelines:
        if self.backend == "kubeflow" and self.credentials is None:
            raise ValueError(_NO_CREDENTIALS)
        return self

    @property
    def parallel(self) -> int:
        """The maximum number of stages that run in parallel."""
        return self.jobs or (1 if self.backend == "local" and not self.hermetic else 2)

    def settings(self) -> ClusterSettings:
        """Return the cluster's settings: the credentials, and how stages run there.

        Raises:
            ValueError: The block has no credentials.

        Example:
            >>> credentials = KubeflowCredentials(host="http://localhost:8080")
            >>> KubeflowPipelines(backend="kubeflow", credentials=credentials).settings().namespace
            'kubeflow'
        """
        if self.credentials is None:
            raise ValueError(_NO_CREDENTIALS)
        options = {name: value for name, value in values_of(self).items() if name not in _NOT_OF_CLUSTER}
        return ClusterSettings.from_options({**values_of(self.credentials), **options})

    def check(self, repo: Repo) -> list[Check]:
        """Check the cluster, the remote and the stages' needs there, before anything is sent.

        A small object is written to the remote, read back and deleted.

        Args:
            repo: The repository whose stages are to run.

        Returns:
            The checks; empty for a backend that needs no cluster.

        Example:
            ``[check for check in pipelines.check(repo) if check.state == "fail"]``
        """
        if self.backend != "kubeflow":
            return []
        return [*check_cluster(self.settings(), repo), check_remote(repo)]

    def export(
        self, repo: Repo, targets: Sequence[str] = (), *, options: ExportOptions | None = None
    ) -> ExportedPipeline:
        """Return the stages as a KFP pipeline that runs without a dispatcher, with the settings of this block.

        Args:
            repo: The repository. Its sources and the inputs that the remote lacks are uploaded.
            targets: Stages, outputs or dvc.yaml files; all stages if empty.
            options: Options of the export.

        Raises:
            ValueError: The block has no credentials, which hold the settings of the server.

        Example:
            ``Path("pipeline.yaml").write_text(pipelines.export(repo).text)``
        """
        return export_pipeline(repo, self.settings(), targets, options=options)

    def retry_run(self, run_id: str, repo: Repo | None = None) -> str:
        """Run the failed stages of a failed run on Kubeflow again, in the same run.

        Args:
            run_id: ID of the run.
            repo: Repository of its stages. Its remote has their counts of attempts, which begin anew. Without it,
                stages without attempts left fail at once.

        Returns:
            Page of the run in Kubeflow's UI; "" if unknown.

        Raises:
            RunnerError: The run has not failed, or the server does not retry it.
            ValueError: The block has no credentials.

        Example:
            ``pipelines.retry_run("0b3c…", Repo.open("."))``
        """
        storage = repo.remote().storage if repo is not None else None
        with self._runs() as runs:
            return runs.retry(run_id, storage)

    def terminate_run(self, run_id: str) -> None:
        """End a run on Kubeflow; do nothing if it has ended.

        Args:
            run_id: ID of the run.

        Raises:
            RunnerError: There is no such run, or the server refuses it.
            ValueError: The block has no credentials.

        Example:
            ``pipelines.terminate_run("0b3c…")``
        """
        with self._runs() as runs:
            runs.terminate(run_id)

    def archive_run(self, run_id: str) -> None:
        """Move a run on Kubeflow to the archive, where lists and the UI hide it.

        Args:
            run_id: ID of the run.

        Raises:
            RunnerError: There is no such run, or the server refuses it.
            ValueError: The block has no credentials.

        Example:
            ``pipelines.archive_run("0b3c…")``
        """
        with self._runs() as runs:
            runs.archive(run_id)

    def unarchive_run(self, run_id: str) -> None:
        """Move a run on Kubeflow back from the archive.

        Args:
            run_id: ID of the run.

        Raises:
            RunnerError: There is no such run, its experiment is archived too, or the server refuses it.
            ValueError: The block has no credentials.

        Example:
            ``pipelines.unarchive_run("0b3c…")``
        """
        with self._runs() as runs:
            runs.unarchive(run_id)

    @contextmanager
    def _runs(self) -> Iterator[Runs]:
        settings = self.settings()
        with closing(settings.connect()) as api:
            yield Runs(settings, api)

    def runner(
        self,
        repo: Repo,
        *,
        run_key: str = "",
        owner: str = "",
        on_event: Callable[[TaskEvent], None] | None = None,
    ) -> Runner:
        """Return a runner for a repository's stages, a context manager that ends all processes it started.

        Args:
            repo: The repository. Its temporary folder holds logs and KFP's files.
            run_key: Key that distinguishes cluster runs of equal content, such as the ID of a flow run. A retry with
                the same key continues the existing run.
            owner: ID of the flow run that follows the cluster's runs; `end_pipeline_runs` ends them by it.
            on_event: On a cluster, called with each task's state and new lines of its log, in other threads.

        Example:
            ``KubeflowPipelines(backend="local").runner(repo)``
        """
        if self.backend == "local":
            return LocalRunner(in_place=not self.hermetic)
        if self.backend == "kubeflow":
            return KfpClusterRunner(
                repo, self.settings(), fetch=self.fetch, run_key=run_key, owner=owner, on_event=on_event
            )
        return KfpLocalRunner(repo.tmp_dir / "kubeflow")
