"""The model server on a socket: slow, half, large, compressed, pipelined and broken requests."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import joblib
import numpy as np
import pytest
from processes import wait_until
from sizes import ALL

from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.processes.identity import listen
from dvkf_prefect.serving import connections, server
from dvkf_prefect.serving.lanes import Lane
from dvkf_prefect.serving.model import Model
from dvkf_prefect.serving.traffic import Models

_LIMIT = 1 << 20
_GOOD = b'{"instances": [[1.0]]}'
_PATH = "/v1/models/m:predict"


class Moody:
    """An estimator that fails as its input says."""

    n_features_in_ = 1

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.waiting = 0

    def predict(self, rows: Any) -> Any:
        value = float(rows[0, 0])
        if value == 9:
            return np.array([np.nan])
        if value == 8:
            raise KeyError("no such thing")
        if value == 7:
            raise SystemExit(3)
        if value == 6:
            self.waiting += 1
            assert self.gate.wait(120)
        return np.ones(len(rows))


class Running:
    """A server in a thread of its own."""

    def __init__(self) -> None:
        self.model = Moody()
        self.listener = listen(0)
        self.port = self.listener.getsockname()[1]
        models = Models()
        models.put("m", Lane(Model(self.model, "m", "v1.0.0")))
        self.server = server._Server(models, _LIMIT, self.listener, None)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=120)


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 1.0)
    monkeypatch.setattr(connections, "BODY_SECONDS", 1.0)
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 20)
    running = Running()
    running.thread.start()
    wait_until(lambda: running.server.started)
    yield running
    running.model.gate.set()
    running.server.should_exit = True
    running.thread.join(120)
    assert not running.thread.is_alive()


def _head(length: int | str = len(_GOOD), *more: str, path: str = _PATH) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {length}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def _answer(sock: socket.socket) -> http.client.HTTPResponse:
    answer = http.client.HTTPResponse(sock)
    answer.begin()
    return answer


def _json(sock: socket.socket, status: int) -> Any:
    answer = _answer(sock)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    return json.loads(answer.read())


def _is_closed(sock: socket.socket) -> bool:
    """Read until the server closes, without a reset."""
    while sock.recv(65536):
        pass
    return True


@pytest.mark.parametrize("bad", [9, 8, 7])
def test_a_connection_outlives_a_failure(running: Running, bad: int) -> None:
    with running.connect() as sock:
        for _ in range(5):
            body = b'{"instances": [[%d]]}' % bad
            sock.sendall(_head(len(body)) + body)
            assert list(_json(sock, 500)) == ["error"]
            sock.sendall(_head() + _GOOD)
            assert _json(sock, 200) == {"predictions": [1.0]}


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /v1/mod", b"GET / HTTP/1.1\r\nHost: x\r\nX: ", _head(), _head(100) + _GOOD],
    ids=["nothing", "line", "headers", "no body", "half a body"],
)
def test_half_requests_end(running: Running, sent: bytes) -> None:
    with running.connect() as sock:
        sock.sendall(sent)
        if sent:
            assert "timeout while reading" in _json(sock, 408)["error"]
        assert _is_closed(sock)
    with running.connect() as sock:
        # The same on a connection that was good before.
        sock.sendall(_head() + _GOOD)
        assert _json(sock, 200)
        if sent:
            sock.sendall(sent)
            assert "timeout while reading" in _json(sock, 408)["error"]
            assert _is_closed(sock)


@pytest.mark.parametrize("whole", [_head(), b"GET /v2 HTTP/1.1\r\nX: " + b"x" * 500], ids=["body", "headers"])
def test_drops_do_not_keep_a_connection(running: Running, whole: bytes) -> None:
    with running.connect() as sock:
        sock.sendall(whole)
        ended = time.monotonic() + 60
        with contextlib.suppress(OSError):
            while time.monotonic() < ended:
                sock.sendall(b"x")
                sock.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    if not sock.recv(65536):
                        break
            else:
                pytest.fail("the connection lives on a byte at a time")


def test_a_body_that_comes_steadily_is_read(running: Running) -> None:
    body = _GOOD + b" " * 200_000
    with running.connect() as sock:
        sock.sendall(_head(len(body)))
        for start in range(0, len(body), 10_000):
            sock.sendall(body[start : start + 10_000])
            time.sleep(0.08)
        assert _json(sock, 200) == {"predictions": [1.0]}


def test_a_client_that_half_closes_gets_its_answer(running: Running) -> None:
    with running.connect() as sock:
        sock.sendall(_head() + _GOOD)
        sock.shutdown(socket.SHUT_WR)
        assert _json(sock, 200) == {"predictions": [1.0]}
        assert _is_closed(sock)
    with running.connect() as sock:
        sock.sendall(_head(100) + _GOOD)
        sock.shutdown(socket.SHUT_WR)
        assert _is_closed(sock)


def test_what_is_too_large_is_not_read(running: Running) -> None:
    with running.connect() as sock:
        sock.sendall(_head(10**12))
        assert "larger than" in _json(sock, 413)["error"]
    with running.connect() as sock:
        sock.sendall(_head(10**12, "Expect: 100-continue"))
        assert _answer(sock).status == 413
    with running.connect() as sock:
        sock.sendall(b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        for _ in range(_LIMIT // 0x10000 + 4):
            sock.sendall(piece)
        assert "larger than" in _json(sock, 413)["error"]
    # A client that sends all before it reads gets to read the answer, too.
    answer = httpx.post(
        f"http://127.0.0.1:{running.port}{_PATH}", content=b" " * (16 * _LIMIT), trust_env=False
    )
    assert answer.status_code == 413


def test_expect_continue(running: Running) -> None:
    with running.connect() as sock:
        sock.sendall(_head(len(_GOOD), "Expect: 100-continue"))
        assert sock.recv(1000).startswith(b"HTTP/1.1 100")
        sock.sendall(_GOOD)
        assert _json(sock, 200) == {"predictions": [1.0]}


def test_pipelined_requests(running: Running) -> None:
    with running.connect() as sock:
        sock.sendall((_head() + _GOOD) * 3 + _head(3) + b"[1]" + _head() + _GOOD)
        reader = sock.makefile("rb")
        statuses = []
        for _ in range(5):
            statuses.append(int(reader.readline().split()[1]))
            length = 0
            while line := reader.readline().strip():
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            json.loads(reader.read(length))
        assert statuses == [200, 200, 200, 400, 200]


@pytest.mark.parametrize(
    "sent",
    [
        b"rubbish\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 30,
        b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 200_000,
    ],
)
def test_what_is_not_http(running: Running, sent: bytes) -> None:
    with running.connect() as sock:
        sock.sendall(sent)
        assert list(_json(sock, 400)) == ["error"]
        assert _is_closed(sock)


def test_idle_connections_are_bounded(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 600.0)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(running.connect()) for _ in range(60)]
        with running.connect() as sock:
            sock.sendall(_head() + _GOOD)
            assert _json(sock, 200)
        # The oldest went.
        assert _is_closed(idle[0])
        assert len(running.server.server_state.connections) <= 20


def test_work_is_bounded(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 600)
    body = b'{"instances": [[6.0]]}' + b" " * 900_000
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(running.connect()) for _ in range(30)]
        for sock in socks:
            sock.sendall(_head(len(body)) + body)
        wait_until(lambda: running.model.waiting >= 30)
        # Each holds its bytes and as many for its values; a small budget is left after them.
        large = b'{"instances": [' + b"[1]," * 250_000 + b"[1]]}"
        statuses = set()
        for _ in range(3):
            with running.connect() as sock:
                sock.sendall(_head(len(large)) + large)
                answer = _answer(sock)
                statuses.add(answer.status)
                answer.read()
        assert statuses == {200}
        running.model.gate.set()
        assert {_answer(sock).status for sock in socks} == {200}


def test_a_budget_that_is_spent_says_when_to_come_again() -> None:
    from dvkf_prefect.serving.intake import Budget, HttpError

    budget = Budget(memory=100, requests=2)
    with budget.share() as first, budget.share() as second:
        first.grow(60)
        with pytest.raises(HttpError) as refused:
            second.grow(50)
        assert (refused.value.status, refused.value.headers) == (503, {"retry-after": "1"})
        with pytest.raises(HttpError) as refused:
            second.grow(101)
        assert refused.value.status == 413
        with pytest.raises(HttpError) as refused, budget.share():
            pass
        assert refused.value.status == 503
    with budget.share() as again:
        again.grow(100)


def test_odd_bytes_never_reset_a_connection(running: Running) -> None:
    """Good requests with bytes changed: each is answered with JSON, or the connection is closed in order."""
    chance = random.Random(5)
    whole = _head(len(_GOOD), "Content-Type: application/json") + _GOOD
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with running.connect() as sock:
            sock.sendall(bytes(data))
            sock.shutdown(socket.SHUT_WR)
            received = b""
            while piece := sock.recv(65536):
                received += piece
            if received:
                head, _, body = received.partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 ")
                json.loads(body.split(b"HTTP/1.1 ")[0])


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """A server as a process: its id and port."""
    from sklearn.linear_model import LogisticRegression

    folder = tmp_path_factory.mktemp("model")
    file = folder / "m.joblib"
    joblib.dump(LogisticRegression().fit([[0, 0], [1, 1]], [0, 1]), file)
    listener = listen(0)
    port = listener.getsockname()[1]
    listener.close()
    argv = [sys.executable, "-m", "dvkf_prefect.serving.server", "--name", "m", "--version", "v1.0.0"]
    argv += ["--model", str(file), "--digest", digest_file(file), "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    from dvkf_prefect.processes.leash import LeashedProcess, end

    child = LeashedProcess(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ready() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{port}/v2/health/ready", trust_env=False).status_code == 200
        assert child.poll() is None
        return False

    wait_until(ready, 120)
    family = [
        child.pid,
        *(int(p) for p in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()),
    ]
    rss = {pid: _memory(pid) for pid in family}
    yield max(rss, key=lambda pid: rss[pid]), port
    end(child)


def _memory(pid: int, field: str = "VmRSS") -> int:
    """MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) >> 10
    return 0


# Made in their tests: 200 MB in all.
_DENSE: dict[str, Callable[[], bytes]] = {
    "lists": lambda: b'{"instances":[' + b"[]," * 10_000_000 + b"[]]}",
    "mappings": lambda: b'{"instances":[' + b"{}," * 8_000_000 + b"{}]}",
    "numbers": lambda: b'{"instances":[' + b"0," * 15_000_000 + b"0]}",
    "texts": lambda: b'{"instances":[' + b'"",' * 8_000_000 + b'""]}',
    "depth": lambda: b"[" * 30_000_000,
    "compressed": lambda: gzip.compress(b'{"instances":[' + b"[]," * 10_000_000 + b"[]]}", 1),
}


@pytest.mark.parametrize("kind", list(_DENSE))
def test_dense_bodies_take_little_memory(process: tuple[int, int], kind: str) -> None:
    pid, port = process
    headers = {"content-encoding": "gzip"} if kind == "compressed" else {}
    answer = httpx.post(
        f"http://127.0.0.1:{port}{_PATH}",
        content=_DENSE[kind](),
        headers=headers,
        timeout=120,
        trust_env=False,
    )
    assert answer.status_code in (400, 413) and list(answer.json()) == ["error"]
    assert _memory(pid, "VmHWM") < 500


def test_large_bodies_at_once(process: tuple[int, int]) -> None:
    pid, port = process
    # All of them parsed at once would take twice the limit below.
    count = 40 if ALL else 16
    body = b'{"instances":[' + b"[0.5,0.5]," * 900_000 + b"[1,1]]}"
    statuses: list[int] = []

    def ask() -> None:
        answer = httpx.post(f"http://127.0.0.1:{port}{_PATH}", content=body, timeout=300, trust_env=False)
        statuses.append(answer.status_code)
        assert "retry-after" in answer.headers or answer.status_code == 200

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert len(statuses) == count and set(statuses) <= {200, 503} and 200 in statuses
    assert _memory(pid, "VmHWM") < 1000
    after = httpx.post(f"http://127.0.0.1:{port}{_PATH}", content=b'{"instances":[[1,1]]}', trust_env=False)
    assert after.status_code == 200
