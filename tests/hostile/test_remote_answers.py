"""A remote that leads elsewhere, or whose listings have no end."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from typing import ClassVar

import pytest

from dvkf_prefect.data.remotes import open_storage
from dvkf_prefect.errors import RemoteError

S3 = {"region": "us-east-1", "access_key_id": "key", "secret_access_key": "s3cr3t-key"}


class Handler(http.server.BaseHTTPRequestHandler):
    """Remembers what it was sent."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[tuple[str, dict[str, str]]]]
    to: ClassVar[str] = ""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        if self.to:
            self.reply(302, b"", Location=self.to + self.path)
        else:
            self.reply(200, b"data")

    do_GET = do_HEAD = do_PUT = do_PROPFIND = do_OPTIONS = answer

    def reply(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def pair() -> Iterator[tuple[type[Handler], type[Handler]]]:
    """Two servers on two ports."""
    kinds = []
    running = []
    for _ in range(2):
        kind = type("One", (Handler,), {"seen": []})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
        server.daemon_threads = True
        kind.host = f"127.0.0.1:{server.server_address[1]}"  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        kinds.append(kind)
        running.append((server, thread))
    yield kinds[0], kinds[1]
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("http", {"auth": "basic", "user": "me", "password": "hunter22"}),
        ("http", {"auth": "custom", "custom_auth_header": "X-Token", "password": "hunter22"}),
        ("webdav", {"user": "me", "password": "hunter22"}),
        ("webdav", {"custom_auth_header": "X-Token", "password": "hunter22"}),
        ("webdav", {"token": "hunter22"}),
    ],
    ids=["http-basic", "http-custom", "webdav-basic", "webdav-custom", "webdav-token"],
)
def test_credentials_stay_with_their_server(
    pair: tuple[type[Handler], type[Handler]], scheme: str, options: dict[str, str]
) -> None:
    first, second = pair
    first.to = f"http://{second.host}"  # type: ignore[attr-defined]
    storage = open_storage(f"{scheme}://{first.host}/x", options)  # type: ignore[attr-defined]
    assert storage.read("a") == b"data"
    assert {"authorization", "x-token"} & first.seen[-1][1].keys()
    assert second.seen
    assert not any({"authorization", "x-token"} & headers.keys() for _, headers in second.seen)


def test_a_listing_that_comes_round_again_is_ended(pair: tuple[type[Handler], type[Handler]]) -> None:
    """Three pages that name each other as the next, for ever."""
    server, _ = pair
    count = 0

    def answer(self: Handler) -> None:
        nonlocal count
        count += 1
        keys = "".join(
            f"<Contents><Key>x/files/md5/{count % 3:02x}/{n:030x}</Key><Size>1</Size>"
            "<LastModified>2025-01-01T00:00:00Z</LastModified><ETag>x</ETag></Contents>"
            for n in range(1000)
        )
        data = (
            f"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>{count}"
            f"</NextContinuationToken>{keys}</ListBucketResult>"
        )
        self.reply(200, data.encode())

    server.do_GET = answer  # type: ignore[method-assign]
    storage = open_storage("s3://b/x", {**S3, "endpointurl": f"http://{server.host}"})  # type: ignore[attr-defined]
    for listing in (storage.list, storage.dated):
        with pytest.raises(RemoteError, match="no end"):
            for _ in listing("files/md5"):
                pass
    assert count < 500


@pytest.mark.parametrize("what", ["itself", "deeper"])
def test_folders_without_end_are_ended(pair: tuple[type[Handler], type[Handler]], what: str) -> None:
    server, _ = pair

    def answer(self: Handler) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        here = self.path.rstrip("/") or "/"
        inner = here if what == "itself" else f"{here}/more"

        def entry(path: str) -> str:
            return (
                f"<d:response><d:href>{path}/</d:href><d:propstat><d:prop><d:resourcetype><d:collection/>"
                "</d:resourcetype></d:prop><d:status>HTTP/1.1 200 OK</d:status></d:propstat></d:response>"
            )

        data = f'<d:multistatus xmlns:d="DAV:">{entry(here)}{entry(inner)}</d:multistatus>'
        self.reply(207, data.encode())

    server.do_PROPFIND = answer  # type: ignore[method-assign]
    storage = open_storage(f"webdav://{server.host}/x")  # type: ignore[attr-defined]
    if what == "itself":
        assert list(storage.list()) == []
    else:
        with pytest.raises(RemoteError, match="no end"):
            list(storage.list())
