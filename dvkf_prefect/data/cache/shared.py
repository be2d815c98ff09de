"""A cache that a group of users shares for writing.

Source of the behaviour: DVC 3.x with ``cache.shared = group``. Folders are 2775: new files inherit their group, and all
of the group may add objects. Objects stay 0444.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from dvkf_prefect.data.cache.cache import Cache

_MODE = 0o2775


class SharedCache(Cache):
    """A cache with folders writable by the whole group."""

    _is_open = False

    def _own_folder(self) -> Path:
        """Return the folder for incomplete files; every write begins with it."""
        if not self._is_open:
            self._open_folders()
            self._is_open = True
        return super()._own_folder()

    def _open_folders(self) -> None:
        """Create the folders for objects; leave existing ones of other users unchanged."""
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
    # Only the owner can change the mode of an existing folder.
    with suppress(PermissionError):
        os.chmod(folder, _MODE)
