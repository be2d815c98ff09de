"""A remote of a DVC repository, with its credentials, kept by Prefect."""

from __future__ import annotations

from typing import ClassVar

from prefect.blocks.core import Block
from prefect.types import SecretDict
from pydantic import ConfigDict, Field, HttpUrl, SecretStr, field_validator

from dvkf_prefect.blocks._common import DOCUMENTATION_URL, values_of
from dvkf_prefect.urls import holds_secret


def refuse_userinfo(url: str) -> str:
    """Return a url that holds no secret: no userinfo but the plain user of an ssh or hdfs url, no signature.

    Raises:
        ValueError: It holds one; it would be shown wherever the url is.
    """
    if holds_secret(url):
        raise ValueError(
            "the url holds a password, token or signature, which would be shown with it. Give it apart from the url."
        )
    return url


class DvcRemote(Block):
    """Where the objects of a DVC repository are shared, and how to get in.

    The fields are DVC's options of an S3 remote by their DVC names; options of other kinds of remotes go into
    ``options``. Over the repository's own configuration, a block's remote is the default one.

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
        description="Where the objects are: s3://bucket/prefix, a folder, or any other url that DVC knows."
    )
    remote_name: str = Field(
        default="prefect",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="The remote's name in the repository; outputs with `remote:` refer to it.",
    )
    endpointurl: str | None = Field(
        default=None, title="Endpoint URL", description="Address of an S3 service other than Amazon's."
    )
    region: str | None = Field(default=None, description="Region of the bucket.")
    profile: str | None = Field(default=None, description="Profile in the credentials file of the worker.")
    credentialpath: str | None = Field(
        default=None,
        title="Credentials file",
        description="Credentials file on the worker, other than AWS's default.",
    )
    configpath: str | None = Field(
        default=None, title="Configuration file", description="AWS configuration file on the worker."
    )
    access_key_id: SecretStr | None = Field(default=None, title="Access key ID", description="The key's ID.")
    secret_access_key: SecretStr | None = Field(default=None, description="The key's secret.")
    session_token: SecretStr | None = Field(
        default=None, description="Token of temporary credentials, beside ID and secret."
    )
    allow_anonymous_login: bool | None = Field(
        default=None, description="Read a public bucket without credentials when none are found."
    )
    use_ssl: bool | None = Field(
        default=None,
        title="Use SSL",
        description="Speak https with an endpoint that is given without a scheme.",
    )
    ssl_verify: str | None = Field(
        default=None, title="Verify SSL", description="true, false, or the path of a CA bundle on the worker."
    )
    read_timeout: int | None = Field(default=None, ge=1, description="Seconds to wait for an answer.")
    connect_timeout: int | None = Field(default=None, ge=1, description="Seconds to wait for a connection.")
    sse: str | None = Field(
        default=None, title="SSE", description="Server-side encryption of what is written: AES256 or aws:kms."
    )
    sse_kms_key_id: str | None = Field(
        default=None, title="SSE KMS key ID", description="Key for encryption by aws:kms."
    )
    acl: str | None = Field(
        default=None, title="ACL", description="Canned access control list of what is written."
    )
    jobs: int | None = Field(default=None, ge=1, description="How many objects are moved at the same time.")
    options: SecretDict = Field(
        default_factory=lambda: SecretDict({}),
        description="Further options of this kind of remote by DVC's names, such as account_key or keyfile.",
    )

    _check_url = field_validator("url")(refuse_userinfo)

    def as_config(self) -> dict[str, dict[str, str]]:
        """Return the settings that make this the repository's default remote, for ``Repo.open(config=...)``.

        Returns:
            Sections of options; they hold the secrets in the clear, so they are not for printing.

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
