"""WebDAV: the contract, but for what such servers cannot promise; and what they answer."""

from __future__ import annotations

import http.server
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from remote_contract import DIGEST, StorageContract
from servers import serving

from dvkf_prefect.data.remotes import Storage, open_storage
from dvkf_prefect.errors import DiskFullError, RemoteDeniedError, RemoteError, RemoteUnreachableError


@pytest.fixture
def storage(webdav: str) -> Storage:
    return open_storage(
        f"{webdav}/{uuid.uuid4().hex}/a%20store", {"user": "me", "password": "hunter22"}, name="dav"
    )


class TestContract(StorageContract):
    """On WsgiDAV."""

    def test_is_called_by_name_and_url(self, storage: Storage) -> None:
        assert storage.name == "dav"
        assert storage.url in repr(storage)

    @pytest.mark.parametrize(
        "key", ["\u00fcn\u00ef/c\u00f6d\u00e9-\u6587\u4ef6.txt", "with space/a+b&c=d", "dots/..a/.hidden"]
    )
    def test_keys_of_any_character(self, storage: Storage, key: str) -> None:
        super().test_keys_of_any_character(storage, key)

    @pytest.mark.parametrize("character", "?#%")
    def test_keys_that_would_be_stored_elsewhere_are_refused(self, storage: Storage, character: str) -> None:
        with pytest.raises(RemoteError, match=r"remote 'dav' .*names with any of . # % are not supported"):
            storage.write(f"a{character}b", b"1")
        assert list(storage.list()) == []

    def test_concurrent_writers_of_one_blob_leave_one_whole(self, storage: Storage, tmp_path: Path) -> None:
        """A server deletes before it moves (RFC 4918, 9.9.3): a writer may be told so, but none leaves a part."""
        versions = [bytes([65 + n]) * 300_000 for n in range(4)]
        storage.write(DIGEST, versions[0])

        def write(data: bytes) -> None:
            try:
                storage.write(DIGEST, data)
            except RemoteError:
                return

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, versions))
        storage.write(DIGEST, versions[1])
        assert storage.read(DIGEST) == versions[1]
        assert list(storage.list()) == [(DIGEST, 300_000)]


def test_a_wrong_password_is_told_and_not_shown(webdav: str, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"1")
    storage = open_storage(f"{webdav}/x", {"user": "me", "password": "n0t-it-at-all"}, name="dav")
    for act in (
        lambda: storage.read("a/b"),
        lambda: storage.size("a/b"),
        lambda: storage.upload("a/b", tmp_path / "source"),
        lambda: list(storage.list()),
        lambda: storage.delete(["a/b"]),
    ):
        with pytest.raises(RemoteDeniedError, match=r"remote 'dav' .*refused to") as caught:
            act()
        assert "n0t-it" not in str(caught.value) + repr(caught.value.__cause__) + repr(storage)


def test_a_server_that_is_not_there() -> None:
    storage = open_storage("webdav://127.0.0.1:1/x", {"user": "me", "password": "secret"}, name="dav")
    with pytest.raises(RemoteUnreachableError, match=r"remote 'dav' .*does not answer"):
        storage.read("a/b")


def test_a_server_whose_disk_is_full() -> None:
    """As RFC 4918 has it; WsgiDAV itself says no more than 500."""

    class Full(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(507)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_PROPFIND = do_MKCOL = do_PUT = do_DELETE = _answer

        def log_message(self, *args: object) -> None:
            return

    pytest.importorskip("webdav4")
    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Full)) as port:
        storage = open_storage(f"webdav://127.0.0.1:{port}/x", name="dav")
        with pytest.raises(DiskFullError, match=r"remote 'dav' .*no space left"):
            storage.write("a/b", b"1")
