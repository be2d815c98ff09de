"""What objects a cache or a remote holds, how large and how old they are; anything of another shape is not seen."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.remotes.base import Storage
from dvkf_prefect.data.store import LEGACY, MD5
from dvkf_prefect.errors import MissingObjectError, RemoteError

if TYPE_CHECKING:
    from dvkf_prefect.data.repo import Repo

_FOLDER = re.compile(r"[0-9a-f]{2}")
_REST = re.compile(r"[0-9a-f]{30}(?:\.dir)?")
_KEY = re.compile(r"(?:files/md5/)?[0-9a-f]{2}/[0-9a-f]{30}(?:\.dir)?")
_LAYOUTS = ("files/md5/", "")
# What fsspec's filesystems call the time of the last change.
_TIMES = ("LastModified", "last_modified", "mtime", "modified", "updated", "created")
_PAGE = 1000


def identity(key: str) -> tuple[str, str]:
    """Return the digest and the hash name of an object's key; the reverse of `store.object_key`.

    Example:
        >>> identity("files/md5/d4/1d8cd98f00b204e9800998ecf8427e")
        ('d41d8cd98f00b204e9800998ecf8427e', 'md5')
    """
    place = key.removeprefix("files/md5/")
    return place[:2] + place[3:], LEGACY if place == key else MD5


def keys_of(digests: Iterable[str], hash_name: str) -> Iterator[str]:
    """Yield the keys of digests of one kind."""
    start = "" if hash_name == LEGACY else "files/md5/"
    return (f"{start}{digest[:2]}/{digest[2:]}" for digest in digests)


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
        for layout in _LAYOUTS:
            base = f"{self._root}/{layout}"
            with suppress(FileNotFoundError, NotADirectoryError):
                for folder in os.listdir(base):
                    if _FOLDER.fullmatch(folder):
                        with suppress(FileNotFoundError, NotADirectoryError):
                            names = os.listdir(base + folder)
                            start = f"{layout}{folder}/"
                            found.update([start + name for name in names if _REST.fullmatch(name)])
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
        self._found = {key: (size, time) for key, size, time in _listed(self._storage) if _KEY.fullmatch(key)}
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


def refuse_versioned(repo: Repo, name: str | None, what: str) -> None:
    """Refuse a remote that keeps versions itself, whose blobs are not named by digest.

    Raises:
        RemoteError: It is such a one.
    """
    name, options = repo.config.remote(name)
    for option in ("version_aware", "worktree"):
        if options.get(option, "").lower() == "true":
            raise RemoteError(
                f"cannot {what} remote '{name}' ({options['url']}): it keeps versions itself ({option}); "
                "name a remote without that option with -r"
            )


def inventory_of(storage: Storage) -> Inventory:
    """Return what lists a remote the fastest."""
    place = storage.local_path("files/md5")
    return FolderInventory(place.parent.parent, storage) if place else ServiceInventory(storage)


def _listed(storage: Storage) -> Iterator[tuple[str, int, float | None]]:
    """Yield key, bytes and last change of every blob of a remote in one listing.

    `Storage.list` leaves the time out, which what it lists with does know.
    """
    store: Any = getattr(storage, "_store", None)
    protocol: Any = getattr(storage, "_protocol", None)
    if store is not None:
        faults: Any = storage._faults()  # type: ignore[attr-defined]
        try:
            for page in store.list(None, chunk_size=_PAGE):
                for item in page:
                    yield item["path"], item["size"], _seconds(item.get("last_modified"))
        except faults as error:
            raise storage._fault(error, "list ''", None) from error  # type: ignore[attr-defined]
    elif protocol is not None and protocol.lists:
        files: Any = storage
        try:
            with files._told("list ''", ""):
                found = files._fs.find(protocol.root, detail=True)
        except MissingObjectError:
            return
        root = protocol.root.strip("/")
        for path, info in found.items():
            key = path.strip("/")
            times = (_seconds(info[name]) for name in _TIMES if info.get(name) is not None)
            yield key[len(root) + 1 :] if root else key, int(info["size"] or 0), next(times, None)
    else:
        for key, size in storage.list():
            yield key, size, None


def _seconds(value: Any) -> float | None:
    """Return a time in any of the forms that filesystems give, in seconds since 1970."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = datetime.fromisoformat(value.replace("Z", "+00:00"))
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()
    return float(value) if isinstance(value, (int, float)) else None
