"""Replace links to the cache by writable copies (`dvkf unprotect`)."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dvkf_prefect.data.cache._copier import clone_one
from dvkf_prefect.data.progress import counting
from dvkf_prefect.data.workspace.links import aside_name
from dvkf_prefect.errors import MissingObjectError, OutputError, OutputNotFoundError
from dvkf_prefect.files import raise_disk_full
from dvkf_prefect.paths import check_parents, file_meant

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository


def unprotect(repo: Repository, targets: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Implement `Repo.unprotect`.

    Raises:
        OutputNotFoundError: A target is not on disk; nothing was changed.
        MissingObjectError: A link points to an object that is missing from the cache.
        DiskFullError: The disk is full; every file is complete, as a link or a copy.
    """
    paths = [repo.relpath(target) for target in targets]
    with repo.lock(write=paths):
        return _unprotect(repo, paths)


def _unprotect(repo: Repository, targets: Sequence[str]) -> list[str]:
    for target in targets:
        if target.split("/")[0] in (".dvc", ".git"):
            raise OutputError(f"'{target}' belongs to the repository itself. Name data of the workspace.")
        if not os.path.lexists(repo.root / target):
            raise OutputNotFoundError(
                f"can't unprotect '{target}': it does not exist.{file_meant(repo.root, target)}"
            )
        check_parents(repo.root, target)
    changed: list[str] = []
    for target in targets:
        with counting(repo.progress, f"unprotect {target}") as advance:
            for path, size in copies_of_links(repo, repo.root / target):
                changed.append(path.relative_to(repo.root).as_posix())
                advance(1, size)
    return changed


def copies_of_links(repo: Repository, place: Path) -> list[tuple[Path, int]]:
    """Replace links by copies and make files writable; return the changed files and their sizes in bytes."""
    shared = repo.config.get("cache", "shared") == "group"
    changed: list[tuple[Path, int]] = []
    if place.is_symlink() and place.is_dir():
        return changed
    for path in _files(place):
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            continue  # another process removed it after the listing
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
        # The target of a link to a folder is not part of the repository.
        if not place.is_dir():
            yield place
        return
    for folder, folders, names in os.walk(place):
        folders[:] = [name for name in folders if name not in (".dvc", ".git")]
        for name in names:
            yield Path(folder, name)


def _replace_by_copy(path: Path) -> None:
    """Replace a link by a copy of its target, atomically.

    Raises:
        MissingObjectError: The link's target does not exist.
        DiskFullError: The disk is full; the link stays.
    """
    try:
        mode = 0o777 if os.stat(path).st_mode & 0o100 else 0o666
    except FileNotFoundError:
        raise MissingObjectError(
            f"{path} is a link to an object that is not in the cache. Run `dvkf fetch`."
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
