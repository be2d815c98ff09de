"""The ``artifacts`` section of a dvc.yaml: names for the models and data of a repository."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dvkf_prefect.data import documents
from dvkf_prefect.data.outputs import inside_root
from dvkf_prefect.data.revisions import RepoFiles
from dvkf_prefect.errors import ParseError
from dvkf_prefect.pipeline.stages import load_pipeline_file

_KEYS = {"path": str, "type": str, "desc": str, "labels": list, "meta": object}


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
        data = files.read(path)
    except FileNotFoundError:
        return {}
    found: dict[str, ArtifactDecl] = {}
    for name, values in load_pipeline_file(data, path).get("artifacts", {}).items():
        place: list[str | int] = ["artifacts", name]
        if not isinstance(values, dict) or "path" not in values:
            raise _wrong(data, path, place, f"the artifact '{name}' is a mapping with `path`")
        for key, value in values.items():
            if key not in _KEYS:
                raise _wrong(data, path, [*place, key], f"unknown key '{key}'; expected {', '.join(_KEYS)}")
            if not isinstance(value, _KEYS[key]):
                kind = "a list of texts" if key == "labels" else "a text"
                raise _wrong(data, path, [*place, key], f"`{key}` of the artifact '{name}' is {kind}")
            if isinstance(value, str) and "${" in value.replace("\\${", ""):
                raise _wrong(data, path, [*place, key], "interpolation is not supported yet; write it out")
        found[str(name)] = ArtifactDecl(
            path=inside_root(posixpath.join(posixpath.dirname(path), values["path"]), path),
            type=values.get("type", ""),
            desc=values.get("desc", ""),
            labels=tuple(values.get("labels", ())),
            meta=values.get("meta") or {},
        )
    return found


def _wrong(data: bytes, path: str, place: list[str | int], expected: str) -> ParseError:
    return ParseError(path, expected, line=documents.line_of(data, place) or 1)
