"""Web servers that keep blobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from remote_contract import make_file
from servers import WebServer

from dvkf_prefect.data.remotes import open_storage, patience
from dvkf_prefect.errors import MissingObjectError, RemoteDeniedError, RemoteError, RemoteUnreachableError


def test_web_server_that_refuses_and_that_fails(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "UNTIMED", (0.01,))
    storage = open_storage(f"{web.url}/data", name="web")
    for status, error in ((401, RemoteDeniedError), (404, MissingObjectError), (503, RemoteUnreachableError)):
        web.handler.status = status
        with pytest.raises(error, match="remote 'web'"):
            storage.read("a")
    with pytest.raises(RemoteError, match="cannot list"):
        list(storage.list())


@pytest.mark.parametrize("method", ["post", "put"])
def test_web_server_that_keeps_blobs(web: WebServer, tmp_path: Path, method: str) -> None:
    """Without ranges, which many such servers lack."""
    options = {"auth": "basic", "user": "me", "password": "hunter22", "method": method}
    storage = open_storage(f"{web.url}/closed/{method}", options)
    data = make_file(tmp_path / "source", 2_500_000)
    storage.upload("a/b", tmp_path / "source")
    storage.write("a/ü c", b"x")
    assert storage.size("a/b") == 2_500_000
    assert storage.size("a/none") is None
    assert b"".join(storage.stream("a/b")) == data
    assert b"".join(storage.stream("a/b", start=1_200_000)) == data[1_200_000:]
    assert storage.read("a/ü c") == b"x"
    with pytest.raises(RemoteDeniedError, match="no credentials"):
        open_storage(f"{web.url}/closed/{method}").read("a/b")


def test_names_with_what_urls_give_a_meaning(web: WebServer) -> None:
    """A ``?`` began a query and a ``#`` was cut off with all after it."""
    storage = open_storage(f"{web.url}/data", {"method": "put"})
    for key in ("a?b", "a#b", "a%23b", "a"):
        storage.write(key, key.encode())
    assert set(web.handler.blobs) == {"/data/a%3Fb", "/data/a%23b", "/data/a%2523b", "/data/a"}
    for key in ("a?b", "a#b", "a%23b", "a"):
        assert storage.read(key) == key.encode()
