"""Credentials of services: addresses, tokens and certificates, apart from the work that uses them."""

from __future__ import annotations

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, HttpUrl, SecretStr, model_validator

from dvkf_prefect.blocks._common import documentation_url, drop_empty, logo_url, plain_fields


class KubeflowCredentials(Block):
    """Address of a Kubeflow Pipelines server, and a login for it.

    The login is a token, a file with a token, a name and password, or a session's cookies. Without any of them, a
    worker inside the cluster uses the token that Kubernetes mounts for Kubeflow Pipelines.

    Example:
        Load it and run stages on its cluster:
        ```python
        from dvkf_prefect import KubeflowCredentials, KubeflowPipelines

        credentials = KubeflowCredentials.load("BLOCK_NAME")
        pipelines = KubeflowPipelines(backend="kubeflow", credentials=credentials)
        ```
    """

    _block_type_name = "Kubeflow Credentials"
    _block_type_slug = "kubeflow-credentials"
    _documentation_url: ClassVar[HttpUrl | None] = documentation_url("KubeflowCredentials")
    _logo_url: ClassVar[HttpUrl | None] = logo_url()

    # A message about a wrong value would repeat the value, which may be a token.
    model_config = ConfigDict(hide_input_in_errors=True, json_schema_extra=plain_fields)

    host: str = Field(
        min_length=1,
        description="Address of Kubeflow Pipelines, such as https://kubeflow.example.org/pipeline.",
    )
    ui_host: str | None = Field(
        default=None,
        title="UI host",
        description="Address of Kubeflow Pipelines' UI, for links, if it differs from the host. If empty, the host is "
        "asked whether it serves the UI, and there are no links if it does not.",
    )
    token: SecretStr | None = Field(default=None, description="Bearer token.")
    token_file: str | None = Field(
        default=None,
        description="File on the worker with the token of a service account. It is read again for each request, "
        "because Kubernetes renews it.",
    )
    username: str | None = Field(
        default=None, description="Name for basic authentication, if there is no token."
    )
    password: SecretStr | None = Field(default=None, description="Password for basic authentication.")
    cookie: SecretStr | None = Field(
        default=None,
        description="Whole Cookie header of a browser's session, such as "
        "'oauth2_proxy_kubeflow_0=…; oauth2_proxy_kubeflow_1=…', or the value of one cookie.",
    )
    cookie_name: str | None = Field(
        default=None,
        description="Name of that one cookie. If empty, the value is sent under the names of Kubeflow's login "
        "proxies, oauth2_proxy_kubeflow and authservice_session.",
    )
    ca_file: str | None = Field(
        default=None,
        title="CA file",
        description="CA certificates on the worker to trust instead of the usual ones.",
    )
    verify_ssl: bool = Field(default=True, title="Verify SSL", description="Verify the server's certificate.")
    connect_timeout: float = Field(default=10.0, gt=0, description="Seconds to wait for a connection.")
    read_timeout: float = Field(default=60.0, gt=0, description="Seconds to wait for an answer.")

    _drop_empty = model_validator(mode="before")(drop_empty)
