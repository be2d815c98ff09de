"""Intake of the model server: request bodies, plain or compressed, of bounded size, memory and number.

A body has three bounds: its bytes, its decompressed bytes, and the memory of its values as Python objects. That
memory is estimated before parsing. All running requests share one memory budget.
"""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dvkf_prefect.errors import DvkfError, PredictionError

# Size of the JSON at the start of a V2 request or answer that binary tensors follow.
BINARY_HEADER = "inference-header-content-length"
MAX_REQUEST_BYTES = 32 << 20
# Estimated bytes for the values of all running requests; one request may use them all.
MAX_MEMORY = 384 << 20
MAX_REQUESTS = 512
# Bytes of memory for each of these characters in a JSON text. They stand for a list, a mapping, a number with its
# slot, half of a text's quotes.
_COSTS = {b"[": 80, b"{": 240, b",": 40, b'"': 30}
_CHUNK = 1 << 16
# Maximum number of parts of a compressed body; each has its own cost.
_MEMBERS = 1000
_PLAIN_TYPES = ("application/json", "text/plain", "application/x-www-form-urlencoded", "text/json")


class HttpError(DvkfError):
    """An error answer with its HTTP status.

    Attributes:
        status: Status code.
        headers: Headers of the answer.
    """

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.headers = dict(headers or {})


class Budget:
    """Limits on the memory and the number of running requests.

    Args:
        memory: Bytes for all of them together.
        requests: Maximum number of running requests.
    """

    def __init__(self, memory: int = MAX_MEMORY, requests: int = MAX_REQUESTS) -> None:
        self.memory = memory
        self._left = memory
        self._requests = requests
        self._lock = threading.Lock()

    @contextmanager
    def share(self) -> Iterator[Share]:
        """Admit one request until the context ends.

        Raises:
            HttpError: Too many requests are running; 503 with the time to retry after.
        """
        with self._lock:
            if self._requests <= 0:
                raise busy()
            self._requests -= 1
        share = Share(self)
        try:
            yield share
        finally:
            with self._lock:
                self._requests += 1
                self._left += share.taken

    def _take(self, size: int) -> None:
        with self._lock:
            if size > self._left:
                raise busy()
            self._left -= size


class Share:
    """One request's share of a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.taken = 0

    def grow(self, size: int) -> None:
        """Reserve memory for a request, up to ``size`` bytes in all.

        Raises:
            HttpError: ``size`` exceeds the limit of a request (413), or the memory left for now (503).
        """
        if size > self._budget.memory:
            raise _too_large("the request needs too much memory")
        if size > self.taken:
            self._budget._take(size - self.taken)
            self.taken = size


def busy() -> HttpError:
    """Return the error for a request that must wait for others to end."""
    return HttpError(
        503, "too many requests in progress on the server. Try again later.", {"retry-after": "1"}
    )


def _too_large(what: str) -> HttpError:
    # The rest of the body is not read, so the connection cannot be reused.
    return HttpError(413, f"{what}. Send fewer rows at a time.", {"connection": "close"})


def check_headers(headers: Mapping[str, str], limit: int) -> str:
    """Refuse a request by its headers, before reading it; return the compression of its body.

    Args:
        headers: Headers of the request, by lower-case name.
        limit: Maximum size of a body, in bytes.

    Raises:
        HttpError: The body is too large (413), or its type or compression is not supported (415).
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    binary = kind == "application/octet-stream" and BINARY_HEADER in headers
    if kind and kind not in _PLAIN_TYPES and not kind.endswith("+json") and not binary:
        raise HttpError(415, f"content type {kind[:100]!r} is not supported. Send application/json.")
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise HttpError(
            415,
            f"content encoding {encoding[:100]!r} is not supported. Send the content plain or with gzip.",
            {"accept-encoding": "gzip, deflate"},
        )
    length = headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > limit):
        raise _too_large(f"the request is larger than {limit} bytes")
    return encoding


async def read_body(chunks: AsyncIterator[bytes], limit: int, share: Share) -> bytes:
    """Read a body of at most ``limit`` bytes.

    Raises:
        HttpError: The body is larger, or no memory is left for it.
    """
    body = bytearray()
    async for chunk in chunks:
        if len(body) + len(chunk) > limit:
            raise _too_large(f"the request is larger than {limit} bytes")
        share.grow(len(body) + len(chunk))
        body += chunk
    return bytes(body)


def decompress(body: bytes, encoding: str, limit: int, share: Share) -> bytes:
    """Decompress a body to at most ``limit`` bytes.

    Raises:
        PredictionError: The body is not valid data of its declared compression.
        HttpError: The result is larger, or no memory is left for it.
    """
    if encoding in ("", "identity"):
        return body
    out = bytearray()
    position = 0
    try:
        for _ in range(_MEMBERS):
            reader = zlib.decompressobj(_window(body, position, encoding))
            while not reader.eof:
                chunk = body[position : position + _CHUNK]
                piece = reader.decompress(chunk, _CHUNK)
                position += len(chunk) - len(reader.unconsumed_tail) - len(reader.unused_data)
                if not piece and not chunk:
                    raise PredictionError(f"the request ends in the middle of its {encoding} data")
                if len(out) + len(piece) > limit:
                    raise _too_large(f"the request is larger than {limit} bytes once decompressed")
                share.grow(len(body) + len(out) + len(piece))
                out += piece
            if position >= len(body):
                return bytes(out)
    except zlib.error as error:
        raise PredictionError(f"the request is not {encoding} data ({error})") from error
    raise PredictionError(f"the request has more than {_MEMBERS} parts of {encoding} data")


def _window(body: bytes, position: int, encoding: str) -> int:
    """Return zlib's window size for a format; of the two formats called deflate, one has no header."""
    first, second = (*body[position : position + 2], 0, 0)[:2]
    bare = encoding == "deflate" and (first & 15 != 8 or (first << 8 | second) % 31)
    return -zlib.MAX_WBITS if bare else zlib.MAX_WBITS + 32


def parse(body: bytes, share: Share) -> object:
    """Parse a JSON body, after reserving memory for its values.

    Raises:
        PredictionError: The body is not JSON.
        HttpError: Its values need more memory than allowed (413), or than is left for now (503).
    """

    def refuse(constant: str) -> object:
        raise PredictionError(f"{constant} is not JSON. Use finite numbers.")

    share.grow(2 * len(body) + sum(cost * body.count(mark) for mark, cost in _COSTS.items()))
    try:
        return json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        what = "the request has no body" if not body else f"the request is not JSON ({error})"
        raise PredictionError(f'{what}. Send {{"instances": [...]}} or {{"inputs": [...]}}.') from error


def render(document: Mapping[str, Any] | list[Any]) -> bytes:
    """Encode a document as JSON in ASCII, which no text can break."""
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode("ascii")


def accepts_gzip(headers: Mapping[str, str]) -> bool:
    """Return True if the client accepts gzip."""
    for item in headers.get("accept-encoding", "").lower().split(","):
        name, _, quality = item.partition(";")
        if name.strip() in ("gzip", "x-gzip"):
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def compress(data: bytes) -> bytes:
    """Compress an answer; fast rather than small, since the client is on this machine."""
    return gzip.compress(data, 1, mtime=0)
