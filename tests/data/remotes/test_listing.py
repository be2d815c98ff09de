"""Listings of object stores: what they ask, and that ranges listed in parallel leave nothing out."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from servers import S3Server

from dvkf_prefect.data.remotes import objects as objects_module
from dvkf_prefect.data.remotes import open_storage
from dvkf_prefect.data.remotes.objects import ObjectStorage

# Also names that are no hash, beside and between those that are.
ODD = [
    "files/md5/odd",
    "files/md5/0a-x",
    "files/md5/7f~",
    "files/md5/7f\u00e9",
    "files/md5/ff0",
    "files/md5/zz/1",
]


class Watched:
    """A store that notes what is listed of it."""

    def __init__(self, store: Any, *, forgetful: bool = False) -> None:
        self.store = store
        self.forgetful = forgetful
        self.offsets: list[str | None] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def list(self, prefix: str | None = None, *, offset: str | None = None, chunk_size: int = 50) -> Any:
        self.offsets.append(offset)
        return self.store.list(prefix, offset=None if self.forgetful else offset, chunk_size=chunk_size)


def watch(storage: object, **how: bool) -> Watched:
    assert isinstance(storage, ObjectStorage)
    watched = Watched(storage._store, **how)
    storage._store = watched  # type: ignore[assignment]
    return watched


def keys(count: int) -> Iterator[str]:
    for number in range(count):
        digest = hashlib.md5(str(number).encode()).hexdigest()
        yield f"files/md5/{digest[:2]}/{digest[2:]}" + (".dir" if number % 7 == 0 else "")


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects_module, "_PAGE", 10)
    monkeypatch.setattr(objects_module, "_PAGES_IN_RANGE", 1)


@pytest.mark.parametrize("known", [False, True])
def test_ranges_in_parallel_leave_nothing_out(
    s3: S3Server, bucket: str, small_pages: None, known: bool
) -> None:
    storage = open_storage(f"{bucket}/{uuid.uuid4().hex}", s3.options())
    blobs = {key: len(key) % 5 for key in (*keys(400), *ODD)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda item: storage.write(item[0], b"x" * item[1]), blobs.items()))
    watched = watch(storage, forgetful=not known)
    found = list(storage.list("files/md5"))
    assert len(found) == len(blobs)
    assert dict(found) == blobs
    assert len([offset for offset in watched.offsets if offset]) > 10
    # Folders above hold no hashes of their own: one after the other.
    watched.offsets.clear()
    assert dict(storage.list()) == blobs
    assert watched.offsets == [None]


def test_a_folder_of_one_hash_prefix_is_one_question(s3: S3Server, bucket: str, small_pages: None) -> None:
    storage = open_storage(f"{bucket}/{uuid.uuid4().hex}", s3.options())
    blobs = [*keys(40), *(f"files/md5/aa/{number:030x}" for number in range(60))]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: storage.write(key, b""), blobs))
    watched = watch(storage)
    assert set(storage.keys("files/md5/aa")) == {key for key in blobs if "/aa/" in key}
    assert watched.offsets == [None]


@pytest.mark.parametrize("skewed", ["one folder", "no hashes", "few"])
def test_other_shapes_are_listed_one_page_after_the_other(small_pages: None, skewed: str) -> None:
    blobs = {
        "one folder": [f"files/md5/ff/{number:030x}" for number in range(100)],
        "no hashes": [f"files/md5/{number:04}" for number in range(100)],
        "few": list(keys(9)),
    }[skewed]
    storage = open_storage(f"memory://{uuid.uuid4().hex}")
    for key in blobs:
        storage.write(key, b"1")
    watched = watch(storage)
    storage._ranges = True  # type: ignore[attr-defined]
    assert sorted(storage.keys("files/md5")) == sorted(blobs)
    assert watched.offsets == [None]
