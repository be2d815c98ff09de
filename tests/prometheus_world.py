"""Prometheus: the real one, an exporter for it to scrape, and a strict fake of its query API.

Source of the fake: https://prometheus.io/docs/prometheus/latest/querying/api/ (format overview, instant queries).
"""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
from servers import free_ports

from dvkf_prefect.processes.leash import LeashedProcess


class _Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        return

    def answer(self, status: int, content: bytes, kind: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content)


@contextlib.contextmanager
def _serving(handler: type[_Quiet]) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class FakeApi:
    """Answers of the query API.

    Attributes:
        values: Value of each query that contains a text, the first one that fits; other queries have an empty vector.
        warnings: Warnings of each answer.
        error: Status, errorType and error of each answer; None for success.
        page: Status and HTML of each answer, as a proxy before Prometheus gives it; None without one.
        token: Token to ask for; empty for none.
        delay: Seconds before each answer.
        url: Its address.
        queries: Queries so far.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    error: tuple[int, str, str] | None = None
    page: tuple[int, str] | None = None
    token: str = ""
    delay: float = 0.0
    url: str = ""
    queries: list[str] = field(default_factory=list)

    def answer(self, query: str) -> tuple[int, dict[str, Any]]:
        """Return status and document for a query."""
        self.queries.append(query)
        if query.count("(") != query.count(")") or not query:
            said = 'invalid parameter "query": 1:1: parse error: unclosed left parenthesis'
            return 400, {"status": "error", "errorType": "bad_data", "error": said}
        if self.error:
            status, kind, said = self.error
            return status, {"status": "error", "errorType": kind, "error": said}
        value = next((found for text, found in self.values.items() if text in query), None)
        result = [] if value is None else [{"metric": {}, "value": [1767225600.123, value]}]
        document: dict[str, Any] = {"status": "success", "data": {"resultType": "vector", "result": result}}
        return 200, {**document, **({"warnings": list(self.warnings)} if self.warnings else {})}


@contextlib.contextmanager
def fake_api(**settings: Any) -> Iterator[FakeApi]:
    """Serve a fake of the query API, see `FakeApi`."""
    api = FakeApi(**settings)

    class Handler(_Quiet):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(api.delay)
            if api.page:
                status, text = api.page
                headers = {"Location": "https://login.example.org/"} if 300 <= status < 400 else {}
                return self.answer(status, text.encode(), "text/html", **headers)
            if api.token and self.headers["Authorization"] != f"Bearer {api.token}":
                return self.answer(401, b"Unauthorized\n", "text/plain; charset=utf-8")
            if self.path != "/api/v1/query":
                return self.answer(404, b"404 page not found\n", "text/plain; charset=utf-8")
            assert self.headers["Content-Type"] == "application/x-www-form-urlencoded"
            (query,) = parse_qs(body.decode(), strict_parsing=True)["query"]
            status, document = api.answer(query)
            return self.answer(status, json.dumps(document).encode(), "application/json")

    with _serving(Handler) as url:
        api.url = url
        yield api


@dataclass
class Exporter:
    """Metrics to scrape, as lines of Prometheus' text format."""

    lines: str = ""
    url: str = ""


@contextlib.contextmanager
def exporter() -> Iterator[Exporter]:
    """Serve made-up metrics."""
    made = Exporter()

    class Handler(_Quiet):
        def do_GET(self) -> None:
            self.answer(200, made.lines.encode(), "text/plain; version=0.0.4")

    with _serving(Handler) as url:
        made.url = url
        yield made


@contextlib.contextmanager
def prometheus(folder: Path, *targets: str, timeout: float = 120) -> Iterator[str]:
    """Run the real Prometheus, which scrapes the targets each second; yield its address once it has done so.

    Args:
        folder: Folder of its data.
        targets: Addresses, as ``http://127.0.0.1:9000``.
        timeout: Seconds to wait for its first scrape.
    """
    command = shutil.which("prometheus")
    if command is None:
        raise RuntimeError("no `prometheus` command: install Debian's package prometheus")
    folder.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    jobs = [target.removeprefix("http://") for target in targets]
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [{"job_name": "models", "static_configs": [{"targets": jobs}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    url = f"http://127.0.0.1:{port}"
    line = [
        command, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    log_path = folder / "log"
    with log_path.open("wb") as log:
        process = LeashedProcess(line, stdout=log, stderr=log)
    try:
        end = time.monotonic() + timeout
        while True:
            with contextlib.suppress(httpx.HTTPError, LookupError, ValueError):
                answer = httpx.get(f"{url}/api/v1/query", params={"query": "sum(up)"}, timeout=30).json()
                if answer["data"]["result"][0]["value"][1] == str(len(targets)):
                    break
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"Prometheus does not scrape: {log_path.read_text()[-2000:]}")
            time.sleep(0.2)
        yield url
    finally:
        process.kill()
        process.wait()
