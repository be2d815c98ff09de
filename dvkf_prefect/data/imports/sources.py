"""Files outside any repository, in a folder or at a url: list them, and read them into a cache.

Source of the formats: DVC 3.x. A `.dvc` file describes such files by metadata of their service: an ``etag`` for object
stores, a ``checksum`` for web servers, the md5 of the bytes otherwise. A directory's checksum is the md5 of the list
of ``{"etag", "relpath"}``.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.cache.streams import receive_stream
from dvkf_prefect.data.cache.workers import stepping
from dvkf_prefect.data.progress import NAMED, NO_PROGRESS, Advance, Part, Steps
from dvkf_prefect.data.remotes.url_files import JOBS, UrlFiles, open_files
from dvkf_prefect.data.remotes.urls import split_url
from dvkf_prefect.data.repository.config import Config
from dvkf_prefect.errors import (
    CorruptObjectError,
    MissingObjectError,
    OutputNotFoundError,
    RemoteNotFoundError,
    TransferError,
)
from dvkf_prefect.files import walk_files
from dvkf_prefect.formats.digest import digest_bytes, digest_file
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.formats.outputs import FileVersion
from dvkf_prefect.formats.tree import SUFFIX, Tree
from dvkf_prefect.paths import file_meant
from dvkf_prefect.urls import public_url

# Key of the service's checksum in a `.dvc` file, by url scheme; for other schemes the bytes are hashed.
_MARKS = {"s3": "etag", "gs": "etag", "azure": "etag", "oss": "etag", "http": "checksum", "https": "checksum"}


@dataclass(frozen=True, slots=True)
class Facts:
    """Fields that a `.dvc` file records of a source.

    Attributes:
        values: Checksum, size and further fields, with DVC's names and in its order.
        files: Version of each file of a directory, if the service keeps versions.
    """

    values: Mapping[str, Any]
    files: tuple[FileVersion, ...] = ()


class Source(ABC):
    """A file, or the files of a directory, outside the repository.

    Attributes:
        url: Path or url as the user gave it.
        is_dir: True for a directory.
        relpaths: Sorted paths of the files, relative to the directory; one empty string for a single file.
        sizes: Size of each file in bytes; None if the service does not report it.
        digests: md5 of each file; None before the files are read.
    """

    url: str
    is_dir: bool
    relpaths: list[str]
    sizes: list[int | None]
    digests: list[str] | None = None

    @abstractmethod
    def take(
        self,
        cache: Cache,
        rows: Sequence[int],
        *,
        jobs: int | None = None,
        advance: Advance = NO_PROGRESS.advance,
    ) -> Iterator[tuple[int, str, int]]:
        """Read files into a cache.

        Args:
            cache: Destination.
            rows: Files to read, as indices of ``relpaths``.
            jobs: Number of parallel transfers.
            advance: Called as files and bytes complete.

        Yields:
            Index, md5 and size in bytes of each file, in arbitrary order.

        Raises:
            TransferError: Some files could not be read; all others are in the cache.
        """

    @abstractmethod
    def facts(self) -> Facts:
        """Return the fields that a `.dvc` file records of the source."""

    def bring(
        self, cache: Cache, *, jobs: int | None = None, advance: Advance = NO_PROGRESS.advance
    ) -> Content:
        """Read all files into a cache, and then store the manifest.

        Raises:
            TransferError: Some files could not be read; all others are in the cache.
        """
        digests = [""] * len(self.relpaths)
        size = 0
        for row, digest, count in self.take(cache, range(len(digests)), jobs=jobs, advance=advance):
            digests[row] = digest
            size += count
        return self.stored(cache, digests, size)

    def stored(self, cache: Cache, digests: Sequence[str], size: int) -> Content:
        """Return the content of the source from the digests of its files; a directory's manifest is stored."""
        self.digests = list(digests)
        if not self.is_dir:
            return Content(digests[0], size)
        tree = Tree.from_pairs(zip(self.relpaths, digests, strict=True))
        return Content(cache.add_tree(tree), size, len(tree))


class FolderSource(Source):
    """A file or a directory of this machine.

    Args:
        path: Path of the file or directory.
        url: Name of the source in messages.

    Raises:
        OutputNotFoundError: The path does not exist.
        OutputError: The directory contains something that cannot be tracked.
    """

    def __init__(self, path: Path, url: str) -> None:
        self.url = url
        self._path = path
        if not path.exists():
            hint = file_meant(path.parent, path.name)
            raise OutputNotFoundError(f"dependency '{url}' does not exist.{hint}")
        self.is_dir = path.is_dir()
        found = {rel: entry.stat() for rel, entry in walk_files(path)} if self.is_dir else {"": path.stat()}
        self.relpaths = sorted(found)
        self.sizes = [found[relpath].st_size for relpath in self.relpaths]
        self._isexec = not self.is_dir and bool(found[""].st_mode & 0o111)

    def take(
        self,
        cache: Cache,
        rows: Sequence[int],
        *,
        jobs: int | None = None,
        advance: Advance = NO_PROGRESS.advance,
    ) -> Iterator[tuple[int, str, int]]:
        """Read files into a cache."""
        sizes = [self.sizes[row] or 0 for row in rows]
        files = [self._file(row) for row in rows]
        names = (self.relpaths[row] or self.url for row in rows)
        with stepping(advance, files, names, sizes) as steps:
            for number, digest in cache.add_files(files, sizes):
                steps.done(files[number], sizes[number])
                yield rows[number], digest, sizes[number]

    def facts(self) -> Facts:
        """Return the fields that a `.dvc` file records of the source."""
        digests = self.digests or [digest_file(self._file(row)) for row in range(len(self.relpaths))]
        return Facts({**_by_content(self, digests), **({"isexec": True} if self._isexec else {})})

    def _file(self, row: int) -> str:
        return os.path.join(self._path, self.relpaths[row]) if self.is_dir else str(self._path)


class UrlSource(Source):
    """A file or a directory at a url.

    Args:
        files: Client for the url's files.
        url: Url as the user gave it.
        scheme: Scheme of the resolved url.
        versions: Versions to read; None for the current ones.

    Raises:
        OutputNotFoundError: The url does not exist.
        RemoteError: The service does not respond, or refuses.
    """

    def __init__(
        self, files: UrlFiles, url: str, scheme: str, versions: Sequence[FileVersion] | None = None
    ) -> None:
        self.url = url
        self._files = files
        self._mark = _MARKS.get(scheme)
        self._scheme = scheme
        if versions is not None:
            self.is_dir = any(file.relpath for file in versions)
            self.versions = sorted(versions, key=lambda file: file.relpath)
        else:
            info = files.info("")
            if info is None:
                raise OutputNotFoundError(f"dependency '{url}' does not exist")
            self.is_dir = info.get("type") == "directory"
            infos = files.find() if self.is_dir else {"": info}
            self.versions = [self._version(relpath, infos[relpath]) for relpath in sorted(infos)]
        self.relpaths = [file.relpath for file in self.versions]
        self.sizes = [file.size for file in self.versions]

    def _version(self, relpath: str, info: Mapping[str, Any]) -> FileVersion:
        etag: str | None = None
        version: str | None = None
        if self._scheme in ("s3", "oss"):
            etag = str(info.get("ETag", "")).strip('"') or None
            version = info.get("VersionId")
        elif self._scheme == "gs":
            import base64

            etag = base64.b64decode(info["etag"]).hex() if info.get("etag") else None
            version = info.get("generation")
        elif self._scheme == "azure":
            etag = info.get("etag")
            etag = f'"{etag}"' if etag and not etag.startswith('"') else etag
            version = info.get("version_id")
        elif self._mark == "checksum":
            etag = info.get("ETag") or info.get("Content-MD5") or self._files.checksum(relpath)
        # Buckets without versioning name the only version "null".
        version = str(version) if version not in (None, "null") else None
        return FileVersion(relpath, None, info.get("size"), etag, version)

    def take(
        self,
        cache: Cache,
        rows: Sequence[int],
        *,
        jobs: int | None = None,
        advance: Advance = NO_PROGRESS.advance,
    ) -> Iterator[tuple[int, str, int]]:
        """Read files into a cache; a file whose size differs from the listed one is refused."""

        def receive(row: int) -> tuple[str, int, Steps]:
            file = self.versions[row]
            name = file.relpath or public_url(self.url)
            steps = Steps(advance, {"": Part(name, file.size or 0)} if len(rows) <= NAMED else {})
            chunks = self._files.read_version(file.relpath, file.version_id, limit=file.size)
            note = partial(steps.note, "")
            return *receive_stream(cache, chunks, size=file.size, note=note), steps

        failures: dict[str, str] = {}
        with ThreadPoolExecutor(max(1, min(jobs or JOBS, len(rows)))) as pool:
            running = {pool.submit(receive, row): row for row in rows}
            try:
                for future in as_completed(running):
                    row = running[future]
                    try:
                        digest, size, steps = future.result()
                    except (MissingObjectError, CorruptObjectError) as error:
                        failures[self.relpaths[row] or self.url] = str(error)
                        continue
                    steps.done("", size)
                    yield row, digest, size
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        if failures:
            raise TransferError(public_url(self.url), failures)

    def facts(self) -> Facts:
        """Return the fields that a `.dvc` file records of the source."""
        if self._mark is None:
            return Facts(_by_content(self, self.digests or self._hash_all()))
        if self.is_dir and self._files.versioned:
            return Facts({}, tuple(self.versions))
        if self.is_dir:
            entries = [{self._mark: file.etag, "relpath": file.relpath} for file in self.versions]
            digest = digest_bytes(json.dumps(entries, sort_keys=True).encode()) + SUFFIX
            size = sum(file.size or 0 for file in self.versions)
            return Facts({"md5": digest, "size": size, "nfiles": len(self.versions)})
        (file,) = self.versions
        values = {self._mark: file.etag, "size": file.size, "version_id": file.version_id}
        return Facts({key: value for key, value in values.items() if value is not None})

    def _hash_all(self) -> list[str]:
        found: list[str] = []
        for file in self.versions:
            md5 = hashlib.md5(usedforsecurity=False)
            for chunk in self._files.read_version(file.relpath, None, limit=file.size):
                md5.update(chunk)
            found.append(md5.hexdigest())
        return found


def open_source(
    config: Config,
    url: str,
    *,
    folder: Path,
    fs_config: Mapping[str, Any] | None = None,
    versions: Sequence[FileVersion] | None = None,
) -> Source:
    """Open a file or a directory outside the repository.

    Args:
        config: Settings with the remotes for ``remote://name/path``.
        url: Path or url.
        folder: Base of a relative path.
        fs_config: Options for the url, under the names of remote options; ``version_aware`` reads by version.
        versions: Versions to read; None for the current ones.

    Raises:
        OutputNotFoundError: The path or url does not exist.
        ConfigError: The url or the options cannot be used.
        RemoteError: The service does not respond, or refuses.

    Example:
        >>> open_source(repo.config, "s3://bucket/images", folder=repo.root).facts()
    """
    name, real, options = resolve_url(config, url, fs_config)
    if "://" not in real:
        return FolderSource(Path(os.path.normpath(folder / real)), url)
    aware = options.pop("version_aware", "false") == "true" or bool(versions)
    options.pop("worktree", None)
    scheme = split_url(real).scheme
    return UrlSource(
        open_files(real, options, name or public_url(url), versioned=aware),
        url,
        scheme,
        versions,
    )


def resolve_url(
    config: Config, url: str, fs_config: Mapping[str, Any] | None = None
) -> tuple[str | None, str, dict[str, str]]:
    """Resolve a ``remote://`` url to the remote's name, the real url and its options; the name is None otherwise.

    Raises:
        RemoteNotFoundError: The url names a remote that does not exist.
    """
    given = {
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in (fs_config or {}).items()
    }
    if url.startswith("remote://"):
        name, _, rest = url.removeprefix("remote://").partition("/")
        name, options = config.remote(name)
        base = options.pop("url").rstrip("/")
        real = f"{base}/{rest}" if rest else base
        return name, real.removeprefix("file://"), {**options, **given}
    return None, url.removeprefix("file://"), given


def resolve_place(config: Config, url: str) -> dict[str, str]:
    """Return the options of a place named by a path or url; ``url`` is the real one, or an absolute path.

    A url of the default remote's kind gets its options, and so its credentials.

    Raises:
        RemoteNotFoundError: A ``remote://`` url names a remote that does not exist.
    """
    if "://" not in url:
        return {"url": str(Path(os.path.abspath(os.path.expanduser(url))))}
    if url.startswith("file://"):
        return {"url": os.path.abspath(url.removeprefix("file://"))}
    _, real, options = resolve_url(config, url)
    if not url.startswith("remote://"):
        try:
            _, default = config.remote(None)
        except RemoteNotFoundError:
            default = {"url": ""}
        if real.partition("://")[0] == default["url"].partition("://")[0]:
            options = {**default, **options}
    return {**options, "url": real if "://" in real else os.path.abspath(real)}


def _by_content(source: Source, digests: Sequence[str]) -> dict[str, Any]:
    size = sum(count or 0 for count in source.sizes)
    if not source.is_dir:
        return {"md5": digests[0], "size": size}
    tree = Tree.from_pairs(zip(source.relpaths, digests, strict=True))
    return {"md5": tree.digest, "size": size, "nfiles": len(tree)}
