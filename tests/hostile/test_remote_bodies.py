"""Answers of a remote that are longer, shorter or slower than what they should be."""

from __future__ import annotations

import gzip
import http.server
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from dvkf_prefect.data.remotes import Storage, base, filesystems, open_storage, patience
from dvkf_prefect.errors import (
    CorruptObjectError,
    ParseError,
    RemoteError,
    RemoteUnreachableError,
    TransferError,
)
from dvkf_prefect.repo import Repo

S3 = {"region": "us-east-1", "access_key_id": "key", "secret_access_key": "s3cr3t-key"}
KINDS = ["s3 by obstore", "s3 by s3fs", "http", "webdav", "azure", "gs"]
HUGE = 1600 << 20


class Liar(http.server.BaseHTTPRequestHandler):
    """Answers each GET by one behaviour."""

    protocol_version = "HTTP/1.1"
    behaviour: ClassVar[Callable[[Liar], None]]
    requests: ClassVar[list[tuple[str, str, dict[str, str]]]]

    def do_GET(self) -> None:
        self.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        try:
            type(self).behaviour(self)
        except OSError:
            self.close_connection = True

    do_HEAD = do_GET

    def head(self, length: int | None, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("ETag", '"x"')
        self.send_header("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT")
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        return


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        return


@pytest.fixture
def liar() -> Iterator[type[Liar]]:
    """Run a server; what it answers is set on the class."""
    handler = type("Handler", (Liar,), {"requests": []})
    with Server(("127.0.0.1", 0), handler) as server:
        handler.url = f"http://127.0.0.1:{server.server_address[1]}"  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield handler
        server.shutdown()
        thread.join()


def options_of(kind: str, url: str) -> tuple[str, dict[str, str]]:
    """Return the url and the options of a remote of a kind at a server."""
    host = url.removeprefix("http://")
    return {
        "s3 by obstore": ("s3://b/x", {**S3, "endpointurl": url}),
        "s3 by s3fs": ("s3://b/x", {**S3, "endpointurl": url, "acl": "private"}),
        "http": (f"{url}/x", {}),
        "webdav": (f"webdav://{host}/x", {}),
        "azure": (
            "azure://b/x",
            {"connection_string": f"AccountName=a;AccountKey=azE=;BlobEndpoint={url}/a"},
        ),
        "gs": ("gs://b/x", {"endpointurl": url, "allow_anonymous_login": "true"}),
    }[kind]


def open_kind(kind: str, url: str) -> Storage:
    place, options = options_of(kind, url)
    return open_storage(place, options, name="store")


def endless(handler: Liar) -> None:
    handler.head(99_999_999_999)
    if handler.command == "GET":
        for _ in range(HUGE >> 20):
            handler.wfile.write(b"x" * (1 << 20))
    handler.close_connection = True


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_without_end_is_ended(liar: type[Liar], kind: str) -> None:
    liar.behaviour = endless
    storage = open_kind(kind, liar.url)  # type: ignore[attr-defined]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorruptObjectError, match=r"remote 'store'.*more than the 100 bytes expected"):
        storage.read("a", limit=100)
    with pytest.raises(CorruptObjectError, match="more than the 5000000 bytes"):
        for _ in storage.stream("a", limit=5_000_000):
            pass
    with pytest.raises(ParseError, match=r"remote 'store'.*DVKF_MANIFEST_MB"):
        storage.read("a")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


PULL = """
import sys
from dvkf_prefect.repo import Repo
from dvkf_prefect.errors import TransferError
try:
    Repo.open(sys.argv[1]).pull()
except TransferError as error:
    print(error)
# Of this program alone: the peak of getrusage is that of whoever started it, too.
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) >> 10)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_pull_of_a_few_bytes_takes_little_memory_and_disk(
    liar: type[Liar], kind: str, tmp_path: Path
) -> None:
    liar.behaviour = endless
    repo = tracked(tmp_path / "repo", kind, liar.url)  # type: ignore[attr-defined]
    done = subprocess.run(
        [sys.executable, "-c", PULL, str(repo.root)], capture_output=True, text=True, timeout=120
    )
    *told, memory = done.stdout.splitlines()
    assert "more than 2 bytes" in "".join(told), done.stderr
    assert int(memory) < 300
    left = sum(path.stat().st_size for path in repo.cache.root.rglob("*") if path.is_file())
    assert left < 32 << 20


def tracked(root: Path, kind: str, url: str) -> Repo:
    root.mkdir()
    repo = Repo.init(root, no_scm=True)
    place, options = options_of(kind, url)
    with repo.config.edit() as sections:
        sections["remote"]["store"] = {"url": place, **options}
        sections["core"]["remote"] = "store"
    repo = Repo.open(root)
    (root / "f").write_text("1\n")
    repo.add(["f"])
    repo.cache.path(repo.version("f").digest).unlink()
    (root / "f").unlink()
    return repo


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_that_drips_is_ended(liar: type[Liar], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, so that no time-out for a stall ends it."""
    monkeypatch.setattr(base, "WINDOW", 1.0)

    def drip(handler: Liar) -> None:
        handler.head(1000)
        while handler.command == "GET":
            handler.wfile.write(b"x")
            time.sleep(0.05)

    liar.behaviour = drip
    with pytest.raises(RemoteUnreachableError, match="less than 1024 a second"):
        open_kind(kind, liar.url).read("a")  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["http", "webdav"])
def test_a_compressed_bomb_is_ended(liar: type[Liar], kind: str) -> None:
    bomb = gzip.compress(b"\0" * (256 << 20), 9)

    def answer(handler: Liar) -> None:
        handler.head(len(bomb), Content_Encoding="gzip")
        if handler.command == "GET":
            handler.wfile.write(bomb)

    liar.behaviour = answer
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((RemoteError, CorruptObjectError)):
        open_kind(kind, liar.url).read("a", limit=1000)  # type: ignore[attr-defined]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
    assert all(h["accept-encoding"] == "identity" for command, _, h in liar.requests if command == "GET")


@pytest.mark.parametrize("kind", ["http", "webdav"])
def test_a_server_without_ranges_is_read_to_the_place(liar: type[Liar], kind: str) -> None:
    def whole(handler: Liar) -> None:
        handler.head(10)
        if handler.command == "GET":
            handler.wfile.write(b"0123456789")

    liar.behaviour = whole
    storage = open_kind(kind, liar.url)  # type: ignore[attr-defined]
    assert b"".join(storage.stream("a", start=4)) == b"456789"


def test_an_object_larger_than_its_directory_is_not_taken(tmp_path: Path) -> None:
    """A file of a directory has no size of its own in the manifest, but none is larger than all of it."""
    root = tmp_path / "repo"
    root.mkdir()
    repo = Repo.init(root, no_scm=True)
    name = tmp_path.name
    with repo.config.edit() as sections:
        sections["remote"]["store"] = {"url": f"memory://{name}"}
        sections["core"]["remote"] = "store"
    repo = Repo.open(root)
    (root / "d").mkdir()
    (root / "d" / "one").write_text("1")
    (root / "d" / "two").write_text("22")
    repo.add(["d"])
    repo.push()
    storage = repo.remote().storage
    digest = repo.cache.read_tree(repo.version("d").digest).digests[0]
    storage.write(f"files/md5/{digest[:2]}/{digest[2:]}", b"x" * 1000)
    for path in repo.cache.root.rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(TransferError, match=r"more than 3 bytes"):
        repo.fetch()


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_folder_holds_no_more_than_is_recorded(tmp_path: Path, kind: str) -> None:
    """A file of some TB without content filled the disk, and was hashed to its end."""
    root = tmp_path / "repo"
    root.mkdir()
    repo = Repo.init(root, no_scm=True)
    with repo.config.edit() as sections:
        sections["remote"]["store"] = {"url": str(tmp_path / "store")}
        sections["core"]["remote"] = "store"
    repo = Repo.open(root)
    (root / "d").mkdir()
    for name in ("one", "two"):
        (root / "d" / name).write_text(name)
    target = "d/one" if kind == "file" else "d"
    repo.add([target])
    repo.push()
    digest = repo.version(target).digest or ""
    if kind == "directory":
        digest = repo.cache.read_tree(digest).digests[0]
    stored = tmp_path / "store/files/md5" / digest[:2] / digest[2:]
    stored.chmod(0o644)
    os.truncate(stored, 1 << 40)
    for path in repo.cache.root.rglob("*"):
        if path.is_file() and path.suffix != ".dir":
            path.unlink()
    with pytest.raises(TransferError, match=r"has 1099511627776 bytes, more than recorded"):
        repo.fetch()
    assert not (repo.cache.root / "files/md5" / digest[:2] / digest[2:]).exists()


@pytest.mark.parametrize("kind", ["s3 by obstore", "s3 by s3fs", "webdav", "http"])
def test_a_server_that_takes_nothing_is_given_up(
    liar: type[Liar], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through s3fs a file was not even sent: its library waited for a `100 Continue`, for ever."""
    # Long enough for the request to be on its way on a busy machine.
    monkeypatch.setattr(filesystems, "WINDOW", 4.0)
    monkeypatch.setattr(filesystems, "SLOWEST_UPLOAD", 1 << 30)
    monkeypatch.setattr(patience, "_STALLS", 0)
    monkeypatch.setattr(patience, "_QUICK", (0.1,))
    over = threading.Event()
    asked: list[str | None] = []

    def wait(handler: Liar) -> None:
        asked.append(handler.headers["Expect"])
        over.wait(60)
        handler.close_connection = True

    liar.behaviour = wait
    for command in ("PUT", "POST", "PROPFIND", "MKCOL", "OPTIONS"):
        setattr(liar, f"do_{command}", liar.do_GET)
    liar.handle_expect_100 = lambda handler: bool(liar.do_GET(handler))  # type: ignore[method-assign]
    place, options = options_of(kind, liar.url)  # type: ignore[attr-defined]
    options["timeout" if kind == "webdav" else "read_timeout"] = "1"
    (tmp_path / "file").write_bytes(b"x" * 5_000_000)
    try:
        with pytest.raises(RemoteUnreachableError):
            open_storage(place, options, name="store").upload("a", tmp_path / "file")
        # The upload itself has ended too, and with it the use of its file.
        assert str(tmp_path / "file") not in {
            os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()
        }
    finally:
        over.set()
    assert asked and not any(asked)
