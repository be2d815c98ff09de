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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dvkf_prefect.data.config import Config
from dvkf_prefect.data.digest import digest_bytes, digest_file
from dvkf_prefect.data.outputs import FileVersion
from dvkf_prefect.data.remotes.base import steady
from dvkf_prefect.data.remotes.errors import Place, public_url
from dvkf_prefect.data.remotes.filesystems import FilesystemStorage
from dvkf_prefect.data.remotes.options import parse_options, secrets_of
from dvkf_prefect.data.remotes.protocols import Protocol, protocol_of
from dvkf_prefect.data.remotes.urls import join_url, split_url
from dvkf_prefect.data.store import Cache, Stored, walk_files
from dvkf_prefect.data.tree import SUFFIX, Tree, check_relpath
from dvkf_prefect.errors import (
    ConfigError,
    CorruptObjectError,
    DvkfError,
    MissingObjectError,
    OutputNotFoundError,
    TransferError,
)
from dvkf_prefect.files import raise_disk_full

# What a service's mark of a file is called in a `.dvc` file; for the others the bytes are hashed.
_MARKS = {"s3": "etag", "gs": "etag", "azure": "etag", "oss": "etag", "http": "checksum", "https": "checksum"}
_VERSIONED = ("s3", "gs", "azure")
_JOBS = 16

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
        with ThreadPoolExecutor(max(1, min(jobs or _JOBS, len(rows)))) as pool:
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


class UrlFiles(FilesystemStorage):
    """The files at a url, with what the service says of each.

    Args:
        protocol: Which filesystem, its root the url.
        place: How messages call it.
        versioned: Whether versions are asked for.
    """

    def __init__(self, protocol: Protocol, place: Place, *, versioned: bool) -> None:
        super().__init__(protocol, place, jobs=_JOBS)
        self.versioned = versioned

    def info(self, relpath: str) -> dict[str, Any] | None:
        """Return what the service says of a file or a directory; None where there is neither."""
        try:
            found: dict[str, Any] = self._ask(
                f"look up '{relpath}'" if relpath else "look it up",
                relpath,
                lambda: self._fs.info(self._full(relpath)),
            )
        except MissingObjectError:
            return None
        return found

    def checksum(self, relpath: str) -> str:
        """Return fsspec's own checksum of a file, made of what the service says of it."""
        with self._told(f"look up '{relpath}'" if relpath else "look it up", relpath):
            return str(self._fs.checksum(self._full(relpath)))

    def find(self) -> dict[str, dict[str, Any]]:
        """Return what the service says of each file below the root, by its path from there."""
        found: dict[str, dict[str, Any]]
        if self._protocol.pages and not self.versioned:
            found = dict(self._paged(self._protocol.pages, self._root, "list it"))
        else:
            found = self._ask("list it", "", lambda: self._fs.find(self._root, detail=True))
        root = self._root.strip("/")
        files: dict[str, dict[str, Any]] = {}
        for path, info in found.items():
            key = path.strip("/").removeprefix(root).strip("/")
            if key and not path.endswith("/") and info.get("type", "file") == "file":
                check_relpath(key, self.url)
                files[key] = info
        return files

    def read_version(self, relpath: str, version: str | None, *, limit: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a file, of one version where one is named; at most ``limit``."""
        tried = f"read '{relpath}'" if relpath else "read it"
        named = version if self.versioned else None
        chunks = self._resumed(self._full(relpath), 0, tried, relpath, named)
        yield from steady(chunks, self._place, relpath or self.url, limit=limit)

    def _full(self, relpath: str) -> str:
        return self._path(relpath) if relpath else self._root


def receive_stream(
    cache: Cache, chunks: Iterator[bytes], *, size: int | None = None, digest: str | None = None
) -> tuple[str, int]:
    """Take a stream's bytes into a cache.

    Args:
        cache: Where to.
        chunks: The bytes.
        size: How many they must be, where that is known.
        digest: What they must hash to, where that is known.

    Returns:
        Their md5, and how many they were.

    Raises:
        CorruptObjectError: They are not what was expected; nothing was stored.
        DiskFullError: There is no room; nothing was stored.
    """
    temporary = cache.temporary()
    md5 = hashlib.md5(usedforsecurity=False)
    count = 0
    try:
        with temporary.open("wb") as stream:
            for chunk in chunks:
                md5.update(chunk)
                stream.write(chunk)
                count += len(chunk)
        found = md5.hexdigest()
        if size not in (None, count) or digest not in (None, found):
            raise CorruptObjectError(
                f"{count} bytes with md5 {found} came where {size} bytes with md5 {digest or 'unknown'} were expected: "
                "it changed meanwhile, or is damaged; nothing was stored"
            )
        cache.adopt(temporary, found)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, DvkfError):
            raise_disk_full(error, temporary)
        raise
    return found, count


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


def open_files(url: str, options: Mapping[str, str], name: str, *, versioned: bool) -> UrlFiles:
    """Open the service of a url.

    Args:
        url: The url.
        options: By the names that remotes have.
        name: How messages call it.
        versioned: Whether versions are asked for.

    Raises:
        ConfigError: The url or the options cannot be used.
    """
    parts = split_url(url)
    scheme, url = parts.scheme, join_url(parts)
    if versioned and scheme not in _VERSIONED:
        raise ConfigError(f"{public_url(url)}: only {', '.join(_VERSIONED)} urls keep versions")
    parsed = parse_options(scheme, options, name)
    place = Place(name, public_url(url), secrets_of(parsed))
    protocol = protocol_of(url, parsed, place)
    if scheme in ("http", "https") and parts.query:
        protocol = replace(protocol, root=f"{protocol.root}?{parts.query}")
    if versioned:
        protocol = replace(protocol, arguments={**protocol.arguments, "version_aware": True})
    place = replace(place, secrets=(*place.secrets, *protocol.secrets))
    return UrlFiles(protocol, place, versioned=versioned)


def _by_content(source: Source, digests: Sequence[str]) -> dict[str, Any]:
    size = sum(count or 0 for count in source.sizes)
    if not source.is_dir:
        return {"md5": digests[0], "size": size}
    tree = Tree.from_pairs(zip(source.relpaths, digests, strict=True))
    return {"md5": tree.digest, "size": size, "nfiles": len(tree)}
