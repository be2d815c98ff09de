"""What S3 is really sent: each option, token and credential as the server sees it; and what its faults become."""

from __future__ import annotations

import base64
import hashlib
import http.server
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from servers import serving

from dvkf_prefect.data.remotes import Storage, open_storage, patience
from dvkf_prefect.errors import RemoteError, RemoteUnreachableError

Backend = Literal["obstore", "fsspec"]
BACKENDS: list[Backend] = ["obstore", "fsspec"]
KEY = base64.b64encode(b"k" * 32).decode()
BLOB = b"0123456789" * 1000


class Recorder(http.server.BaseHTTPRequestHandler):
    """Takes what S3 is told, and answers as it is told to."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[tuple[str, str, dict[str, str]]]]
    failures: ClassVar[int]
    stall: ClassVar[threading.Event]
    cut: ClassVar[bool]
    sizes: ClassVar[dict[str, int]]

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = type(self)
        kind.seen.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        kind.stall.wait(60)
        if kind.failures:
            kind.failures -= 1
            self._send(503, b"<Error><Code>SlowDown</Code><Message>busy</Message></Error>")
        elif self.command in ("GET", "HEAD") and "list-type" in self.path:
            self._send(200, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
        elif self.command in ("GET", "HEAD"):
            self._send(200, b"x" * self.sizes.get(self.path.partition("?")[0], 0) or BLOB)
        else:
            encoded = self.headers.get("X-Amz-Decoded-Content-Length")
            self.sizes[self.path.partition("?")[0]] = int(encoded or len(body))
            self._send(200, b"")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if self.cut else data)
        if self.cut:
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        return


class Listener(http.server.ThreadingHTTPServer):
    """Ends a connection without a word where the client hung up before the answer."""

    def handle_error(self, request: object, address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, address)  # type: ignore[arg-type]


class Server:
    """The recorder, and storages on it."""

    def __init__(self, url: str, handler: type[Recorder]) -> None:
        self.url = url
        self.handler = handler

    def open(self, backend: Backend | None, **options: str) -> Storage:
        plain = {"endpointurl": self.url, "region": "us-east-1", "connect_timeout": "2", "read_timeout": "2"}
        if "allow_anonymous_login" not in options:
            plain |= {"access_key_id": "key", "secret_access_key": "s3cr3t-key"}
        return open_storage("s3://bucket/p", {**plain, **options}, name="store", backend=backend)

    def headers(self, method: str) -> dict[str, str]:
        """Of the last request of that method."""
        return next(headers for command, _, headers in reversed(self.handler.seen) if command == method)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(patience, "UNTIMED", (0.01, 0.02))
    monkeypatch.setattr(patience, "_QUICK", tuple(pause / 100 for pause in patience._QUICK))
    go = threading.Event()
    go.set()
    handler = type(
        "Handler", (Recorder,), {"seen": [], "failures": 0, "stall": go, "cut": False, "sizes": {}}
    )
    with serving(Listener(("127.0.0.1", 0), handler)) as port:
        yield Server(f"http://127.0.0.1:{port}", handler)
        go.set()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_session_token_is_sent(server: Server, backend: Backend) -> None:
    storage = server.open(backend, session_token="t0ken-of-session")
    storage.write("a", b"1")
    headers = server.headers("PUT")
    assert headers["x-amz-security-token"] == "t0ken-of-session"
    assert "Credential=key/" in headers["authorization"]
    assert "t0ken" not in repr(storage)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_anonymous_request_is_not_signed(
    server: Server, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "environment")
    storage = server.open(backend, allow_anonymous_login="true")
    assert storage.read("a") == BLOB
    assert "authorization" not in server.headers("GET")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"sse": "AES256"}, {"x-amz-server-side-encryption": "AES256"}),
        ({"sse": "aws:kms"}, {"x-amz-server-side-encryption": "aws:kms"}),
        (
            {"sse": "aws:kms:dsse", "sse_kms_key_id": "id"},
            {
                "x-amz-server-side-encryption": "aws:kms:dsse",
                "x-amz-server-side-encryption-aws-kms-key-id": "id",
            },
        ),
        (
            {"sse_kms_key_id": "id"},
            {"x-amz-server-side-encryption": "aws:kms", "x-amz-server-side-encryption-aws-kms-key-id": "id"},
        ),
        (
            {"sse_customer_key": KEY, "sse_customer_algorithm": "AES256"},
            {
                "x-amz-server-side-encryption-customer-algorithm": "AES256",
                "x-amz-server-side-encryption-customer-key": KEY,
                "x-amz-server-side-encryption-customer-key-md5": base64.b64encode(
                    hashlib.md5(b"k" * 32).digest()
                ).decode(),
            },
        ),
    ],
    ids=["s3", "kms", "dsse", "kms key", "customer"],
)
def test_encryption_reaches_the_server(
    server: Server, backend: Backend, options: dict[str, str], sent: dict[str, str], tmp_path: Path
) -> None:
    storage = server.open(backend, **options)
    (tmp_path / "source").write_bytes(b"1" * 1000)
    for put in (lambda: storage.write("a", b"1"), lambda: storage.upload("a", tmp_path / "source")):
        server.handler.seen.clear()
        put()
        headers = server.headers("PUT")
        assert {name: value for name, value in headers.items() if "encryption" in name} == sent
    # A customer's key is needed to read, too; the others must not be sent, S3 refuses them.
    storage.read("a")
    of_get = {name: value for name, value in server.headers("GET").items() if "encryption" in name}
    assert of_get == (sent if "sse_customer_key" in options else {})
    assert storage.size("a") == 1000
    of_head = {name: value for name, value in server.headers("HEAD").items() if "encryption" in name}
    assert of_head == of_get
    assert KEY not in repr(storage)


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"acl": "bucket-owner-full-control"}, {"x-amz-acl": "bucket-owner-full-control"}),
        (
            {
                "grant_read": "id=r",
                "grant_read_acp": "id=a",
                "grant_write_acp": "id=w",
                "grant_full_control": "id=f",
            },
            {
                "x-amz-grant-read": "id=r",
                "x-amz-grant-read-acp": "id=a",
                "x-amz-grant-write-acp": "id=w",
                "x-amz-grant-full-control": "id=f",
            },
        ),
    ],
    ids=["acl", "grants"],
)
def test_who_may_read_reaches_the_server(
    server: Server, options: dict[str, str], sent: dict[str, str], tmp_path: Path
) -> None:
    storage = server.open(None, **options)
    (tmp_path / "source").write_bytes(b"1" * 1000)
    storage.upload("a", tmp_path / "source")
    headers = server.headers("PUT")
    assert {name: value for name, value in headers.items() if "acl" in name or "grant" in name} == sent


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_busy_server_is_asked_again(server: Server, backend: Backend, tmp_path: Path) -> None:
    storage = server.open(backend)
    (tmp_path / "source").write_bytes(b"1" * 1000)
    for act in (
        lambda: storage.write("a", b"1"),
        lambda: storage.upload("a", tmp_path / "source"),
        lambda: storage.read("a"),
        lambda: b"".join(storage.stream("a")),
        lambda: storage.size("a"),
        lambda: list(storage.list()),
    ):
        server.handler.failures = 1
        server.handler.seen.clear()
        act()
        assert len(server.handler.seen) >= 2
        assert server.handler.failures == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_server_that_stays_busy_is_told(server: Server, backend: Backend) -> None:
    server.handler.failures = 10_000
    with pytest.raises(RemoteUnreachableError, match=r"remote 'store' .*keeps failing: tried to read 'a'"):
        server.open(backend).read("a")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_blob_that_is_cut_off_is_not_a_short_blob(server: Server, backend: Backend) -> None:
    """The server says how many bytes there are and sends half of them."""
    server.handler.cut = True
    storage = server.open(backend)
    for act in (lambda: storage.read("a"), lambda: b"".join(storage.stream("a"))):
        with pytest.raises(RemoteError, match="remote 'store'"):
            act()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_server_that_stalls_is_given_up(server: Server, backend: Backend) -> None:
    """It takes the request and says nothing more: a wait has to end by itself."""
    server.handler.stall.clear()
    storage = server.open(backend, read_timeout="1")
    with pytest.raises(RemoteUnreachableError, match=r"remote 'store' .*does not answer: tried to read 'a'"):
        storage.read("a")
