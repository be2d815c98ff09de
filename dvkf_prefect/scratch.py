"""Folders for the time of one command, which the next command removes if this one is killed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dvkf_prefect.leftovers import OwnedFolder, claim, sweep

_REPLACED = "replaced"


@contextmanager
def scratch_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Make a folder that only this user can read and that goes away at the end; those of killed commands go first.

    Args:
        prefix: How its name begins.
        parent: Where it is made; None for the folder of temporary files.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    sweep(place, prefix)
    with OwnedFolder(place, prefix) as owned:
        os.chmod(owned.path, 0o700)
        yield owned.path


@contextmanager
def scratch_beside(dest: Path, prefix: str) -> Iterator[Path]:
    """Make a `scratch_folder` beside a path, for `put_in_place`; what a killed command took away there is put back."""
    for left in claim(dest.parent, prefix):
        _put_back(left, dest.parent)
    with scratch_folder(prefix, dest.parent) as folder:
        yield folder


def put_in_place(new: Path, dest: Path, scratch: Path) -> None:
    """Move a file or a folder to a path, in place of what is there.

    Args:
        new: What comes there, on the same disk.
        dest: Where to.
        scratch: A folder of `scratch_beside`; what was there is kept in it until the end.
    """
    if os.path.lexists(dest) and (dest.is_dir() or new.is_dir()):
        kept = scratch / _REPLACED
        kept.mkdir(exist_ok=True)
        os.rename(dest, kept / dest.name)
    try:
        os.replace(new, dest)
    except BaseException:
        _put_back(scratch, dest.parent)
        raise


def _put_back(scratch: Path, parent: Path) -> None:
    """Undo the first half of `put_in_place` where the second did not come."""
    kept = scratch / _REPLACED
    if not kept.is_dir() or kept.is_symlink():
        return
    for name in os.listdir(kept):
        if not os.path.lexists(parent / name):
            os.rename(kept / name, parent / name)
