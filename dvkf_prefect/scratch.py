"""Temporary folders for one command; after a kill, the next command removes them."""

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
    """Create a private folder that is removed at the end; first remove those of killed commands.

    Args:
        prefix: Prefix of its name.
        parent: Parent folder; None for the system's temporary folder.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    sweep(place, prefix)
    with OwnedFolder(place, prefix) as owned:
        os.chmod(owned.path, 0o700)
        yield owned.path


@contextmanager
def scratch_beside(dest: Path, prefix: str) -> Iterator[Path]:
    """Create a `scratch_folder` beside a path, for `put_in_place`; first restore files displaced by killed commands."""
    for left in claim(dest.parent, prefix):
        _put_back(left, dest.parent)
    with scratch_folder(prefix, dest.parent) as folder:
        yield folder


def put_in_place(new: Path, dest: Path, scratch: Path) -> None:
    """Move a file or a folder to a path, replacing its content.

    Args:
        new: The new file or folder, on the same disk.
        dest: Target path.
        scratch: A folder of `scratch_beside`; it keeps the old content until the end.
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
    """Restore the displaced content if `put_in_place` did not finish."""
    kept = scratch / _REPLACED
    if not kept.is_dir() or kept.is_symlink():
        return
    for name in os.listdir(kept):
        if not os.path.lexists(parent / name):
            os.rename(kept / name, parent / name)
