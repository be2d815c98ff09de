"""A remote of a DVC repository, with its credentials, kept by Prefect."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from typing import Any, ClassVar

from prefect.filesystems import WritableFileSystem
from prefect.types import SecretDict
from pydantic import ConfigDict, Field, HttpUrl, PrivateAttr, SecretStr, field_validator, model_validator

from dvkf_prefect.blocks._common import documentation_url, drop_empty, logo_url, plain_fields, values_of
from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.data.remotes.remote import open_remote
from dvkf_prefect.data.results.expiry import ExpiredResults, expire_results
from dvkf_prefect.data.results.locks import ResultLocks
from dvkf_prefect.data.results.store import ResultStorage
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


class DvcRemote(WritableFileSystem):
    """Remote storage of a DVC repository, with credentials. It also stores results of flows and tasks.

    Most fields are for S3; they have the names of DVC's options. Options of other remotes go into ``options``. The
    block's remote replaces the default remote of the repository's own configuration.

    Results of Prefect are below ``results-dvkf/`` of the remote, by content. DVC ignores that folder. Their keys and
    metadata hold no credentials. Save the block before it is a ``result_storage``.

    Example:
        Load it and open a repository with it:
        ```python
        from dvkf_prefect import DvcRemote, Repo

        remote = DvcRemote.load("BLOCK_NAME")
        repo = Repo.open(".", config=remote.as_config())
        repo.pull()
        ```
        Keep a flow's results on it:
        ```python
        from prefect import flow

        @flow(result_storage="dvc-remote/BLOCK_NAME", persist_result=True)
        def count() -> int:
            return 1
        ```
    """

    _block_type_name = "DVC Remote"
    _block_type_slug = "dvc-remote"
    _documentation_url: ClassVar[HttpUrl | None] = documentation_url("DvcRemote")
    _logo_url: ClassVar[HttpUrl | None] = logo_url()

    # A message about a wrong value would repeat the value, which may hold a password.
    model_config = ConfigDict(hide_input_in_errors=True, json_schema_extra=plain_fields)

    url: str = Field(
        min_length=1,
        title="URL",
        description="Location of the objects: s3://bucket/prefix, a folder, or any other url that DVC supports.",
    )
    endpointurl: str | None = Field(
        default=None,
        title="Endpoint URL",
        description="Address of an S3 service other than Amazon's, such as https://minio.example.org:9000.",
    )
    region: str | None = Field(default=None, description="Region of the bucket, such as eu-west-1.")
    access_key_id: SecretStr | None = Field(
        default=None,
        title="Access key ID",
        description="ID of the access key; the worker's own credentials if empty.",
    )
    secret_access_key: SecretStr | None = Field(default=None, description="Secret of the access key.")
    session_token: SecretStr | None = Field(
        default=None, description="Session token of temporary credentials."
    )
    profile: str | None = Field(
        default=None, description="Profile in the worker's credentials file, in place of keys."
    )
    remote_name: str = Field(
        default="prefect",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="Name of the remote in the repository. Outputs with `remote:` refer to it.",
    )
    credentialpath: str | None = Field(
        default=None,
        title="Credentials file",
        description="Credentials file on the worker, other than AWS's default.",
    )
    configpath: str | None = Field(
        default=None, title="Configuration file", description="AWS configuration file on the worker."
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
    _opened: Storage | None = PrivateAttr(default=None)

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

    def read_path(self, path: str, *, _sync: bool | None = None) -> bytes:  # type: ignore[override]
        """Return a stored result. In async code, `aread_path` does it without blocking.

        Args:
            path: Key of the result.
            _sync: Sent by Prefect to choose this method; it is always synchronous.

        Raises:
            MissingObjectError: There is no such result.
            CorruptObjectError: The stored bytes are damaged.
            RemoteError: The remote cannot be used.
        """
        return self._results().read(path)

    async def aread_path(self, path: str) -> bytes:
        """Do the same as `read_path` in async code."""
        return await asyncio.to_thread(self.read_path, path)

    def write_path(self, path: str, content: bytes, *, _sync: bool | None = None) -> None:  # type: ignore[override]
        """Store a result, atomically. In async code, `awrite_path` does it without blocking.

        Args:
            path: Key of the result.
            content: Its bytes.
            _sync: Sent by Prefect to choose this method; it is always synchronous.

        Raises:
            RemoteError: The remote cannot be used.
        """
        self._results().write(path, content)

    async def awrite_path(self, path: str, content: bytes) -> None:
        """Do the same as `write_path` in async code."""
        await asyncio.to_thread(self.write_path, path, content)

    def locks(self) -> ResultLocks:
        """Return locks on this remote, for cache policies whose tasks run once among all workers.

        Example:
            ``INPUTS.configure(isolation_level="SERIALIZABLE", lock_manager=DvcRemote.load("store").locks())``
        """
        return ResultLocks(self._open)

    def expire_results(self, *, older_than: timedelta | None = None, dry_run: bool = False) -> ExpiredResults:
        """Remove stored results whose expiration has passed.

        Args:
            older_than: Also remove results of this age.
            dry_run: Return what would be removed without removing it.

        Returns:
            The number of results and objects removed.

        Raises:
            RemoteError: The remote cannot be used.

        Example:
            ``DvcRemote.load("store").expire_results(older_than=timedelta(days=30))``
        """
        age = None if older_than is None else older_than.total_seconds()
        return expire_results(self._open(), older_than=age, dry_run=dry_run)

    def _results(self) -> ResultStorage:
        return ResultStorage(self._open())

    def _open(self) -> Storage:
        """Return the storage, opened at first use."""
        if self._opened is None:
            section = dict(self.as_config()[f'remote "{self.remote_name.lower()}"'])
            if "://" not in section["url"]:
                section["url"] = os.path.abspath(os.path.expanduser(section["url"]))
            self._opened = open_remote(self.remote_name, section).storage
        return self._opened

    def __getstate__(self) -> dict[Any, Any]:
        # Connections stay in their process.
        state = super().__getstate__()
        private = dict(state["__pydantic_private__"] or {})
        private["_opened"] = None
        return {**state, "__pydantic_private__": private}
