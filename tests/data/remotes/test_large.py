"""Blobs of many parts, and uploads that end in the middle of them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Literal

import pytest
from remote_contract import DIGEST, make_file

from dvkf_prefect.data.remotes import open_storage
from dvkf_prefect.leftovers import OWNER

# What a child process does until it is killed.
_UPLOAD = """
import json, sys
from pathlib import Path
from dvkf_prefect.data.remotes import open_storage
url, options, backend, key, source = json.loads(sys.argv[1])
storage = open_storage(url, options, backend=backend)
storage.size(key)
print("ready", flush=True)
storage.upload(key, Path(source))
print("done", flush=True)
"""


Opening = tuple[str, dict[str, str], Literal["obstore", "fsspec"] | None]


@pytest.fixture(params=["s3 by obstore", "s3 by s3fs", "ssh"])
def opening(request: pytest.FixtureRequest, tmp_path: Path) -> Opening:
    kind = request.param
    if kind == "ssh":
        return f"ssh://127.0.0.1{tmp_path}/store", request.getfixturevalue("ssh").options(), None
    url = f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"
    return url, request.getfixturevalue("s3").options(), "fsspec" if kind == "s3 by s3fs" else "obstore"


def test_a_blob_of_many_parts(opening: Opening, tmp_path: Path) -> None:
    url, options, backend = opening
    storage = open_storage(url, options, backend=backend)
    data = make_file(tmp_path / "source", 72_000_001)
    storage.upload(DIGEST, tmp_path / "source")
    assert storage.size(DIGEST) == len(data)
    digest = hashlib.md5()
    for chunk in storage.stream(DIGEST):
        digest.update(chunk)
    assert digest.digest() == hashlib.md5(data).digest()
    assert b"".join(storage.stream(DIGEST, start=70_000_000)) == data[70_000_000:]


# A third of a gigabyte, so that there is a middle to kill it in.
@pytest.mark.parametrize(
    "opening",
    ["s3 by obstore", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("s3 by s3fs", "ssh"))],
    indirect=True,
)
def test_a_killed_upload_shows_nothing(opening: Opening, tmp_path: Path) -> None:
    url, options, backend = opening
    source = tmp_path / "source"
    block = make_file(source, 32_000_000)
    with source.open("ab") as file:
        for _ in range(9):
            file.write(block)
    argument = json.dumps([url, options, backend, DIGEST, str(source)])
    child = subprocess.Popen([sys.executable, "-c", _UPLOAD, argument], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "ready\n"
        # A third of a gigabyte takes each of them some times that.
        time.sleep(0.2)
        child.kill()
        assert child.stdout.read() == "", "too slow to kill it in the middle"
        child.wait()
    storage = open_storage(url, options, backend=backend)
    assert storage.size(DIGEST) is None
    assert list(storage.list()) == list(storage.keys()) == []
    # And the next one is not in the way of what is left.
    storage.upload(DIGEST, source)
    assert dict(storage.list()) == {DIGEST: 320_000_000}
    storage.delete([DIGEST])


def test_a_killed_copy_to_a_folder_shows_nothing(tmp_path: Path) -> None:
    """From a pipe, which ends when the test wants it to: a copy on one disk may take no time at all."""
    source = tmp_path / "source"
    os.mkfifo(source)
    argument = json.dumps([f"{tmp_path}/store", {}, None, DIGEST, str(source)])
    # A pipe is refused as a source; here it stands for a large file.
    piped = "import os; from dvkf_prefect.data.remotes import folder; folder.open_regular = lambda p: os.open(p, 0)\n"
    command = [sys.executable, "-c", piped + _UPLOAD, argument]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout, source.open("wb", buffering=0) as pipe:
        pipe.write(b"x" * 3_000_000)
        child.kill()
        assert child.stdout.read() == "ready\n"
        child.wait()
    storage = open_storage(f"{tmp_path}/store")
    left = [path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.name != OWNER]
    assert len(left) == 1 and left[0].stat().st_size >= 1_000_000
    assert storage.size(DIGEST) is None
    assert list(storage.list()) == list(storage.keys()) == []
    storage.write(DIGEST, b"whole")
    assert dict(storage.list()) == {DIGEST: 5}
