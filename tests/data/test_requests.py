"""How many requests a transfer costs, counted on the wire between us and a real S3 server."""

from __future__ import annotations

import re
import socket
import socketserver
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import servers
from repos import make_repo

from dvkf_prefect.repo import Repo

_REQUEST = re.compile(rb"(?:\A|\r\n\r\n|[^A-Z])(GET|HEAD|PUT|POST|DELETE) /[^\s]* HTTP/1\.1\r\n")


class Wire:
    """A relay that counts requests by method."""

    def __init__(self, target: str) -> None:
        self.counts: Counter[str] = Counter()
        parts = urlsplit(target)
        wire = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection((parts.hostname or "", parts.port or 0)) as upstream:
                    back = threading.Thread(target=_pump, args=(upstream, self.request, None))
                    back.start()
                    _pump(self.request, upstream, wire.counts)
                    back.join()

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def taken(self) -> Counter[str]:
        """Return what was counted since the last call."""
        counts, self.counts = Counter(self.counts), self.counts
        self.counts.clear()
        return counts

    def close(self) -> None:
        """Stop."""
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


def _pump(source: socket.socket, target: socket.socket, counts: Counter[str] | None) -> None:
    tail = b""
    try:
        while data := source.recv(1 << 16):
            if counts is not None:
                # A request line is sent at once, but may stand behind the body of the one before.
                counts.update(method.decode() for method in _REQUEST.findall(tail + data))
                tail = b"" if data.endswith(b"\r\n") else data[-1:]
            target.sendall(data)
    except OSError:
        pass
    finally:
        for side in (source, target):
            try:
                side.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


@pytest.fixture
def wire(s3: servers.S3Server) -> Iterator[Wire]:
    made = Wire(s3.endpoint)
    yield made
    made.close()


def test_requests_of_push_and_pull(s3: servers.S3Server, wire: Wire, tmp_path: Path) -> None:
    root = tmp_path / "repo"
    repo = make_repo(root)
    with repo.config.edit() as sections:
        url = s3.make_bucket("requests")
        sections["remote"]["store"] = {"url": f"{url}/data", **s3.options(), "endpointurl": wire.url}
        sections["core"]["remote"] = "store"
    for tree in ("one", "two"):
        (root / tree).mkdir()
        for number in range(150):
            (root / tree / f"{number}").write_text(f"{tree} {number}")
    repo.add(["one", "two"])
    wire.taken()
    repo.push()
    first = wire.taken()
    # The objects, and once the mark of the project.
    assert first["PUT"] == 302 + 1
    assert first.total() <= 303 + 2 * 4
    # Nothing new: a question for each manifest.
    repo.push()
    assert 2 <= wire.taken().total() <= 2 * 3
    for tree in ("one", "two"):
        subprocess.run(["rm", "-rf", str(root / tree)], check=True)
    subprocess.run(["rm", "-rf", str(repo.cache.root)], check=True)
    again = Repo.open(root)
    again.pull()
    counts = wire.taken()
    assert counts["GET"] == 302
    assert counts.total() <= 302 + 4
    # One new file: it, its manifest, and a few questions.
    (root / "one/new").write_text("new")
    again.add(["one"])
    again.push(["one"])
    counts = wire.taken()
    assert counts["PUT"] == 2
    assert counts.total() <= 8
