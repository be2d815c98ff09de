"""Listing of a cache's or a remote's objects with size and age; files without an object's name are left out."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from dvkf_prefect.data.remotes.base import Storage
from dvkf_prefect.formats.objects import KEY, LAYOUTS, PREFIX, REST


class Inventory(ABC):
    """Objects of one place by key: ``files/md5/aa/bbb…``, or ``aa/bbb…`` for DVC 2.x."""

    @abstractmethod
    def keys(self) -> set[str]:
        """Return the keys of all objects."""

    @abstractmethod
    def measure(self, keys: Iterable[str]) -> Iterator[tuple[str, int, float | None]]:
        """Yield key, size in bytes and last change (seconds since 1970, None if unknown) of the objects that exist."""

    @abstractmethod
    def delete(self, keys: list[str]) -> None:
        """Remove objects; missing ones are ignored."""

    @abstractmethod
    def name(self, key: str) -> str:
        """Return the path or url of an object, for display."""


class FolderInventory(Inventory):
    """Objects in a folder of this machine: a cache, or a remote that is a folder.

    Args:
        root: The folder.
        storage: Storage of the remote; None for a cache.
    """

    def __init__(self, root: Path, storage: Storage | None = None) -> None:
        self._root = str(root)
        self._storage = storage

    def keys(self) -> set[str]:
        """Return the keys of all objects."""
        if self._storage:
            self._storage.size("files")  # raises if the folder itself is missing
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
        """Yield key, size in bytes and last change."""
        for key in keys:
            with suppress(FileNotFoundError):
                status = os.stat(f"{self._root}/{key}")
                # A file that was moved here keeps its mtime, but the move updates its ctime.
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
        """Return the path of an object."""
        return f"{self._root}/{key}"


class ServiceInventory(Inventory):
    """Objects of a remote that is a service; one listing returns keys, sizes and times.

    Args:
        storage: Storage of the remote.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._found: dict[str, tuple[int, float | None]] = {}

    def keys(self) -> set[str]:
        """Return the keys of all objects."""
        self._found = {key: (size, time) for key, size, time in self._storage.dated() if KEY.fullmatch(key)}
        return set(self._found)

    def measure(self, keys: Iterable[str]) -> Iterator[tuple[str, int, float | None]]:
        """Yield key, size in bytes and last change, from the last listing."""
        for key in keys:
            if key in self._found:
                yield (key, *self._found[key])

    def delete(self, keys: list[str]) -> None:
        """Remove objects."""
        self._storage.delete(keys)

    def name(self, key: str) -> str:
        """Return the url of an object."""
        return f"{self._storage.url.rstrip('/')}/{key}"


def inventory_of(storage: Storage) -> Inventory:
    """Return the fastest inventory for a remote: of its folder if it has one, else of its service."""
    place = storage.local_path("files/md5")
    return FolderInventory(place.parent.parent, storage) if place else ServiceInventory(storage)
