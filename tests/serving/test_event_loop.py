"""Requests answered on the event loop, without a thread: they are answered as any other, and HTTP stays strict."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from processes import wait_until
from sklearn.linear_model import LogisticRegression

from dvkf_prefect.processes.identity import listen
from dvkf_prefect.serving import lanes, server
from dvkf_prefect.serving.lanes import Lane
from dvkf_prefect.serving.model import Model
from dvkf_prefect.serving.traffic import Models

_X = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0], [3.0, 1.0]])


class Gated:
    """A class of the user, which may wait for anything."""

    n_features_in_ = 2

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = 0

    def predict(self, rows: Any) -> Any:
        self.waiting += 1
        assert self.gate.wait(120)
        return [1] * len(rows)


class Running:
    """A server in a thread: model ``m`` of scikit-learn, model ``slow`` of a class of the user."""

    def __init__(self) -> None:
        self.gated = Gated()
        self.quick = Lane(Model(LogisticRegression().fit(_X, [0, 0, 1, 1]), "m", "v1"))
        self.slow = Lane(Model(self.gated, "slow", "v1"))
        models = Models()
        models.put("m", self.quick)
        models.put("slow", self.slow)
        self.listener = listen(0)
        self.server = server._Server(models, 1 << 20, self.listener, None)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})

    def connect(self) -> socket.socket:
        return socket.create_connection(self.listener.getsockname(), timeout=120)

    def send(self, *pieces: bytes) -> bytes:
        """Return all that the server says on one connection that the client half-closes."""
        with self.connect() as sock:
            for piece in pieces:
                sock.sendall(piece)
            sock.shutdown(socket.SHUT_WR)
            received = b""
            with contextlib.suppress(ConnectionResetError):
                while data := sock.recv(65536):
                    received += data
        return received


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """Yield a server that takes no model for slow: on a busy machine, any computation may take long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes, "_SLOW", 120.0)
        yield from _run()


def _run() -> Iterator[Running]:
    running = Running()
    running.thread.start()
    wait_until(lambda: running.server.started)
    yield running
    running.gated.gate.set()
    running.server.should_exit = True
    running.thread.join(120)


@pytest.fixture
def counted(running: Running, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the bodies that were answered on the event loop."""
    sizes: list[int] = []
    kept = running.quick.answer_at_once

    def noted(request: Any, limit: int, share: Any) -> Any:
        sizes.append(len(request.body))
        return kept(request, limit, share)

    monkeypatch.setattr(running.quick, "answer_at_once", noted)
    return sizes


def _post(body: bytes, *headers: str, path: str = "/v1/models/m:predict", version: str = "1.1") -> bytes:
    lines = [f"POST {path} HTTP/{version}", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


_ROW = b'{"instances": [[3, 1]]}'
_TENSOR = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [3, 1]}]}
).encode()
_BINARY = json.dumps(
    {
        "inputs": [
            {"name": "x", "shape": [1, 2], "datatype": "FP64", "parameters": {"binary_data_size": 16}},
        ]
    }
).encode()
_INFER = "/v2/models/m/infer"
_MANY = json.dumps({"instances": [[3, 1]] * 1500}).encode()

_REQUESTS = {
    "v1": (_post(_ROW), True),
    "v2": (_post(_TENSOR, path=_INFER), True),
    "version": (_post(_TENSOR, path="/v2/models/m/versions/v1/infer"), True),
    "one output": (_post(_TENSOR[:-1] + b', "outputs": [{"name": "predict"}]}', path=_INFER), True),
    "binary out": (_post(_TENSOR[:-1] + b', "parameters": {"binary_data_output": true}}', path=_INFER), True),
    "binary in": (
        _post(_BINARY + _X[:1].tobytes(), f"Inference-Header-Content-Length: {len(_BINARY)}", path=_INFER),
        False,
    ),
    "gzip": (_post(gzip.compress(_ROW, mtime=0), "Content-Encoding: gzip"), True),
    "gzip out": (_post(_MANY[: 16 << 10], "Accept-Encoding: gzip"), True),
    "many rows": (_post(_MANY + b" " * (16 << 10)), False),
    "sticky": (_post(_ROW, "X-Sticky-Key: a"), True),
    "close": (_post(_ROW, "Connection: close"), True),
    "1.0": (_post(_ROW, version="1.0"), True),
    "json": (_post(_ROW, "Content-Type: application/json; charset=utf-8"), True),
    "xml": (_post(_ROW, "Content-Type: text/xml"), False),
    "brotli": (_post(_ROW, "Content-Encoding: br"), False),
    "not gzip": (_post(_ROW, "Content-Encoding: gzip"), True),
    "no body": (_post(b""), True),
    "not json": (_post(b"{"), True),
    "nan": (_post(b'{"instances": [[NaN, 1]]}'), True),
    "shape": (_post(b'{"instances": [[1]]}'), True),
    "unknown model": (_post(_ROW, path="/v1/models/x:predict"), False),
    "unknown version": (_post(_TENSOR, path="/v2/models/m/versions/v9/infer"), False),
    "v1 version": (_post(_ROW, path="/v1/models/m/versions/v1:predict"), False),
    "query": (_post(_ROW, path="/v1/models/m:predict?a=b"), True),
    "quoted": (_post(_ROW, path="/v1/models/%6d:predict"), True),
    "pipelined": (_post(_ROW) + _post(b"{") + b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n" + _post(_ROW), True),
    "chunked": (
        b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"17\r\n" + _ROW + b"\r\n0\r\n\r\n",
        False,
    ),
    "put": (_post(_ROW).replace(b"POST", b"PUT"), False),
    "another class": (_post(_ROW, path="/v1/models/slow:predict"), False),
}


def _parts(received: bytes) -> list[tuple[bytes, list[bytes], bytes]]:
    """Return the answers of a connection: status line, sorted headers, body."""
    found = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        line, *headers = head.split(b"\r\n")
        length = next(int(h.split(b":")[1]) for h in headers if h.lower().startswith(b"content-length:"))
        found.append((line, sorted(h for h in headers if not h.startswith(b"date:")), received[:length]))
        received = received[length:]
    return found


@pytest.mark.parametrize("name", _REQUESTS)
def test_the_answer_is_that_of_a_thread(
    running: Running, counted: list[int], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    request, quick = _REQUESTS[name]
    on_the_loop = _parts(running.send(request))
    assert bool(counted) == quick and on_the_loop
    if name in ("close", "1.0"):
        assert b"connection: close" in on_the_loop[0][1]
    counted.clear()
    monkeypatch.setattr(Lane, "is_quick", False)
    in_a_thread = _parts(running.send(request))
    assert not counted
    for answers in (on_the_loop, in_a_thread):
        for _, headers, _ in answers:
            # The client may have ended its side before the answer, or after it.
            headers[:] = [header for header in headers if header != b"connection: close"]
    assert in_a_thread == on_the_loop


def test_a_request_in_pieces(running: Running, counted: list[int]) -> None:
    whole = _post(_ROW)
    with running.connect() as sock:
        for _ in range(2):
            for start in range(0, len(whole), 7):
                sock.sendall(whole[start : start + 7])
            assert b'{"predictions":[1]}' in sock.recv(65536)
    assert counted == [len(_ROW)] * 2


@pytest.mark.parametrize(
    "sent",
    [
        _post(_ROW, "Content-Length: 3"),
        _post(_ROW, "Transfer-Encoding: chunked"),
        _post(_ROW, "Transfer-Encoding: gzip, chunked"),
        _post(_ROW, f"Content-Length: {len(_ROW)}, 3"),
        _post(_ROW).replace(b"Content-Length: ", b"Content-Length: +"),
        _post(_ROW).replace(b"Content-Length: ", b"Content-Length : "),
        _post(_ROW).replace(b"Content-Length: 23", b"Content-Length: 0x17"),
        _post(_ROW, "Host: y"),
        _post(_ROW).replace(b"Host: x\r\n", b""),
        _post(_ROW, "X: a\r\n b"),
        _post(_ROW, "X: a\rb"),
        _post(_ROW, "X: a\0b"),
        _post(_ROW, "X y: a"),
        _post(_ROW).replace(b"\r\n", b"\n"),
        _post(_ROW).replace(b"HTTP/1.1", b"HTTP/1.1 x"),
        _post(_ROW).replace(b"POST ", b"POST  /x "),
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n17;\n"
        + _ROW
        + b"\r\n0\r\n\r\n",
        b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 30_000 + b"\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 1_000_000,
    ],
    ids=range(23),
)
def test_requests_that_two_readers_may_read_differently_are_refused(running: Running, sent: bytes) -> None:
    received = running.send(sent + _post(_ROW))
    (only,) = _parts(received)
    assert only[0] == b"HTTP/1.1 400 Bad Request" and b"connection: close" in only[1]
    assert list(json.loads(only[2])) == ["error"]


def test_an_upgrade_is_not_made(running: Running, counted: list[int]) -> None:
    """The parser took the body for data of the other protocol; clients of Java ask for one with each first request."""
    more = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    large = _post(_ROW + b" " * 100_000, *more)
    answers = _parts(running.send(_post(_ROW, *more) + large + _post(_ROW)))
    assert [answer[0] for answer in answers] == [b"HTTP/1.1 200 OK"] * 3 and counted == [len(_ROW)]
    smuggled = _post(b"", *more).replace(
        b"Content-Length: 0", b"Transfer-Encoding: chunked\r\nContent-Length: 3"
    )
    (only,) = _parts(running.send(smuggled + b"abc"))
    assert only[0].startswith(b"HTTP/1.1 400")


def test_requests_that_wait_on_a_connection_are_bounded(running: Running) -> None:
    running.gated.gate.clear()
    try:
        slow = _post(_ROW, path="/v1/models/slow:predict")
        (only,) = _parts(running.send(slow * 2 + b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n" * 200))
        assert b"too many requests wait on the connection" in only[2]
    finally:
        running.gated.gate.set()


def test_the_next_request_waits_for_the_answer_to_a_long_one(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of the next request started the timeout for its headers, which ended the one that was computed."""
    from dvkf_prefect.serving import connections

    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.2)
    before = running.gated.waiting
    running.gated.gate.clear()
    try:
        with running.connect() as sock:
            second = _post(_ROW)
            # A long body and a part of the next headers in one piece: they are not long headers.
            sock.sendall(_post(_ROW + b" " * 200_000, path="/v1/models/slow:predict") + second[:20])
            wait_until(lambda: running.gated.waiting > before)
            sock.settimeout(0.6)
            with pytest.raises(TimeoutError):
                sock.recv(1)
            sock.settimeout(120)
            sock.sendall(second[20:])
            running.gated.gate.set()
            received = b""
            while received.count(b'"predictions"') < 2:
                received += sock.recv(65536) or pytest.fail("the connection was closed")
    finally:
        running.gated.gate.set()


def test_a_slow_model_leaves_the_event_loop(
    running: Running, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "_SLOW", -1.0)
    monkeypatch.setattr(lanes, "_MOST_THREADED", 4)
    for attribute, start in (("_penalty", 1), ("_quick_ones", 0), ("_threaded", 0)):
        monkeypatch.setattr(running.quick, attribute, start)
    for _ in range(12):
        assert b"200 OK" in running.send(_post(_ROW))
    # On the loop, two in threads, on the loop, four in threads, and four again, the most.
    assert len(counted) == 3 and (running.quick._penalty, running.quick._threaded) == (4, 1)


def test_a_model_returns_to_the_event_loop_after_a_slow_computation(
    running: Running, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "_RECOVERY", 3)
    for attribute, start in (("_penalty", 8), ("_quick_ones", 0), ("_threaded", 2)):
        monkeypatch.setattr(running.quick, attribute, start)
    for _ in range(2 + 3 + 3):
        assert b"200 OK" in running.send(_post(_ROW))
    assert len(counted) == 6 and running.quick._penalty == 2


def test_a_model_that_hangs_leaves_room_for_others(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "MAX_RUNNING", 2)
    before = running.gated.waiting
    running.gated.gate.clear()
    slow = _post(_ROW, path="/v1/models/slow:predict")
    try:
        with running.connect() as one, running.connect() as two:
            one.sendall(slow)
            two.sendall(slow)
            wait_until(lambda: running.gated.waiting >= before + 2)
            (refused,) = _parts(running.send(slow))
            assert refused[0].startswith(b"HTTP/1.1 503") and b"retry-after: 1" in refused[1]
            assert b"200 OK" in running.send(_post(_ROW))
            running.gated.gate.set()
            assert b"200 OK" in one.recv(65536) and b"200 OK" in two.recv(65536)
    finally:
        running.gated.gate.set()
