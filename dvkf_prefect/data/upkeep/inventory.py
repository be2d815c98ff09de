"""What objects a cache or a remote holds, how large and how old they are; anything of another shape is not seen."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dvkf_prefect.data.remotes.base import Storage
from dvkf_prefect.formats.objects import KEY, LAYOUTS, PREFIX, REST

if TYPE_CHECKING:
    pass


class Inventory(ABC):
    """The objects of one place, by their keys (``files/md5/aa/bbb…``, of DVC 2.x ``aa/bbb…``)."""

    @abstractmethod
    def keys(self) -> set[str]:
        """List the objects there are."""

    @abstractmethod
    def measure(self, keys: Iterable[str]) -> Iterator[tuple[str, int, float | None]]:
        """Yield key, bytes and last change (seconds since 1970, None if not known) of those that are still there."""

    @abstractmethod
    def delete(self, keys: list[str]) -> None:
        """Remove objects; those that are not there are passed over."""

    @abstractmethod
    def name(self, key: str) -> str:
        """Return where a person finds an object."""


class FolderInventory(Inventory):
    """Objects in a folder of this machine: a cache, or a remote that is one.

    Args:
        root: The folder.
        storage: The remote whose folder it is.
    """

    def __init__(self, root: Path, storage: Storage | None = None) -> None:
        self._root = str(root)
        self._storage = storage

    def keys(self) -> set[str]:
        """List the objects there are."""
        if self._storage:
            self._storage.size("files")  # says so when it is the folder itself that is gone
        found: set[str] = set()
        for layout in LAYOUTS:
            base = f"{self._root}/{layout}"
            with suppress(FileNotFoundError, NotADirectoryError):
                for folder in os.listdir(base):
                    if PREFIX.fullmatch(folder):
                        with suppress(FileNotFoundError, NotADirectoryError):
                            names = os.listdir(base + folder)
                            start = f"{layout}{folder}/"
                            found.update([start + name for name in names if REST.fullmatch(name)])
        return found

    def measure(self, keys: Iterable[str]) -> Iterator[tuple[str, int, float | None]]:
        """Yield key, bytes and last change."""
        for key in keys:
            with suppress(FileNotFoundError):
                status = os.stat(f"{self._root}/{key}")
                # A file that was moved in keeps its time; that it was moved shows in the other.
                yield key, status.st_size, max(status.st_mtime, status.st_ctime)

    def delete(self, keys: list[str]) -> None:
        """Remove objects."""
        if self._storage:
            self._storage.delete(keys)
            return
        for key in keys:
            with suppress(FileNotFoundError):
                os.unlink(f"{self._root}/{key}")

    def name(self, key: str) -> str:
        """Return an object's file."""
        return f"{self._root}/{key}"


class ServiceInventory(Inventory):
    """Objects of a remote that is a service, asked once.

    Args:
        storage: The remote's storage.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._found: dict[str, tuple[int, float | None]] = {}

    def keys(self) -> set[str]:
        """List the objects there are."""
        self._found = {key: (size, time) for key, size, time in self._storage.dated() if KEY.fullmatch(key)}
        return set(self._found)

    def measure(self, keys: Iterable[str]) -> Iterator[tuple[str, int, float | None]]:
        """Yield key, bytes and last change, as they were listed."""
        for key in keys:
            if key in self._found:
                yield (key, *self._found[key])

    def delete(self, keys: list[str]) -> None:
        """Remove objects."""
        self._storage.delete(keys)

    def name(self, key: str) -> str:
        """Return an object's url."""
        return f"{self._storage.url.rstrip('/')}/{key}"


def inventory_of(storage: Storage) -> Inventory:
    """Return what lists a remote the fastest."""
    place = storage.local_path("files/md5")
    return FolderInventory(place.parent.parent, storage) if place else ServiceInventory(storage)
