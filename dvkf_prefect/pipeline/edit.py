"""Edits of dvc.yaml: add, freeze and unfreeze stages; byte for byte as DVC writes it.

Source of the format: DVC 3.x (``dvc/stage/serialize.py``).
"""

from __future__ import annotations

import copy
import os
import posixpath
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dvkf_prefect.data.git import gitignore
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import OutputInGitError, StageError, StageGraphError, StageNotFoundError
from dvkf_prefect.files import read_description, write_atomic
from dvkf_prefect.formats import documents
from dvkf_prefect.formats.dvcfile import is_parametrized
from dvkf_prefect.formats.dvcfile_edit import write_document
from dvkf_prefect.formats.dvcyaml import Stage, load_stages
from dvkf_prefect.formats.files import PIPELINE_FILE, RepoFiles
from dvkf_prefect.formats.outputs import check_overlap
from dvkf_prefect.formats.params import DEFAULT_FILE
from dvkf_prefect.formats.tracked import read_outputs
from dvkf_prefect.paths import file_meant
from dvkf_prefect.pipeline.plan.graph import Graph
from dvkf_prefect.text import did_you_mean

_ANNOTATIONS = ("desc", "type", "labels", "meta")
_FORBIDDEN = frozenset(string.punctuation) - {"_", "-"}
_KINDS = {"out": "outs", "metric": "metrics", "plot": "plots"}


@dataclass(frozen=True, slots=True)
class NewOutput:
    """Output of a stage to add.

    Attributes:
        name: Path, relative to the stage's working directory.
        kind: ``out``, ``metric`` or ``plot``.
        cached: False keeps it out of the cache.
        persist: True keeps its last content in place while the stage runs.
    """

    name: str
    kind: str = "out"
    cached: bool = True
    persist: bool = False


@dataclass(frozen=True, slots=True)
class NewStage:
    """A stage to add.

    Attributes:
        name: Name of the stage.
        command: Shell command of the stage.
        deps: Dependencies, relative to its working directory.
        params: Parameters by file; no keys mean the whole file.
        outs: Outputs of the stage.
        wdir: Its working directory, relative to the dvc.yaml's folder.
        desc: Description for readers.
        always_changed: True if the stage runs every time.
    """

    name: str
    command: str
    deps: Sequence[str] = ()
    params: Mapping[str, Sequence[str]] | None = None
    outs: Sequence[NewOutput] = ()
    wdir: str = "."
    desc: str = ""
    always_changed: bool = False


@dataclass(frozen=True, slots=True)
class AddedStage:
    """Result of adding a stage.

    Attributes:
        stage: The stage as dvc.yaml now has it.
        written: Files that were written, relative to the root.
    """

    stage: Stage
    written: tuple[str, ...]


def add_stage(repo: Repository, stage: NewStage, *, folder: str = "", force: bool = False) -> AddedStage:
    """Write a stage into the dvc.yaml of a folder, and its outputs into `.gitignore`.

    Args:
        repo: The repository.
        stage: The stage.
        folder: Folder of the dvc.yaml, relative to the root; the file is created if missing.
        force: Replace an existing stage of that name. Its desc and meta, and the annotations, remote and push of its
            outputs are kept.

    Returns:
        The stage and the files that were written.

    Raises:
        StageError: The stage's name or paths are wrong, or its name is taken.
        StageGraphError: It does not form a graph with the other stages.
        OutputOverlapError: One of its outputs is already tracked.
        OutputInGitError: Git tracks one of its outputs.
        ParseError: The dvc.yaml does not follow its format.
    """
    file = posixpath.join(folder, PIPELINE_FILE)
    _check(repo, stage, folder)
    with repo.lock():
        path = repo.root / file
        old = read_description(path) if path.exists() else b""
        document: Any = copy.deepcopy(documents.load(old, file)) or {}
        stages = document.setdefault("stages", {}) or {}
        before = stages.get(stage.name)
        if before is not None and not force:
            raise StageError(f"stage '{stage.name}' already exists in '{file}'. Use '--force' to overwrite.")
        stages[stage.name] = _definition(stage, before if isinstance(before, dict) else {})
        document["stages"] = stages
        new = write_document(old or None, file, document)
        added = _check_fit(_Draft(repo.files(), file, new), file, stage.name)
        _check_git(repo, added)
        if new != old:
            write_atomic(path, new)
        written = [file, *_keep_out_of_git(repo, added, [out.name for out in stage.outs])]
        repo.stage(written)
    return AddedStage(added, tuple(written))


def freeze(repo: Repository, target: str, *, frozen: bool = True) -> str:
    """Freeze or unfreeze a stage or an import.

    Args:
        repo: The repository.
        target: A stage's name or address, or a `.dvc` file, relative to the root.
        frozen: False unfreezes it.

    Returns:
        The file with the flag.

    Raises:
        StageNotFoundError: The target is neither a stage nor a `.dvc` file.
        StageError: The stage comes from a template.
        ParseError: The file does not follow its format.
    """
    with repo.lock():
        file = (
            _freeze_output(repo, target, frozen)
            if target.endswith(".dvc")
            else _freeze_stage(repo, target, frozen)
        )
        repo.stage([file])
    return file


def _freeze_output(repo: Repository, target: str, frozen: bool) -> str:
    path = repo.root / target
    if not path.is_file():
        raise StageNotFoundError(f"'{target}' does not exist.{file_meant(repo.root, target)}")
    old = read_description(path)
    read_outputs(repo.files(), target)  # raises if the file is invalid
    document = dict(documents.load(old, target))
    document.pop("frozen", None)
    if frozen:
        document["frozen"] = True
    new = write_document(old, target, document)
    if new != old:
        write_atomic(path, new)
    return target


def _freeze_stage(repo: Repository, target: str, frozen: bool) -> str:
    file, colon, name = target.rpartition(":")
    file = file if colon and file else PIPELINE_FILE
    try:
        stages = {stage.name: stage for stage in load_stages(repo.files(), file)}
    except FileNotFoundError:
        raise StageNotFoundError(f"'{target}' is not a stage: '{file}' does not exist") from None
    if name not in stages:
        raise StageNotFoundError(
            f"stage '{name}' is not in '{file}'; it has: {', '.join(stages) or 'none'}.{did_you_mean(name, stages)}"
        )
    path = repo.root / file
    old = read_description(path)
    document: Any = copy.deepcopy(documents.load(old, file))
    definition = document["stages"].get(name)
    if not isinstance(definition, dict) or is_parametrized(definition):
        raise StageError(
            f"stage '{name}' of '{file}' comes from a template. Add `frozen: {str(frozen).lower()}` to that "
            "template."
        )
    document["stages"][name] = definition_of(stages[name], frozen=frozen)
    new = write_document(old, file, document)
    if new != old:
        write_atomic(path, new)
    return file


def definition_of(stage: Stage, *, frozen: bool | None = None) -> dict[str, Any]:
    """Return a stage as DVC writes it into dvc.yaml: paths and parameters sorted, defaults omitted.

    Args:
        stage: The stage.
        frozen: Value of the frozen flag; None keeps the stage's own.
    """
    groups: dict[str, list[Any]] = {"outs": [], "metrics": [], "plots": []}
    for out in sorted(stage.outs, key=lambda out: out.name):
        flags: dict[str, Any] = {key: out.options[key] for key in _ANNOTATIONS if out.options.get(key)}
        if not out.cached:
            flags["cache"] = False
        if out.persist:
            flags["persist"] = True
        if out.kind == "plot":
            flags.update({key: value for key, value in out.options.items() if key not in _ANNOTATIONS})
        if out.remote:
            flags["remote"] = out.remote
        if not out.pushed:
            flags["push"] = False
        groups[_KINDS[out.kind]].append({out.name: flags} if flags else out.name)
    folder = posixpath.dirname(stage.file)
    wdir = posixpath.relpath(stage.wdir or ".", folder or ".")
    values: dict[str, Any] = {
        "desc": stage.desc,
        "cmd": stage.command if isinstance(stage.command, str) else list(stage.command),
        "wdir": wdir if wdir != "." else "",
        "deps": sorted(dep.name for dep in stage.deps),
        "params": _params(stage.params),
        **groups,
        "frozen": stage.frozen if frozen is None else frozen,
        "always_changed": stage.always_changed,
        "meta": stage.meta,
    }
    return {key: value for key, value in values.items() if value}


def _params(params: Mapping[str, Iterable[str]]) -> list[Any]:
    items: list[Any] = []
    for file in sorted(params):
        keys = sorted(params[file])
        if keys and file == DEFAULT_FILE:
            items = [*keys, *items]
        else:
            items.append({file: keys or None})
    return items


def _definition(stage: NewStage, old: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dvc.yaml entry of a new stage; the annotations and meta of the old entry are kept."""
    kept: dict[str, Mapping[str, Any]] = {}
    for key in _KINDS.values():
        for item in old.get(key) or ():
            if isinstance(item, dict):
                kept.update({name: flags for name, flags in item.items() if isinstance(flags, dict)})
    groups: dict[str, list[Any]] = {"outs": [], "metrics": [], "plots": []}
    for out in sorted(stage.outs, key=lambda out: out.name):
        before = kept.get(out.name, {})
        flags: dict[str, Any] = {key: before[key] for key in _ANNOTATIONS if before.get(key)}
        if not out.cached:
            flags["cache"] = False
        if out.persist:
            flags["persist"] = True
        if before.get("remote"):
            flags["remote"] = before["remote"]
        if before.get("push") is False:
            flags["push"] = False
        groups[_KINDS[out.kind]].append({out.name: flags} if flags else out.name)
    wdir = posixpath.normpath(stage.wdir)
    values: dict[str, Any] = {
        "desc": stage.desc or old.get("desc"),
        "cmd": stage.command,
        "wdir": wdir if wdir != "." else "",
        "deps": sorted(stage.deps),
        "params": _params(stage.params or {}),
        **groups,
        "always_changed": stage.always_changed,
        "meta": old.get("meta"),
    }
    return {key: value for key, value in values.items() if value}


def _check(repo: Repository, stage: NewStage, folder: str) -> None:
    if not stage.command:
        raise StageError("command is not specified")
    if not stage.name or _FORBIDDEN & set(stage.name):
        raise StageError(
            "stage name cannot contain punctuation characters other than hyphens and underscores: "
            f"'{stage.name}'"
        )
    wdir = repo.root / folder / stage.wdir
    if not wdir.exists():
        raise StageError(f"stage working dir '{stage.wdir}' does not exist")
    if not wdir.is_dir():
        raise StageError(f"stage working dir '{stage.wdir}' is not directory")
    paths: set[str] = set()
    for name in (*stage.deps, *(out.name for out in stage.outs)):
        path = name if "://" in name else os.path.normpath(wdir / name)
        if path in paths:
            raise StageError(f"'{name}' is named twice. Name each dependency and output of a stage once.")
        paths.add(path)


def _check_fit(files: RepoFiles, file: str, name: str) -> Stage:
    """Refuse a dvc.yaml whose stages do not form a graph; return the new stage as loaded from it."""
    sources = sorted({*files.find(), file})
    stages = [
        stage
        for path in sources
        if posixpath.basename(path) == PIPELINE_FILE
        for stage in load_stages(files, path)
    ]
    try:
        Graph(stages)
    except StageGraphError as error:
        raise StageGraphError(f"stage '{name}' was not added: {error}") from error
    check_overlap([output for path in sources for output in read_outputs(files, path)])
    return next(stage for stage in stages if stage.file == file and stage.name == name)


class _Draft:
    """Files of the workspace, with one of them replaced by a draft."""

    rev = None

    def __init__(self, files: RepoFiles, path: str, data: bytes) -> None:
        self._files = files
        self._path = path
        self._data = data

    def read(self, path: str) -> bytes:
        return self._data if path == self._path else self._files.read(path)

    def exists(self, path: str) -> bool:
        return path == self._path or self._files.exists(path)

    def find(self) -> list[str]:
        return self._files.find()


def _check_git(repo: Repository, stage: Stage) -> None:
    if repo.git is None:
        return
    prefix = repo.git_prefix
    tracked = repo.git.tracked([prefix + out.path for out in stage.outs if out.cached])
    if tracked:
        raise OutputInGitError(
            f"'{tracked[0].removeprefix(prefix)}' is an output that git tracks. Run "
            f"`git rm -r --cached '{tracked[0]}'`, or set `cache: false` for the output."
        )


def _keep_out_of_git(repo: Repository, stage: Stage, order: Sequence[str]) -> list[str]:
    """Ignore a stage's outputs in the given order; return the files that changed."""
    changed = []
    for out in sorted(stage.outs, key=lambda out: order.index(out.name)):
        place = repo.root / out.path
        if not out.cached or repo.git is None or not place.parent.is_dir():
            continue  # ignored after the stage has created the folder
        if not repo.git.is_ignored(str(place)) and gitignore.ignore(place):
            changed.append(posixpath.join(posixpath.dirname(out.path), ".gitignore"))
    return list(dict.fromkeys(changed))
