"""Current content of a `.dvc` file's dependencies, for recording the file again."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.repository import legacy
from dvkf_prefect.errors import DvkfError, OutputNotFoundError
from dvkf_prefect.files import read_description
from dvkf_prefect.formats import documents
from dvkf_prefect.formats.dvcfile_edit import content_keys
from dvkf_prefect.formats.objects import LEGACY, MD5
from dvkf_prefect.urls import without_secrets

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository

Dep = dict[str, Any]
_OF_CONTENT = frozenset(
    {"md5", "etag", "checksum", "size", "nfiles", "isexec", "version_id", "hash", "files", "cloud"}
)


def dependencies_now(repo: Repository, source: str) -> list[Dep] | None:
    """Return the dependencies of a `.dvc` file with their current content.

    Args:
        repo: The repository.
        source: Path of the `.dvc` file, relative to the root.

    Returns:
        The entries of the file; None for a file without dependencies. An entry of another repository is not changed,
        because its commit identifies the content.

    Raises:
        OutputNotFoundError: A dependency does not exist, or its service does not respond.
    """
    data = read_description(repo.root / source)
    if b"deps" not in data:
        return None
    document: Any = documents.load(data, source)
    if not document or not document.get("deps"):
        return None
    folder = posixpath.normpath(posixpath.join(posixpath.dirname(source), document.get("wdir") or "."))
    return [_now(repo, folder, dep) for dep in document["deps"]]


def _now(repo: Repository, folder: str, dep: Mapping[str, Any]) -> Dep:
    if "repo" in dep or "db" in dep:
        return dict(dep)
    name = dep["path"]
    path = posixpath.normpath(posixpath.join(folder, name))
    if "://" in name or path.startswith(("/", "../")):
        return _outside(repo, folder, dep)
    kept = {key: value for key, value in dep.items() if key not in _OF_CONTENT}
    hash_name = MD5 if dep.get("hash") == MD5 else LEGACY
    found = legacy.unchanged(repo, path, dep.get("md5"), hash_name)
    content = (found or repo.workspace.look(path)).content
    if content is None:
        raise OutputNotFoundError(f"dependency '{name}' does not exist")
    return {**content_keys(content), **kept}


def _outside(repo: Repository, folder: str, dep: Mapping[str, Any]) -> Dep:
    from dvkf_prefect.data.imports.origins import url_dep
    from dvkf_prefect.data.imports.sources import open_source
    from dvkf_prefect.data.repository.trust import check_options

    options = dep.get("fs_config") or {}
    if options:
        check_options(options, repo.root, f"the dependency {without_secrets(dep['path'])}")
    versions = {"version_aware": True} if dep.get("version_id") or dep.get("files") else {}
    try:
        opened = open_source(
            repo.config, dep["path"], folder=repo.root / folder, fs_config={**options, **versions}
        )
        return url_dep(dep["path"], opened.facts(), options)
    except DvkfError as error:
        name = without_secrets(dep["path"])
        raise OutputNotFoundError(f"dependency '{name}' does not exist: {error}") from error
