"""What every storage promises, as tests to run on each: a module inherits them and says which storage."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.data.remotes.folder import FolderStorage
from dvkf_prefect.errors import MissingObjectError, UnsafePathError

DIGEST = "files/md5/d3/b07384d113edec49eaa6238ad5ff00"


def make_file(path: Path, size: int) -> bytes:
    """A file whose every part differs, so that a part put in the wrong place shows."""
    block = b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(min(size, 1 << 20) // 32 + 1))
    data = b"".join(bytes([n]) + block for n in range(size // len(block) + 1))[:size]
    path.write_bytes(data)
    return data


class StorageContract:
    """Tests of a fixture ``storage``, an empty remote."""

    @pytest.mark.parametrize("size", [0, 1, 4096, 20_000_000])
    def test_uploads_and_streams_back(self, storage: Storage, tmp_path: Path, size: int) -> None:
        data = make_file(tmp_path / "source", size)
        storage.upload(DIGEST, tmp_path / "source")
        assert storage.size(DIGEST) == size
        chunks = list(storage.stream(DIGEST))
        assert b"".join(chunks) == data
        assert all(type(chunk) is bytes and 0 < len(chunk) <= 16 << 20 for chunk in chunks)
        assert storage.read(DIGEST) == data

    @pytest.mark.parametrize("start", [1, 1_500_000, 2_999_999])
    def test_streams_from_the_middle(self, storage: Storage, tmp_path: Path, start: int) -> None:
        data = make_file(tmp_path / "source", 3_000_000)
        storage.upload(DIGEST, tmp_path / "source")
        assert b"".join(storage.stream(DIGEST, start=start)) == data[start:]

    @pytest.mark.parametrize(("size", "start"), [(0, 0), (0, 1), (3, 3), (3, 10)])
    def test_streams_nothing_past_the_end(self, storage: Storage, size: int, start: int) -> None:
        storage.write(DIGEST, b"x" * size)
        assert list(storage.stream(DIGEST, start=start)) == []

    def test_writes_and_overwrites_whole(self, storage: Storage, tmp_path: Path) -> None:
        storage.write(DIGEST, b"first, and longer")
        storage.write(DIGEST, b"second")
        assert storage.read(DIGEST) == b"second"
        make_file(tmp_path / "source", 100)
        storage.upload(DIGEST, tmp_path / "source")
        assert storage.size(DIGEST) == 100
        assert list(storage.list()) == [(DIGEST, 100)]

    def test_missing_blob(self, storage: Storage) -> None:
        assert storage.size("files/md5/00/none") is None
        for read in (
            storage.read,
            lambda key: list(storage.stream(key)),
            lambda key: list(storage.stream(key, start=5)),
        ):
            with pytest.raises(MissingObjectError, match="has no 'files/md5/00/none'"):
                read("files/md5/00/none")
        storage.write("files/md5/00/here", b"1")
        assert storage.size("files/md5/00/none") is None
        assert storage.size("files/md5/00") is None
        assert storage.size("files/md5/00/here/below") is None

    def test_lists_below_a_folder_only(self, storage: Storage) -> None:
        blobs = {
            "files/md5/aa/1": 1,
            "files/md5/aa/2": 22,
            "files/md5/ab/3.dir": 3,
            "files/md5x/ab": 4,
            "runs/k/v": 5,
        }
        for key, size in blobs.items():
            storage.write(key, b"x" * size)
        assert dict(storage.list()) == blobs
        assert dict(storage.list("files/md5")) == {
            k: v for k, v in blobs.items() if k.startswith("files/md5/")
        }
        assert dict(storage.list("files/md5/aa/")) == {"files/md5/aa/1": 1, "files/md5/aa/2": 22}
        assert set(storage.keys()) == set(blobs)
        assert sorted(storage.keys("files/md5/aa")) == ["files/md5/aa/1", "files/md5/aa/2"]
        for nothing in ("nothing/here", "runs/k/v"):
            assert list(storage.list(nothing)) == []
            assert list(storage.keys(nothing)) == []

    def test_lists_nothing_in_an_empty_remote(self, storage: Storage) -> None:
        assert list(storage.list()) == []
        assert list(storage.list("files/md5")) == []

    def test_deletes_and_passes_over_what_is_not_there(self, storage: Storage) -> None:
        for key in ("a/1", "a/2", "a/3"):
            storage.write(key, b"x")
        storage.delete(["a/1", "a/none", "none", "a/3"])
        assert [key for key, _ in storage.list()] == ["a/2"]
        storage.delete([])

    @pytest.mark.parametrize(
        "key",
        [
            "ünï/cödé-文件.txt",
            "with space/a+b&c=d?e#f%25g.txt",
            "dots/..a/.hidden/b..",
            "quote/'a'\"b\"/(1)[2]{3}",
        ],
    )
    def test_keys_of_any_character(self, storage: Storage, key: str) -> None:
        storage.write(key, key.encode())
        assert storage.size(key) == len(key.encode())
        assert storage.read(key) == key.encode()
        assert dict(storage.list()) == {key: len(key.encode())}
        storage.delete([key])
        assert storage.size(key) is None

    @pytest.mark.parametrize(
        "key", ["", "/etc/passwd", "../out", "a/../../out", "a//b", "a/./b", "a/", "a\0b"]
    )
    def test_refuses_keys_that_leave_the_root(self, storage: Storage, tmp_path: Path, key: str) -> None:
        make_file(tmp_path / "source", 1)
        for act in (
            lambda: storage.size(key),
            lambda: storage.read(key),
            lambda: list(storage.stream(key)),
            lambda: storage.write(key, b""),
            lambda: storage.upload(key, tmp_path / "source"),
            lambda: storage.delete([key]),
        ):
            with pytest.raises(UnsafePathError):
                act()

    def test_many_threads_at_once(self, storage: Storage) -> None:
        blobs = {f"files/md5/{i % 7:02x}/{i:030x}": os.urandom(1000 + i) for i in range(100)}
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda item: storage.write(*item), blobs.items()))
            assert list(pool.map(storage.read, blobs)) == list(blobs.values())
            assert list(pool.map(storage.size, blobs)) == [len(data) for data in blobs.values()]
        assert dict(storage.list("files/md5")) == {key: len(data) for key, data in blobs.items()}

    def test_concurrent_writers_of_one_blob_leave_one_whole(self, storage: Storage, tmp_path: Path) -> None:
        versions = [bytes([65 + n]) * 300_000 for n in range(6)]
        for n, data in enumerate(versions):
            (tmp_path / f"v{n}").write_bytes(data)
        storage.upload(DIGEST, tmp_path / "v0")
        with ThreadPoolExecutor(8) as pool:
            writers = [
                pool.submit(storage.upload, DIGEST, tmp_path / f"v{n}") for n in range(6) for _ in range(3)
            ]
            readers = [pool.submit(storage.read, DIGEST) for _ in range(10)]
            for writer in writers:
                writer.result()
            assert all(reader.result() in versions for reader in readers)
        assert storage.read(DIGEST) in versions
        assert list(storage.list()) == [(DIGEST, 300_000)]

    def test_a_source_that_is_not_there_is_the_callers(self, storage: Storage, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            storage.upload(DIGEST, tmp_path / "none")
        assert not isinstance(caught.value, MissingObjectError)
        assert storage.size(DIGEST) is None

    def test_is_called_by_name_and_url(self, storage: Storage) -> None:
        assert storage.name == storage.url
        assert storage.url in repr(storage)
        assert storage.jobs >= 1
        assert isinstance(storage.local_path("a"), Path) == isinstance(storage, FolderStorage)

    def test_a_stream_that_is_left_early_can_be_read_again(self, storage: Storage, tmp_path: Path) -> None:
        data = make_file(tmp_path / "source", 9_000_000)
        storage.upload(DIGEST, tmp_path / "source")
        for _ in range(20):
            chunks = storage.stream(DIGEST)
            assert data.startswith(next(chunks))
            chunks.close()  # type: ignore[attr-defined]
        assert storage.read(DIGEST) == data
