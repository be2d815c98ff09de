"""Sources of imports: the fields that `.dvc` files record of them, and how to open them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.imports.external import ExternalRepo, local_folder, open_external
from dvkf_prefect.data.imports.sources import Facts
from dvkf_prefect.data.repository.trust import check_options
from dvkf_prefect.files import read_description
from dvkf_prefect.formats import documents
from dvkf_prefect.formats.objects import MD5
from dvkf_prefect.formats.outputs import Origin, Output

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository

TIMEOUT = 120.0


def repo_dep(path: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dependency of an import from a repository, with keys in DVC's order."""
    order = ("url", "rev", "rev_lock", "config", "remote")
    return {"path": path, "repo": {key: values[key] for key in order if values.get(key)}}


def url_dep(path: str, facts: Facts | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dependency of an import from a url, with keys in DVC's order; ``facts`` is None if it was not read."""
    dep: dict[str, Any] = {**(facts.values if facts else {}), "hash": MD5, "path": path}
    if options:
        dep["fs_config"] = dict(options)
    if facts and facts.files:
        names = ("relpath", "etag", "size", "version_id")
        dep["files"] = [
            {name: value for name in names if (value := getattr(file, name)) is not None}
            for file in facts.files
        ]
    return dep


def aware(repo: Repository, origin: Origin) -> dict[str, Any]:
    """Return the options for reading an import's url.

    Raises:
        ConfigError: An option would run a command, see `trust`.
    """
    if origin.fs_config:
        check_options(origin.fs_config, repo.root, f"the import of {origin}")
    return {**origin.fs_config, **({"version_aware": True} if origin.versioned else {})}


def dependency(repo: Repository, output: Output) -> Any:
    """Return the dependency of an import, as recorded in its `.dvc` file."""
    return documents.load(read_description(repo.root / output.source), output.source)["deps"][0]


# -- fetching ----------------------------------------------------------------------------------------------------------


def from_source(output: Output) -> bool:
    """Return True if an output's content is fetched from its import source rather than from a remote."""
    origin = output.origin
    return (
        origin is not None
        and output.cached
        and (origin.repo is not None or origin.versioned or output.digest is None)
    )


def open_origin(
    repo: Repository, values: Mapping[str, Any], rev_lock: str | None, *, typed: bool = False
) -> AbstractContextManager[ExternalRepo]:
    """Open the repository that an import names, at a commit.

    Args:
        repo: The importing repository; its root is the base of a relative path.
        values: Keys of ``repo`` in the `.dvc` file.
        rev_lock: Commit; None for the current commit of ``rev``.
        typed: True if the user gave the values, False if a file did; see `trust`.
    """
    url = str(values["url"])
    if local_folder(url) is None and "://" not in url and local_folder(str(repo.root / url)) is not None:
        url = str(repo.root / url)
    rev = rev_lock or values.get("rev") or ("HEAD" if local_folder(url) is not None else None)
    remote = values.get("remote")
    return open_external(
        url,
        rev,
        remote=remote if isinstance(remote, str) else None,
        remote_config=remote if isinstance(remote, Mapping) else None,
        config=values.get("config"),
        typed=typed,
        jobs=repo.jobs,
        progress=repo.progress,
    )
