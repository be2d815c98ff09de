"""DVC repositories: a folder of the worker, or a git URL that is cloned."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, HttpUrl, field_validator, model_validator

from dvkf_prefect.blocks._common import DOCUMENTATION_URL
from dvkf_prefect.blocks.remotes import DvcRemote, refuse_userinfo
from dvkf_prefect.data.git.clones import clone
from dvkf_prefect.data.git.command import check_revision, check_url
from dvkf_prefect.data.repo import Repo
from dvkf_prefect.errors import GitError
from dvkf_prefect.settings import DvkfSettings

# Git's two forms of an address: with a scheme, or host:path as in scp.
_GIT_URL = re.compile(r"^(?:[a-z][a-z0-9+.-]*://|[^/\s:]+@[^/\s:]+:|[^/\s:]{2,}:[^/])", re.IGNORECASE)


class DvcRepository(Block):
    """Git repository with DVC data versions, and the remote with the data.

    A git URL is cloned, shallow, into a folder of the worker. Each `open` updates the clone. Commits in it that were
    not pushed are never discarded.

    Example:
        Load it and pull its data:
        ```python
        from dvkf_prefect import DvcRepository

        repository = DvcRepository.load("BLOCK_NAME")
        repo = repository.open()
        repo.pull()
        ```
    """

    _block_type_name = "DVC Repository"
    _block_type_slug = "dvc-repository"
    _documentation_url: ClassVar[HttpUrl | None] = DOCUMENTATION_URL

    # A message about a wrong value would repeat the value, which may hold a password.
    model_config = ConfigDict(hide_input_in_errors=True)

    path: str = Field(
        default=".", description="Folder of the repository on the worker, or the git URL to clone it from."
    )
    rev: str | None = Field(
        default=None,
        title="Revision",
        description="Branch, tag or commit to clone; the default branch if empty. Only for a git URL.",
    )
    folder: str | None = Field(
        default=None, description="Folder of the DVC repository inside the git repository; the top if empty."
    )
    label: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9-]*$",
        description="Short name in the keys of artifacts, to distinguish repositories with equal paths.",
    )
    remote: DvcRemote | None = Field(
        default=None, description="Remote with the data; the repository's own default if empty."
    )

    _check_path = field_validator("path")(refuse_userinfo)

    @model_validator(mode="after")
    def _check_rev(self) -> DvcRepository:
        if self.rev and not self.is_cloned:
            raise ValueError(
                f"rev '{self.rev}' needs a git URL: a folder is used as it is checked out. "
                f"Use file://{Path(self.path).absolute()} to clone the folder."
            )
        try:
            if self.rev:
                check_revision(self.rev)
            if self.is_cloned or self.path.startswith("-"):
                check_url(self.path)
        except GitError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def is_cloned(self) -> bool:
        """True if `path` is a git URL to clone."""
        return bool(_GIT_URL.match(self.path)) and not Path(self.path).exists()

    @property
    def name(self) -> str:
        """Name in the keys of artifacts: the label, or the last part of the path or URL."""
        if self.label:
            return self.label
        if self.is_cloned:
            last = PurePosixPath(re.split(r"[/:]", self.path.rstrip("/"))[-1]).name.removesuffix(".git")
        else:
            last = Path(self.path).absolute().name
        return last or "repository"

    def open(self) -> Repo:
        """Open the repository. For a git URL, clone it or update its clone first.

        Returns:
            The repository, with the block's remote as the default.

        Raises:
            NotARepositoryError: The folder is no DVC repository.
            GitError: The clone failed, or an existing clone has commits that its origin does not have.
            ConfigError: The remote's options are invalid.

        Example:
            ``DvcRepository(path="https://git.example.org/team/digits.git", rev="main").open()``
        """
        settings = DvkfSettings()
        if self.is_cloned:
            root = clone(self.path, self.rev, settings.folder("clones"), timeout=settings.git_timeout)
        else:
            root = Path(self.path).expanduser()
        if self.folder:
            root = root / self.folder
        return Repo.open(root, config=self.remote.as_config() if self.remote else None)
