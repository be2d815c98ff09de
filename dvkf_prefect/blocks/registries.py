"""Kubeflow Model Registries that mirror the models of repositories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Literal

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, HttpUrl, model_validator

from dvkf_prefect.blocks._common import documentation_url, drop_empty, logo_url, plain_fields
from dvkf_prefect.blocks.credentials import KubeflowCredentials
from dvkf_prefect.kubeflow.cluster.login import Login
from dvkf_prefect.kubeflow.registry.client import RegistryApi
from dvkf_prefect.kubeflow.registry.mirror import Mirror, MirrorReport
from dvkf_prefect.models.registry import ModelRegistry


class KubeflowModelRegistry(Block):
    """Mirrors the model versions of repositories in a Kubeflow Model Registry.

    Git's tags stay the truth: models, versions, stages and states are copied to the registry. With two ways, a stage
    or a state that was changed in the registry alone is copied to git.

    Example:
        Load it and mirror all models of a repository:
        ```python
        from dvkf_prefect import KubeflowModelRegistry, ModelRegistry, Repo

        block = KubeflowModelRegistry.load("BLOCK_NAME")
        print(block.mirror(ModelRegistry(Repo.open("."))))
        ```
    """

    _block_type_name = "Kubeflow Model Registry"
    _block_type_slug = "kubeflow-model-registry"
    _documentation_url: ClassVar[HttpUrl | None] = documentation_url("KubeflowModelRegistry")
    _logo_url: ClassVar[HttpUrl | None] = logo_url()

    # A message about a wrong value would repeat the value, which may hold a password.
    model_config = ConfigDict(hide_input_in_errors=True, json_schema_extra=plain_fields)

    host: str = Field(
        min_length=1,
        description="Address of the registry, such as http://model-registry-service.kubeflow:8080 inside the cluster, "
        "or https://kubeflow.example.org.",
    )
    credentials: KubeflowCredentials | None = Field(
        default=None,
        description="Login and certificates of the Kubeflow that the registry belongs to; its host is not used. No "
        "login if empty.",
    )
    api: Literal["auto", "v1", "v1alpha3"] = Field(
        default="auto", title="API version", description="Version of the API. auto: the first that answers."
    )
    prefix: str = Field(
        default="",
        description="Text before the names of models, such as team/, to keep repositories apart that share a registry.",
    )
    two_ways: bool = Field(
        default=False,
        description="Copy stages and archived versions from the registry to git, if git has not changed them.",
    )
    timeout: float = Field(default=30.0, gt=0, description="Seconds to wait for an answer.")

    _drop_empty = model_validator(mode="before")(drop_empty)

    @contextmanager
    def connect(self) -> Iterator[RegistryApi]:
        """Open a connection to the registry.

        Raises:
            ConfigError: The address or the certificates are wrong.
        """
        given = self.credentials
        api = RegistryApi(
            self.host,
            base=self.api,
            headers=login_of(given).headers if given else dict,
            ca_file=given.ca_file if given else None,
            verify_ssl=given.verify_ssl if given else True,
            timeout=self.timeout,
        )
        try:
            yield api
        finally:
            api.close()

    def mirror(self, registry: ModelRegistry, models: Sequence[str] = ()) -> MirrorReport:
        """Mirror a repository's models; an interrupted mirror is completed by the next one.

        Args:
            registry: The models of the repository.
            models: Names of the models; all if empty.

        Returns:
            Records that were created, updated or right already, and changes copied to git.

        Raises:
            ModelNotFoundError: A model is not registered in git.
            ModelError: A name does not fit into the registry, or belongs to another repository.
            RegistryError: The registry refused a call or did not answer.

        Example:
            ``block.mirror(ModelRegistry(Repo.open(".")), ["digits"])``
        """
        with self.connect() as api:
            return Mirror(registry, api, self.prefix, self.two_ways).run(models)


def login_of(credentials: KubeflowCredentials) -> Login:
    """Return the login of a block."""
    password, cookie, token = credentials.password, credentials.cookie, credentials.token
    return Login(
        token=token.get_secret_value() if token else "",
        token_file=credentials.token_file,
        username=credentials.username,
        password=password.get_secret_value() if password else "",
        cookie=cookie.get_secret_value() if cookie else "",
        cookie_name=credentials.cookie_name,
    )
