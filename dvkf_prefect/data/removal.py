"""Let tracked data go, give it another place, or make it writable.

Source of the behaviour: DVC 3.x, ``dvc remove``, ``dvc move`` and ``dvc unprotect``.
"""

from __future__ import annotations

import json
import os
import posixpath
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data import documents, gitignore
from dvkf_prefect.data._copier import clone_one
from dvkf_prefect.data.dvc_file import write_document
from dvkf_prefect.data.links import aside_name
from dvkf_prefect.data.outputs import (
    Output,
    check_overlap,
    document_md5,
    is_parametrized,
    matching,
    read_outputs,
    with_content,
)
from dvkf_prefect.data.revisions import PIPELINE_FILE, describes_outputs
from dvkf_prefect.data.store import Stored
from dvkf_prefect.data.workspace import Found, starting
from dvkf_prefect.errors import (
    DvkfError,
    GitError,
    MissingObjectError,
    OutputChangedError,
    OutputError,
    OutputInGitError,
    OutputNotFoundError,
)
from dvkf_prefect.files import raise_disk_full, read_description, write_atomic
from dvkf_prefect.paths import check_parents, check_target

if TYPE_CHECKING:
    from dvkf_prefect.data.repo import Repo
    from dvkf_prefect.data.transfer import Progress

# What a move is about to do, as long as it is not done; in the folder for the state of a repository.
_MOVING = "moving"


@dataclass(frozen=True, slots=True)
class Removal:
    """What is tracked no longer.

    Attributes:
        files: The `.dvc` files that were removed, and the dvc.yaml files that stages were taken out of.
        stages: The stages, as ``dvc.yaml:name``.
        outputs: The outputs, relative to the root.
        deleted: Those whose data was removed from the workspace.
    """

    files: tuple[str, ...]
    stages: tuple[str, ...]
    outputs: tuple[str, ...]
    deleted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Move:
    """What was moved: the output and the `.dvc` file that describes it, before and now."""

    path: str
    new_path: str
    file: str
    new_file: str


# -- removing ----------------------------------------------------------------------------------------------------------


def remove(
    repo: Repo, targets: Sequence[str], *, outs: bool = False, force: bool = False, dry_run: bool = False
) -> Removal:
    """Do `Repo.remove`; the caller holds the lock."""
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
            _unprotect(repo, path)
        if repo.git and (output.cached or (output.origin and output.origin.repo)):
            gitignore.unignore(path)
    for file in chosen:
        if file in stages:
            _take_out(repo.root / file, file, stages[file])
        else:
            (repo.root / file).unlink()
    return removal


def _described(repo: Repo, target: str) -> tuple[str, str | None]:
    """Return the file that a target means, and the stage in it.

    Raises:
        OutputNotFoundError: There is no such file.
    """
    file, stage = target, ""
    if not describes_outputs(posixpath.basename(target)):
        file, _, stage = target.rpartition(":")
        file = file or PIPELINE_FILE
    if not describes_outputs(posixpath.basename(file)) or not (repo.root / file).is_file():
        raise OutputNotFoundError(
            f"'{stage or target}' is neither a .dvc file nor a stage{_meant(repo, file, stage)}"
        )
    return file, stage or None


def _meant(repo: Repo, file: str, name: str) -> str:
    """Return a hint where somebody names data instead of its `.dvc` file."""
    meant = posixpath.join(posixpath.dirname(file), name) + ".dvc"
    return f"; do you mean '{meant}'?" if (repo.root / meant).is_file() else ""


def _stages_of(repo: Repo, file: str, names: Sequence[str] | None) -> list[str]:
    """Return the stages that are written in a dvc.yaml; None for all.

    Raises:
        OutputNotFoundError: It has no such stage.
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
                f"'{group}' in {file} makes its stages by a `foreach` or a `matrix`; edit that file to remove them"
            )
        if name not in known:
            raise OutputNotFoundError(f"there is no stage '{name}' in {file}{_meant(repo, file, name)}")
        if is_parametrized(entry):
            raise OutputError(f"cannot remove a parametrized stage: '{name}'. Edit {file} to remove it.")
    return list(known if names is None else names)


def _looked_at(repo: Repo, outputs: Sequence[Output]) -> dict[str, Found]:
    found = {}
    for output in outputs:
        place = repo.root / output.path
        if place.is_symlink() and place.is_dir():
            # The link alone goes; what it leads to is not ours.
            found[output.path] = Found(output.digest or "link")
        else:
            found[output.path] = repo.workspace.look(output.path, hash_name=output.hash_name)
    return found


def _lost(repo: Repo, output: Output, found: dict[str, Found]) -> list[str]:
    """Return the files of an output that would be nowhere any more: neither in the cache nor in git."""
    rows = found[output.path].rows
    if rows is None or (not output.cached and _in_git(repo, output.path)):
        return []
    missing = repo.cache.missing(rows.digests, output.hash_name)
    return [
        posixpath.join(output.path, relpath) if relpath else output.path
        for relpath, digest in zip(rows.relpaths, rows.digests, strict=True)
        if digest in missing
    ]


def _in_git(repo: Repo, path: str) -> bool:
    """Tell whether the last commit has all that lies at a path as it is now."""
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
    """Take stages out of a dvc.yaml and its dvc.lock; a file that says nothing else is removed.

    DVC removes both files with the last stage, whatever else they hold.
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


# -- links to copies ---------------------------------------------------------------------------------------------------


def unprotect(repo: Repo, targets: Sequence[str], *, progress: Progress | None = None) -> list[str]:
    """Do `Repo.unprotect`; the caller holds the lock."""
    for target in targets:
        if target.split("/")[0] in (".dvc", ".git"):
            raise OutputError(f"'{target}' belongs to the repository itself; name data of the workspace")
        if not os.path.lexists(repo.root / target):
            raise OutputNotFoundError(f"can't unprotect '{target}': there is no such file or directory")
        check_parents(repo.root, target)
    changed: list[str] = []
    for target in targets:
        advance = starting(progress, f"unprotect {target}")
        for path, size in _unprotect(repo, repo.root / target):
            changed.append(path.relative_to(repo.root).as_posix())
            if advance:
                advance(1, size)
        if progress:
            progress.finish()
    return changed


def _unprotect(repo: Repo, place: Path) -> list[tuple[Path, int]]:
    """Replace links by copies and make files writable; return the files that changed and their bytes."""
    shared = repo.config.get("cache", "shared") == "group"
    changed: list[tuple[Path, int]] = []
    if place.is_symlink() and place.is_dir():
        return changed
    for path in _files(place):
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            continue  # another process removed it since it was listed
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(path).st_mode):
                continue
        linked = stat.S_ISLNK(info.st_mode) or info.st_nlink > 1
        if not linked and (info.st_mode & 0o200 or not stat.S_ISREG(info.st_mode)):
            continue
        if linked:
            _replace_by_copy(path)
        wanted = os.stat(path).st_mode | (0o660 if shared else 0o200)
        if stat.S_IMODE(wanted) != stat.S_IMODE(os.stat(path).st_mode):
            os.chmod(path, stat.S_IMODE(wanted))
        changed.append((path, os.stat(path).st_size))
    return changed


def _files(place: Path) -> Iterator[Path]:
    if place.is_symlink() or not place.is_dir():
        # What a link to a folder leads to is not the repository's.
        if not place.is_dir():
            yield place
        return
    for folder, folders, names in os.walk(place):
        folders[:] = [name for name in folders if name not in (".dvc", ".git")]
        for name in names:
            yield Path(folder, name)


def _replace_by_copy(path: Path) -> None:
    """Put a copy in the place of a link, as a whole.

    Raises:
        MissingObjectError: The link leads nowhere.
        DiskFullError: There is no room; the link stays.
    """
    try:
        mode = 0o777 if os.stat(path).st_mode & 0o100 else 0o666
    except FileNotFoundError:
        raise MissingObjectError(
            f"{path} is a link to an object that is not in the cache; `dvkf fetch` brings it"
        ) from None
    aside = path.with_name(aside_name(path.name))
    try:
        try:
            clone_one(os.path.realpath(path), str(aside), mode)
        except OSError:
            aside.unlink(missing_ok=True)
            with (
                open(path, "rb") as source,
                open(os.open(aside, os.O_WRONLY | os.O_CREAT, mode), "wb") as target,
            ):
                shutil.copyfileobj(source, target, 1 << 20)
        os.replace(aside, path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        raise_disk_full(error, path)
        raise


# -- moving ------------------------------------------------------------------------------------------------------------


def move(repo: Repo, source: str, target: str, *, progress: Progress | None = None) -> Move:
    """Do `Repo.move`; the caller holds the lock."""
    tracked = repo.outputs()
    output = next((o for o in matching(tracked, source) if o.path == source), None)
    if output is None:
        raise OutputNotFoundError(f"'{source}' is not a tracked file or directory of {repo.root}")
    if output.stage or _has_command(repo, output.source):
        raise OutputError(
            f"'{source}' is an output of a stage ({output.source}); move it in its dvc.yaml, and `dvkf repro`"
        )
    note = repo.tmp_dir / _MOVING
    begun = None if os.path.lexists(repo.root / source) else _begun(note, source, target)
    asked = target
    if begun is not None:
        target = begun
    elif (repo.root / target).is_dir():
        target = posixpath.join(target, posixpath.basename(source))
    # A .dvc file that is called like its output goes with it.
    follows = posixpath.basename(output.source) == posixpath.basename(source) + ".dvc"
    file = target + ".dvc" if follows else output.source
    moved = replace(output, path=target, source=file)
    check_target(repo.root, source)
    check_target(repo.root, target)
    _check_place(repo, output, moved, tracked, begun=begun is not None)
    old, new = repo.root / source, repo.root / target
    if not os.path.lexists(new.parent):
        new.parent.mkdir(parents=True)
    changed = [file, output.source]
    note.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(note, json.dumps([source, asked, target]).encode())
    if repo.git and output.cached and gitignore.ignore(new):
        changed.append(posixpath.join(posixpath.dirname(target), ".gitignore"))
    stored: Stored | None = None
    if os.path.lexists(old):
        os.rename(old, new)
    if os.path.lexists(new):
        stored = repo.workspace.take(target, advance=starting(progress, f"move {source}"))
        if progress:
            progress.finish()
    document = _moved_document(repo, output, moved, stored)
    write_atomic(repo.root / file, document)
    if repo.git and output.cached and target != source and gitignore.unignore(old):
        changed.append(posixpath.join(posixpath.dirname(source), ".gitignore"))
    if follows and file != output.source:
        # Last: as long as it is there, the same call goes on from wherever this one was killed.
        (repo.root / output.source).unlink()
    note.unlink(missing_ok=True)
    repo.stage(changed)
    return Move(source, target, output.source, file)


def _begun(note: Path, source: str, asked: str) -> str | None:
    """Return where a killed run was moving an output to, when it was asked for the same; None otherwise."""
    try:
        begun = json.loads(read_description(note))
    except (OSError, ValueError, RecursionError, DvkfError):
        return None
    places = (asked, posixpath.join(asked, posixpath.basename(source)))
    return next((place for place in places if begun == [source, asked, place]), None)


def _has_command(repo: Repo, file: str) -> bool:
    return bool(documents.load(read_description(repo.root / file, name=file), file).get("cmd"))


def _check_place(
    repo: Repo, output: Output, moved: Output, tracked: Sequence[Output], *, begun: bool = False
) -> None:
    """Refuse a place that is taken, unless by what a killed run had moved there already.

    Raises:
        OutputError: Something is there, or may not be there.
    """
    if moved.path.split("/")[0] in (".dvc", ".git") or describes_outputs(posixpath.basename(moved.path)):
        raise OutputError(f"'{moved.path}' cannot be tracked; name another place")
    for path in {moved.path, moved.source} - {output.source}:
        if not begun and os.path.lexists(repo.root / path):
            raise OutputError(f"'{path}' exists already; move it away, or name another place")
    if repo.git and repo.git.tracked([repo.git_prefix + moved.path]):
        raise OutputInGitError(
            f"'{moved.path}' is tracked by git; stop that first: `git rm -r --cached '{moved.path}'`"
        )
    gone = {output.path, moved.path} if begun else {output.path}
    check_overlap(sorted([moved, *(o for o in tracked if o.path not in gone)], key=lambda o: o.path))
    repo.git_ignored.check(moved.source)


def _moved_document(repo: Repo, output: Output, moved: Output, stored: Stored | None) -> bytes:
    """Return the `.dvc` file of an output that is elsewhere now, the rest of it kept."""
    old = read_description(repo.root / output.source)
    document = documents.load(old, output.source)
    folder = posixpath.join(posixpath.dirname(output.source), document.get("wdir") or ".")
    new_folder = folder
    if moved.source != output.source:
        new_folder = posixpath.dirname(moved.source)
        document.pop("wdir", None)
    for out in document["outs"]:
        if posixpath.normpath(posixpath.join(folder, out["path"])) != output.path:
            continue
        if stored is not None and with_content(output, stored) != output:
            for key in ("md5", "size", "nfiles", "isexec", "hash", "files", "cloud"):
                out.pop(key, None)
            fresh: dict[str, Any] = {"md5": stored.digest, "size": stored.size}
            if stored.nfiles is not None:
                fresh["nfiles"] = stored.nfiles
            if stored.isexec:
                fresh["isexec"] = True
            kept = dict(out)
            out.clear()
            out.update({**fresh, "hash": "md5", **kept})
        out["path"] = posixpath.relpath(moved.path, new_folder or ".")
    for dep in document.get("deps") or []:
        path = dep.get("path", "")
        if "repo" not in dep and path and "://" not in path and not posixpath.isabs(path):
            dep["path"] = posixpath.relpath(posixpath.join(folder, path), new_folder or ".")
    if document.get("deps"):
        document["md5"] = document_md5(document)
    return write_document(old, output.source, document)
