"""One contract, kept by every backend of a remote."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from remote_contract import StorageContract

from dvkf_prefect.data.remotes import Storage, open_storage

BACKENDS = [
    "folder",
    "file url",
    "memory",
    "s3 by obstore",
    "s3 by s3fs",
    "file by fsspec",
    "memory by fsspec",
    "ssh",
]


@pytest.fixture(params=BACKENDS)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    kind = request.param
    unique = uuid.uuid4().hex
    if kind.startswith("s3"):
        url = f"{request.getfixturevalue('bucket')}/{unique}/a prefix"
        options = request.getfixturevalue("s3").options()
        return open_storage(url, options, backend="fsspec" if kind == "s3 by s3fs" else None)
    if kind == "ssh":
        return open_storage(f"ssh://127.0.0.1{tmp_path}/store", request.getfixturevalue("ssh").options())
    return {
        "folder": lambda: open_storage(f"{tmp_path}/store"),
        "file url": lambda: open_storage(f"file://{tmp_path}/a%20store"),
        "memory": lambda: open_storage(f"memory://{unique}"),
        "file by fsspec": lambda: open_storage(f"{tmp_path}/store", backend="fsspec"),
        "memory by fsspec": lambda: open_storage(f"memory://{unique}", backend="fsspec"),
    }[kind]()


class TestContract(StorageContract):
    """On each of the backends."""
