"""Stop tracking data, or remove stages from a dvc.yaml (`dvkf remove`).

Source of the behaviour: DVC 3.x, ``dvc remove``.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.git import gitignore
from dvkf_prefect.data.verbs.unprotect import copies_of_links
from dvkf_prefect.data.workspace.workspace import Found
from dvkf_prefect.errors import GitError, OutputChangedError, OutputError, OutputNotFoundError
from dvkf_prefect.files import read_description, write_atomic
from dvkf_prefect.formats import documents
from dvkf_prefect.formats.dvcfile import is_parametrized
from dvkf_prefect.formats.files import PIPELINE_FILE, describes_outputs
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.formats.tracked import read_outputs
from dvkf_prefect.paths import check_parents
from dvkf_prefect.text import did_you_mean

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class Removal:
    """Result of a removal.

    Attributes:
        files: Removed `.dvc` files, and dvc.yaml files that lost stages.
        stages: Removed stages, as ``dvc.yaml:name``.
        outputs: Outputs that are no longer tracked, relative to the root.
        deleted: Outputs whose data was removed from the workspace.
    """

    files: tuple[str, ...]
    stages: tuple[str, ...]
    outputs: tuple[str, ...]
    deleted: tuple[str, ...] = ()


# -- removing ----------------------------------------------------------------------------------------------------------


def remove(
    repo: Repository,
    targets: Sequence[str],
    *,
    outs: bool = False,
    force: bool = False,
    dry_run: bool = False,
) -> Removal:
    """Implement `Repo.remove`."""
    with repo.lock(write=lambda: _remove(repo, targets, outs=False, force=False, dry_run=True).outputs):
        return _remove(repo, targets, outs=outs, force=force, dry_run=dry_run)


def _remove(repo: Repository, targets: Sequence[str], *, outs: bool, force: bool, dry_run: bool) -> Removal:
    chosen: dict[str, list[str] | None] = {}
    for target in targets:
        file, stage = _described(repo, target)
        known = chosen.setdefault(file, [])
        if stage is None:
            chosen[file] = None
        elif known is not None and stage not in known:
            known.append(stage)
    gone: list[Output] = []
    stages: dict[str, list[str]] = {}
    for file, names in chosen.items():
        if posixpath.basename(file) == PIPELINE_FILE:
            stages[file] = _stages_of(repo, file, names)
        tracked = read_outputs(repo.files(), file)
        gone += [output for output in tracked if file not in stages or output.stage in stages[file]]
    found = _looked_at(repo, gone) if outs else {}
    if outs and not force and (lost := [path for output in gone for path in _lost(repo, output, found)]):
        raise OutputChangedError(lost)
    deleted = tuple(path for path, content in found.items() if content.digest is not None)
    removal = Removal(
        tuple(chosen),
        tuple(f"{file}:{name}" for file, names in stages.items() for name in names),
        tuple(output.path for output in gone),
        deleted,
    )
    if dry_run:
        return removal
    for output in gone:
        path = repo.root / output.path
        if outs:
            repo.workspace.remove(output.path, found[output.path])
        elif output.cached and os.path.lexists(path):
            check_parents(repo.root, output.path)
            copies_of_links(repo, path)
        if repo.git and (output.cached or (output.origin and output.origin.repo)):
            gitignore.unignore(path)
    for file in chosen:
        if file in stages:
            _take_out(repo.root / file, file, stages[file])
        else:
            (repo.root / file).unlink()
    return removal


def _described(repo: Repository, target: str) -> tuple[str, str | None]:
    """Resolve a target to a file and a stage in it; the stage is None for a whole file.

    Raises:
        OutputNotFoundError: The file does not exist.
    """
    file, stage = target, ""
    if not describes_outputs(posixpath.basename(target)):
        file, _, stage = target.rpartition(":")
        file = file or PIPELINE_FILE
    if not describes_outputs(posixpath.basename(file)) or not (repo.root / file).is_file():
        known = [output.source for output in repo.outputs()]
        raise OutputNotFoundError(
            f"'{stage or target}' is neither a .dvc file nor a stage"
            f"{_meant(repo, file, stage) or '.' + (did_you_mean(target, known) or ' Name one of them.')}"
        )
    return file, stage or None


def _meant(repo: Repository, file: str, name: str) -> str:
    """Return a hint if the target is a data path with a `.dvc` file beside it; else an empty string."""
    meant = posixpath.join(posixpath.dirname(file), name) + ".dvc"
    return f"; do you mean '{meant}'?" if (repo.root / meant).is_file() else ""


def _stages_of(repo: Repository, file: str, names: Sequence[str] | None) -> list[str]:
    """Check that stages can be removed from a dvc.yaml, and return their names.

    Args:
        repo: The repository.
        file: The dvc.yaml, relative to the root.
        names: Stage names; None for all.

    Raises:
        OutputNotFoundError: The file has no such stage.
        OutputError: The stage comes from a `foreach`, a `matrix` or a template.
    """
    document = documents.load(read_description(repo.root / file, name=file), file)
    known: Any = document.get("stages") if isinstance(document, dict) else None
    known = known if isinstance(known, dict) else {}
    for name in known if names is None else names:
        group = name.partition("@")[0]
        entry = known.get(name if name in known else group)
        if isinstance(entry, dict) and ("foreach" in entry or "matrix" in entry):
            raise OutputError(
                f"'{group}' in {file} generates its stages with a `foreach` or a `matrix`. Edit that file to "
                "remove them."
            )
        if name not in known:
            near = ("." + did_you_mean(name, map(str, known))).removesuffix(".")
            raise OutputNotFoundError(f"no stage '{name}' in {file}{_meant(repo, file, name) or near}")
        if is_parametrized(entry):
            raise OutputError(f"cannot remove a parametrized stage: '{name}'. Edit {file} to remove it.")
    return list(known if names is None else names)


def _looked_at(repo: Repository, outputs: Sequence[Output]) -> dict[str, Found]:
    found = {}
    for output in outputs:
        place = repo.root / output.path
        if place.is_symlink() and place.is_dir():
            # Only the link is removed; its target is not part of the repository.
            found[output.path] = Found(Content(output.digest or "link"))
        else:
            found[output.path] = repo.workspace.look(output.path, hash_name=output.hash_name)
    return found


def _lost(repo: Repository, output: Output, found: dict[str, Found]) -> list[str]:
    """Return the files of an output whose content is neither in the cache nor in git."""
    rows = found[output.path].rows
    if rows is None or (not output.cached and _in_git(repo, output.path)):
        return []
    missing = repo.cache.missing(rows.digests, output.hash_name)
    return [
        posixpath.join(output.path, relpath) if relpath else output.path
        for relpath, digest in zip(rows.relpaths, rows.digests, strict=True)
        if digest in missing
    ]


def _in_git(repo: Repository, path: str) -> bool:
    """Return True if the last commit contains the current content of a path."""
    if repo.git is None:
        return False
    try:
        changed = repo.git.run(
            "status", "--porcelain", "--ignored", "--", f":(top,literal){repo.git_prefix}{path}"
        )
        return not changed and bool(repo.git.tracked([repo.git_prefix + path]))
    except GitError:
        return False


def _take_out(place: Path, file: str, names: Sequence[str]) -> None:
    """Remove stages from a dvc.yaml and its dvc.lock; a file without other content is deleted.

    DVC deletes both files with the last stage, even if they have other content.
    """
    for path in (place.with_suffix(".lock"), place):
        try:
            old = read_description(path)
        except FileNotFoundError:
            continue
        document = documents.load_editable(old, file)
        stages = (document or {}).get("stages") or {}
        removed = [name for name in names if stages.pop(name, None) is not None]
        if not removed:
            continue
        if not stages:
            del document["stages"]
        if set(document) <= {"schema"}:
            path.unlink()
        else:
            write_atomic(path, documents.dump(document))
