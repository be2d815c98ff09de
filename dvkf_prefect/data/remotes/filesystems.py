"""Storage on any fsspec filesystem: ssh, http, webdav, hdfs, …, and S3 through s3fs."""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from dvkf_prefect.data.remotes.base import SLOWEST_UPLOAD, WINDOW, Storage, check_key
from dvkf_prefect.data.remotes.errors import Place
from dvkf_prefect.data.remotes.pages import Watch
from dvkf_prefect.data.remotes.patience import Gate, Patience, Trouble, retry_after
from dvkf_prefect.data.remotes.protocols import Pages, Protocol
from dvkf_prefect.errors import DvkfError, MissingObjectError
from dvkf_prefect.scratch import scratch_folder

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

T = TypeVar("T")

_CHUNK = 1 << 20
# Limits of a listing: number of folders, and depth.
_MOST_FOLDERS = 1_000_000
_DEEPEST = 200
_TEMPORARY = ".dvkf-tmp-"
# Exception classes of the libraries below fsspec, by name, to avoid importing the libraries.
_UNREACHABLE = {
    "ClientConnectionError",
    "ConnectError",
    "ConnectTimeoutError",
    "ConnectionClosedError",
    "EndpointConnectionError",
    "FSTimeoutError",
    "HTTPClientError",
    "ReadTimeoutError",
    "ServerTimeoutError",
    "TransportError",
}
_CUT = {
    "ClientPayloadError",
    "ConnectionResetError",
    "IncompleteReadError",
    "ReadError",
    "RemoteProtocolError",
    "ResponseStreamingError",
    "ServerDisconnectedError",
}
_STALLED = {
    "ConnectTimeoutError",
    "ReadTimeout",
    "ReadTimeoutError",
    "ServerTimeoutError",
    "SocketTimeoutError",
}
_LOST = {"ConnectionLost", "DisconnectError", "SFTPConnectionLost", "SFTPNoConnection"}
_DENIED = {"NoCredentialsError", "PartialCredentialsError", "PermissionDenied", "HostKeyNotVerifiable"}
_DENIED_CODES = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "AccessDenied",
    "InvalidToken",
    "ExpiredToken",
)

# Keys for the time of the last change in fsspec filesystems.
_TIMES = ("LastModified", "last_modified", "mtime", "modified", "updated", "created")


class FilesystemStorage(Storage):
    """Blobs on an fsspec filesystem.

    If a put is not atomic, the file goes to a temporary name first and is renamed.

    Args:
        protocol: The filesystem, and the way to store blobs on it.
        place: Name of the remote in messages.
        jobs: Number of parallel transfers.

    Example:
        >>> from dvkf_prefect.data.remotes import open_storage
        >>> storage = open_storage("memory://example-fs", backend="fsspec")
        >>> storage.write("files/md5/aa/b", b"data")
        >>> storage.size("files/md5/aa/b")
        4
    """

    def __init__(self, protocol: Protocol, place: Place, *, jobs: int) -> None:
        self.name = place.name
        self.url = place.url
        self.jobs = jobs
        self._protocol = protocol
        self._place = place
        self._root = protocol.root
        self._gate = Gate(refused=protocol.refused)
        self._connecting = threading.Lock()
        self._connected: AbstractFileSystem | None = None
        self._ask("connect", None, lambda: self._fs)
        # Few filesystems connect on creation, so no service has answered yet.
        self._gate = Gate(refused=protocol.refused)
        self._made: set[str] = set()

    @property
    def _fs(self) -> AbstractFileSystem:
        """The filesystem, created again if its connection was lost."""
        with self._connecting:
            if self._connected is None:
                self._connected = self._protocol.connect(self._place)
            return self._connected

    def size(self, key: str) -> int | None:
        """Return the size of a blob in bytes, or None if it does not exist."""
        path = self._path(key)
        try:
            info = self._ask(f"look up '{key}'", key, lambda: self._fs.info(path))
        except MissingObjectError:
            return None
        if info.get("type") != "file":
            return None
        if info.get("size") is None:
            # Some web servers send no size.
            return sum(map(len, self.stream(key)))
        return int(info["size"])

    def _stream(self, key: str, start: int) -> Iterator[bytes]:
        """Yield the blob from a byte on."""
        path = self._path(key)
        if start and not self._protocol.read:
            size = self.size(key)
            if size is None:
                raise self._place.missing(key)
            if start >= size:
                return
        yield from self._resumed(path, start, f"read '{key}'", key)

    def _resumed(
        self, path: str, start: int, tried: str, key: str, version: str | None = None
    ) -> Iterator[bytes]:
        """Yield a file from a byte on; resume at the current position after a lost connection."""
        position = start
        patience = Patience(self._gate)
        while True:
            self._gate.wait()
            before = position
            try:
                for chunk in self._bytes(path, position, version):
                    position += len(chunk)
                    yield chunk
                return
            except Exception as error:
                if isinstance(error, DvkfError):
                    raise
                if position > before:
                    patience.reset()
                if not patience.again(self._trouble(error)):
                    raise self._fault(error, tried, key) from self._place.cause(error)

    def _bytes(self, path: str, start: int, version: str | None = None) -> Iterator[bytes]:
        """Yield a file from a byte on, each piece as soon as it arrives."""
        if self._protocol.read:
            yield from self._protocol.read(self._fs, path, start, version)
            return
        options = dict(self._protocol.open_at if start else self._protocol.open)
        if version is not None:
            options["version_id"] = version
        with self._fs.open(path, "rb", **options) as file:
            if start:
                file.seek(start)
            while chunk := file.read(_CHUNK):
                yield chunk

    def write(self, key: str, data: bytes) -> None:
        """Store a small blob."""
        with scratch_folder("dvkf-blob-") as folder:
            source = folder / "blob"
            source.write_bytes(data)
            self.upload(key, source)

    def upload(self, key: str, source: Path) -> None:
        """Store a file as a blob."""
        path = self._path(key)
        # An unreadable source is the caller's error, not the remote's.
        with open(source, "rb", buffering=0):
            local = os.fspath(source)
        put = self._put if self._protocol.atomic else self._put_and_rename
        self._ask(f"store '{key}'", None, lambda: put(local, path))
        if self._protocol.atomic and self._protocol.lists:
            # Compare sizes: a service may report success for a truncated upload.
            sent, stored = os.path.getsize(local), self.size(key)
            if stored != sent:
                raise self._place.failed(f"store '{key}'", f"it stored {stored} bytes of the {sent} sent")

    def _put(self, local: str, path: str) -> None:
        if self._protocol.upload:
            self._protocol.upload(self._fs, local, path)
        elif self._fs.async_impl:
            import asyncio

            from fsspec.asyn import sync

            # aiohttp has no timeout for a server that stops receiving.
            longest = WINDOW + os.path.getsize(local) / SLOWEST_UPLOAD

            async def bounded(source: str | IO[bytes]) -> None:
                # A timeout of `sync` would leave the upload running, and its file open.
                await asyncio.wait_for(self._fs._put_file(source, path, **self._protocol.put), longest)

            if self._protocol.puts_open_files:
                with open(local, "rb") as file:
                    sync(self._fs.loop, bounded, file)
            else:
                sync(self._fs.loop, bounded, local)
        else:
            self._fs.put_file(local, path, **self._protocol.put)

    def _move(self, path: str, target: str) -> None:
        if self._protocol.move:
            self._protocol.move(self._fs, path, target)
        else:
            self._fs.mv(path, target)

    def _put_and_rename(self, local: str, path: str) -> None:
        folder = path.rpartition("/")[0]
        temporary = f"{folder}/{_TEMPORARY}{uuid.uuid4().hex}"
        if folder not in self._made:
            self._fs.makedirs(folder, exist_ok=True)
            self._made.add(folder)
        try:
            self._put(local, temporary)
            try:
                self._move(temporary, path)
            except FileExistsError:
                # Filesystems with a rename that does not replace.
                self._fs.rm_file(path)
                self._move(temporary, path)
        except BaseException as error:
            full = type(error).__name__ == "SFTPFailure" and self._is_full(folder)
            # The rest keeps a temporary name; a second failure must not hide the first.
            with contextlib.suppress(Exception):
                self._fs.rm_file(temporary)
            if full:
                raise self._place.disk_full(f"store {os.path.getsize(local)} bytes") from error
            raise

    def _is_full(self, folder: str) -> bool:
        """Return True if less than one write's space is free, since SFTP reports a full disk as a generic failure."""
        with contextlib.suppress(Exception):
            return self._protocol.space is not None and self._protocol.space(self._fs, folder) < _CHUNK
        return False

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Return every ``(key, bytes)`` under the folder ``prefix``."""
        return ((key, int(info["size"])) for key, info in self._infos(prefix))

    def dated(self, prefix: str = "") -> Iterator[tuple[str, int, float | None]]:
        """Yield every ``(key, bytes, last change)`` under a folder."""
        for key, info in self._infos(prefix):
            yield key, int(info["size"]), changed_at(info)

    def starting(self, text: str) -> Iterator[tuple[str, int, str | None]]:
        """Yield every ``(key, bytes, etag)`` whose key starts with a text."""
        starting = self._protocol.starting
        if starting is None:
            yield from super().starting(text)
            return
        root = f"{self._root}/" if self._root else ""
        found = self._ask(f"list '{text}*'", None, lambda: list(starting(self._fs, root + text)))
        for path, size, etag in found:
            yield path[len(root) :], size, etag

    def drop_uploads(self, text: str) -> int:
        """Drop what uploads in parts left that began to keys that start with a text, and never ended."""
        drop = self._protocol.drop
        if drop is None:
            return 0
        root = f"{self._root}/" if self._root else ""
        return self._ask(f"drop unfinished uploads to '{text}*'", None, lambda: drop(self._fs, root + text))

    def copy(self, source: str, key: str, size: int) -> None:
        """Copy a file of the same service to a key, without a download.

        Args:
            source: Path of the file in the filesystem's own syntax.
            key: Key of the copy.
            size: Size of the file in bytes.

        Raises:
            MissingObjectError: There is no such file.
        """
        path, copy = self._path(key), self._protocol.copy
        if copy is None:
            self._ask(f"copy '{source}'", source, lambda: self._fs.cp_file(source, path))
        else:
            self._ask(f"copy '{source}'", source, lambda: copy(self._fs, source, path, size))

    def _infos(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the key of each blob under a folder, with the filesystem's info."""
        prefix = prefix.strip("/")
        tried = f"list '{prefix}'"
        if not self._protocol.lists:
            raise self._place.failed(tried, "this kind of server cannot list files")
        start = self._path(prefix) if prefix else self._root
        root = self._root.strip("/")
        for path, info in self._walk(start, tried) if self._protocol.folders else self._find(start, tried):
            key = path.strip("/")
            key = key[len(root) + 1 :] if root else key
            # A prefix that names a blob is not a folder.
            if key and key != prefix and not key.rpartition("/")[2].startswith(_TEMPORARY):
                yield key, info

    def _find(self, start: str, tried: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if self._protocol.pages:
            yield from self._paged(self._protocol.pages, start, tried)
            return
        try:
            found: dict[str, dict[str, Any]] = self._ask(
                tried, start, lambda: self._fs.find(start, detail=True)
            )
        except MissingObjectError:
            return
        yield from found.items()

    def _paged(self, pages: Pages, start: str, tried: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the results of `_find` page by page, so that an endless listing does not fill the memory."""
        watch = Watch(self._place, start)
        token: str | None = None
        while True:
            asked = token
            try:
                page, token = self._ask(tried, start, lambda: pages(self._fs, start, asked))  # noqa: B023
            except MissingObjectError:
                return
            watch.see(page[0]["name"] if page else None, page[-1]["name"] if page else None, len(page))
            for info in page:
                yield info["name"], info
            if token is None:
                return

    def _walk(self, start: str, tried: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the results of `_find` with one request per folder, several at once."""

        def entries(folder: str) -> Iterable[dict[str, Any]]:
            try:
                found: list[dict[str, Any]] = self._ask(
                    tried, folder, lambda: self._fs.ls(folder, detail=True)
                )
            except MissingObjectError:
                # Missing, or removed by another process since it was listed.
                return ()
            return found

        pool = ThreadPoolExecutor(self.jobs, thread_name_prefix="list")
        try:
            running = {pool.submit(entries, start)}
            seen = {start.strip("/")}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for listed in done:
                    for info in listed.result():
                        if info["type"] == "directory":
                            # A server may list a folder inside itself, or invent a new one on each request.
                            name = info["name"].strip("/")
                            if name in seen:
                                continue
                            seen.add(name)
                            if len(seen) > _MOST_FOLDERS or name.count("/") > _DEEPEST:
                                raise self._place.failed(tried, f"the listing does not end ({name[:200]})")
                            running.add(pool.submit(entries, info["name"]))
                        else:
                            yield info["name"], info
        finally:
            pool.shutdown(cancel_futures=True)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove blobs; missing ones are ignored."""
        for key in keys:
            path = self._path(key)
            with contextlib.suppress(MissingObjectError):
                self._ask(f"delete '{key}'", key, lambda: self._fs.rm_file(path))  # noqa: B023

    def _path(self, key: str) -> str:
        check_key(key)
        if any(character in key for character in self._protocol.refuses):
            raise self._place.failed(
                f"use the name '{key}'",
                f"names with any of {' '.join(self._protocol.refuses)} are not supported",
            )
        if self._protocol.escapes:
            key = key.replace("%", "%25").replace("?", "%3F").replace("#", "%23")
        return f"{self._root}/{key}" if self._root else key

    def _ask(self, tried: str, key: str | None, action: Callable[[], T]) -> T:
        """Run a request with retries; raise its failure as an error of this package."""
        with self._translated(tried, key):
            return self._gate.run(action, self._trouble)

    def _trouble(self, error: Exception) -> Trouble | None:
        """Classify a failed request for a retry; None if it must not be sent again."""
        if isinstance(error, DvkfError) or self._protocol.kind in ("LocalFileSystem", "MemoryFileSystem"):
            return None
        chain = list(_chain(error))
        status = next((found for item in chain if (found := _status_of(item))), None)
        if status in (429, 503):
            headers = filter(None, map(_header_of, chain))
            return Trouble("busy", retry_after(next(headers, None)))
        if any("SlowDown" in str(item) for item in chain):
            return Trouble("busy")
        names = {kind.__name__ for item in chain for kind in type(item).__mro__}
        text = " ".join(map(str, chain))
        if "NoSuchUpload" in map(_code_of, chain):  # another process dropped it: begin it again
            return Trouble("failed")
        if "ConnectionRefusedError" in names or "Connection refused" in text or "Connect call failed" in text:
            return Trouble("refused")
        if status in (408, 500, 502, 504) or names & _CUT:
            return Trouble("failed")
        return Trouble("stalled") if names & _STALLED else None

    @contextlib.contextmanager
    def _translated(self, tried: str, key: str | None) -> Iterator[None]:
        """Translate errors of the filesystem into errors of this package."""
        try:
            yield
        except DvkfError:
            raise
        except Exception as error:  # noqa: BLE001 - each filesystem has its own; all are translated
            raise self._fault(error, tried, key) from self._place.cause(error)

    def _fault(self, error: Exception, tried: str, key: str | None) -> Exception:
        """Return this package's error for an error of a filesystem; the only table of them."""
        names = {kind.__name__ for item in _chain(error) for kind in type(item).__mro__}
        text = " ".join(str(item) for item in _chain(error))
        detail = " ".join(str(error).split()) or type(error).__name__
        status = next((found for item in _chain(error) if (found := _status_of(item))), None)
        credentials = self._protocol.credentials
        if "NoSuchBucket" in text or "bucket does not exist" in text:
            return self._place.failed(
                tried, f"the bucket does not exist ({detail}). Create it, or correct the url"
            )
        if names & _LOST:
            self._connected = None
        if "InsufficientStorage" in names:
            return self._place.disk_full(tried)
        if "HostKeyNotVerifiable" in names:
            detail += ". Connect once with ssh to add the host's key to ~/.ssh/known_hosts"
        if names & _DENIED or any(code in text for code in _DENIED_CODES) or status in (401, 403, 407):
            return self._place.denied(tried, detail, credentials)
        if isinstance(error, PermissionError) and not error.errno:
            note = "; S3 answers the same for a missing object if listing the bucket is not permitted"
            return self._place.denied(
                tried, detail + (note if "S3" in self._protocol.kind else ""), credentials
            )
        if names & (_UNREACHABLE | _LOST) or (isinstance(status, int) and (status >= 500 or status == 429)):
            return self._place.unreachable(tried, detail, answers=isinstance(status, int))
        if status == 404 and key is not None:
            return self._place.missing(key)
        if isinstance(error, OSError):
            return self._place.local(error, tried, key, credentials)
        return self._place.failed(tried, f"{type(error).__name__}: {detail}")


def _status_of(error: BaseException) -> int | None:
    """Return the HTTP status in an error of any library."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        # botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return int(status) if isinstance(status, int) else None
    for holder in (error, response):
        for name in ("status", "status_code"):
            status = getattr(holder, name, None)
            if isinstance(status, int):
                return int(status)
    return None


def _code_of(error: BaseException) -> str:
    """Return the code of botocore in an error; empty in those of other libraries."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _header_of(error: BaseException) -> str | None:
    """Return the ``Retry-After`` header of the response in an error of any library."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders")
    else:
        headers = getattr(error, "headers", None) or getattr(response, "headers", None)
    for name in ("Retry-After", "retry-after"):
        with contextlib.suppress(AttributeError, KeyError, TypeError):
            if found := headers.get(name):
                return str(found)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def changed_at(info: Mapping[str, Any]) -> float | None:
    """Return the time of a file's last change, from a filesystem's info, in seconds since 1970; None if unknown."""
    return next((_seconds(info[name]) for name in _TIMES if info.get(name) is not None), None)


def _seconds(value: Any) -> float | None:
    """Return a time in any form of the filesystems as seconds since 1970."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = datetime.fromisoformat(value.replace("Z", "+00:00"))
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()
    return float(value) if isinstance(value, (int, float)) else None
