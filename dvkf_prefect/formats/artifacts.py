"""Declarations in a dvc.yaml: ``artifacts`` of the repository, and ``datasets`` that its stages read from elsewhere.

Source of the formats: DVC 3.x (``dvc/annotations.py``, ``dvc/repo/datasets.py``).
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dvkf_prefect.formats import documents
from dvkf_prefect.formats.dvclock import lock_file
from dvkf_prefect.formats.dvcyaml import read_sections
from dvkf_prefect.formats.files import RepoFiles
from dvkf_prefect.formats.outputs import inside_root
from dvkf_prefect.formats.template import SourceFile, one_of


@dataclass(frozen=True, slots=True)
class ArtifactDecl:
    """One declared artifact.

    Attributes:
        path: The file or directory, posix, relative to the repository's root.
        type: Kind of artifact: ``model``, ``dataset``, …
        desc: Description for readers.
        labels: Search terms.
        meta: Free-form metadata.
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
        Declarations by name; empty if the file does not exist.

    Raises:
        ParseError: The section violates the format; the error names line, key and expected value.
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


_DATASET_KEYS = {"dvc": ("path", "rev"), "dc": (), "url": ()}


@dataclass(frozen=True, slots=True)
class Dataset:
    """One declared dataset; a stage reads it as ``ds://name``.

    Attributes:
        name: Name of the dataset.
        type: ``dvc`` (a path in another DVC repository), ``url`` (files at a url) or ``dc`` (of DataChain).
        url: Location of the dataset.
        file: The dvc.yaml that declares it, relative to the root.
        path: Path in the other repository.
        rev: Revision of the other repository, None if not given.
        lock: Entry recorded in dvc.lock; None if there is none, or if it belongs to another declaration.
        stale: True if the dvc.lock entry belongs to another declaration and needs an update.
    """

    name: str
    type: str
    url: str
    file: str
    path: str = ""
    rev: str | None = None
    lock: Mapping[str, Any] | None = None
    stale: bool = False


def read_datasets(files: RepoFiles, path: str) -> dict[str, Dataset]:
    """Read the datasets that one dvc.yaml declares, with their entries in dvc.lock.

    Args:
        files: The revision to read from.
        path: The dvc.yaml, relative to the root.

    Returns:
        Declarations by name; empty if the file does not exist.

    Raises:
        ParseError: A section violates the format; the error names line, key and expected value.
    """
    try:
        declared = read_sections(files, path).datasets
    except FileNotFoundError:
        return {}
    if not declared:
        return {}
    source = SourceFile(files.read(path), path)
    locked = _locked_datasets(files, lock_file(path))
    found: dict[str, Dataset] = {}
    for index, values in enumerate(declared):
        place = ("datasets", index)
        if not isinstance(values, Mapping) or not all(
            isinstance(values.get(k), str) for k in ("name", "url")
        ):
            raise source.wrong(place, "a dataset is a mapping with `name`, `type` and `url`, each a string")
        kind = values.get("type")
        if kind not in _DATASET_KEYS:
            raise source.wrong(
                (*place, "type"), f"the type of a dataset is {one_of(_DATASET_KEYS)}, not {kind!r}"
            )
        spec = _spec(values, kind)
        lock = locked.get(values["name"])
        fits = lock is not None and lock.get("type") == kind and _spec(lock, kind) == spec
        found[values["name"]] = Dataset(
            name=values["name"],
            type=kind,
            url=values["url"],
            file=path,
            path=spec.get("path") or "",
            rev=spec.get("rev"),
            lock=lock if fits else None,
            stale=lock is not None and not fits,
        )
    return found


def _spec(values: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {key: values.get(key) or None for key in ("name", "url", *_DATASET_KEYS[kind])}


def _locked_datasets(files: RepoFiles, path: str) -> dict[str, Mapping[str, Any]]:
    try:
        data = files.read(path)
    except FileNotFoundError:
        return {}
    document = documents.load(data, path) if b"datasets" in data else None
    entries = document.get("datasets") if isinstance(document, dict) else None
    if entries is None:
        return {}
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "name" in e for e in entries):
        raise SourceFile(data, path).wrong(("datasets",), "`datasets` is a list of mappings with `name`")
    return {str(entry["name"]): entry for entry in entries}
