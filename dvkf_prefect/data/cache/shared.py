"""A cache that a group of people writes to.

Source of the behaviour: DVC 3.x with ``cache.shared = group``: folders are 2775, so that what is made in them belongs
to their group and all of it may add objects; objects stay 0444.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from dvkf_prefect.data.cache.cache import Cache

_MODE = 0o2775


class SharedCache(Cache):
    """A cache whose folders the whole group may write to."""

    _is_open = False

    def _own_folder(self) -> Path:
        """Return the folder for files that are not whole yet; every write begins with one."""
        if not self._is_open:
            self._open_folders()
            self._is_open = True
        return super()._own_folder()

    def _open_folders(self) -> None:
        """Make the folders that objects go into; those of others that are there already stay as they are."""
        objects = self.root / "files" / "md5"
        for folder in (self.root, objects.parent, objects, self.root / "tmp-dvkf", self.root / "runs"):
            _make(folder)
        for number in range(256):
            _make(objects / f"{number:02x}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if os.stat(folder).st_mode & 0o7777 == _MODE:
            return
    # Somebody else's is theirs to open.
    with suppress(PermissionError):
        os.chmod(folder, _MODE)
