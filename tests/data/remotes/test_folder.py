"""Folders: their files, and what their disk may answer."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from remote_contract import DIGEST, make_file

from dvkf_prefect.data.remotes import open_storage
from dvkf_prefect.data.remotes.folder import FolderStorage
from dvkf_prefect.errors import DiskFullError, RemoteDeniedError, RemoteUnreachableError


def test_folder_blobs_are_read_only_files_where_dvc_has_them(tmp_path: Path) -> None:
    storage = open_storage(f"{tmp_path}/store")
    storage.write(DIGEST, b"x")
    make_file(tmp_path / "source", 10)
    storage.upload("a/b", tmp_path / "source")
    for key in (DIGEST, "a/b"):
        path = storage.local_path(key)
        assert path == tmp_path / "store" / key
        assert path.stat().st_mode & 0o777 == 0o444
    assert (tmp_path / "source").stat().st_mode & 0o200


def test_folder_shared_with_the_group(tmp_path: Path) -> None:
    open_storage(f"{tmp_path}/store", {"shared": "group"}).write(DIGEST, b"x")
    assert (tmp_path / "store/files/md5").stat().st_mode & 0o7777 == 0o2775


def test_folder_whose_disk_is_not_mounted(tmp_path: Path) -> None:
    storage = open_storage(f"{tmp_path}/mnt/nas/store", name="nas")
    make_file(tmp_path / "source", 1)
    for act in (
        lambda: storage.write("a", b""),
        lambda: storage.upload("a", tmp_path / "source"),
        lambda: storage.size("a"),
        lambda: storage.read("a"),
        lambda: list(storage.list()),
    ):
        with pytest.raises(
            RemoteUnreachableError, match=r"remote 'nas' .*no folder .*/mnt/nas\. Mount the disk"
        ):
            act()
    assert not (tmp_path / "mnt").exists()


@pytest.mark.parametrize(
    ("folder", "host"),
    [("nas.example.org/data", "nas.example.org"), ("nas:data", "nas"), ("me@nas:data", ""), ("nas/data", "")],
)
def test_folder_that_is_the_name_of_a_host_without_a_scheme(tmp_path: Path, folder: str, host: str) -> None:
    """DVC takes a url without a scheme for a folder, from the configuration's own one on."""
    with pytest.raises(RemoteUnreachableError) as caught:
        open_storage(f"{tmp_path}/{folder}/store", name="nas").size("a")
    hint = f" If '{host}' is a host, write its scheme in the url, such as ssh://{host}/."
    assert str(caught.value).endswith("or make the folder." + (hint if host else ""))


def test_folder_that_may_not_be_written() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        os.mkdir(f"{folder}/store", 0o555)
        storage = open_storage(f"{folder}/store", name="store")
        root = os.geteuid() == 0
        if root:
            # Root may write anywhere; nobody may not.
            os.seteuid(65534)
        try:
            with pytest.raises(
                RemoteDeniedError, match=r"remote 'store' .*this user's rights: Permission denied"
            ):
                storage.write("a/b", b"x")
        finally:
            if root:
                os.seteuid(0)


def test_folder_refusal_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a read-only mount answers, which root meets too."""
    storage = open_storage(f"{tmp_path}/store", name="store")
    storage.write("a/b", b"x")

    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(RemoteDeniedError, match=r"remote 'store' .*refused to write 'a/c'.*Read-only"):
        storage.write("a/c", b"x")
    assert [key for key, _ in storage.list()] == ["a/b"]
    assert len(list((tmp_path / "store/a").iterdir())) == 1


@pytest.mark.parametrize("call", ["write", "copy_file_range"])
def test_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    storage = open_storage(f"{tmp_path}/store", name="store")
    storage.write(DIGEST, b"before")
    make_file(tmp_path / "source", 100)

    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DiskFullError, match=r"remote 'store' .*no space left"):
        if call == "write":
            storage.write(DIGEST, b"after")
        else:
            storage.upload(DIGEST, tmp_path / "source")
    monkeypatch.undo()
    assert storage.read(DIGEST) == b"before"
    assert len(list((tmp_path / "store" / DIGEST).parent.iterdir())) == 1


def test_folder_copies_where_the_kernel_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*args: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", cannot)
    data = make_file(tmp_path / "source", 2_500_000)
    storage = open_storage(f"{tmp_path}/store")
    storage.upload(DIGEST, tmp_path / "source")
    assert storage.read(DIGEST) == data


def test_folder_listing_passes_over_unfinished_files_and_loops(tmp_path: Path) -> None:
    storage = open_storage(f"{tmp_path}/store")
    storage.write("a/b", b"x")
    (tmp_path / "store/a/.dvkf-tmp-1-2-3").write_bytes(b"part")
    (tmp_path / "store/a/loop").symlink_to(tmp_path / "store/a")
    (tmp_path / "store/broken").symlink_to(tmp_path / "none")
    assert dict(storage.list())["a/b"] == 1
    assert not any(".dvkf-tmp" in key for key, _ in storage.list())


def test_what_interrupted_transfers_left_is_not_listed_and_goes_with_the_next(tmp_path: Path) -> None:
    storage = open_storage(f"{tmp_path}/store")
    assert isinstance(storage, FolderStorage)
    own = storage.temporary()
    parent = own.parent
    left = parent / "0123456789abcdef"
    left.mkdir()
    # As versions that told the owner by its number had it: these go by age.
    old, fresh = parent / "1-copy-1", parent / "2-copy-1"
    for path in (own / "half", left / "half", old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert list(storage.list()) == list(storage.keys()) == []
    storage.sweep()
    assert not old.exists()
    assert fresh.exists()
    assert not left.exists()
    assert (own / "half").exists()
