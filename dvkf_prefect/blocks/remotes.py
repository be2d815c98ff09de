"""A remote of a DVC repository, with its credentials, kept by Prefect."""

from __future__ import annotations

from typing import ClassVar

from prefect.blocks.core import Block
from prefect.types import SecretDict
from pydantic import ConfigDict, Field, HttpUrl, SecretStr, field_validator, model_validator

from dvkf_prefect.blocks._common import DOCUMENTATION_URL, drop_empty, values_of
from dvkf_prefect.urls import holds_secret


def refuse_userinfo(url: str) -> str:
    """Return the url if it holds no secret. The plain user of an ssh or hdfs url is allowed.

    Raises:
        ValueError: The url holds a password, token or signature, which would be shown with it.
    """
    if holds_secret(url):
        raise ValueError(
            "the url holds a password, token or signature, which would be shown with it. Give it apart from the url."
        )
    return url


class DvcRemote(Block):
    """Remote storage of a DVC repository, with credentials.

    Fields have the names of DVC's options for S3 remotes. Options of other remotes go into ``options``. The block's
    remote replaces the default remote of the repository's own configuration.

    Example:
        Load it and open a repository with it:
        ```python
        from dvkf_prefect import DvcRemote, Repo

        remote = DvcRemote.load("BLOCK_NAME")
        repo = Repo.open(".", config=remote.as_config())
        repo.pull()
        ```
    """

    _block_type_name = "DVC Remote"
    _block_type_slug = "dvc-remote"
    _documentation_url: ClassVar[HttpUrl | None] = DOCUMENTATION_URL

    # A message about a wrong value would repeat the value, which may hold a password.
    model_config = ConfigDict(hide_input_in_errors=True)

    url: str = Field(
        description="Location of the objects: s3://bucket/prefix, a folder, or any other url that DVC supports."
    )
    remote_name: str = Field(
        default="prefect",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="Name of the remote in the repository. Outputs with `remote:` refer to it.",
    )
    endpointurl: str | None = Field(
        default=None, title="Endpoint URL", description="Address of an S3 service other than Amazon's."
    )
    region: str | None = Field(default=None, description="Region of the bucket.")
    profile: str | None = Field(default=None, description="Profile in the worker's credentials file.")
    credentialpath: str | None = Field(
        default=None,
        title="Credentials file",
        description="Credentials file on the worker, other than AWS's default.",
    )
    configpath: str | None = Field(
        default=None, title="Configuration file", description="AWS configuration file on the worker."
    )
    access_key_id: SecretStr | None = Field(
        default=None, title="Access key ID", description="ID of the access key."
    )
    secret_access_key: SecretStr | None = Field(default=None, description="Secret of the access key.")
    session_token: SecretStr | None = Field(
        default=None, description="Session token of temporary credentials."
    )
    allow_anonymous_login: bool | None = Field(
        default=None, description="Read a public bucket without credentials if none are found."
    )
    use_ssl: bool | None = Field(
        default=None,
        title="Use SSL",
        description="Use https for an endpoint without a scheme.",
    )
    ssl_verify: str | None = Field(
        default=None, title="Verify SSL", description="true, false, or the path of a CA bundle on the worker."
    )
    read_timeout: int | None = Field(default=None, ge=1, description="Seconds to wait for an answer.")
    connect_timeout: int | None = Field(default=None, ge=1, description="Seconds to wait for a connection.")
    sse: str | None = Field(
        default=None, title="SSE", description="Server-side encryption of uploads: AES256 or aws:kms."
    )
    sse_kms_key_id: str | None = Field(
        default=None, title="SSE KMS key ID", description="Key for encryption with aws:kms."
    )
    acl: str | None = Field(default=None, title="ACL", description="Canned access control list of uploads.")
    jobs: int | None = Field(default=None, ge=1, description="Maximum number of parallel transfers.")
    options: SecretDict = Field(
        default_factory=lambda: SecretDict({}),
        description="Further options of the remote by DVC's names, such as account_key or keyfile.",
    )

    _drop_empty = model_validator(mode="before")(drop_empty)
    _check_url = field_validator("url")(refuse_userinfo)

    def as_config(self) -> dict[str, dict[str, str]]:
        """Return configuration with this remote as the default, for ``Repo.open(config=...)``.

        Returns:
            Sections of options, with secrets in the clear. Do not print them.

        Example:
            >>> DvcRemote(url="s3://bucket/data", region="eu-west-1").as_config()["core"]
            {'remote': 'prefect'}
        """
        name = self.remote_name.lower()
        own = {
            option: value
            for option, value in values_of(self).items()
            if option not in ("remote_name", "options") and value is not None
        }
        section = {
            option: str(value).lower() if isinstance(value, bool) else str(value)
            for option, value in {**own, **self.options.get_secret_value()}.items()
        }
        return {"core": {"remote": name}, f'remote "{name}"': section}
