"""Dependencies outside the repository: an absolute path, a path that leads out, or a url.

They are recorded as in `dvc import-url`: by the metadata of the service, else by the md5 of their bytes. They are
neither downloaded nor cached; the command reads them in place.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvkf_prefect.errors import OutputError, OutputNotFoundError
from dvkf_prefect.formats.dvclock import Item, item_of
from dvkf_prefect.formats.dvcyaml import Dependency, Stage
from dvkf_prefect.formats.objects import MD5, Content

if TYPE_CHECKING:
    from dvkf_prefect.data.git.command import Git
    from dvkf_prefect.data.repository.repository import Repository

_EMPTY = "d41d8cd98f00b204e9800998ecf8427e"
_MARKS = ("md5", "etag", "checksum")


def mark_of(item: Mapping[str, Any]) -> str | None:
    """Return the content identifier of an entry's dependency: its digest, or the etag or checksum of a service.

    Args:
        item: The dependency as the entry holds it.
    """
    return next((str(item[name]) for name in _MARKS if item.get(name)), None)


def place_of(repo: Repository, stage: Stage, dep: Dependency) -> str:
    """Return the place of an outside dependency: an absolute path, or a url.

    Args:
        repo: The repository.
        stage: The stage.
        dep: One of its dependencies.
    """
    if "://" in dep.name:
        return dep.name
    return os.path.normpath(repo.root / stage.wdir / dep.name)


def with_own_paths(stage: Stage, folder: Path) -> Stage:
    """Return a stage with absolute dependencies inside the repository made relative, as in DVC.

    Args:
        stage: The stage.
        folder: The repository's root.
    """
    root = f"{folder}/"
    if not any(dep.external and dep.name.startswith("/") for dep in stage.deps):
        return stage
    deps = [
        Dependency(inner := path.removeprefix(root), posixpath.relpath(inner, stage.wdir or "."))
        if dep.external and (path := posixpath.normpath(dep.name)).startswith(root)
        else dep
        for dep in stage.deps
    ]
    return replace(stage, deps=tuple(deps))


def place_in_git(repo: Repository, git: Git, stage: Stage, dep: Dependency) -> str | None:
    """Return a dependency's path relative to the top of git's work tree; None for one that is not in it.

    Args:
        repo: The repository.
        git: The git work tree that contains it.
        stage: The stage.
        dep: One of its dependencies.
    """
    if dep.dataset is not None or (dep.external and "://" in dep.name):
        return None
    place = place_of(repo, stage, dep) if dep.external else os.path.join(repo.root, dep.path)
    root, top = os.path.realpath(repo.root), os.path.realpath(git.root)
    inside = os.path.relpath(os.path.join(root, os.path.relpath(place, repo.root)), top)
    if inside.split("/")[0] == "..":
        return None
    return "" if inside == "." else inside


def read_outside(repo: Repository, stage: Stage, dep: Dependency) -> tuple[Content | None, Item | None]:
    """Return the current state of an outside dependency, to compare and as an entry holds it; None if missing.

    Args:
        repo: The repository.
        stage: The stage.
        dep: One of its dependencies.

    Raises:
        RemoteError: The service does not answer, or refuses.
        ConfigError: The url cannot be used.
    """
    from dvkf_prefect.data.imports.sources import open_source

    place = place_of(repo, stage, dep)
    if "://" not in place and not _can_be_read(place):
        return None, None
    if "://" not in place and os.path.isfile(place) and not os.path.getsize(place):
        # Treated as empty without reading: the kernel's virtual files have size 0, and reading them may block.
        empty = Content(_EMPTY, 0, isexec=bool(os.stat(place).st_mode & 0o111))
        return empty, item_of(dep.name, empty)
    try:
        facts = open_source(repo.config, place, folder=repo.root).facts()
    except (OutputNotFoundError, OutputError, FileNotFoundError, PermissionError):
        return None, None
    item: Item = {"path": dep.name, "hash": MD5, **facts.values}
    content = Content(
        mark_of(item) or "",
        item.get("size"),
        item.get("nfiles"),
        bool(item.get("isexec", False)),
    )
    return content, item


def differs_at_a_look(
    repo: Repository, stage: Stage, dep: Dependency, recorded: Mapping[str, Any] | None
) -> bool:
    """Return True if a local dependency differs from its record by kind, size or number of files; reads no content.

    A status query need not hash a large dependency, for instance a whole disk.

    Args:
        repo: The repository.
        stage: The stage.
        dep: One of its dependencies.
        recorded: The dependency in dvc.lock; None if absent.
    """
    if recorded is None or mark_of(recorded) is None:
        return True
    place = place_of(repo, stage, dep)
    if "://" in place:
        return False
    size, nfiles = recorded.get("size"), recorded.get("nfiles")
    if not os.path.isdir(place):
        return nfiles is not None or (size is not None and Path(place).stat().st_size != size)
    left, count = [place], 0
    while left:
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
                else:
                    count += 1
        if count > (nfiles or 0):
            return True
    return count != nfiles


def exists_outside(repo: Repository, stage: Stage, dep: Dependency) -> bool:
    """Return True if a local outside dependency can be read; urls are not queried and count as readable.

    Args:
        repo: The repository.
        stage: The stage.
        dep: One of its dependencies.
    """
    place = place_of(repo, stage, dep)
    return "://" in place or _can_be_read(place)


def _can_be_read(place: str) -> bool:
    try:
        mode = os.stat(place).st_mode
    except OSError:
        return False
    return stat.S_ISDIR(mode) or stat.S_ISREG(mode)
