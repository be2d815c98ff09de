"""Servers of registered models on the worker's machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, HttpUrl, model_validator

from dvkf_prefect.blocks._common import documentation_url, drop_empty, logo_url, plain_fields
from dvkf_prefect.errors import ModelError, ServingError
from dvkf_prefect.promotion.places import ServingState
from dvkf_prefect.scratch import scratch_folder
from dvkf_prefect.serving.endpoint import Endpoint
from dvkf_prefect.serving.gating import Check
from dvkf_prefect.serving.lanes import Batching
from dvkf_prefect.serving.local import LocalServing
from dvkf_prefect.settings import DvkfSettings

if TYPE_CHECKING:
    from dvkf_prefect.models.registry import ModelRegistry
    from dvkf_prefect.models.version import ModelVersion


class ModelServer(Block):
    """Serves registered models on the worker's machine, on 127.0.0.1: one process per model, or one for several.

    The servers implement the V1 and the Open Inference Protocol. A new version takes over the port of the previous
    one without refusing a request.

    Example:
        Load it and request a prediction:
        ```python
        from dvkf_prefect import ModelServer

        server = ModelServer.load("BLOCK_NAME")
        endpoint = server.serving().get("digits")
        print(endpoint.predict([[0.0] * 64]))
        ```
    """

    _block_type_name = "Model Server"
    _block_type_slug = "model-server"
    _documentation_url: ClassVar[HttpUrl | None] = documentation_url("ModelServer")
    _logo_url: ClassVar[HttpUrl | None] = logo_url()

    model_config = ConfigDict(json_schema_extra=plain_fields)

    state_dir: str | None = Field(
        default=None,
        title="State folder",
        description="Folder on the worker with the state of running servers; below Prefect's home if empty.",
    )
    server: str = Field(
        default="",
        title="Server",
        description="Name of the server that models are deployed into; empty for a server of its own for each model.",
    )
    port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="Port on 127.0.0.1; 0 for a free one, which later versions keep.",
    )
    grpc_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        title="gRPC port",
        description="Port on 127.0.0.1 for gRPC; 0 for a free one, which later versions keep, empty for no gRPC.",
    )
    detached: bool = Field(
        default=True,
        description="Keep servers running after the run that started them; otherwise they end with its process.",
    )
    timeout: float = Field(
        default=60, gt=0, description="Seconds to wait until a server is ready, and for each of its answers."
    )

    batch_size: int = Field(
        default=1,
        ge=1,
        description="Maximum number of requests that one prediction answers; 1 for one at a time.",
    )
    batch_wait: float = Field(
        default=0,
        ge=0,
        le=10,
        description="Seconds that a request waits for more to make a batch; 0 to batch only what already waits.",
    )

    workers: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Processes that compute for each version, for models that keep a core busy; 0 for threads.",
    )

    _drop_empty = model_validator(mode="before")(drop_empty)

    @property
    def folder(self) -> Path:
        """Folder with the state of running servers."""
        if self.state_dir:
            return Path(self.state_dir).expanduser().absolute()
        return DvkfSettings().folder("serving")

    def serving(self) -> LocalServing:
        """Return the registry of running servers, which finds, starts and stops them."""
        return LocalServing(
            self.folder, Batching(self.batch_size, self.batch_wait), self.server, self.workers
        )

    @property
    def where(self) -> str:
        """Place of the servers, for the lineage of their versions."""
        return str(self.folder)

    def deploy(
        self, registry: ModelRegistry, version: ModelVersion, *, model_format: str | None = None
    ) -> Endpoint:
        """Serve a registered version in place of the one that is served now.

        On failure, the previous version is still served.

        Args:
            registry: Registry of the version. It provides the file, verified.
            version: The version.
            model_format: Format of the model; by the names of its files if None.

        Returns:
            The running endpoint.

        Raises:
            ModelError: DVC recorded no content for the version.
            ModelDigestError: The file does not match the version's digest.
            ServingError: The server did not start; with the end of its log.

        Example:
            ``ModelServer().deploy(registry, registry.show("digits", "#prod"))``
        """
        with self._files(registry, version) as (files, digest):
            return self.serving().deploy(
                version.name,
                version.version,
                files,
                digest,
                model_format=model_format,
                port=self.port,
                grpc_port=self.grpc_port,
                detached=self.detached,
                timeout=self.timeout,
            )

    def undeploy(self, model: str) -> bool:
        """Stop the server of a model, or unload it from a shared one; requests in flight are answered first.

        A shared server ends with its last model.

        Args:
            model: The model's name.

        Returns:
            True if it was served.

        Raises:
            ServingError: The server does not end.

        Example:
            ``ModelServer().undeploy("digits")``
        """
        return self.serving().stop(model, timeout=self.timeout)

    def endpoint(self, model: str) -> Endpoint:
        """Return the running endpoint of a model.

        Args:
            model: The model's name.

        Raises:
            ServingError: The model is not served here.
        """
        serving = self.serving()
        found = serving.get(model)
        if found is None:
            running = ", ".join(endpoint.model for endpoint in serving.list()) or "none"
            raise ServingError(
                f"model '{model}' is not served by this block (running: {running}). Deploy a version of it first."
            )
        return found

    def state(self, model: str) -> ServingState | None:
        """Return the versions of a model that are served; None if there is none.

        Args:
            model: The model's name.

        Example:
            ``ModelServer().state("digits").version``
        """
        found = self.serving().get(model)
        return ServingState(found.version, found.canary, found.percent, found.url) if found else None

    def start_canary(
        self,
        registry: ModelRegistry,
        version: ModelVersion,
        percent: int,
        *,
        model_format: str | None = None,
        check: Check | None = None,
    ) -> Endpoint:
        """Serve a registered version beside the one that is served now, for a part of the requests.

        A request with the header ``X-Sticky-Key`` goes by a hash of the key; others go at random. The header
        ``X-Model-Version`` of an answer is the version that computed it.

        Args:
            registry: Registry of the version. It provides the file, verified.
            version: The version.
            percent: Percentage of the requests, 0 to 99; with 0, only paths with the version reach it.
            model_format: Format of the model; by the names of its files if None.
            check: Called once the canary is loaded, such as `dvkf_prefect.serving.gating.GateCheck`; an error ends it.

        Raises:
            ModelError: DVC recorded no content for the version.
            ModelDigestError: The file does not match the version's digest.
            ServingError: The model is not served, or the version cannot be loaded.

        Example:
            ``server.start_canary(registry, registry.show("digits"), 10)``
        """
        with self._files(registry, version) as (files, digest):
            endpoint = self.serving().start_canary(
                version.name,
                version.version,
                files,
                digest,
                percent,
                model_format=model_format,
                timeout=self.timeout,
            )
        if check is not None:
            try:
                check(endpoint.of_version(version.version), endpoint.version)
            except BaseException:
                self.abort_canary(version.name)
                raise
        return endpoint

    def candidate(self, model: str, version: str) -> Endpoint | None:
        """Return an endpoint that one loaded version alone answers; None if it is not loaded.

        Args:
            model: The model's name.
            version: The version that is served, or its canary.

        Example:
            ``ModelServer().candidate("digits", "v1.2.0").predict([[0.0] * 64])``
        """
        found = self.serving().get(model)
        return found.of_version(version) if found and version in (found.version, found.canary) else None

    def start_preview(self, registry: ModelRegistry, version: ModelVersion) -> Endpoint:
        """Serve a registered version apart from the model, on a port of its own, until this process ends.

        Args:
            registry: Registry of the version. It provides the file, verified.
            version: The version.

        Raises:
            ModelError: DVC recorded no content for the version.
            ModelDigestError: The file does not match the version's digest.
            ServingError: The server did not start; with the end of its log.

        Example:
            ``ModelServer().start_preview(registry, registry.show("digits")).predict([[0.0] * 64])``
        """
        with self._files(registry, version) as (files, digest):
            return self._previews.deploy(
                version.name, version.version, files, digest, detached=False, timeout=self.timeout
            )

    def end_preview(self, model: str) -> None:
        """End the preview of a model; nothing if there is none.

        Args:
            model: The model's name.

        Raises:
            ServingError: The server does not end.

        Example:
            ``ModelServer().end_preview("digits")``
        """
        self._previews.stop(model, timeout=self.timeout)

    @property
    def _previews(self) -> LocalServing:
        return LocalServing(
            self.folder / "previews", Batching(self.batch_size, self.batch_wait), workers=self.workers
        )

    def promote_canary(self, model: str) -> Endpoint:
        """Give the canary of a model all requests.

        Args:
            model: The model's name.

        Raises:
            ServingError: The model is not served, or has no canary.

        Example:
            ``server.promote_canary("digits")``
        """
        return self.serving().promote_canary(model, timeout=self.timeout)

    def abort_canary(self, model: str) -> Endpoint:
        """End the canary of a model; the version before it has all requests.

        Args:
            model: The model's name.

        Raises:
            ServingError: The model is not served, or has no canary.

        Example:
            ``server.abort_canary("digits")``
        """
        return self.serving().abort_canary(model, timeout=self.timeout)

    @contextmanager
    def _files(self, registry: ModelRegistry, version: ModelVersion) -> Iterator[tuple[Path, str]]:
        """Provide a version's files and digest; a loaded model never reads the files again."""
        if version.path is None or version.digest is None:
            raise ModelError(
                f"{version} has no file to serve. Register a version of a model that DVC tracks."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        with scratch_folder("model-", self.folder) as folder:
            yield (
                registry.materialise(version, folder / "files" / Path(version.path).name),
                version.digest,
            )
