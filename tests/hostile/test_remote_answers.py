"""A remote that leads elsewhere, or whose listings have no end."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import pytest
from servers import serving

from dvkf_prefect.data.remotes import objects, open_storage, pages
from dvkf_prefect.data.remotes.remote import Remote
from dvkf_prefect.data.upkeep.inventory import inventory_of
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
        # In one piece, so that no part waits to be acknowledged.
        self._headers_buffer.append(b"\r\n" + (data if self.command != "HEAD" else b""))  # type: ignore[attr-defined]
        self.flush_headers()

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def pair() -> Iterator[tuple[type[Handler], type[Handler]]]:
    """Two servers on two ports."""
    kinds = []
    with contextlib.ExitStack() as running:
        for _ in range(2):
            kind = type("One", (Handler,), {"seen": []})
            port = running.enter_context(serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)))
            kind.host = f"127.0.0.1:{port}"  # type: ignore[attr-defined]
            kinds.append(kind)
        yield kinds[0], kinds[1]


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


def page_of(keys: list[str], following: object) -> bytes:
    """Return a page of a listing of S3."""
    contents = "".join(
        f"<Contents><Key>x/{key}</Key><Size>1</Size><LastModified>2025-01-01T00:00:00Z</LastModified><ETag>x</ETag>"
        "</Contents>"
        for key in keys
    )
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{following}</NextContinuationToken>"
    return f"<ListBucketResult>{more if following else ''}{contents}</ListBucketResult>".encode()


@pytest.mark.parametrize("backend", ["obstore", "fsspec"])
@pytest.mark.parametrize("kind", ["three that come round", "new keys", "no key", "the same token"])
def test_a_listing_without_end_is_ended(
    pair: tuple[type[Handler], type[Handler]],
    monkeypatch: pytest.MonkeyPatch,
    backend: Literal["obstore", "fsspec"],
    kind: str,
) -> None:
    server, _ = pair
    monkeypatch.setattr(pages, "MOST_KEYS", 20_000)
    monkeypatch.setattr(pages, "MOST_EMPTY", 5)
    monkeypatch.setattr(pages, "LONGEST_PAGE", 1.0)
    count = 0

    def answer(self: Handler) -> None:
        nonlocal count
        count += 1
        number = {"three that come round": count % 3, "new keys": count, "the same token": 0}.get(kind)
        keys = [] if number is None else [f"files/md5/{number:02x}/{n:030x}" for n in range(1000)]
        self.reply(200, page_of(keys, "again" if kind == "the same token" else count))

    server.do_GET = answer  # type: ignore[method-assign]
    options = {**S3, "endpointurl": f"http://{server.host}"}  # type: ignore[attr-defined]
    storage = open_storage("s3://b/x", options, backend=backend)
    for listing in (storage.list, storage.dated):
        with pytest.raises(RemoteError, match=r"does not end|nothing arrived in 1 s"):
            for _ in listing("files/md5"):
                pass
    assert kind == "no key" or count < 500


@pytest.mark.parametrize("ordered", [True, False])
def test_a_search_is_not_held_up_by_what_nobody_asked_for(
    pair: tuple[type[Handler], type[Handler]], monkeypatch: pytest.MonkeyPatch, ordered: bool
) -> None:
    """The first page promises few; where the listing goes on and on, each object is asked for."""
    server, _ = pair
    monkeypatch.setattr("dvkf_prefect.data.remotes.remote._ASK_EACH", 10)
    monkeypatch.setattr("dvkf_prefect.data.remotes.remote._PAGE", 100)
    wanted = [f"{n:02x}{'f' * 30}" for n in range(256)]
    listed = 0

    def get(self: Handler) -> None:
        nonlocal listed
        if "list-type" not in self.path:
            head(self)
            return
        listed += 1
        keys = [f"files/md5/ff/{listed if ordered else 7:010x}{n:020x}" for n in range(1000)]
        self.reply(200, page_of(keys, listed))

    def head(self: Handler) -> None:
        there = "/files/md5/07/" in self.path
        self.reply(
            206 if there else 404, b"1", **{"Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT", "ETag": "x"}
        )

    server.do_GET, server.do_HEAD = get, head  # type: ignore[method-assign]
    options = {**S3, "endpointurl": f"http://{server.host}"}  # type: ignore[attr-defined]
    remote = Remote("store", open_storage("s3://b/x", options))
    assert remote.missing(wanted) == set(wanted) - {wanted[7]}
    assert 1 < listed < 100


def test_the_same_key_twice_and_keys_that_differ_in_case(
    pair: tuple[type[Handler], type[Handler]],
) -> None:
    server, _ = pair
    keys = [
        f"files/md5/aa/{'b' * 30}",
        f"files/md5/aa/{'b' * 30}",
        f"files/md5/AA/{'B' * 30}",
        "files/md5/aa/x/",
    ]
    server.do_GET = lambda self: self.reply(200, page_of(keys, None))  # type: ignore[method-assign, misc]
    options = {**S3, "endpointurl": f"http://{server.host}"}  # type: ignore[attr-defined]
    for backend in ("obstore", "fsspec"):
        storage = open_storage("s3://b/x", options, backend=backend)  # type: ignore[arg-type]
        inventory = inventory_of(storage)
        assert inventory.keys() == {keys[0]}
        assert [row[:2] for row in inventory.measure([keys[0], keys[2]])] == [(keys[0], 1)]


MEMORY = """
import sys
from dvkf_prefect.data.remotes import open_storage
storage = open_storage("s3://b/x", {options}, backend="{backend}")
print(sum(1 for _ in storage.dated("files/md5")))
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) >> 10)
"""


@pytest.mark.parametrize("backend", ["obstore", "fsspec"])
def test_a_long_listing_takes_little_memory(pair: tuple[type[Handler], type[Handler]], backend: str) -> None:
    """S3's library for fsspec held all of it, some GB for a million keys."""
    server, _ = pair
    total = int(os.environ.get("DVKF_LISTED_PAGES", "100"))
    count = 0

    def answer(self: Handler) -> None:
        nonlocal count
        count += 1
        keys = [f"files/md5/{count // 250:02x}/{count:08x}{n:022x}" for n in range(1000)]
        self.reply(200, page_of(keys, count if count < total else None))

    server.do_GET = answer  # type: ignore[method-assign]
    options = {**S3, "endpointurl": f"http://{server.host}"}  # type: ignore[attr-defined]
    script = MEMORY.replace("{options}", repr(options)).replace("{backend}", backend)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    listed, memory = map(int, done.stdout.split())
    assert listed == total * 1000
    assert memory < 300


def test_a_page_is_returned_after_its_handover(
    pair: tuple[type[Handler], type[Handler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A native thread of obstore that still hands a page over aborts a process that ends: one script in nine did."""
    returned: list[bool] = []
    wake = asyncio.SelectorEventLoop.call_soon_threadsafe

    def slowly(self: asyncio.SelectorEventLoop, *args: Any, **options: Any) -> asyncio.Handle:
        handle = wake(self, *args, **options)
        time.sleep(0.2)
        returned.append(True)
        return handle

    monkeypatch.setattr(asyncio.SelectorEventLoop, "call_soon_threadsafe", slowly)
    monkeypatch.setattr(objects, "CLOCK", pages.Clock())
    server, _ = pair
    server.do_GET = lambda self: self.reply(200, page_of([f"files/md5/aa/{'b' * 30}"], None))  # type: ignore[method-assign, misc]
    storage = open_storage("s3://b/x", {**S3, "endpointurl": f"http://{server.host}"}, backend="obstore")  # type: ignore[attr-defined]
    assert len(list(storage.dated())) == 1
    # Each of the page and the end is asked for by one call and handed over by another.
    assert len(returned) == 4


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
        with pytest.raises(RemoteError, match="does not end"):
            list(storage.list())
