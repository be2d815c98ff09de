"""Places that files are taken from and put aside in: folders of this machine, and urls that fsspec reads."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.imports.sources import resolve_place
from dvkf_prefect.data.remotes.url_files import UrlFiles, open_files
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import OutputError, OutputNotFoundError
from dvkf_prefect.files import raise_disk_full, temporary_beside, write_atomic
from dvkf_prefect.formats.digest import digest_file, digest_stream
from dvkf_prefect.urls import public_url


@dataclass(frozen=True, slots=True)
class Arrived:
    """A file in a place, at one time.

    Attributes:
        path: The file, relative to the place.
        size: Size in bytes.
        mtime_ns: Time of its last change, in nanoseconds since 1970; 0 if the service does not tell.
        mark: Service's mark of the content, such as an etag, or the number of the file's inode; empty without one.
    """

    path: str
    size: int
    mtime_ns: int
    mark: str = ""


class Place(ABC):
    """Files below a folder or a url.

    Attributes:
        address: Absolute path or url.
        identity: The same without links, to compare places by.
        local: True for a folder of this machine.
    """

    address: str
    identity: str
    local: bool

    def full(self, path: str) -> str:
        """Return the address of a file, without credentials."""
        return f"{public_url(self.address) if not self.local else self.address}/{path}"

    @abstractmethod
    def files(self) -> list[tuple[str, bool]]:
        """Return each file by path, and True if it is regular; names that begin with ``.`` or ``_`` are left out.

        Raises:
            OutputNotFoundError: A folder does not exist.
            RemoteError: The url cannot be listed.
        """

    @abstractmethod
    def look(self, path: str) -> Arrived | None:
        """Return the current state of a file; None if there is no regular one."""

    @abstractmethod
    def read(self, path: str) -> AbstractContextManager[tuple[Path, str]]:
        """Return a context with the file on this machine, and its md5."""

    @abstractmethod
    def remove(self, file: Arrived) -> bool:
        """Remove a file unless it changed; return True if it is gone by this call."""

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Store a small file."""

    @abstractmethod
    def keep(self, path: str, source: Path, digest: str, *, move: bool) -> None:
        """Store a file; nothing if it is there already.

        Args:
            path: The file, relative to the place.
            source: The content.
            digest: Its md5.
            move: The source may be moved here.

        Raises:
            OutputError: There is another content at this path, or the source has another digest now.
        """


class Folder(Place):
    """A folder of this machine.

    Args:
        path: Absolute path of the folder.
    """

    local = True

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self.identity = os.path.realpath(path)
        self._path = path

    def files(self) -> list[tuple[str, bool]]:
        """Return each file by path, folders followed and links not."""
        if not self._path.is_dir():
            raise OutputNotFoundError(
                f"the inbox {self.address} is no directory. Create it, or correct the path."
            )
        stack = [""]
        found: list[tuple[str, bool]] = []
        while stack:
            prefix = stack.pop()
            with os.scandir(self._path / prefix) as entries:
                for entry in entries:
                    if entry.name.startswith((".", "_")):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(f"{prefix}{entry.name}/")
                    else:
                        found.append((prefix + entry.name, entry.is_file(follow_symlinks=False)))
        return sorted(found)

    def look(self, path: str) -> Arrived | None:
        """Return the current state of a file; None if there is no regular one."""
        try:
            info = os.lstat(self._path / path)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(info.st_mode):
            return None
        return Arrived(path, info.st_size, info.st_mtime_ns, str(info.st_ino))

    @contextmanager
    def read(self, path: str) -> Iterator[tuple[Path, str]]:
        """Yield the file, and its md5."""
        file = self._path / path
        yield file, digest_file(file)

    def remove(self, file: Arrived) -> bool:
        """Remove a file unless it changed."""
        now = self.look(file.path)
        if now is None or (now.size, now.mtime_ns) != (file.size, file.mtime_ns):
            return False
        with suppress(FileNotFoundError):
            (self._path / file.path).unlink()
            return True
        return False

    def write(self, path: str, data: bytes) -> None:
        """Store a small file."""
        dest = self._path / path
        dest.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(dest, data)

    def keep(self, path: str, source: Path, digest: str, *, move: bool) -> None:
        """Store a file by a move or a copy."""
        dest = self._path / path
        dest.parent.mkdir(parents=True, exist_ok=True)
        if dest.exists():
            if digest_file(dest) == digest == digest_file(source):
                return
            raise OutputError(f"{dest} has other content than {source}. Move one of them.")
        if move:
            try:
                os.rename(source, dest)
                return
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
        copy_file(source, dest, digest)


class Url(Place):
    """Files at a url.

    Args:
        url: The url, for messages without its credentials.
        storage: The service.
        cache: Cache whose folder for temporary files receives what is read.
    """

    local = False

    def __init__(self, url: str, storage: UrlFiles, cache: Cache) -> None:
        self.address = url.rstrip("/")
        self.identity = storage.url.rstrip("/")
        self._storage = storage
        self._cache = cache

    def files(self) -> list[tuple[str, bool]]:
        """Return each file by path; a url without files is an empty place."""
        found = []
        for key, _, _ in self._storage.dated():
            if not key.endswith("/") and not any(part.startswith((".", "_")) for part in key.split("/")):
                found.append((key, True))
        return sorted(found)

    def look(self, path: str) -> Arrived | None:
        """Return a file as the service tells of it; None if there is none."""
        seen = self._storage.look(path)
        if seen is None:
            return None
        size, changed, mark = seen
        return Arrived(path, size, int((changed or 0) * 10**9), mark)

    @contextmanager
    def read(self, path: str) -> Iterator[tuple[Path, str]]:
        """Yield a download of the file and its md5. The file is removed unless it is moved away."""
        temporary = self._cache.temporary("inbox")
        md5 = hashlib.md5(usedforsecurity=False)
        try:
            with temporary.open("wb") as stream:
                for chunk in self._storage.stream(path):
                    md5.update(chunk)
                    stream.write(chunk)
            yield temporary, md5.hexdigest()
        except OSError as error:
            raise_disk_full(error, temporary)
            raise
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, file: Arrived) -> bool:
        """Remove a file unless it changed. A change between look and removal is not seen."""
        if self.look(file.path) != file:
            return False
        self._storage.delete([file.path])
        return True

    def write(self, path: str, data: bytes) -> None:
        """Store a small file."""
        self._storage.write(path, data)

    def keep(self, path: str, source: Path, digest: str, *, move: bool) -> None:
        """Upload a file."""
        if self._storage.size(path) is not None:
            if digest_stream(self._storage.stream(path)) == digest:
                return
            raise OutputError(f"{self.full(path)} has other content than {source.name}. Move one of them.")
        self._storage.upload(path, source)


def place_of(repo: Repository, where: str | os.PathLike[str]) -> Place:
    """Open a folder or a url.

    Args:
        repo: The repository; a relative path starts at its root.
        where: Path, url, or ``remote://NAME/PATH``. A url of the default remote's kind gets its credentials.

    Raises:
        ConfigError: The url is not supported.
        RemoteNotFoundError: No remote has that name.
    """
    text = os.fspath(where)
    if "://" not in text:
        return Folder(Path(os.path.normpath(repo.root / Path(text).expanduser())))
    options = resolve_place(repo.config, text)
    real = options.pop("url")
    for name in ("version_aware", "worktree"):
        options.pop(name, None)
    if "://" not in real:
        return Folder(Path(real))
    return Url(text, open_files(real, options, public_url(text), versioned=False), repo.cache)


def copy_file(source: Path, dest: Path, digest: str) -> None:
    """Copy a file atomically.

    Raises:
        OutputError: The copy has another digest, so the file was changed. Nothing was copied.
    """
    temporary = temporary_beside(dest)
    try:
        shutil.copyfile(source, temporary, follow_symlinks=False)
        if digest_file(temporary) != digest:
            raise OutputError(f"{source} changed after its check. Run this again.")
        os.replace(temporary, dest)
    except OSError as error:
        raise_disk_full(error, dest)
        raise
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
