"""The fsspec filesystem on what dvc wrote: against DVC's own, without the cache, on S3, and as others use it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.tests.abstract import AbstractFixtures, AbstractGetTests
from repos import make_repo
from servers import S3Server

from dvkf_prefect.data.remotes.folder import FolderStorage
from dvkf_prefect.data.remotes.objects import ObjectStorage
from dvkf_prefect.data.views import reader, streams
from dvkf_prefect.data.views.filesystem import DvkfFileSystem
from dvkf_prefect.errors import (
    ConfigError,
    CorruptObjectError,
    GitError,
    MissingObjectError,
    NotARepositoryError,
    OutputNotFoundError,
    RemoteUnreachableError,
    TransferError,
    UnsafePathError,
)
from dvkf_prefect.repo import Repo

BIG = bytes(range(256)) * 40  # 10,240 bytes
PIPELINE = """\
stages:
  sum:
    cmd: mkdir -p out && wc -c < data/train/a.csv > out/count && echo 1 > metrics.json
    deps: [data/train]
    outs: [out]
    metrics:
    - metrics.json: {cache: false}
"""
ORACLE = """
import json, sys
from dvc.api import DVCFileSystem
told = {}
for rev in ("v1", "v2", None):
    fs = DVCFileSystem(".", rev=rev)
    found = {}
    for path in fs.find(""):
        path = path.lstrip("/")
        info = fs.info(path)
        found[path] = [info["size"], info.get("md5"), fs.cat(path).hex()]
    listed = {
        path: sorted(fs.ls(path, detail=False)) if fs.exists(path) else None
        for path in ("", "data", "data/train", "data/train/deep", "out", "README", "nowhere")
    }
    told[rev or ""] = {"files": found, "ls": listed, "du": fs.du("data"), "dvc": [p for p in found if fs.isdvc(p)]}
print(json.dumps(told))
"""


@pytest.fixture(scope="module", autouse=True)
def protocol() -> Iterator[None]:
    """The protocol, whether or not the package's entry points are installed."""
    fsspec.register_implementation("dvkf", DvkfFileSystem, clobber=True)
    yield
    DvkfFileSystem.clear_instance_cache()


def run(root: Path, *args: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(args, cwd=root, capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{args}: {done.stdout}{done.stderr}"
    return done.stdout


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A repository that dvc made, with two versions and a changed workspace, and what DVC's filesystem tells of it."""
    base = tmp_path_factory.mktemp("written")
    root = base / "repo"
    (base / "home").mkdir()
    root.mkdir()
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(base / "home"),
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(base / "site"),
        "GIT_CONFIG_NOSYSTEM": "1",
        **{
            f"GIT_{who}_{what}": "t@example.org"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        },
    }
    run(root, "git", "init", "-q", "-b", "main", env=env)
    run(root, "dvc", "init", "-q", env=env)
    run(root, "dvc", "remote", "add", "-q", "-d", "store", "../store", env=env)
    write(
        root,
        {
            "data/train/a.csv": b"x,y\n1,2\n3,4\n",
            "data/train/b.csv": b"x,y\n5,6\n",
            "data/train/deep/ü b.txt": b"deep",
            "data/train/empty": b"",
            "data/train-more": b"sorts between",
            "tool.sh": b"#!/bin/sh\n",
            "big": BIG,
            "README": b"hello",
            "src/run.py": b"print(1)\n",
            "dvc.yaml": PIPELINE.encode(),
        },
    )
    os.chmod(root / "tool.sh", 0o755)
    os.chmod(root / "src/run.py", 0o755)
    run(root, "dvc", "add", "-q", "data/train", "data/train-more", "tool.sh", "big", env=env)
    run(root, "dvc", "repro", "-q", env=env)
    run(root, "git", "add", ".", env=env)
    run(root, "git", "commit", "-qm", "one", env=env)
    run(root, "git", "tag", "v1", env=env)
    run(root, "dvc", "push", "-q", env=env)
    write(root, {"data/train/c.csv": b"x,y\n7,8\n", "data/train/a.csv": b"x,y\n1,20\n"})
    shutil.rmtree(root / "data/train/deep")
    run(root, "dvc", "add", "-q", "data/train", env=env)
    run(root, "git", "commit", "-qam", "two", env=env)
    run(root, "git", "tag", "-a", "v2", "-m", "two", env=env)
    run(root, "dvc", "push", "-q", env=env)
    write(root, {"data/untracked": b"nobody's", "data/train/b.csv": b"x,y\nchanged,1\n"})
    (root / "data/train/c.csv").unlink()
    (root / "big").unlink()
    return base, json.loads(run(root, sys.executable, "-c", ORACLE, env=env))


@pytest.fixture
def root(written: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of the repository, its remote beside it."""
    shutil.copytree(written[0] / "repo", tmp_path / "repo", symlinks=True)
    shutil.copytree(written[0] / "store", tmp_path / "store")
    return tmp_path / "repo"


@pytest.fixture
def told(written: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    return written[1]


def forget(root: Path) -> None:
    shutil.rmtree(root / ".dvc/cache")


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 10 KiB be large."""
    monkeypatch.setattr(reader, "LARGE", 4096)
    monkeypatch.setattr(streams, "_BLOCK", 1024)


# -- against DVC's own -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, False], ids=["cache", "remote"])
@pytest.mark.parametrize("rev", [pytest.param("v1", marks=pytest.mark.long), "v2", None])
def test_it_shows_what_dvcs_filesystem_shows(
    root: Path, told: dict[str, Any], rev: str | None, cached: bool
) -> None:
    if not cached:
        forget(root)
    fs = DvkfFileSystem(root, rev)
    theirs = told[rev or ""]
    assert fs.find("") == sorted(theirs["files"])
    for path, names in theirs["ls"].items():
        if names is None:
            with pytest.raises(FileNotFoundError, match=path):
                fs.ls(path)
        else:
            assert fs.ls(path, detail=False) == names
    details = fs.find("", detail=True)
    for path, (size, md5, data) in theirs["files"].items():
        info = fs.info(path)
        assert details[path] == info
        assert info["type"] == "file"
        # DVC does not know sizes inside directories.
        assert info["size"] == (len(bytes.fromhex(data)) if size is None else size)
        assert info.get("md5") == md5
        assert info["isdvc"] == (path in theirs["dvc"])
        assert fs.cat(path).hex() == data
    assert fs.du("data") == sum(
        len(bytes.fromhex(f[2])) for p, f in theirs["files"].items() if p.startswith("data/")
    )
    if cached and rev:
        assert fs.du("data") == theirs["du"]


def test_programs_links_and_folders_of_git_are_told_of_at_a_revision(root: Path) -> None:
    os.symlink("../README", root / "src/link")
    os.symlink("data/train", root / "rows")
    os.symlink("/etc", root / "out-of-here")
    os.symlink("nowhere", root / "broken")
    os.symlink("loop", root / "loop")
    run(root, "git", "add", ".")
    run(root, "git", "commit", "-qm", "links")
    fs = DvkfFileSystem(root, "HEAD")
    assert fs.info("src/run.py")["isexec"] and not fs.info("README")["isexec"]
    assert fs.info("tool.sh")["isexec"]
    assert fs.cat("src/link") == b"hello" and fs.info("src/link")["size"] == 5
    assert fs.ls("rows", detail=False) == ["rows/a.csv", "rows/b.csv", "rows/c.csv", "rows/empty"]
    assert fs.cat("rows/c.csv") == b"x,y\n7,8\n"
    assert not [p for p in fs.find("") if p.startswith("rows/")]
    for path in ("out-of-here", "out-of-here/passwd", "broken", "loop", "src/run.py/x", "data/train/a.csv/x"):
        assert not fs.exists(path), path
        with pytest.raises(OutputNotFoundError, match=r"is not in HEAD \(\w{10}\) of .*repo"):
            fs.info(path)


def test_nothing_but_manifests_is_needed_to_list(root: Path) -> None:
    forget(root)
    for path in (root.parent / "store").rglob("*"):
        if path.is_file() and not path.name.endswith(".dir"):
            path.unlink()
    fs = DvkfFileSystem(root, "v1")
    names = ["data/train/a.csv", "data/train/b.csv", "data/train/deep/ü b.txt", "data/train/empty"]
    assert fs.find("data/train") == names
    assert fs.glob("data/*/*.csv") == names[:2]
    assert fs.glob("data/**/*b*") == [names[1], names[2]]
    assert [(top, sorted(dirs), sorted(files)) for top, dirs, files in fs.walk("data/train")] == [
        ("data/train", ["deep"], ["a.csv", "b.csv", "empty"]),
        ("data/train/deep", [], ["ü b.txt"]),
    ]
    assert fs.isdir("data/train/deep") and fs.isfile(names[2]) and not fs.exists("data/train/de")
    assert [info["size"] for info in fs.ls("data/train")] == [None, None, 0, None]
    assert fs.du("data/train") == 24  # recorded for the whole
    with pytest.raises(
        MissingObjectError, match=r"'data/train/a\.csv' of v1 .*nor on remote 'store' \(.*store\)"
    ):
        fs.du("data/train", total=False)
    with pytest.raises(
        MissingObjectError, match=r"'data/train/a\.csv' of v1 .*nor on remote 'store' \(.*store\)"
    ):
        fs.open("data/train/a.csv")
    with pytest.raises(TransferError, match=r"a\.csv"):
        fs.get("data/train", str(root.parent / "got"), recursive=True)
    assert not (root.parent / "got/a.csv").exists()


def test_a_lost_manifest_names_what_is_lost(root: Path) -> None:
    forget(root)
    shutil.rmtree(root.parent / "store")
    (root.parent / "store").mkdir()
    fs = DvkfFileSystem(root, "v2")
    with pytest.raises(MissingObjectError, match=r"files of 'data/train' in v2 .*not on remote 'store'"):
        fs.ls("data/train")
    assert "data/train" in fs.ls("data", detail=False)
    # What lies in the workspace needs no manifest.
    assert DvkfFileSystem(root).cat("data/train/b.csv") == b"x,y\nchanged,1\n"


def test_the_workspace_is_looked_at_each_time(root: Path) -> None:
    fs = DvkfFileSystem(root)
    assert fs.cat("big") == BIG  # tracked, but not there
    (root / "big").write_bytes(b"another")
    assert fs.cat("big") == b"another"
    assert "md5" not in fs.info("big") and fs.isdvc("big")
    (root / "big").unlink()
    (root / "big").mkdir()
    assert fs.isdir("big") and fs.ls("big") == []
    before = fs.ukey("data/train/b.csv")
    (root / "data/train/b.csv").write_bytes(b"once more, longer")
    assert fs.ukey("data/train/b.csv") != before
    assert fs.modified("README").timestamp() == pytest.approx((root / "README").stat().st_mtime)


# -- what is brought -------------------------------------------------------------------------------------------------


def test_what_is_read_comes_into_the_cache_verified(root: Path) -> None:
    forget(root)
    fs = DvkfFileSystem(root, "v1")
    digest = fs.info("data/train/a.csv")["md5"]
    cache = Repo.open(root).cache
    assert not cache.exists(digest)
    with fs.open("data/train/a.csv") as file:
        assert file.size == 12 and file.read() == b"x,y\n1,2\n3,4\n"
    assert cache.read_bytes(digest) == b"x,y\n1,2\n3,4\n"
    assert cache.path(digest).stat().st_mode & 0o777 == 0o444
    assert cache.exists(fs.info("data/train")["md5"])
    shutil.rmtree(root.parent / "store")
    assert DvkfFileSystem(root, "v1", skip_instance_cache=True).cat("data/train/a.csv") == b"x,y\n1,2\n3,4\n"


def test_many_files_are_brought_by_one_transfer(
    root: Path, told: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forget(root)
    moves: list[int] = []
    real = reader.fetch

    def spy(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        moves.append(len(outputs))
        return real(outputs, *args, **kwargs)

    monkeypatch.setattr(reader, "fetch", spy)
    fs = DvkfFileSystem(root, "v1")
    files = {p: bytes.fromhex(f[2]) for p, f in told["v1"]["files"].items()}
    fs.get("", str(tmp_path / "got"), recursive=True)
    assert moves == [sum(p in told["v1"]["dvc"] for p in files)]
    got = tmp_path / "got"
    assert {p.relative_to(got).as_posix(): p.read_bytes() for p in got.rglob("*") if p.is_file()} == files
    assert {p for p in files if os.access(got / p, os.X_OK)} == {"tool.sh", "src/run.py"} or os.getuid() == 0
    assert (got / "tool.sh").stat().st_mode & 0o100 and not (got / "README").stat().st_mode & 0o100
    assert fs.cat("data/train", recursive=True) == {
        p: d for p, d in files.items() if p.startswith("data/train/")
    }
    assert fs.cat(["README", "data/train/b.csv"]) == {p: files[p] for p in ("README", "data/train/b.csv")}
    assert len(moves) == 1


def test_a_large_file_is_read_where_it_is_asked_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    forget(root)
    starts: list[int] = []
    real = FolderStorage.stream

    def spy(self: FolderStorage, key: str, *, start: int = 0) -> Iterator[bytes]:
        starts.append(start)
        for chunk in real(self, key, start=start):
            for place in range(0, len(chunk), 300):
                yield chunk[place : place + 300]

    monkeypatch.setattr(FolderStorage, "stream", spy)
    fs = DvkfFileSystem(root, "v1")
    cache = Repo.open(root).cache
    digest = fs.info("big")["md5"]
    with fs.open("big") as file:
        assert file.size == len(BIG)
        assert file.seek(-10, os.SEEK_END) == len(BIG) - 10
        assert file.read() == BIG[-10:]
        assert starts == [9 * 1024]
        file.seek(100)
        assert file.read(50) == BIG[100:150]
        assert starts == [9 * 1024, 0]
    assert not cache.exists(digest)
    assert not list((cache.root / "tmp-dvkf").rglob("*-*"))
    with fs.open("big") as file:
        assert file.read(1) == BIG[:1]
        file.seek(8000)
        assert file.read() == BIG[8000:]
        assert not cache.exists(digest)
        file.seek(0)
        assert file.read() == BIG
        assert cache.exists(digest)
        file.seek(3)
        assert file.read(3) == BIG[3:6]
    assert cache.read_bytes(digest) == BIG
    starts.clear()
    assert fs.cat("big") == BIG
    assert fs.cat_file("big", start=10, end=20) == BIG[10:20]
    assert fs.tail("big", 4) == BIG[-4:]
    assert starts == []


def test_a_broken_connection_is_taken_up_where_it_broke(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    forget(root)
    starts: list[int] = []
    real = FolderStorage.stream

    def breaking(self: FolderStorage, key: str, *, start: int = 0) -> Iterator[bytes]:
        starts.append(start)
        yield next(real(self, key, start=start))[:2500]
        raise RemoteUnreachableError("the line went dead")

    monkeypatch.setattr(FolderStorage, "stream", breaking)
    fs = DvkfFileSystem(root, "v1")
    assert fs.cat("big") == BIG
    assert starts == [0, 2048, 4096, 6144, 8192]
    forget(root)
    monkeypatch.setattr(
        FolderStorage, "stream", lambda *a, **k: (_ for _ in ()).throw(RemoteUnreachableError("dead"))
    )
    with pytest.raises(RemoteUnreachableError, match="dead"):
        fs.cat("big")


def test_a_cache_that_cannot_be_written_is_read_past(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(root)
    monkeypatch.setattr(reader, "_is_writable", lambda folder: False)
    fs = DvkfFileSystem(root, "v1")
    assert fs.cat("data/train/a.csv") == b"x,y\n1,2\n3,4\n"
    assert fs.cat("big") == BIG
    assert not (root / ".dvc/cache").exists()


@pytest.mark.parametrize("large", [False, True])
def test_what_is_damaged_is_not_handed_out(root: Path, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    if large:
        small_blocks(monkeypatch)
    fs = DvkfFileSystem(root, "v1")
    digest = fs.info("big")["md5"]
    cache = Repo.open(root).cache
    for place in (cache.path(digest), root.parent / f"store/files/md5/{digest[:2]}/{digest[2:]}"):
        os.chmod(place, 0o644)
        place.write_bytes(BIG[:-1] + b"?")
    with pytest.raises(CorruptObjectError, match=r"'big' of v1|hashes to"):
        fs.cat("big")
    assert not cache.exists(digest)
    with pytest.raises(CorruptObjectError, match=r"'big' of v1.*damaged on the remote"):
        fs.cat("big")
    assert not cache.exists(digest)
    # A good copy on the remote takes the place of a bad one in the cache.
    (root.parent / f"store/files/md5/{digest[:2]}/{digest[2:]}").write_bytes(BIG)
    assert fs.cat("big") == BIG


def test_a_damaged_small_object_is_replaced_by_the_remotes(root: Path) -> None:
    fs = DvkfFileSystem(root, "v1")
    place = Repo.open(root).cache.path(fs.info("data/train/a.csv")["md5"])
    os.chmod(place, 0o644)
    place.write_bytes(b"bad")
    assert fs.cat("data/train/a.csv") == b"x,y\n1,2\n3,4\n"


def test_threads_that_want_one_file_bring_it_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(root)
    fs = DvkfFileSystem(root, "v1")
    fs.ls("data/train")
    fetched: list[str] = []
    real = reader.fetch

    def slow(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        fetched.extend(o.path for o in outputs)
        threading.Event().wait(0.05)
        return real(outputs, *args, **kwargs)

    monkeypatch.setattr(reader, "fetch", slow)
    paths = ["data/train/a.csv", "data/train/b.csv"] * 8
    with ThreadPoolExecutor(16) as pool:
        read = list(pool.map(fs.cat_file, paths))
    assert read == [b"x,y\n1,2\n3,4\n", b"x,y\n5,6\n"] * 8
    assert sorted(fetched) == paths[:2]


def test_imports_come_from_where_they_were_imported(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    run(other, "git", "init", "-q")
    run(other, "dvc", "init", "-q")
    run(other, "dvc", "import", "-q", str(root), "data/train", "-o", "rows", "--rev", "v1")
    run(other, "git", "add", ".")
    run(other, "git", "commit", "-qm", "one")
    shutil.rmtree(other / "rows")
    forget(other)
    fs = DvkfFileSystem(other, "HEAD")
    assert fs.find("rows") == ["rows/a.csv", "rows/b.csv", "rows/deep/ü b.txt", "rows/empty"]
    assert fs.cat("rows", recursive=True)["rows/a.csv"] == b"x,y\n1,2\n3,4\n"
    assert fs.du("rows", total=False)["rows/b.csv"] == 8


def test_outputs_of_dvc_2_are_read(root: Path) -> None:
    data = b"a\r\nb\r\n"
    digest = hashlib.md5(data.replace(b"\r\n", b"\n")).hexdigest()
    tree = json.dumps([{"md5": digest, "relpath": "sub/x"}]).encode()
    folder = hashlib.md5(tree).hexdigest() + ".dir"
    for name, content in ((digest, data), (folder, tree)):
        write(root.parent / "store", {f"{name[:2]}/{name[2:]}": content})
    (root / "old.dvc").write_text(f"outs:\n- md5: {digest}\n  size: 6\n  path: old\n")
    (root / "dir.dvc").write_text(f"outs:\n- md5: {folder}\n  size: 6\n  nfiles: 1\n  path: dir\n")
    run(root, "git", "add", ".")
    run(root, "git", "commit", "-qm", "old")
    forget(root)
    fs = DvkfFileSystem(root, "HEAD")
    assert fs.cat(["old", "dir/sub/x"]) == {"old": data, "dir/sub/x": data}
    assert fs.info("old")["md5-dos2unix"] == digest and "md5" not in fs.info("dir/sub/x")
    assert Repo.open(root).cache.exists(digest, "md5-dos2unix")
    with fs.open("dir/sub/x") as file:
        assert file.read() == data


# -- S3 --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_s3(tmp_path: Path, s3: S3Server) -> Path:
    """A repository whose data dvc pushed to S3, none of it here."""
    root = tmp_path / "cloud"
    repo = make_repo(root)
    with repo.config.edit("local") as sections:
        sections["remote"]["lake"] = {
            "url": f"{s3.make_bucket('fs-' + uuid.uuid4().hex[:12])}/p",
            **s3.options(),
        }
        sections["core"]["remote"] = "lake"
    write(root, {f"many/{n:03}.txt": f"number {n}".encode() for n in range(150)} | {"big": BIG * 400})
    run(root, "dvc", "add", "-q", "many", "big")
    run(root, "git", "add", ".")
    run(root, "git", "commit", "-qm", "one")
    run(root, "dvc", "push", "-q")
    shutil.rmtree(root / "many")
    (root / "big").unlink()
    forget(root)
    return root


def test_s3_is_read_by_ranges_and_listed_once(on_s3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "LARGE", 1 << 20)
    asked = {"size": 0, "list": 0, "stream": 0}

    def counted(name: str) -> Any:
        real = getattr(ObjectStorage, name)

        def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
            asked[name] += 1
            return real(self, *args, **kwargs)

        return spy

    for name in asked:
        monkeypatch.setattr(ObjectStorage, name, counted(name))
    fs = DvkfFileSystem(on_s3, "HEAD")
    assert len(fs.glob("many/*.txt")) == 150
    assert asked == {"size": 0, "list": 0, "stream": 0}
    assert [info["size"] for info in fs.ls("many")] == [len(f"number {n}") for n in range(150)]
    assert asked == {"size": 0, "list": 1, "stream": 0}
    assert fs.du("many") == sum(len(f"number {n}") for n in range(150))
    with fs.open("big") as file:
        file.seek(-5, os.SEEK_END)
        assert file.read() == BIG[-5:]
        file.seek(1_234_567)
        assert file.read(10) == (BIG * 400)[1_234_567:1_234_577]
    assert asked == {"size": 0, "list": 1, "stream": 2}
    cache = Repo.open(on_s3).cache
    assert not cache.exists(fs.info("big")["md5"])
    assert hashlib.md5(fs.cat("big")).hexdigest() == fs.info("big")["md5"]
    assert cache.exists(fs.info("big")["md5"])
    assert asked["stream"] == 3
    everything = fs.cat("many", recursive=True)
    assert everything == {f"many/{n:03}.txt": f"number {n}".encode() for n in range(150)}


def test_a_remote_that_keeps_versions_is_read_by_them(tmp_path: Path, s3: S3Server) -> None:
    root = tmp_path / "kept"
    repo = make_repo(root)
    url = s3.make_bucket(name := "kept-" + uuid.uuid4().hex[:12])
    with s3.client() as client:
        client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    with repo.config.edit("local") as sections:
        sections["remote"]["kept"] = {"url": f"{url}/p", "version_aware": "true", **s3.options()}
        sections["core"]["remote"] = "kept"
    for number in (1, 2):
        write(root, {"d/x": f"x{number}".encode(), "d/s/y": b"y", "f": f"file {number}".encode()})
        run(root, "dvc", "add", "-q", "d", "f")
        run(root, "dvc", "push", "-q")
        run(root, "git", "add", ".")
        run(root, "git", "commit", "-qm", f"{number}")
        run(root, "git", "tag", f"v{number}")
    shutil.rmtree(root / "d")
    forget(root)
    for number in (1, 2):
        fs = DvkfFileSystem(root, f"v{number}")
        assert fs.find("d") == ["d/s/y", "d/x"] and fs.du("d", total=False) == {"d/s/y": 1, "d/x": 2}
        assert fs.cat("d/x") == f"x{number}".encode()
        assert fs.cat(["d/s/y", "f"]) == {"d/s/y": b"y", "f": f"file {number}".encode()}


def test_a_forked_process_reads_on(on_s3: Path) -> None:
    """Loaders of batches fork; the client of the parent is of no use there."""
    code = (
        "import os, sys; from dvkf_prefect.data.views.filesystem import DvkfFileSystem\n"
        f"fs = DvkfFileSystem({str(on_s3)!r}, 'HEAD'); fs.cat('many/001.txt')\n"
        "pid = os.fork()\n"
        "if not pid: print(fs.cat('many/002.txt'), flush=True); os._exit(0)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "b'number 2'\n", done.stderr


# -- as others use it ------------------------------------------------------------------------------------------------


def test_pandas_reads_any_revision_by_url(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    options = {"repo": str(root), "rev": "v1"}
    assert pd.read_csv("dvkf://data/train/a.csv", storage_options=options)["y"].tolist() == [2, 4]
    assert pd.read_csv("dvkf://data/train/a.csv", storage_options={"rev": "v2"})["y"].tolist() == [20]
    assert pd.read_csv("dvkf://@v1/data/train/a.csv")["y"].tolist() == [2, 4]
    monkeypatch.chdir(root.parent)
    assert pd.read_csv(f"dvkf://@v1/data/train/a.csv::{root}")["y"].tolist() == [2, 4]
    assert pd.read_csv(f"dvkf://data/train/a.csv::file://{root}")["y"].tolist() == [20]
    with fsspec.open(f"dvkf:///data/train/a.csv::{root}", "rt", dvkf={"rev": "v1"}) as file:
        assert file.readline() == "x,y\n"
    files = fsspec.open_files(["dvkf://@v1/data/train/a.csv", "dvkf://@v2/data/train/a.csv"], repo=str(root))
    with files as (one, two):
        assert (one.read(), two.read()) == (b"x,y\n1,2\n3,4\n", b"x,y\n1,20\n")
    with pytest.raises(NotARepositoryError):
        pd.read_csv("dvkf://data/train/a.csv")


def test_a_revision_in_a_path_stays_in_the_names(root: Path) -> None:
    run(root, "git", "branch", "feature/x", "v1")
    fs = DvkfFileSystem(root)
    assert fs.ls("@v1/data/train", detail=False)[0] == "@v1/data/train/a.csv"
    assert fs.glob("@feature%2Fx/data/train/*.csv") == [
        "@feature%2Fx/data/train/a.csv",
        "@feature%2Fx/data/train/b.csv",
    ]
    assert fs.cat("dvkf://@feature%2Fx/data/train/b.csv") == b"x,y\n5,6\n"
    assert "@v1/README" in fs.find("@v1") and fs.info("@v1")["name"] == "@v1"
    assert [p for p in fs.find("@v1/data", withdirs=True) if fs.isdir(p)] == [
        "@v1/data",
        "@v1/data/train",
        "@v1/data/train/deep",
    ]
    with pytest.raises(GitError, match="nope"):
        fs.open("@nope/README")
    write(root, {"@v1/own": b"a folder of that name"})
    assert fs.cat("@v1/own") == b"a folder of that name"
    assert not fs.exists("@v1/README")


def test_pyarrow_reads_directories_of_parts(root: Path) -> None:
    dataset = pytest.importorskip("pyarrow.dataset")
    parquet = pytest.importorskip("pyarrow.parquet")
    repo = Repo.open(root)
    (root / "parts").mkdir()
    for n in range(3):
        pd.DataFrame({"n": [n] * 4}).to_parquet(root / f"parts/{n}.parquet")
    repo.add(["parts"])
    repo.push()
    run(root, "git", "add", ".")
    run(root, "git", "commit", "-qm", "parts")
    shutil.rmtree(root / "parts")
    forget(root)
    fs = DvkfFileSystem(root, "HEAD")
    assert dataset.dataset("parts", filesystem=fs).to_table()["n"].to_pylist() == [0] * 4 + [1] * 4 + [2] * 4
    assert parquet.read_table("parts/1.parquet", filesystem=fs)["n"].to_pylist() == [1] * 4
    options = {"repo": str(root), "rev": "HEAD"}
    assert len(pd.read_parquet("dvkf://parts", storage_options=options)) == 12
    assert len(pd.read_parquet("dvkf://parts/2.parquet", storage_options=options)) == 4


def test_it_is_sent_to_other_processes_as_the_commit_it_shows(root: Path) -> None:
    run(root, "git", "branch", "moving", "v1")
    fs = DvkfFileSystem(root, "moving")
    sent = pickle.dumps((fs, fsspec.core.OpenFile(fs, "data/train/a.csv")))
    blob = fs.to_json()
    run(root, "git", "branch", "-f", "moving", "v2")
    code = (
        "import pickle, sys; fs, file = pickle.load(sys.stdin.buffer)\n"
        "with file as f: print(f.read() == fs.cat('data/train/a.csv') == b'x,y\\n1,2\\n3,4\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], input=sent, cwd="/", capture_output=True, check=True)
    assert done.stdout == b"True\n"
    assert fsspec.AbstractFileSystem.from_json(blob).cat("data/train/b.csv") == b"x,y\n5,6\n"
    assert pickle.loads(sent)[0] is fs
    # The name means another commit now: another filesystem, and the old one still shows what it did.
    assert DvkfFileSystem(root, "moving").cat("data/train/a.csv") == b"x,y\n1,20\n"
    assert DvkfFileSystem(root, "moving") is DvkfFileSystem(root, "v2")
    assert DvkfFileSystem(root, "moving") != fs
    assert DvkfFileSystem(root) is not DvkfFileSystem(root)
    assert fs.cat("data/train/a.csv") == b"x,y\n1,2\n3,4\n"
    assert (
        fs.ukey("data/train/a.csv") == fs.checksum("@v1/data/train/a.csv") != fs.ukey("@v2/data/train/a.csv")
    )
    assert fs.modified("README") == fs.created("data") < DvkfFileSystem(root).modified("data/untracked")


def test_a_repository_at_a_git_url_is_read_by_its_remote(root: Path, tmp_path: Path) -> None:
    run(root, "git", "clone", "-q", "--bare", str(root), str(tmp_path / "hub.git"))
    options = {
        "repo": f"file://{tmp_path}/hub.git",
        "remote": "store",
        "remote_config": {"url": str(tmp_path / "store")},
    }
    assert pd.read_csv("dvkf://data/train/a.csv", storage_options={**options, "rev": "v1"})["y"].tolist() == [
        2,
        4,
    ]
    fs = fsspec.filesystem("dvkf", **options, cache_dir=str(tmp_path / "kept"))
    assert fs.cat("data/train/c.csv") == b"x,y\n7,8\n"
    assert fs.cat("@v1/data/train/b.csv") == b"x,y\n5,6\n"
    assert list((tmp_path / "kept/files/md5").iterdir())
    assert fs.cat("README") == b"hello"
    assert not fs.exists("data/untracked")


def test_it_only_reads(root: Path) -> None:
    fs = DvkfFileSystem(root)
    for attempt in (
        lambda: fs.open("new", "wb"),
        lambda: fs.open("README", "a"),
        lambda: fs.pipe("new", b""),
        lambda: fs.pipe_file("new", b""),
        lambda: fs.write_text("new", ""),
        lambda: fs.touch("new"),
        lambda: fs.put(__file__, "new"),
        lambda: fs.put_file(__file__, "new"),
        lambda: fs.mkdir("new"),
        lambda: fs.makedirs("new/er"),
        lambda: fs.rm("README"),
        lambda: fs.rm_file("README"),
        lambda: fs.rmdir("src"),
        lambda: fs.cp_file("README", "new"),
        lambda: fs.mv("README", "new"),
        lambda: fs.upload(__file__, "new"),
    ):
        with pytest.raises(OSError, match=r"write_frame.*dvkf add") as caught:
            attempt()
        assert caught.value.errno == errno.EROFS
    assert not (root / "new").exists() and (root / "README").exists()


def test_what_cannot_be_is_told(root: Path, tmp_path: Path) -> None:
    fs = DvkfFileSystem(root, "v1")
    with pytest.raises(UnsafePathError):
        fs.open("data/../../secret")
    with pytest.raises(IsADirectoryError, match="data/train"):
        fs.open("data/train")
    with pytest.raises(GitError, match="nope"):
        DvkfFileSystem(root, "nope")
    with pytest.raises(FileNotFoundError):
        DvkfFileSystem(tmp_path)
    plain = tmp_path / "plain"
    plain.mkdir()
    Repo.init(plain, no_scm=True)
    with pytest.raises(ConfigError, match="no git history"):
        DvkfFileSystem(plain, "v1").ls("")
    assert DvkfFileSystem(plain).find("") == []
    assert fs.cat_file("README", start=-3) == b"llo" and fs.open("big").size == len(BIG)
    assert fs.read_block("data/train/a.csv", 0, 5, delimiter=b"\n") == b"x,y\n1,2\n"
    with fs.open("data/train/a.csv", "rt") as file:
        assert file.read() == "x,y\n1,2\n3,4\n"


class TestConformance(AbstractFixtures, AbstractGetTests):
    """fsspec's own tests of how files are got, on a tracked directory that is in the cache only."""

    @pytest.fixture
    def fs(self, tmp_path: Path) -> DvkfFileSystem:
        (tmp_path / "repo").mkdir()
        Repo.init(tmp_path / "repo", no_scm=True)
        return DvkfFileSystem(tmp_path / "repo")

    @pytest.fixture
    def fs_path(self) -> str:
        return "data"

    def _tracked(self, fs: DvkfFileSystem, make: Any) -> str:
        root = Path(fs.repo)
        make(LocalFileSystem(auto_mkdir=True), os.path.join, str(root / "data"))
        Repo.open(root).add(["data"])
        shutil.rmtree(root / "data")
        fs.invalidate_cache()
        return "data/source"

    def test_get_directory_recursive(self, fs: DvkfFileSystem, tmp_path: Path) -> None:
        """fsspec's own makes its files with the filesystem."""
        self._tracked(fs, lambda local, join, path: local.touch(join(path, "source/src/file")))
        target = str(tmp_path / "target")
        for slash in ("", "/"):
            fs.get("data/source/src" + slash, target, recursive=True)
            assert LocalFileSystem().find(target) == [target + "/file"]
            fs.get("data/source/src" + slash, target, recursive=True)
            below = "/file" if slash else "/src/file"
            assert LocalFileSystem().find(target) == sorted({target + "/file", target + below})
            shutil.rmtree(target)

    @pytest.fixture
    def fs_bulk_operations_scenario_0(self, fs: DvkfFileSystem) -> str:
        return self._tracked(fs, self._bulk_operations_scenario_0)

    @pytest.fixture
    def fs_glob_edge_cases_files(self, fs: DvkfFileSystem) -> str:
        return self._tracked(fs, self._glob_edge_cases_files)

    @pytest.fixture
    def fs_dir_and_file_with_same_name_prefix(self, fs: DvkfFileSystem) -> str:
        return self._tracked(fs, self._dir_and_file_with_same_name_prefix)

    @pytest.fixture
    def fs_10_files_with_hashed_names(self, fs: DvkfFileSystem) -> str:
        return self._tracked(fs, self._10_files_with_hashed_names)


def test_a_project_below_the_top_of_git_is_read_by_its_paths(tmp_path: Path) -> None:
    """As DVC's filesystem: by name it is all there, from above nothing of it is listed."""
    mono = tmp_path / "mono"
    write(
        mono, {"other/code.py": b"code", "README": b"r", "team/proj/plain": b"p", "team/proj/data/x": b"x1"}
    )
    run(mono, "git", "init", "-q")
    project = Repo.init(mono / "team/proj", subdir=True)
    with project.config.edit() as sections:
        sections["remote"]["own"] = {"url": str(tmp_path / "store")}
        sections["core"]["remote"] = "own"
    project = Repo(mono / "team/proj")
    for text, tag in ((b"x1", "v1"), (b"x2", "v2")):
        write(mono, {"team/proj/data/x": text})
        project.add(["data"])
        project.push()
        run(mono, "git", "add", "-A")
        run(mono, "git", "commit", "-qm", tag)
        run(mono, "git", "tag", tag)
    run(mono, "git", "clone", "-q", "--bare", str(mono), str(tmp_path / "bare.git"))
    shutil.rmtree(project.cache.root)
    asked = [
        (str(mono), None, b"x2"),
        (str(mono), "v1", b"x1"),
        (str(mono), "v2", b"x2"),
        ((tmp_path / "bare.git").as_uri(), "v1", b"x1"),
    ]

    def check(repo: str, rev: str | None, text: bytes) -> None:
        fs = fsspec.filesystem("dvkf", repo=repo, rev=rev, skip_instance_cache=True)
        assert fs.cat("team/proj/data/x") == text and fs.cat("team/proj/plain") == b"p"
        assert [name for name in fs.ls("team/proj", detail=False) if "/." not in name] == [
            "team/proj/data",
            "team/proj/plain",
        ]
        assert fs.find("team/proj/data") == fs.glob("team/proj/data/*") == ["team/proj/data/x"]
        info = fs.info("team/proj/data/x")
        assert (info["name"], info["isdvc"]) == ("team/proj/data/x", True)
        assert fs.info("team/proj")["type"] == "directory" and fs.isdir("team")
        assert fs.du("team/proj/data") == 2 and not fs.exists("team/proj/nothing")
        fs.get("team/proj", str(tmp_path / f"got-{rev}"), recursive=True)
        assert (tmp_path / f"got-{rev}/data/x").read_bytes() == text
        assert sorted(fs.ls("", detail=False)) == ["README", "other", "team"]
        assert fs.ls("team") == [] and sorted(fs.find("")) == ["README", "other/code.py"]

    for repo, rev, text in asked:
        check(repo, rev, text)
        shutil.rmtree(tmp_path / f"got-{rev}")
    fs = fsspec.filesystem("dvkf", repo=str(mono))
    assert fs.cat("@v1/team/proj/data/x") == b"x1" and fs.ls("@v1/team/proj/data", detail=False) == [
        "@v1/team/proj/data/x"
    ]
    # A revision holds the project where the folder no longer does.
    run(mono, "git", "rm", "-qr", "team")
    shutil.rmtree(mono / "team")
    run(mono, "git", "commit", "-qm", "gone")
    check(str(mono), "v1", b"x1")
    assert not fsspec.filesystem("dvkf", repo=str(mono), skip_instance_cache=True).exists("team/proj/data/x")
