"""Storage in object stores through obstore: S3, Google Cloud Storage, Azure Blob Storage, memory.

obstore's blocking calls release the GIL, so threads are as fast as its asynchronous interface.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dvkf_prefect.data.cache._copier import watch
from dvkf_prefect.data.remotes.base import Storage, check_key
from dvkf_prefect.data.remotes.errors import Place
from dvkf_prefect.data.remotes.options import Options
from dvkf_prefect.data.remotes.pages import CLOCK, Watch
from dvkf_prefect.data.remotes.patience import Gate, Patience, Trouble, retry_after, seconds_refused
from dvkf_prefect.data.remotes.urls import split_url
from dvkf_prefect.errors import ConfigError, DvkfError
from dvkf_prefect.formats.digest import digest_bytes

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import AzureStore, GCSStore, MemoryStore, RetryConfig, S3Store

    Store = AzureStore | GCSStore | MemoryStore | S3Store

T = TypeVar("T")

_LARGEST_CHUNK = 8 << 20
_PART = 8 << 20
_PART_LIMIT = 9_000  # S3 takes 10,000 parts an object.
_PARTS_AT_ONCE = 4
_LARGE_AT_ONCE = 4
_PAGE = 1_000
_PAGES_IN_RANGE = 8
_LISTED_AT_ONCE = 16
_HASHED = re.compile("([0-9a-f]{2})/([0-9a-f]{2})")
# `Gate` retries: obstore would ignore the wait that a service asks for.
_NO_RETRIES: RetryConfig = {"max_retries": 0}
# In a multipart upload, each part is retried by itself.
_RETRIES: RetryConfig = {
    "max_retries": 6,
    "backoff": {"init_backoff": timedelta(seconds=1), "max_backoff": timedelta(seconds=10), "base": 2},
    "retry_timeout": timedelta(seconds=60),
}
# Key of a request that only checks if the service is still busy.
_PROBE = "dvkf-probe"
_MD5 = re.compile('"?([0-9a-f]{32})"?')
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([^<]*)</Code>(?:\s*<Message>([^<]*)</Message>)?")
_NO_BUCKET = (
    "NoSuchBucket",
    "ContainerNotFound",
    "The specified bucket does not exist",
    "The specified container does not exist",
)
_NO_CREDENTIALS = (
    "169.254.169.254",
    "metadata.google",
    "169.254.170.2",
    "AssumeRoleWithWebIdentity",
    "/token",
)


def open_objects(url: str, options: Options, place: Place, *, jobs: int) -> ObjectStorage:
    """Open the object store of an ``s3``, ``gs``, ``azure`` or ``memory`` url.

    Raises:
        ConfigError: The url or the options do not describe a usable store.
    """
    from obstore import store as stores
    from obstore.exceptions import BaseError

    parts = split_url(url)
    bucket = parts.hostname if parts.scheme == "memory" else parts.netloc.rpartition("@")[2]
    prefix = parts.path.strip("/") or None
    if not bucket and parts.scheme != "memory":
        raise ConfigError(f"remote '{place.name}': {place.url} names no bucket")
    credentials, endpoint = "no credentials", ""
    store: Store
    make: Callable[[RetryConfig], Store]
    try:
        if parts.scheme == "s3":
            from dvkf_prefect.data.remotes.aws import obstore_arguments

            s3 = obstore_arguments(bucket or "", options, place)
            credentials, endpoint = s3.credentials, s3.endpoint
            make = partial(_make, stores.S3Store, bucket, prefix, s3.arguments)
        elif parts.scheme == "gs":
            from dvkf_prefect.data.remotes.clouds import gs_arguments

            arguments, credentials = gs_arguments(options, place)
            endpoint = str(options.get("endpointurl") or "https://storage.googleapis.com")
            make = partial(_make, stores.GCSStore, bucket, prefix, arguments)
        elif parts.scheme == "azure":
            from dvkf_prefect.data.remotes.clouds import azure_arguments

            arguments, credentials = azure_arguments(options, place)
            hidden = tuple(str(arguments[name]) for name in ("account_key", "sas_key") if name in arguments)
            place = replace(place, secrets=(*place.secrets, *hidden))
            endpoint = str(arguments.get("endpoint") or "https://blob.core.windows.net")
            make = partial(_make, stores.AzureStore, bucket, prefix, arguments)
        else:
            from dvkf_prefect.data.remotes.clouds import memory_store

            memory = memory_store(f"{parts.netloc}/{prefix or ''}")

            def make(retries: RetryConfig) -> Store:
                return memory

        store, patient = make(_NO_RETRIES), make(_RETRIES)
    except (BaseError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        if "No CA certificates" in str(error):
            raise ConfigError(
                f"remote '{place.name}': this machine has no CA certificates. Install the package ca-certificates, or "
                "name a PEM file in SSL_CERT_FILE."
            ) from place.cause(error)
        raise ConfigError(f"remote '{place.name}': {place.clean(_first_line(str(error)))}") from place.cause(
            error
        )
    timeout = options.get("connect_timeout") or options.get("connection_timeout")
    return ObjectStorage(
        store,
        place,
        jobs=jobs,
        bucket=bucket or "",
        endpoint=endpoint,
        credentials=credentials,
        patient=patient,
        refused=seconds_refused(timeout),
    )


def _make(
    kind: Any, bucket: str | None, prefix: str | None, arguments: dict[str, Any], retries: RetryConfig
) -> Store:
    made: Store = kind(bucket, prefix=prefix, retry_config=retries, **arguments)
    return made


class _Counted(io.FileIO):
    """File that reports the bytes that are read from it, the last ones when more are read.

    The parts of an upload are read before they are sent, up to `_PARTS_AT_ONCE`. Half of what may be on its way counts.
    """

    def __init__(self, path: str, part: int) -> None:
        super().__init__(path)
        self._note, self._key = watch.note, watch.key
        self._ahead = part * _PARTS_AT_ONCE // 2
        self._read = self._noted = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        self._read += len(data)
        arrived = self._read - self._ahead
        if self._note is not None and arrived > self._noted:
            self._note(self._key, arrived - self._noted)
            self._noted = arrived
        return data


class ObjectStorage(Storage):
    """Blobs of one bucket, below one prefix.

    Args:
        store: obstore's store, with the root as its prefix.
        place: Name of the remote in messages.
        jobs: Number of parallel transfers.
        bucket: Name of the bucket or container, for messages.
        endpoint: Address of the service, for messages.
        credentials: Name of the credentials, for messages.
        patient: The same store with its own retries, for multipart uploads.
        refused: Seconds to retry while the service refuses connections.

    Example:
        >>> from dvkf_prefect.data.remotes import open_storage
        >>> storage = open_storage("memory://example")
        >>> storage.write("files/md5/aa/b", b"data")
        >>> storage.read("files/md5/aa/b")
        b'data'
    """

    def __init__(
        self,
        store: Store,
        place: Place,
        *,
        jobs: int,
        bucket: str,
        endpoint: str,
        credentials: str,
        patient: Store | None = None,
        refused: float | None = None,
    ) -> None:
        self.name = place.name
        self.url = place.url
        self.jobs = jobs
        self._store = store
        self._patient = patient or store
        self._gate = Gate(refused=refused)
        # True if the service's etags are digests; they are not under default encryption.
        self._marks = True
        self._place = place
        self._bucket = bucket
        self._endpoint = endpoint
        self._credentials = credentials
        # Limits the parts in memory over all threads.
        self._large = threading.BoundedSemaphore(_LARGE_AT_ONCE)
        self._bucket_seen = False
        # Azure and memory list from a key by skipping all keys before; AWS's directory buckets have no order.
        self._ranges = self.url.startswith(("s3:", "gs:")) and not bucket.endswith("--x-s3")

    def size(self, key: str) -> int | None:
        """Return the size of a blob in bytes, or None if it does not exist."""
        try:
            size: int = self._ask(lambda: self._store.head(check_key(key)))["size"]
        except self._faults() as error:
            fault = self._head_fault(error, key)
            if isinstance(fault, FileNotFoundError):
                return None
            raise fault from self._place.cause(error)
        self._bucket_seen = True
        return size

    def _stream(self, key: str, start: int) -> Iterator[bytes]:
        """Yield the blob from a byte on."""
        position = start
        patience = Patience(self._gate)
        while True:
            options = {"range": {"offset": position}} if position else None
            before = position
            try:
                answer = self._ask(lambda: self._store.get(check_key(key), options=options))  # type: ignore[arg-type] # noqa: B023
                # Yield pieces as they arrive: gathering them would hide a low rate.
                for chunk in answer.stream(min_chunk_size=1):
                    # The memory store returns the whole blob in one piece.
                    for place in range(0, len(chunk), _LARGEST_CHUNK):
                        piece = chunk[place : place + _LARGEST_CHUNK]
                        position += len(piece)
                        yield piece
                break
            except self._faults() as error:
                if position and _past_end(str(error)):
                    break
                # After a lost connection, request the rest.
                if position > before:
                    patience.reset()
                if position == start or not patience.again(self._trouble(error)):
                    raise self._fault(error, f"read '{key}'", key) from self._place.cause(error)
        self._bucket_seen = True

    def write(self, key: str, data: bytes) -> None:
        """Store a small blob."""
        self._put_small(key, data, "write")

    def _put_small(self, key: str, data: bytes, verb: str) -> None:
        """Store a blob in one request, and compare the service's etag with the md5."""
        try:
            mark = self._ask(lambda: self._store.put(check_key(key), data, use_multipart=False))["e_tag"]
        except self._faults() as error:
            raise self._fault(error, f"{verb} '{key}'", None) from self._place.cause(error)
        self._bucket_seen = True
        found = _MD5.fullmatch(mark or "") if self._marks and self.url.startswith("s3:") else None
        if found and found[1] != digest_bytes(data):
            if self.read(key, limit=len(data)) != data:
                raise self._place.failed(
                    f"{verb} '{key}'", "the stored content differs from the sent content"
                )
            # The content is right: the service's etags are not digests.
            self._marks = False

    def upload(self, key: str, source: Path) -> None:
        """Store a file as a blob; a large one as a multipart upload, four parts at once."""
        # An unreadable source is the caller's error, not the remote's.
        with open(source, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
        part = max(_PART, -(-size // _PART_LIMIT))
        if size <= part:
            self._put_small(key, Path(source).read_bytes(), "store")
            return
        with self._large:
            try:
                self._ask(lambda: self._put_parts(key, source, part))
            except self._faults() as error:
                raise self._fault(error, f"store '{key}'", None) from self._place.cause(error)
        self._bucket_seen = True
        stored = self.size(key)
        if stored != size:
            raise self._place.failed(f"store '{key}'", f"it stored {stored} bytes of the {size} sent")

    def _put_parts(self, key: str, source: Path, part: int) -> None:
        with _Counted(str(source), part) as file:
            self._patient.put(check_key(key), file, chunk_size=part, max_concurrency=_PARTS_AT_ONCE)

    def copy(self, source: str, key: str) -> None:
        """Copy a blob to another key of the same root, inside the service.

        Raises:
            MissingObjectError: There is no such blob.
        """
        try:
            self._ask(lambda: self._store.copy(check_key(source), check_key(key)))
        except self._faults() as error:
            raise self._fault(error, f"copy '{source}'", source) from self._place.cause(error)

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield every ``(key, bytes)`` under the folder ``prefix``.

        For keys named by hashes, the first page allows an estimate of the number of pages. If there are many, ranges of
        them are listed in parallel. A remote of one page costs one request.
        """
        prefix = prefix.strip("/")
        if prefix:
            check_key(prefix)
        try:
            pages = self._pages(prefix)
            first = next(pages, ())
            for item in first:
                yield item["path"], item["size"]
            cuts = self._cuts(prefix, [item["path"] for item in first]) if self._ranges else ()
            if cuts:
                yield from self._list_ranges(prefix, cuts, pages)
                return
            for page in pages:
                for item in page:
                    yield item["path"], item["size"]
        except DvkfError:
            raise
        except self._faults() as error:
            raise self._fault(error, f"list '{prefix}'", None) from self._place.cause(error)

    def dated(self, prefix: str = "") -> Iterator[tuple[str, int, float | None]]:
        """Yield every ``(key, bytes, last change)`` under a folder, page by page."""
        try:
            for page in self._pages(prefix.strip("/")):
                for item in page:
                    yield item["path"], item["size"], item["last_modified"].timestamp()
        except DvkfError:
            raise
        except self._faults() as error:
            raise self._fault(error, f"list '{prefix}'", None) from self._place.cause(error)

    def _pages(self, prefix: str, after: str | None = None) -> Iterator[Sequence[ObjectMeta]]:
        """Yield a listing page by page; after a failure, restart and skip the pages already yielded.

        Raises:
            RemoteError: The listing repeats a page, or is larger than any remote.
        """
        count = 0
        watch = Watch(self._place, prefix)
        patience = Patience(self._gate)
        while True:
            skip = count
            before = count
            self._gate.wait()
            try:
                stream = self._store.list(prefix or None, offset=after, chunk_size=_PAGE)
                while (listed := CLOCK.next(stream, self._place, f"list '{prefix}'")) is not None:
                    page = listed[skip:]
                    skip = max(0, skip - len(listed))
                    if not page:
                        continue
                    count += len(page)
                    watch.see(page[0]["path"], page[-1]["path"], len(page))
                    yield page
                return
            except DvkfError:
                raise
            except self._faults() as error:
                if count > before:
                    patience.reset()
                    watch.restart()
                if not patience.again(self._trouble(error)):
                    raise

    def delete(self, keys: Iterable[str]) -> None:
        """Remove blobs; missing ones are ignored."""
        keys = iter(keys)
        while batch := [check_key(key) for key in islice(keys, _PAGE)]:
            try:
                self._ask(lambda: self._store.delete(batch))
            except FileNotFoundError:
                # Some services stop at the first missing key.
                for key in batch:
                    self._delete_one(key)
            except self._faults() as error:
                raise self._fault(error, f"delete '{batch[0]}'", None) from self._place.cause(error)

    def _delete_one(self, key: str) -> None:
        try:
            self._ask(lambda: self._store.delete(key))
        except FileNotFoundError:
            return
        except self._faults() as error:
            raise self._fault(error, f"delete '{key}'", None) from self._place.cause(error)

    def _cuts(self, prefix: str, page: Sequence[str]) -> Sequence[str]:
        """Return keys that divide the rest of a listing into ranges of some pages each; empty if it is not worth it.

        A cut lies between two folders of two hexadecimal digits, and is not the name of either. So it also works for
        services that order the entries of a folder rather than whole keys. SeaweedFS would skip the content of a folder
        whose name is the start of a listing.
        """
        start = f"{prefix}/" if prefix else ""
        last = _HASHED.match(page[-1], len(start)) if len(page) >= _PAGE else None
        if last is None or any(one > other for one, other in itertools.pairwise(page)):
            return ()
        # Hashes are spread evenly: the page covers the same share of the hash range and of the keys.
        seen = int(last[1], 16)
        pages = len(page) / _PAGE * (65536 / (int(last[1] + last[2], 16) + 1) - 1)
        workers = min(self.jobs, _LISTED_AT_ONCE)
        count = min(255 - seen, max(min(workers, pages // 2), pages // _PAGES_IN_RANGE))
        inner = {seen + int((256 - seen) * n / count) for n in range(1, int(count))}
        return [f"{start}{cut - 1:02x}~" for cut in sorted(inner - {seen})]

    def _list_ranges(
        self, prefix: str, cuts: Sequence[str], pages: Iterable[Sequence[ObjectMeta]]
    ) -> Iterator[tuple[str, int]]:
        """Yield the entries of ``pages`` up to the first cut, and those after each cut."""

        def collect(after: str, last: str | None) -> Iterable[tuple[str, int]]:
            found: list[tuple[str, int]] = []
            for page in self._pages(prefix, after) if after else pages:
                for item in page:
                    path = item["path"]
                    if last is not None and path > last:
                        return found
                    # A service that ignores the start key begins at the first key.
                    if path > after:
                        found.append((path, item["size"]))
            return found

        rest = zip_longest(("", *cuts), cuts)
        workers = min(self.jobs, _LISTED_AT_ONCE)
        pool = ThreadPoolExecutor(workers, thread_name_prefix="list")
        try:
            running = deque(pool.submit(collect, *cut) for cut in islice(rest, 2 * workers))
            while running:
                yield from running.popleft().result()
                running.extend(pool.submit(collect, *cut) for cut in islice(rest, 1))
        finally:
            pool.shutdown(cancel_futures=True)

    def _ask(self, action: Callable[[], T]) -> T:
        """Run a request with retries."""
        return self._gate.run(action, self._trouble)

    def _trouble(self, error: Exception) -> Trouble | None:
        """Return True if a request that failed may be sent again."""
        if not isinstance(error, self._faults()) or not self._endpoint:
            return None
        text = str(error)
        found = _STATUS.findall(text)
        status = int(found[-1]) if found else 0
        if status in (429, 503):
            return Trouble("busy", self._gate.ask(self._retry_after))
        if status >= 500 or status == 408:
            return Trouble("failed")
        if status:
            return None
        if "Connection refused" in text or "ConnectionRefused" in text:
            return Trouble("refused")
        if "TimedOut" in text or "timed out" in text:
            return Trouble("stalled")
        return Trouble("failed") if "HTTP error" in text or "error sending request" in text else None

    def _retry_after(self) -> float | None:
        """Return the seconds that the service asks to wait, by an extra request, since obstore does not report them."""
        import urllib.error
        import urllib.request

        import obstore

        url = self._endpoint
        with contextlib.suppress(Exception):
            sign: Any = obstore.sign
            url = str(sign(self._store, "HEAD", _PROBE, timedelta(minutes=1)))
        try:
            request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - the remote's own address
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                return retry_after(answer.headers.get("Retry-After"))
        except urllib.error.HTTPError as error:
            with error:
                return retry_after(error.headers.get("Retry-After"))
        except (OSError, ValueError):
            return None

    @staticmethod
    def _faults() -> tuple[type[Exception], ...]:
        from obstore.exceptions import BaseError

        # obstore also raises Python's own errors: FileNotFoundError, and OSError for network failures.
        return (BaseError, OSError)

    def _head_fault(self, error: Exception, key: str) -> Exception:
        """Return the error for a failed HEAD request; a GET finds the reason if needed, since HEAD has no body."""
        fault = self._fault(error, f"look up '{key}'", key)
        known = isinstance(fault, FileNotFoundError) and (self._bucket_seen or not self._endpoint)
        if known or not isinstance(fault, (FileNotFoundError, PermissionError)):
            return fault
        try:
            self._ask(lambda: self._store.get(key, options={"range": (0, 1)}).bytes())
        except self._faults() as reason:
            fault = self._fault(reason, f"look up '{key}'", key)
        if isinstance(fault, FileNotFoundError):
            self._bucket_seen = True
        return fault

    def _fault(self, error: Exception, tried: str, key: str | None) -> Exception:
        """Return this package's error for an error of obstore; the only table of them."""
        from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

        text = str(error)
        found = _STATUS.findall(text)
        status = int(found[-1]) if found else 0
        code = _CODE.search(text)
        detail = f"{code[1]}: {code[2] or ''}".rstrip(": .") if code else _reason(text)
        if any(mark in text for mark in _NO_BUCKET):
            return self._place.failed(
                tried,
                f"the bucket '{self._bucket}' does not exist at {self._endpoint}. Create it, or correct "
                "the url",
            )
        if isinstance(error, FileNotFoundError) and key is not None:
            return self._place.missing(key)
        if isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or status in (401, 403):
            if status == 403 and self.url.startswith("s3:") and (code is None or code[1] == "AccessDenied"):
                detail += "; S3 answers the same for a missing object if listing the bucket is not permitted"
            return self._place.denied(tried, detail, self._credentials)
        if any(mark in text for mark in _NO_CREDENTIALS):
            return self._place.denied(tried, f"no credentials found: {detail}", self._credentials)
        if "redirect" in text.lower() or status in (301, 307):
            return self._place.failed(tried, "the bucket is in another region. Set the option 'region'")
        if status >= 500 or status == 429 or "HTTP error" in text or "timed out" in text:
            at = f" at {self._endpoint}" if self._endpoint else ""
            detail = f"HTTP {status}, {detail}" if status else detail
            return self._place.unreachable(f"{tried}{at}", detail, answers=bool(status))
        if isinstance(error, OSError) and not status:
            return self._place.local(error, tried, key, self._credentials)
        return self._place.failed(tried, detail)


def _first_line(text: str) -> str:
    return text.partition("\n")[0].partition("Debug source")[0].strip()


def _reason(text: str) -> str:
    """Return the innermost reason in obstore's error report, else its first line."""
    inner = re.findall(r'message: "([^"]+)"', text)
    inner += re.findall(r"kind: (TimedOut|ConnectionRefused|ConnectionReset)", text)
    if inner:
        return str(inner[-1])
    line = _first_line(text)
    return line.rpartition(" - ")[2].strip() or line


def _past_end(text: str) -> bool:
    return "416 " in text or "InvalidRange" in text or "StartTooLarge" in text or "Invalid range" in text
