"""A service that is busy, cuts connections or restarts is asked again, as late as it says."""

from __future__ import annotations

import email.utils
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
from servers import serving

from dvkf_prefect.data.remotes import Storage, open_storage, patience
from dvkf_prefect.data.remotes.patience import Gate, Trouble, retry_after
from dvkf_prefect.errors import RemoteError, RemoteUnreachableError

S3 = {"region": "us-east-1", "access_key_id": "key", "secret_access_key": "s3cr3t-key"}
KINDS = ["s3 by obstore", "s3 by s3fs", "http", "webdav", "gs"]
BLOB = bytes(range(256)) * 4000


class Busy(http.server.BaseHTTPRequestHandler):
    """Refuses for a while, counted from the first request; then it serves one blob."""

    protocol_version = "HTTP/1.1"
    lock: ClassVar[threading.Lock]
    until: ClassVar[float | None]
    header: ClassVar[str | None]
    seconds: ClassVar[float]
    status: ClassVar[int]
    early: ClassVar[list[str]]
    cuts: ClassVar[int]

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        del body
        kind = type(self)
        with kind.lock:
            now = time.monotonic()
            if kind.until is None:
                kind.until = now + kind.seconds
            busy = now < kind.until
            if busy:
                kind.early.append(f"{self.command} {self.path.partition('?')[0]}")
        if busy:
            self.send_response(kind.status)
            if kind.header == "date":
                self.send_header("Retry-After", email.utils.formatdate(time.time() + 2, usegmt=True))
            elif kind.header:
                self.send_header("Retry-After", kind.header)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first = 0
        if wanted := self.headers.get("Range"):
            first = int(wanted.removeprefix("bytes=").partition("-")[0])
        data = BLOB[first:] if self.command in ("GET", "HEAD") else b""
        self.send_response(206 if first else 200 if self.command in ("GET", "HEAD") else 201)
        self.send_header("ETag", '"x"')
        self.send_header("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT")
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(BLOB) - 1}/{len(BLOB)}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            with kind.lock:
                cut = kind.cuts > 0
                kind.cuts -= cut
            self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection = cut

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def busy() -> Iterator[type[Busy]]:
    handler = type(
        "Handler",
        (Busy,),
        {"lock": threading.Lock(), "until": None, "header": "1", "seconds": 1.0, "status": 429, "early": [], "cuts": 0},
    )  # fmt: skip
    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as port:
        handler.url = f"http://127.0.0.1:{port}"  # type: ignore[attr-defined]
        yield handler


def open_kind(kind: str, url: str, **options: str) -> Storage:
    host = url.removeprefix("http://")
    place, given = {
        "s3 by obstore": ("s3://b/x", {**S3, "endpointurl": url}),
        "s3 by s3fs": ("s3://b/x", {**S3, "endpointurl": url, "acl": "private"}),
        "http": (f"{url}/x", {}),
        "webdav": (f"webdav://{host}/x", {}),
        "gs": ("gs://b/x", {"endpointurl": url, "allow_anonymous_login": "true"}),
    }[kind]
    return open_storage(place, {**given, **options}, name="store")


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("kind", KINDS)
def test_a_busy_service_is_asked_again_when_it_said(busy: type[Busy], kind: str, status: int) -> None:
    """Of all requests only the first comes early, and the one that obstore needs to hear how long to wait."""
    busy.status = status
    assert open_kind(kind, busy.url).read("a") == BLOB  # type: ignore[attr-defined]
    assert len(busy.early) <= 2


@pytest.mark.parametrize("kind", ["s3 by obstore", "s3 by s3fs", "http"])
def test_a_date_says_when_too(busy: type[Busy], kind: str) -> None:
    busy.header, busy.seconds = "date", 0.5
    assert open_kind(kind, busy.url).read("a") == BLOB  # type: ignore[attr-defined]
    assert len(busy.early) <= 2


@pytest.mark.parametrize("kind", ["s3 by obstore", "http"])
def test_all_threads_wait_when_one_is_told_to(busy: type[Busy], kind: str) -> None:
    """None of 32 sends a second request early, and one asks for all; those that were on their way are no fault."""
    storage = open_kind(kind, busy.url)  # type: ignore[attr-defined]
    with ThreadPoolExecutor(32) as pool:
        assert all(data == BLOB for data in pool.map(storage.read, [f"k{n}" for n in range(200)]))
    asked = [line for line in busy.early if "probe" not in line]
    assert len(asked) == len(set(asked)) <= 32
    assert len(busy.early) - len(asked) <= 1


def test_requests_wait_while_one_thread_asks_how_long() -> None:
    """Others went on against a busy service meanwhile, and each of them then asked again."""
    gate, asked, answer = Gate(), threading.Event(), threading.Event()
    told: list[float | None] = []
    passed: list[str] = []

    def question() -> float:
        asked.set()
        assert answer.wait(60)
        return 3.0

    def request(name: str) -> None:
        gate.wait()
        passed.append(name)

    asking = threading.Thread(target=lambda: told.append(gate.ask(question)))
    asking.start()
    assert asked.wait(60)
    others = [threading.Thread(target=request, args=(f"{n}",)) for n in range(3)]
    for other in others:
        other.start()
    others[0].join(0.2)
    assert not passed
    answer.set()
    asking.join()
    # What was on its way asks nothing while the gate is closed.
    late = gate.ask(lambda: pytest.fail("asked twice"))
    assert late is not None and 0 < late <= 3
    for other in others:
        other.join()
    assert told == [3.0] and len(passed) == 3


def test_a_push_waits_too(busy: type[Busy], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    storage = open_kind("s3 by obstore", busy.url)  # type: ignore[attr-defined]
    storage.upload("a", tmp_path / "file")
    assert [line for line in busy.early if line.startswith("PUT")] == ["PUT /b/x/a"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_that_is_cut_off_is_read_on(busy: type[Busy], kind: str) -> None:
    busy.seconds, busy.cuts = 0.0, 3
    assert open_kind(kind, busy.url).read("a") == BLOB  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
def test_a_service_that_restarts_is_waited_for(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVKF_CONNECT_SECONDS")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    handler = type("Handler", (Busy,), {"lock": threading.Lock(), "until": 0.0, "early": [], "cuts": 0})
    servers: list[http.server.ThreadingHTTPServer] = []

    def start() -> None:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
        server.daemon_threads = True
        servers.append(server)
        server.serve_forever()

    timer = threading.Timer(0.5, start)
    timer.start()
    try:
        assert open_kind(kind, f"http://127.0.0.1:{port}").read("a") == BLOB
    finally:
        timer.join(3)
        for server in servers:
            server.shutdown()
            server.server_close()


@pytest.mark.parametrize("kind", KINDS[:4])
def test_how_long_a_dead_address_is_tried_is_an_option(kind: str) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    name = "timeout" if kind == "webdav" else "connect_timeout"
    storage = open_kind(kind, f"http://127.0.0.1:{port}", **{name: "1"})
    with pytest.raises(RemoteUnreachableError):
        storage.read("a")


@pytest.mark.parametrize("kind", KINDS)
def test_an_address_where_nobody_ever_answered_is_given_up_soon(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DVKF_CONNECT_SECONDS")
    monkeypatch.setattr(patience, "NEVER_ANSWERED", 0.2)
    monkeypatch.setattr(patience, "REFUSED", 3600.0)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    with pytest.raises(RemoteUnreachableError):
        open_kind(kind, f"http://127.0.0.1:{port}").read("a")


def test_what_is_stored_is_compared_with_what_was_sent(busy: type[Busy]) -> None:
    """The fake says another digest than that of the bytes, and gives other bytes back."""
    busy.seconds = 0.0

    def answer(self: Busy) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b"other" if self.command == "GET" else b""
        self.send_response(200)
        self.send_header("ETag", '"00000000000000000000000000000000"')
        self.send_header("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    busy.do_PUT = busy.do_GET = answer  # type: ignore[method-assign]
    with pytest.raises(RemoteError, match="differs from the sent content"):
        open_kind("s3 by obstore", busy.url).write("a", b"datum")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3", 3.0),
        ("0", 0.0),
        ("-1", 0.0),
        ("soon", None),
        ("", None),
        (None, None),
        ("9" * 400, patience.LONGEST),
    ],
)
def test_the_header(text: str | None, seconds: float | None) -> None:
    assert retry_after(text) == seconds


def test_a_service_that_always_asks_for_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    now = [0.0]
    monkeypatch.delenv("DVKF_CONNECT_SECONDS")

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def action() -> None:
        raise OSError("no")

    for trouble in (
        Trouble("busy", 1e6),
        Trouble("busy"),
        Trouble("refused"),
        Trouble("failed"),
        Trouble("stalled"),
    ):
        for answered in (False, True):
            gate = Gate()
            if answered:
                assert gate.run(lambda: 1, lambda _: None) == 1
            before = now[0]
            with pytest.raises(OSError, match="no"):
                gate.run(action, lambda _, trouble=trouble: trouble)
            assert now[0] - before <= patience.BUSY
            # A service that restarts is waited for, an address where nobody ever answered is not.
            assert trouble.kind != "refused" or (now[0] - before >= 30) == answered
    assert max(slept) <= patience.LONGEST
