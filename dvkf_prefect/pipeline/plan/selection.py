"""Selection of stages by names, groups, patterns, files, folders and outputs."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatchcase

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import StageNotFoundError
from dvkf_prefect.formats.files import PIPELINE_FILE
from dvkf_prefect.pipeline.plan.graph import Graph


def choose(
    repo: Repository, graph: Graph, targets: Sequence[str], *, recursive: bool = False, glob: bool = False
) -> list[str]:
    """Return the addresses of the selected stages, without duplicates.

    Args:
        repo: The repository.
        graph: Stages of the repository.
        targets: Names or addresses of stages, names of a ``foreach`` or ``matrix``, dvc.yaml files, their folders, or
            outputs. Paths are relative to the root.
        recursive: Let a folder select all stages defined in it and its subfolders.
        glob: Treat names of stages as patterns.

    Raises:
        StageNotFoundError: A target is none of these.
    """
    found: dict[str, None] = {}
    for target in targets:
        found.update(dict.fromkeys(_meant(repo, graph, target, recursive, glob)))
    return list(found)


def _meant(repo: Repository, graph: Graph, target: str, recursive: bool, glob: bool) -> list[str]:
    file, colon, name = target.rpartition(":")
    if glob and any(letter in name for letter in "*?["):
        if not colon:
            file, name = posixpath.join(posixpath.dirname(target), PIPELINE_FILE), posixpath.basename(target)
        matched = [a for a, s in graph.stages.items() if s.file == file and fnmatchcase(s.name, name)]
        if not matched:
            raise StageNotFoundError(f"no stage of '{file}' has a name like '{name}'")
        return matched
    plain = posixpath.normpath(target) if target else "."
    is_folder = not colon and (repo.root / plain).is_dir()
    if recursive and is_folder:
        prefix = "" if plain == "." else plain + "/"
        return [a for a, stage in graph.stages.items() if stage.file.startswith(prefix)]
    try:
        return graph.find(target)
    except StageNotFoundError:
        # A name means a stage of the dvc.yaml in the same folder; a folder means the dvc.yaml in it.
        beside = f"{posixpath.join(posixpath.dirname(plain), PIPELINE_FILE)}:{posixpath.basename(plain)}"
        inside = posixpath.normpath(posixpath.join(plain, PIPELINE_FILE))
        for other in () if colon else (beside, inside):
            with suppress(StageNotFoundError):
                return graph.find(other)
        if posixpath.basename(plain) == PIPELINE_FILE and (repo.root / plain).is_file():
            return []  # the file has only plots, metrics, parameters or artifacts
        raise
