"""DVC repositories: a folder of the worker, or a git URL that is cloned."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from prefect import get_run_logger
from prefect.blocks.core import Block
from prefect.context import FlowRunContext, TaskRunContext
from prefect.runtime import flow_run
from pydantic import ConfigDict, Field, HttpUrl, field_validator, model_validator

from dvkf_prefect.blocks._common import documentation_url, drop_empty, logo_url, plain_fields
from dvkf_prefect.blocks.remotes import DvcRemote, refuse_userinfo
from dvkf_prefect.data.git.clones import clone, clone_path
from dvkf_prefect.data.git.command import Git, check_revision, check_url
from dvkf_prefect.data.git.origin import origin_address, origin_url
from dvkf_prefect.data.repository.turns import turn
from dvkf_prefect.errors import GitError, NotARepositoryError
from dvkf_prefect.pipeline.run.apart import apart
from dvkf_prefect.repo import Repo
from dvkf_prefect.settings import DvkfSettings
from dvkf_prefect.urls import public_url

# Git's two forms of an address: with a scheme, or host:path as in scp.
_GIT_URL = re.compile(r"^(?:[a-z][a-z0-9+.-]*://|[^/\s:]+@[^/\s:]+:|[^/\s:]{2,}:[^/])", re.IGNORECASE)
# A host and a path without a scheme, as github.com/team/digits.
_HOST = re.compile(r"^[\w-]+(?:\.[\w-]+)+/[^/]")


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
    _documentation_url: ClassVar[HttpUrl | None] = documentation_url("DvcRepository")
    _logo_url: ClassVar[HttpUrl | None] = logo_url()

    # A message about a wrong value would repeat the value, which may hold a password.
    model_config = ConfigDict(hide_input_in_errors=True, json_schema_extra=plain_fields)

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
        description="Short name on cards and in the keys of artifacts; the name of the git repository's folder or URL "
        "if empty, and the folder inside. "
        "Set it to distinguish repositories of equal names.",
    )
    remote: DvcRemote | None = Field(
        default=None, description="Remote with the data; the repository's own default if empty."
    )

    models_url: str | None = Field(
        default=None,
        title="Models URL",
        description="Place that versions of models are published to: s3://bucket/models, a folder, or "
        "remote://NAME/models below a remote. A URL of the remote's service uses the remote's credentials.",
    )

    _drop_empty = model_validator(mode="before")(drop_empty)
    _check_path = field_validator("path")(refuse_userinfo)
    _check_models_url = field_validator("models_url")(refuse_userinfo)

    @model_validator(mode="after")
    def _check_rev(self) -> DvcRepository:
        if self.rev and not self.is_cloned:
            raise ValueError(
                f"rev '{self.rev}' needs a git URL: a folder is used in its checked-out state. "
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
        """Name in the keys of artifacts: the label, or the last part of the git repository's path or URL.

        A DVC repository inside the git repository has its folder there after a slash, however the block names it.
        """
        if self.label:
            return self.label
        if self.is_cloned:
            last = PurePosixPath(re.split(r"[/:]", self.path.rstrip("/"))[-1]).name.removesuffix(".git")
            return self._with_folder(last)
        git = Git.find(self._root)
        return self._with_folder((git.root if git else self._root).name, git)

    @property
    def shared_name(self) -> str:
        """Name that is equal for all clones: the label, or the address of git's origin; else the same as `name`."""
        if self.label:
            return self.label
        git = None if self.is_cloned else Git.find(self._root)
        url = public_url(self.path) if self.is_cloned else origin_url(git)
        shared = origin_address(url) or PurePosixPath(url).name.removesuffix(".git")
        return self._with_folder(shared, git) if shared else self.name

    @property
    def address(self) -> str:
        """Address of git's origin, or else the folder: two of them with one `name` are different repositories.

        It is empty with a label, which is a name of its own, wherever the repository is.
        """
        if self.label:
            return ""
        url = public_url(self.path) if self.is_cloned else origin_url(Git.find(self._root))
        return origin_address(url) or url or str(self._root)

    @property
    def _root(self) -> Path:
        """Folder of `path`, with no ``..`` in it, as its last part is a name."""
        return Path(os.path.abspath(Path(self.path).expanduser()))

    def _with_folder(self, name: str, git: Git | None = None) -> str:
        """Return a name with the folder of the DVC repository inside its git repository."""
        place = PurePosixPath(self.folder or "")
        if git is not None:
            place = PurePosixPath(self._root.relative_to(git.root)) / place
        parts = [part for part in (name or "repository", *place.parts) if part != "/"]
        return "/".join(parts)

    def open(self) -> Repo:
        """Open the repository. For a git URL, clone it or update its clone first.

        Returns:
            The repository, with the block's remote as the default.

        Raises:
            NotARepositoryError: The folder does not exist, or is no DVC repository.
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
            if not root.exists() and _HOST.match(self.path):
                raise NotARepositoryError(
                    f"{root.absolute()} does not exist. Write a git URL with its scheme: https://{self.path}."
                )
        if self.folder:
            root = root / self.folder
        return Repo.open(root, config=self.remote.as_config() if self.remote else None)

    def storage_options(self, rev: str | None = None) -> dict[str, Any]:
        """Return options for reading ``dvkf://`` paths of this repository by pandas, fsspec and others.

        Args:
            rev: Git revision to read; None for the block's own, or else for the workspace of a folder.

        Returns:
            The options, with the remote's secrets in the clear. Do not print them, and do not return them from a task.

        Example:
            ``pandas.read_csv("dvkf://data/train.csv", storage_options=repository.storage_options("v1"))``
        """
        options: dict[str, Any] = {"repo": self.path, "rev": rev or self.rev}
        if not self.is_cloned:
            options["repo"] = str(Path(self.path).expanduser().absolute() / (self.folder or ""))
        elif self.folder:
            # `open` knows the folder inside the clone.
            options["repo"] = str(self.open().root)
        if self.remote is not None:
            options["config"] = self.remote.as_config()
        return options

    @contextmanager
    def overridden(self, overrides: Sequence[str]) -> Iterator[DvcRepository]:
        """Have the last commit with other values of parameters for the length of a ``with`` block.

        The values are committed to a branch of their own, in a work tree apart from this repository's folder. Tasks
        that get the yielded repository record their results there.

        Args:
            overrides: Values in the grammar of ``dvc exp run --set-param``, such as ``train.lr=0.2``. Without any, the
                repository itself is yielded.

        Raises:
            ConfigError: An override is wrong.
            GitError: There is no git or no commit, or git refused.

        Example:
            ``with repository.overridden(["train.lr=0.2"]) as other: repro_pipeline(other, pipelines)``
        """
        if not overrides:
            yield self
            return
        # Without the block's remote, whose secrets would be written into the work tree.
        repo = Repo.open(self.open().root)
        with apart(repo, overrides, timeout=DvkfSettings().turn_timeout) as place:
            path = {"path": str(place.root), "rev": None, "folder": None}
            yield self.model_copy(update={**path, "label": self.name})

    @contextmanager
    def turn(self, *, timeout: float | None = None) -> Iterator[None]:
        """Have the workspace alone for the length of a ``with`` block, in a flow or a task.

        Other flows with a turn, `repro_pipeline` and ``dvkf repro`` wait meanwhile. Tasks and subflows inside the block
        belong to it. The turn ends with the process, however that ends.

        Args:
            timeout: Seconds to wait for the others; the setting ``turn_timeout`` by default.

        Raises:
            LockedError: The others had the workspace for the whole time.

        Example:
            ``with repository.turn(): pull_data(repository); repro_pipeline(repository, pipelines)``
        """
        settings = DvkfSettings()
        if self.is_cloned:
            # The clone does not exist before its first use, and commands of a shell do not run there.
            made = clone_path(self.path, self.rev, settings.folder("clones"))
            path = made.with_name(f"{made.name}.turn.lock")
        else:
            path = self.open().turn_file
        run = flow_run.get_name()
        # A step of a deployment knows the run, and has no context of it yet.
        inside = FlowRunContext.get() is not None or TaskRunContext.get() is not None
        logger = get_run_logger() if inside else logging.getLogger(__name__)
        with turn(
            path,
            holder=f"flow run '{run}'" if run else "a program",
            timeout=settings.turn_timeout if timeout is None else timeout,
            on_wait=logger.info,
        ):
            yield
