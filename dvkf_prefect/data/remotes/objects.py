"""Object stores by obstore: S3, Google Cloud Storage, Azure Blob Storage, memory.

obstore's blocking calls release the interpreter, so threads move blobs as fast as its asynchronous interface.
"""

from __future__ import annotations

import contextlib
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
# `Gate` asks again: obstore would not wait as long as a service says.
_NO_RETRIES: RetryConfig = {"max_retries": 0}
# Of an upload in parts each part is sent again by itself.
_RETRIES: RetryConfig = {
    "max_retries": 6,
    "backoff": {"init_backoff": timedelta(seconds=1), "max_backoff": timedelta(seconds=10), "base": 2},
    "retry_timeout": timedelta(seconds=60),
}
# A key that is asked for only to hear whether the service is still busy.
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
        ConfigError: The url or the options do not name a store that can be opened.
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


class ObjectStorage(Storage):
    """Blobs of one bucket, below one prefix.

    Args:
        store: obstore's store, its prefix the root.
        place: How messages call the remote.
        jobs: How many transfers at once.
        bucket: The bucket's or container's name, for messages.
        endpoint: The service's address, for messages.
        credentials: What the requests are signed with, for messages.
        patient: The same store, which asks again by itself; for uploads in parts.
        refused: Seconds for which a service that takes no connections is tried again.

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
        # Whether the service's marks of what it stored are digests; not so where it encrypts by default.
        self._marks = True
        self._place = place
        self._bucket = bucket
        self._endpoint = endpoint
        self._credentials = credentials
        # Parts in memory: bounded for all threads together.
        self._large = threading.BoundedSemaphore(_LARGE_AT_ONCE)
        self._bucket_seen = False
        # Azure and memory list from a key on by passing over all before it; AWS's directory buckets have no order.
        self._ranges = self.url.startswith(("s3:", "gs:")) and not bucket.endswith("--x-s3")

    def size(self, key: str) -> int | None:
        """Bytes of the blob, or None when there is none."""
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
                # Pieces as they come: to gather them would hide that they come slowly.
                for chunk in answer.stream(min_chunk_size=1):
                    # Memory hands out the whole blob as one.
                    for place in range(0, len(chunk), _LARGEST_CHUNK):
                        piece = chunk[place : place + _LARGEST_CHUNK]
                        position += len(piece)
                        yield piece
                break
            except self._faults() as error:
                if position and _past_end(str(error)):
                    break
                # A connection that was cut: the rest is asked for.
                if position > before:
                    patience.reset()
                if position == start or not patience.again(self._trouble(error)):
                    raise self._fault(error, f"read '{key}'", key) from self._place.cause(error)
        self._bucket_seen = True

    def write(self, key: str, data: bytes) -> None:
        """Store a small blob."""
        self._put_small(key, data, "write")

    def _put_small(self, key: str, data: bytes, verb: str) -> None:
        """Store a blob by one request, and compare what the service says it stored."""
        try:
            mark = self._ask(lambda: self._store.put(check_key(key), data, use_multipart=False))["e_tag"]
        except self._faults() as error:
            raise self._fault(error, f"{verb} '{key}'", None) from self._place.cause(error)
        self._bucket_seen = True
        found = _MD5.fullmatch(mark or "") if self._marks and self.url.startswith("s3:") else None
        if found and found[1] != digest_bytes(data):
            if self.read(key, limit=len(data)) != data:
                raise self._place.failed(
                    f"{verb} '{key}'", "what it stored is not what was sent; it was not taken as stored"
                )
            # Right all the same: its marks are not digests.
            self._marks = False

    def upload(self, key: str, source: Path) -> None:
        """Store a file as a blob; a large one in parts, four at once."""
        # A source that cannot be opened is the caller's file, not a fault of the remote.
        with open(source, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
        part = max(_PART, -(-size // _PART_LIMIT))
        if size <= part:
            self._put_small(key, Path(source).read_bytes(), "store")
            return
        with self._large:
            try:
                self._ask(
                    lambda: self._patient.put(
                        check_key(key), Path(source), chunk_size=part, max_concurrency=_PARTS_AT_ONCE
                    )
                )
            except self._faults() as error:
                raise self._fault(error, f"store '{key}'", None) from self._place.cause(error)
        self._bucket_seen = True
        stored = self.size(key)
        if stored != size:
            raise self._place.failed(f"store '{key}'", f"it has {stored} bytes of it, where {size} were sent")

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Every ``(key, bytes)`` under the folder ``prefix``.

        What the first page shows of keys named by hashes tells how many pages there are; where they are many,
        ranges of them are listed in parallel. A remote of one page costs one request.
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
        """Every ``(key, bytes, last change)`` under a folder, page after page."""
        try:
            for page in self._pages(prefix.strip("/")):
                for item in page:
                    yield item["path"], item["size"], item["last_modified"].timestamp()
        except DvkfError:
            raise
        except self._faults() as error:
            raise self._fault(error, f"list '{prefix}'", None) from self._place.cause(error)

    def _pages(self, prefix: str, after: str | None = None) -> Iterator[Sequence[ObjectMeta]]:
        """Yield what a listing shows, page by page; one that fails on its way begins again where it was.

        Raises:
            RemoteError: It shows the same page twice, or more than there can be.
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
        """Remove blobs; those that are not there are passed over."""
        keys = iter(keys)
        while batch := [check_key(key) for key in islice(keys, _PAGE)]:
            try:
                self._ask(lambda: self._store.delete(batch))
            except FileNotFoundError:
                # Some services stop at the first that is not there.
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
        """Where to cut what comes after the first page, for ranges of some pages each; nowhere if it is not worth it.

        A cut lies between two folders of two hexadecimal digits and is the name of neither: so it holds too for
        services that order a folder's entries rather than whole keys, and SeaweedFS passes over all that is in
        a folder after whose name it starts.
        """
        start = f"{prefix}/" if prefix else ""
        last = _HASHED.match(page[-1], len(start)) if len(page) >= _PAGE else None
        if last is None or any(one > other for one, other in itertools.pairwise(page)):
            return ()
        # Hashes spread evenly, so the share of them that the page covers is its share of the keys.
        seen = int(last[1], 16)
        pages = len(page) / _PAGE * (65536 / (int(last[1] + last[2], 16) + 1) - 1)
        workers = min(self.jobs, _LISTED_AT_ONCE)
        count = min(255 - seen, max(min(workers, pages // 2), pages // _PAGES_IN_RANGE))
        inner = {seen + int((256 - seen) * n / count) for n in range(1, int(count))}
        return [f"{start}{cut - 1:02x}~" for cut in sorted(inner - {seen})]

    def _list_ranges(
        self, prefix: str, cuts: Sequence[str], pages: Iterable[Sequence[ObjectMeta]]
    ) -> Iterator[tuple[str, int]]:
        """What ``pages`` has up to the first cut, and what lies after each."""

        def collect(after: str, last: str | None) -> Iterable[tuple[str, int]]:
            found: list[tuple[str, int]] = []
            for page in self._pages(prefix, after) if after else pages:
                for item in page:
                    path = item["path"]
                    if last is not None and path > last:
                        return found
                    # A service that does not know where to start begins at the beginning.
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
        """Do a request, again as long as that makes sense."""
        return self._gate.run(action, self._trouble)

    def _trouble(self, error: Exception) -> Trouble | None:
        """Tell whether a request that failed may be sent again."""
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
        """Return for how long the service asks to wait: obstore does not tell, so one request of our own does."""
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

        # obstore raises some of Python's own: FileNotFoundError, and OSError for what happens on the way.
        return (BaseError, OSError)

    def _head_fault(self, error: Exception, key: str) -> Exception:
        """What an answer to HEAD means; it has no body to say it, so a GET asks where it matters."""
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
        """One of ours for what obstore raises; this is the one table of it."""
        from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

        text = str(error)
        found = _STATUS.findall(text)
        status = int(found[-1]) if found else 0
        code = _CODE.search(text)
        detail = f"{code[1]}: {code[2] or ''}".rstrip(": .") if code else _reason(text)
        if any(mark in text for mark in _NO_BUCKET):
            return self._place.failed(
                tried, f"there is no bucket '{self._bucket}' at {self._endpoint}; make it, or correct the url"
            )
        if isinstance(error, FileNotFoundError) and key is not None:
            return self._place.missing(key)
        if isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or status in (401, 403):
            if status == 403 and self.url.startswith("s3:") and (code is None or code[1] == "AccessDenied"):
                detail += "; S3 says so too of an object that is not there when the bucket may not be listed"
            return self._place.denied(tried, detail, self._credentials)
        if any(mark in text for mark in _NO_CREDENTIALS):
            return self._place.denied(tried, f"no credentials found: {detail}", self._credentials)
        if "redirect" in text.lower() or status in (301, 307):
            return self._place.failed(tried, "the bucket is in another region; set the option 'region'")
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
    """The innermost reason in obstore's report of an error, else its first line."""
    inner = re.findall(r'message: "([^"]+)"', text)
    inner += re.findall(r"kind: (TimedOut|ConnectionRefused|ConnectionReset)", text)
    if inner:
        return str(inner[-1])
    line = _first_line(text)
    return line.rpartition(" - ")[2].strip() or line


def _past_end(text: str) -> bool:
    return "416 " in text or "InvalidRange" in text or "StartTooLarge" in text or "Invalid range" in text
