"""The ``artifacts`` section of a dvc.yaml: names for the models and data of a repository."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dvkf_prefect.data.outputs import inside_root
from dvkf_prefect.data.revisions import RepoFiles
from dvkf_prefect.pipeline.stages import read_sections


@dataclass(frozen=True, slots=True)
class ArtifactDecl:
    """One declared artifact.

    Attributes:
        path: The file or directory, posix, relative to the repository's root.
        type: What it is: ``model``, ``dataset``, …
        desc: A text for people.
        labels: Words to find it by.
        meta: Anything.
    """

    path: str
    type: str = ""
    desc: str = ""
    labels: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


def read_artifacts(files: RepoFiles, path: str) -> dict[str, ArtifactDecl]:
    """Read the artifacts that one dvc.yaml declares.

    Args:
        files: The revision to read from.
        path: The dvc.yaml, relative to the root.

    Returns:
        Declarations by name; none when there is no such file.

    Raises:
        ParseError: The section does not say what the format allows; names line, key and what was expected.
        UnsafePathError: A path leads out of the repository.
    """
    try:
        declared = read_sections(files, path).artifacts
    except FileNotFoundError:
        return {}
    return {
        name: ArtifactDecl(
            path=inside_root(posixpath.join(posixpath.dirname(path), str(values["path"])), path),
            type=str(values.get("type") or ""),
            desc=str(values.get("desc") or ""),
            labels=tuple(map(str, values.get("labels", ()))),
            meta=values.get("meta") or {},
        )
        for name, values in declared.items()
    }
