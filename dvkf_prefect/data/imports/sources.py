"""Files outside any repository, in a folder or at a url: what is there, and how it comes into a cache.

Source of the formats: DVC describes such a place by what its service says of it unread: an ``etag`` for object stores,
a ``checksum`` for web servers, the md5 of the bytes for anything else. A directory's checksum is the md5 of the list of
``{"etag", "relpath"}``.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.cache.streams import receive_stream
from dvkf_prefect.data.remotes.errors import public_url
from dvkf_prefect.data.remotes.url_files import JOBS, UrlFiles, open_files
from dvkf_prefect.data.remotes.urls import split_url
from dvkf_prefect.data.repository.config import Config
from dvkf_prefect.errors import CorruptObjectError, MissingObjectError, OutputNotFoundError, TransferError
from dvkf_prefect.files import walk_files
from dvkf_prefect.formats.digest import digest_bytes, digest_file
from dvkf_prefect.formats.objects import Stored
from dvkf_prefect.formats.outputs import FileVersion
from dvkf_prefect.formats.tree import SUFFIX, Tree

# What a service's mark of a file is called in a `.dvc` file; for the others the bytes are hashed.
_MARKS = {"s3": "etag", "gs": "etag", "azure": "etag", "oss": "etag", "http": "checksum", "https": "checksum"}

Advance = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a `.dvc` file records of a place outside.

    Attributes:
        values: Its checksum, size and the like, by DVC's names and in its order.
        files: The version of each file of a directory, where the service keeps versions.
    """

    values: Mapping[str, Any]
    files: tuple[FileVersion, ...] = ()


class Source(ABC):
    """A file, or the files of a directory, outside the repository.

    Attributes:
        url: As it was asked for.
        is_dir: Whether it is a directory.
        relpaths: Each file's path below it, in order; one empty text for a file.
        sizes: Bytes of each; None where the service does not say.
        digests: The md5 of each, once they were read.
    """

    url: str
    is_dir: bool
    relpaths: list[str]
    sizes: list[int | None]
    digests: list[str] | None = None

    @abstractmethod
    def take(
        self, cache: Cache, rows: Sequence[int], *, jobs: int | None = None, advance: Advance | None = None
    ) -> Iterator[tuple[int, str, int]]:
        """Bring files into a cache.

        Args:
            cache: Where to.
            rows: Which, by their place in ``relpaths``.
            jobs: How many transfers at once.
            advance: Told of files and bytes.

        Yields:
            A file's row, the md5 of its bytes, and how many they are; in no given order.

        Raises:
            TransferError: Some could not be had; all others are in the cache.
        """

    @abstractmethod
    def facts(self) -> Facts:
        """Return what a `.dvc` file records of it."""

    def bring(self, cache: Cache, *, jobs: int | None = None, advance: Advance | None = None) -> Stored:
        """Bring all of it into a cache, files before the manifest.

        Raises:
            TransferError: Some files could not be had; all others are in the cache.
        """
        digests = [""] * len(self.relpaths)
        size = 0
        for row, digest, count in self.take(cache, range(len(digests)), jobs=jobs, advance=advance):
            digests[row] = digest
            size += count
        return self.stored(cache, digests, size)

    def stored(self, cache: Cache, digests: Sequence[str], size: int) -> Stored:
        """Return it as content, once all its files are known; a directory's manifest is stored."""
        self.digests = list(digests)
        if not self.is_dir:
            return Stored(digests[0], size)
        tree = Tree.from_pairs(zip(self.relpaths, digests, strict=True))
        return Stored(cache.add_bytes(tree.to_bytes(), tree=True), size, len(tree))


class FolderSource(Source):
    """A file or a directory of this machine.

    Args:
        path: Where it lies.
        url: How messages call it.

    Raises:
        OutputNotFoundError: Nothing is there.
        OutputError: Something in it cannot be tracked.
    """

    def __init__(self, path: Path, url: str) -> None:
        self.url = url
        self._path = path
        if not path.exists():
            raise OutputNotFoundError(f"dependency '{url}' does not exist")
        self.is_dir = path.is_dir()
        found = {rel: entry.stat() for rel, entry in walk_files(path)} if self.is_dir else {"": path.stat()}
        self.relpaths = sorted(found)
        self.sizes = [found[relpath].st_size for relpath in self.relpaths]
        self._isexec = not self.is_dir and bool(found[""].st_mode & 0o111)

    def take(
        self, cache: Cache, rows: Sequence[int], *, jobs: int | None = None, advance: Advance | None = None
    ) -> Iterator[tuple[int, str, int]]:
        """Bring files into a cache."""
        sizes = [self.sizes[row] or 0 for row in rows]
        for number, digest in cache.add_files([self._file(row) for row in rows], sizes):
            if advance:
                advance(1, sizes[number])
            yield rows[number], digest, sizes[number]

    def facts(self) -> Facts:
        """Return what a `.dvc` file records of it."""
        digests = self.digests or [digest_file(self._file(row)) for row in range(len(self.relpaths))]
        return Facts({**_by_content(self, digests), **({"isexec": True} if self._isexec else {})})

    def _file(self, row: int) -> str:
        return os.path.join(self._path, self.relpaths[row]) if self.is_dir else str(self._path)


class UrlSource(Source):
    """A file or a directory at a url.

    Args:
        files: Its service.
        url: As it was asked for.
        scheme: Of the url that it stands for.
        versions: The versions to read; None for what is there now.

    Raises:
        OutputNotFoundError: Nothing is there.
        RemoteError: The service does not answer, or refuses.
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
        # Buckets without versions call the only one "null".
        version = str(version) if version not in (None, "null") else None
        return FileVersion(relpath, None, info.get("size"), etag, version)

    def take(
        self, cache: Cache, rows: Sequence[int], *, jobs: int | None = None, advance: Advance | None = None
    ) -> Iterator[tuple[int, str, int]]:
        """Bring files into a cache; one whose size is not what the service said is refused."""

        def receive(row: int) -> tuple[str, int]:
            file = self.versions[row]
            chunks = self._files.read_version(file.relpath, file.version_id, limit=file.size)
            return receive_stream(cache, chunks, size=file.size)

        failures: dict[str, str] = {}
        with ThreadPoolExecutor(max(1, min(jobs or JOBS, len(rows)))) as pool:
            running = {pool.submit(receive, row): row for row in rows}
            try:
                for future in as_completed(running):
                    row = running[future]
                    try:
                        digest, size = future.result()
                    except (MissingObjectError, CorruptObjectError) as error:
                        failures[self.relpaths[row] or self.url] = str(error)
                        continue
                    if advance:
                        advance(1, size)
                    yield row, digest, size
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        if failures:
            raise TransferError(public_url(self.url), failures)

    def facts(self) -> Facts:
        """Return what a `.dvc` file records of it."""
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
        config: The settings that hold the remotes which ``remote://name/path`` may mean.
        url: A path, or a url.
        folder: What a relative path counts from.
        fs_config: Options for the url, by the names that remotes have; ``version_aware`` reads by version.
        versions: Read these versions; None for what is there now.

    Raises:
        OutputNotFoundError: Nothing is there.
        ConfigError: The url or the options cannot be used.
        RemoteError: The service does not answer, or refuses.

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
    """Return the remote that a url names if it names one, what the url stands for, and its options.

    Raises:
        RemoteNotFoundError: It names a remote that does not exist.
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


def _by_content(source: Source, digests: Sequence[str]) -> dict[str, Any]:
    size = sum(count or 0 for count in source.sizes)
    if not source.is_dir:
        return {"md5": digests[0], "size": size}
    tree = Tree.from_pairs(zip(source.relpaths, digests, strict=True))
    return {"md5": tree.digest, "size": size, "nfiles": len(tree)}
