"""Servers of registered models on the worker's machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl

from dvkf_prefect.blocks._common import DOCUMENTATION_URL
from dvkf_prefect.errors import ModelError, ServingError
from dvkf_prefect.scratch import scratch_folder
from dvkf_prefect.serving.endpoint import Endpoint
from dvkf_prefect.serving.local import LocalServing
from dvkf_prefect.settings import DvkfSettings

if TYPE_CHECKING:
    from dvkf_prefect.models.registry import ModelRegistry, ModelVersion


class ModelServer(Block):
    """Serves registered models on the worker's machine, one process per model, on 127.0.0.1.

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
    _documentation_url: ClassVar[HttpUrl | None] = DOCUMENTATION_URL

    state_dir: str | None = Field(
        default=None,
        title="State folder",
        description="Folder on the worker with the state of running servers; below Prefect's home if empty.",
    )
    port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="Port on 127.0.0.1; 0 for a free one, which later versions keep.",
    )
    detached: bool = Field(
        default=True,
        description="Keep servers running after the run that started them; otherwise they end with its process.",
    )
    timeout: float = Field(
        default=60, gt=0, description="Seconds to wait until a server is ready, and for each of its answers."
    )

    @property
    def folder(self) -> Path:
        """Folder with the state of running servers."""
        if self.state_dir:
            return Path(self.state_dir).expanduser().absolute()
        return DvkfSettings().folder("serving")

    def serving(self) -> LocalServing:
        """Return the registry of running servers, which finds, starts and stops them."""
        return LocalServing(self.folder)

    def deploy(self, registry: ModelRegistry, version: ModelVersion) -> Endpoint:
        """Serve a registered version in place of the one that is served now.

        On failure, the previous version is still served.

        Args:
            registry: Registry of the version. It provides the file, verified.
            version: The version.

        Returns:
            The running endpoint.

        Raises:
            ModelError: DVC recorded no content for the version.
            ModelDigestError: The file does not match the version's digest.
            ServingError: The server did not start; with the end of its log.

        Example:
            ``ModelServer().deploy(registry, registry.show("digits", "#prod"))``
        """
        if version.path is None or version.digest is None:
            raise ModelError(f"{version} has no file that could be served")
        self.folder.mkdir(parents=True, exist_ok=True)
        # A ready server has loaded its model and never reads the files again.
        with scratch_folder("model-", self.folder) as folder:
            files = registry.materialise(version, folder / "files" / Path(version.path).name)
            return self.serving().deploy(
                version.name,
                version.version,
                files,
                version.digest,
                port=self.port,
                detached=self.detached,
                timeout=self.timeout,
            )

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
                f"model '{model}' is not served here (running: {running}); deploy a version of it first"
            )
        return found
