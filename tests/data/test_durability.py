"""Content is on the disk before it is named, and what is named and not whole is noticed."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from dvkf_prefect import durability
from dvkf_prefect.data.cache import _copier
from dvkf_prefect.errors import OutputChangedError, OutputError, TransferError
from dvkf_prefect.repo import Repo


def make(repo: Repo, count: int = 20) -> Repo:
    (repo.root / "data/sub").mkdir(parents=True)
    for number in range(count):
        (repo.root / f"data/sub/{number}").write_text(f"content {number}")
    return repo


def empty(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"")
    path.chmod(0o444)


def objects(root: Path) -> list[Path]:
    return sorted((root / "files/md5").glob("??/*"))


@pytest.mark.parametrize("count", [2, 20])
def test_objects_are_flushed_before_a_file_names_them(
    repo: Repo, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """One by one where they are few, with their whole file system where they are many."""
    make(repo, count)
    flushed: list[str] = []
    named: list[bool] = []
    one, all_of_it = durability.sync_path, durability._sync_file_system

    def seen(how: str) -> None:
        flushed.append(how)
        named.append((repo.root / "data.dvc").exists())

    monkeypatch.setattr(durability, "sync_path", lambda path: (seen(f"one {path}"), one(path))[1])
    monkeypatch.setattr(durability, "_sync_file_system", lambda fd: (seen("all"), all_of_it(fd))[1])
    repo.add(["data"])
    stored = {str(path) for path in objects(repo.cache.root)}
    assert len(stored) == count + 1
    if count == 20:
        assert flushed[0] == "all"
    else:
        assert {f"one {path}" for path in stored} <= {
            how for how, there in zip(flushed, named, strict=True) if not there
        }
    assert not named[0]
    assert not durability._noted


@pytest.mark.parametrize("count", [2, 20, 100])
def test_what_a_killed_run_stored_is_flushed_by_the_run_that_names_it(
    repo: Repo, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Nothing is stored again, and the killed run had flushed nothing."""
    make(repo, count)
    # Files too young to be trusted would be stored again.
    for path in (repo.root / "data/sub").iterdir():
        os.utime(path, (1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(durability, "flush", lambda: None)
        repo.add(["data"])
    (repo.root / "data.dvc").unlink()
    durability._noted.clear()
    flushed: list[str] = []

    def seen(what: str) -> None:
        if not (repo.root / "data.dvc").exists():
            flushed.append(what)

    monkeypatch.setattr(durability, "sync_path", lambda path: seen(str(path)))
    monkeypatch.setattr(durability, "_sync_file_system", lambda fd: seen("all"))
    Repo.open(repo.root).add(["data"])
    stored = {str(path) for path in objects(repo.cache.root)}
    assert "all" in flushed or stored <= set(flushed)
    # Old objects are on the disk.
    flushed.clear()
    (repo.root / "data.dvc").unlink()
    monkeypatch.setattr(durability, "YOUNG", -600)
    Repo.open(repo.root).add(["data"])
    assert "all" not in flushed
    assert not stored & set(flushed)


def test_it_can_be_turned_off(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVKF_DURABLE", "no")
    make(repo)

    def never(*_: object) -> None:
        raise AssertionError("flushed")

    monkeypatch.setattr(durability, "sync_path", never)
    monkeypatch.setattr(durability, "_sync_file_system", never)
    monkeypatch.setattr(os, "fsync", never)
    repo.add(["data"])
    repo.push()
    assert not repo.status()


def test_a_disk_that_takes_nothing_leaves_nothing_named(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    make(repo)

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(durability, "_sync_file_system", broken)
        with pytest.raises(OSError, match="Input/output error"):
            repo.add(["data"])
    assert not (repo.root / "data.dvc").exists()
    repo.add(["data"])
    assert not repo.status()


def test_a_disk_that_fails_while_more_is_stored_leaves_nothing_named(
    repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells of a failed write once, here to the flush that runs beside the work."""
    make(repo)
    answers = [errno.EIO, 0, 0, 0, 0]
    asked: list[str] = []

    def broken_once(_: int) -> None:
        asked.append(threading.current_thread().name)
        if number := answers.pop(0):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(durability, "AHEAD", 1)
    monkeypatch.setattr(durability, "_sync_file_system", broken_once)
    with pytest.raises(OSError, match="Input/output error"):
        repo.add(["data"])
    assert asked[0] == "dvkf-disk"
    assert not (repo.root / "data.dvc").exists()
    repo.add(["data"])
    assert not repo.status()


def test_a_remote_has_the_files_on_disk_before_the_manifest(
    repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(repo)
    repo.add(["data"])
    store = tmp_path / "store"
    there: list[list[str]] = []
    real = durability.flush

    def seen() -> None:
        if durability._noted and objects(store):
            there.append([path.suffix for path in objects(store)])
        real()

    monkeypatch.setattr(durability, "flush", seen)
    repo.push()
    assert there == [[""] * 20, [".dir" if path.suffix else "" for path in objects(store)]]


def test_empty_objects_are_not_there(repo: Repo, tmp_path: Path) -> None:
    """As a power cut leaves them: add, push and fetch bring them again, and status says so."""
    make(repo)
    (repo.root / "data/empty").write_bytes(b"")
    repo.add(["data"])
    repo.push()
    store = tmp_path / "store"
    files = [path for path in objects(store) if not path.suffix and path.stat().st_size]
    for path in files[:3]:
        empty(path)
    assert len(repo.cloud_status()) == 3
    assert repo.push().files == 3
    assert repo.cloud_status() == {}
    for path in objects(repo.cache.root)[:5]:
        empty(path)
    assert [change.state for change in repo.status().changes] == ["not in cache"]
    repo.add(["data"])
    assert not repo.status()
    for path in objects(repo.cache.root):
        if not path.suffix and path.stat().st_size:
            empty(path)
    assert repo.fetch().files == 20
    assert not repo.status()


def test_a_cut_object_of_a_file_is_not_there(repo: Repo, tmp_path: Path) -> None:
    (repo.root / "file").write_bytes(b"x" * 10_000)
    repo.add(["file"])
    repo.push()
    (stored,) = objects(tmp_path / "store")
    (cached,) = objects(repo.cache.root)
    for path in (stored, cached):
        path.chmod(0o644)
        os.truncate(path, 5_000)
    repo.add(["file"])
    assert cached.stat().st_size == 10_000
    assert repo.push().files == 1
    assert stored.stat().st_size == 10_000
    cached.chmod(0o644)
    os.truncate(cached, 5_000)
    assert repo.fetch().files == 1


@pytest.mark.parametrize("size", [200_000, 17 << 20])
@pytest.mark.parametrize("kind", ["copy", "hardlink", "symlink"])
def test_damage_under_an_old_time_is_noticed(repo: Repo, kind: str, size: int) -> None:
    repo = Repo.open(repo.root, config={"cache": {"type": kind}})
    (repo.root / "file").write_bytes(b"x" * size)
    repo.add(["file"])
    (cached,) = objects(repo.cache.root)
    info = cached.stat()
    (repo.root / "file").unlink()
    cached.chmod(0o644)
    with open(cached, "r+b") as stream:
        stream.seek(1000)
        stream.write(b"!")
    os.utime(cached, ns=(info.st_atime_ns, info.st_mtime_ns))
    cached.chmod(0o444)
    again = Repo.open(repo.root, config={"cache": {"type": kind}})
    with pytest.raises(TransferError):
        again.push()
    assert not (repo.root / "file").exists()
    with pytest.raises(TransferError):
        again.checkout()
    assert not (repo.root / "file").exists()


def test_what_was_hashed_long_ago_is_hashed_again(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    (repo.root / "file").write_bytes(b"x" * 200_000)
    repo.add(["file"])
    digest = repo.version("file").digest
    info = repo.cache.path(digest).stat()
    assert Repo.open(repo.root).cache.is_known(digest, info)
    monkeypatch.setattr("dvkf_prefect.data.cache.cache._TRUSTED", -10)
    assert not Repo.open(repo.root).cache.is_known(digest, info)


def test_short_reads_are_read_on(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    make(repo)
    (repo.root / "data/large").write_bytes(os.urandom(17 << 20))
    real_read, real_range = os.read, os.copy_file_range
    monkeypatch.setattr(_copier.os, "read", lambda fd, size: real_read(fd, max(1, size // 3)))
    monkeypatch.setattr(_copier.os, "copy_file_range", lambda a, b, size: real_range(a, b, max(1, size // 3)))
    repo.add(["data"])
    repo.push()
    before = {path.name: path.read_bytes() for path in (repo.root / "data").rglob("*") if path.is_file()}
    for path in [*(repo.root / "data").rglob("*"), *objects(repo.cache.root)]:
        if path.is_file():
            path.unlink()
    repo.pull()
    after = {path.name: path.read_bytes() for path in (repo.root / "data").rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize("size", [1000, 5 << 20, 17 << 20])
@pytest.mark.parametrize("change", [-10, 10])
def test_a_file_that_changes_while_it_is_read_is_named(
    repo: Repo, monkeypatch: pytest.MonkeyPatch, size: int, change: int
) -> None:
    file = repo.root / "file"
    file.write_bytes(b"x" * size)
    real = os.open

    def opened(path: str, *rest: int) -> int:
        if str(path) == str(file):
            os.truncate(file, size + change)
        return real(path, *rest)

    monkeypatch.setattr(_copier.os, "open", opened)
    with pytest.raises(OutputError, match=r"file changed while it was read"):
        repo.add(["file"])
    assert not (repo.root / "file.dvc").exists()


def test_leftovers_in_a_tracked_folder_are_no_data(repo: Repo) -> None:
    make(repo)
    left = repo.root / "data/sub/.0123456789abcdef.dvkf-tmp"
    left.write_text("half")
    repo.add(["data"])
    assert not left.exists()
    digest = repo.version("data").digest
    left.write_text("half")
    assert not Repo.open(repo.root).status()
    assert Repo.open(repo.root).commit().versions == ()
    left.write_text("half")
    (repo.root / "data/sub/1").unlink()
    beside = repo.root / ".fedcba9876543210.dvkf-tmp"
    (beside / "sub").mkdir(parents=True)
    Repo.open(repo.root).checkout()
    assert not left.exists()
    assert not beside.exists()
    assert repo.version("data").digest == digest


@pytest.mark.parametrize("path", ["data/big", "big"])
def test_what_a_power_cut_left_of_a_checkout_is_replaced(repo: Repo, path: str) -> None:
    """A file that was shortened by its user is not."""
    content = bytes(range(256)) * 8192
    for name in ("data/big", "data/small", "big"):
        (repo.root / name).parent.mkdir(exist_ok=True)
        (repo.root / name).write_bytes(content if name.endswith("big") else b"small")
    repo.add(["data", "big"])
    repo.push()
    (repo.root / "data").rename(repo.root / "aside")
    (repo.root / "big").unlink()
    repo.checkout()
    file = repo.root / path
    written = file.stat()
    os.truncate(file, 70_000)
    with pytest.raises(OutputChangedError):
        repo.checkout()
    os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns))
    repo.checkout()
    assert file.read_bytes() == content
    file.write_bytes(b"x" + content[1:70_000])
    os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns))
    with pytest.raises(OutputChangedError):
        repo.checkout()


def test_a_checkout_ends_without_waiting_for_the_disk(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    make(repo)
    repo.add(["data"])
    (repo.root / "data").rename(repo.root / "aside")
    monkeypatch.setattr(durability, "_sync_file_system", lambda fd: pytest.fail("flushed"))
    repo.checkout()
    assert (repo.root / "data/sub/7").read_text() == "content 7"


def test_a_damaged_object_of_a_new_folder_is_named_and_all_others_arrive(repo: Repo) -> None:
    make(repo, 100)
    repo.add(["data"])
    (repo.root / "data").rename(repo.root / "aside")
    empty(objects(repo.cache.root)[0])
    with pytest.raises(TransferError, match="not in the cache"):
        repo.checkout()
    assert len(list((repo.root / "data/sub").iterdir())) >= 99
    assert [path for path in repo.root.iterdir() if path.name.startswith(".data") or "tmp" in path.name] == []
