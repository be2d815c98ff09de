"""A disk that is really full: nothing of the blob that did not fit is left, and what was there is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from remote_contract import DIGEST, make_file

from dvkf_prefect.data.remotes import Storage, open_storage
from dvkf_prefect.errors import DiskFullError
from dvkf_prefect.leftovers import OWNER


def check(storage: Storage, disk: Path, source: Path) -> None:
    storage.write("a/before", b"before")
    make_file(source, 3_000_000)
    for put in (lambda: storage.upload(DIGEST, source), lambda: storage.write(DIGEST, source.read_bytes())):
        with pytest.raises(DiskFullError, match=r"remote 'store' .*no space left"):
            put()
    assert storage.size(DIGEST) is None
    assert dict(storage.list()) == {"a/before": 6}
    assert [p.name for p in disk.rglob("*") if p.is_file() and p.name != OWNER] == ["before"]
    storage.write("a/after", b"x" * 500_000)
    assert storage.size("a/after") == 500_000


@pytest.mark.parametrize("backend", [None, "fsspec"])
def test_folder(small_disk: Path, tmp_path: Path, backend: None) -> None:
    check(open_storage(f"{small_disk}/store", name="store", backend=backend), small_disk, tmp_path / "source")


def test_ssh(small_disk: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    options = request.getfixturevalue("ssh").options()
    storage = open_storage(f"ssh://127.0.0.1{small_disk}/store", options, name="store")
    check(storage, small_disk, tmp_path / "source")
