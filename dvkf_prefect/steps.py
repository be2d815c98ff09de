"""Steps of deployments: repository and data before a run, data to the remote when a deployment is made.

Prefect imports a step by its name and passes the values of prefect.yaml. Later steps read the returned values:
`{{ id.directory }}`. ::

    push:
      - dvkf_prefect.steps.push_data:
          repository: digits
    pull:
      - dvkf_prefect.steps.pull_repository:
          repository: digits
          targets: [data/train]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefect.logging import get_logger

from dvkf_prefect.blocks import DvcRepository, find_block
from dvkf_prefect.cards import transfer_text
from dvkf_prefect.errors import ConfigError
from dvkf_prefect.repo import Repo

BlockSource = str | Mapping[str, Any]


def pull_repository(
    repository: BlockSource | None = None,
    *,
    url: str | None = None,
    rev: str | None = None,
    targets: str | Sequence[str] = (),
    data: bool = True,
    force: bool = False,
) -> dict[str, Any]:
    """Clone a git repository or update its clone, and pull its data; for the ``pull`` section.

    Runs on one worker share the clone. The step waits while another run has a turn in it, see `DvcRepository.turn`.

    Args:
        repository: Name of a DVC Repository block, or its fields: ``{{ prefect.blocks.dvc-repository.NAME }}``.
        url: Git URL or folder, in place of a block.
        rev: Branch, tag or commit to clone; for ``url`` only.
        targets: Outputs, `.dvc` files or stages to pull; all outputs if empty.
        data: False leaves the data on the remote.
        force: Overwrite changes that are not in the cache.

    Returns:
        ``directory``, the top of the git repository, where Prefect starts the flow; ``root``, the folder of the DVC
        repository; ``commit``; and those of `pull_data`.

    Raises:
        ConfigError: Neither or both of ``repository`` and ``url`` are given, or no block has that name.
        GitError: The clone failed.
        TransferError: Objects are missing on the remote, or damaged.

    Example:
        ``pull_repository("digits", targets=["data/train"])``
    """
    if (repository is None) == (url is None):
        raise ConfigError("pull_repository: the source is not clear. Pass either repository or url.")
    if url is not None:
        block = DvcRepository(path=url, rev=rev)
    elif rev is not None:
        raise ConfigError(
            "pull_repository: rev is a field of the block. Set that field, or pass url and rev."
        )
    else:
        block = _block_of(repository)
    with block.turn():
        repo = block.open()
        found = _pull(repo, targets, force=force) if data else {}
    git = repo.git
    return {
        "directory": str(git.root if git is not None else repo.root),
        "root": str(repo.root),
        "commit": git.head() if git is not None else None,
        **found,
    }


def pull_data(
    repository: BlockSource | None = None,
    *,
    directory: str = ".",
    targets: str | Sequence[str] = (),
    force: bool = False,
) -> dict[str, Any]:
    """Download data from the remote and check it out, for the ``pull`` section after a step that brings the code.

    Args:
        repository: Name of a DVC Repository block, or its fields.
        directory: Folder of the repository, in place of a block: ``{{ clone.directory }}``.
        targets: Outputs, `.dvc` files or stages; all outputs if empty.
        force: Overwrite changes that are not in the cache.

    Returns:
        ``files`` and ``size``, the downloaded objects and bytes, and ``versions``, the digest of each output by path.

    Raises:
        TransferError: Objects are missing on the remote, or damaged. All others were downloaded.
        RemoteError: The remote cannot be used.

    Example:
        ``pull_data(directory="/srv/digits")``
    """
    return _pull(_open(repository, directory), targets, force=force)


def push_data(
    repository: BlockSource | None = None, *, directory: str = ".", targets: str | Sequence[str] = ()
) -> dict[str, Any]:
    """Upload data from the cache to the remote, for the ``push`` section, so that workers find it.

    Args:
        repository: Name of a DVC Repository block, or its fields.
        directory: Folder of the repository, in place of a block.
        targets: Outputs, `.dvc` files or stages; all outputs if empty.

    Returns:
        ``files`` and ``size``, the uploaded objects and bytes.

    Raises:
        TransferError: Objects are missing, or their upload failed. All others were uploaded.
        RemoteError: The remote cannot be used.

    Example:
        ``push_data("digits")``
    """
    done = _open(repository, directory).push(_listed(targets))
    get_logger("deployment").info("%s", transfer_text("pushed", done))
    return {"files": done.files, "size": done.size}


def _block_of(repository: BlockSource | None) -> DvcRepository:
    if isinstance(repository, Mapping):
        return DvcRepository.model_validate(dict(repository))
    return find_block(DvcRepository, repository or "", "repository")


def _open(repository: BlockSource | None, directory: str) -> Repo:
    return Repo.open(directory) if repository is None else _block_of(repository).open()


def _listed(targets: str | Sequence[str]) -> Sequence[str]:
    return (targets,) if isinstance(targets, str) else targets


def _pull(repo: Repo, targets: str | Sequence[str], *, force: bool) -> dict[str, Any]:
    pulled = repo.pull(_listed(targets), force=force)
    get_logger("deployment").info("%s", transfer_text("fetched", pulled.transfer))
    outputs = repo.outputs(_listed(targets))
    return {
        "files": pulled.transfer.files,
        "size": pulled.transfer.size,
        "versions": {output.path: output.digest for output in outputs if output.digest},
    }
