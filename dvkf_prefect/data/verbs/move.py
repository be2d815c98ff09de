"""Move or rename tracked data (`dvkf move`)."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dvkf_prefect.data.git import gitignore
from dvkf_prefect.data.progress import counting
from dvkf_prefect.errors import DvkfError, OutputError, OutputInGitError, OutputNotFoundError
from dvkf_prefect.files import read_description, write_atomic
from dvkf_prefect.formats import documents
from dvkf_prefect.formats.dvcfile import document_md5
from dvkf_prefect.formats.dvcfile_edit import content_keys, write_document
from dvkf_prefect.formats.files import describes_outputs
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.formats.outputs import Output, check_overlap, matching, output_meant
from dvkf_prefect.paths import check_target

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository

# Note of a move in progress, in the repository's `tmp_dir`; a killed move is resumed from it.
_MOVING = "moving"


@dataclass(frozen=True, slots=True)
class Move:
    """Result of a move: old and new path of the output, and of the `.dvc` file that describes it."""

    path: str
    new_path: str
    file: str
    new_file: str


def move(repo: Repository, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Move:
    """Implement `Repo.move`.

    Raises:
        OutputNotFoundError: The source is not tracked.
        OutputError: A stage writes the source, or the new path is taken.
        OutputOverlapError: The new path lies inside another output.
    """
    paths = repo.relpath(source), repo.relpath(target)
    with repo.lock(write=paths):
        return _move(repo, *paths)


def _move(repo: Repository, source: str, target: str) -> Move:
    tracked = repo.outputs()
    output = next((o for o in matching(tracked, source) if o.path == source), None)
    if output is None:
        step = output_meant(tracked, source) or " Track it with `dvkf add`."
        raise OutputNotFoundError(f"'{source}' is not a tracked file or directory of {repo.root}.{step}")
    if output.stage or _has_command(repo, output.source):
        raise OutputError(
            f"'{source}' is an output of a stage ({output.source}). Rename it in its dvc.yaml, and run "
            "`dvkf repro`."
        )
    note = repo.tmp_dir / _MOVING
    begun = None if os.path.lexists(repo.root / source) else _begun(note, source, target)
    asked = target
    if begun is not None:
        target = begun
    elif (repo.root / target).is_dir():
        target = posixpath.join(target, posixpath.basename(source))
    # A .dvc file named after its output moves with it.
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
    content: Content | None = None
    if os.path.lexists(old):
        os.rename(old, new)
    if os.path.lexists(new):
        with counting(repo.progress, f"move {source}") as work:
            content = repo.workspace.take(target, work=work)
    document = _moved_document(repo, output, moved, content)
    write_atomic(repo.root / file, document)
    if repo.git and output.cached and target != source and gitignore.unignore(old):
        changed.append(posixpath.join(posixpath.dirname(source), ".gitignore"))
    if follows and file != output.source:
        # Last: while the old file exists, repeating the call resumes a killed move.
        (repo.root / output.source).unlink()
    note.unlink(missing_ok=True)
    repo.stage(changed)
    return Move(source, target, output.source, file)


def _begun(note: Path, source: str, asked: str) -> str | None:
    """Return the destination of a killed move with the same arguments; None without one."""
    try:
        begun = json.loads(read_description(note))
    except (OSError, ValueError, RecursionError, DvkfError):
        return None
    places = (asked, posixpath.join(asked, posixpath.basename(source)))
    return next((place for place in places if begun == [source, asked, place]), None)


def _has_command(repo: Repository, file: str) -> bool:
    return bool(documents.load(read_description(repo.root / file, name=file), file).get("cmd"))


def _check_place(
    repo: Repository, output: Output, moved: Output, tracked: Sequence[Output], *, begun: bool = False
) -> None:
    """Refuse a destination that is taken, unless a killed move has already put the data there.

    Raises:
        OutputError: The destination exists, or cannot be tracked.
    """
    if moved.path.split("/")[0] in (".dvc", ".git") or describes_outputs(posixpath.basename(moved.path)):
        raise OutputError(f"'{moved.path}' cannot be tracked. Name another path.")
    for path in {moved.path, moved.source} - {output.source}:
        if not begun and os.path.lexists(repo.root / path):
            raise OutputError(f"'{path}' exists already. Move it away, or name another path.")
    if repo.git and repo.git.tracked([repo.git_prefix + moved.path]):
        raise OutputInGitError(f"'{moved.path}' is tracked by git. Run `git rm -r --cached '{moved.path}'`.")
    gone = {output.path, moved.path} if begun else {output.path}
    check_overlap(sorted([moved, *(o for o in tracked if o.path not in gone)], key=lambda o: o.path))
    repo.git_ignored.check(moved.source)


def _moved_document(repo: Repository, output: Output, moved: Output, content: Content | None) -> bytes:
    """Return the content of a moved output's `.dvc` file, keeping its other fields."""
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
        if content is not None and replace(output, content=content) != output:
            for key in ("md5", "size", "nfiles", "isexec", "hash", "files", "cloud"):
                out.pop(key, None)
            kept = dict(out)
            out.clear()
            out.update({**content_keys(content), **kept})
        out["path"] = posixpath.relpath(moved.path, new_folder or ".")
    for dep in document.get("deps") or []:
        path = dep.get("path", "")
        if "repo" not in dep and path and "://" not in path and not posixpath.isabs(path):
            dep["path"] = posixpath.relpath(posixpath.join(folder, path), new_folder or ".")
    if document.get("deps"):
        document["md5"] = document_md5(document)
    return write_document(old, output.source, document)
