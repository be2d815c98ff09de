"""Link types: what lies in the workspace, and that nobody who writes to it harms the cache."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect.cli import main
from dvkf_prefect.data.cache import workers
from dvkf_prefect.errors import DvkfError, OutputError, TransferError
from dvkf_prefect.repo import Repo

FILES = {
    "a.txt": b"a",
    "sub/b.txt": b"b" * 5000,
    "same": b"b" * 5000,
    "empty": b"",
    "large.bin": b"l" * (5 << 20),
}


@pytest.fixture(scope="session")
def reflink_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small XFS, whose files can share blocks."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    if not shutil.which("mkfs.xfs"):
        pytest.skip("mkfs.xfs (Debian's xfsprogs) is not installed")
    folder = tmp_path_factory.mktemp("xfs")
    image, disk = folder / "image", folder / "disk"
    disk.mkdir()
    with image.open("wb") as stream:
        stream.truncate(320 << 20)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
    mounted = subprocess.run(
        ["mount", "-o", "loop", image, disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no loop device can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def make(root: Path, cache_type: str) -> Repo:
    make_repo(root)
    for name, data in FILES.items():
        path = root / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    repo = Repo.open(root, config={"cache": {"type": cache_type}})
    with repo.config.edit() as sections:
        sections["remote"]["store"] = {"url": str(root.parent / f"{root.name}-store")}
        sections["core"]["remote"] = "store"
    return Repo.open(root, config={"cache": {"type": cache_type}})


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def object_of(repo: Repo, name: str) -> Path:
    found = repo.workspace.look("data").rows
    assert found is not None
    return repo.cache.path(found.digests[found.relpaths.index(name)])


def blocks(path: Path) -> list[str]:
    """Where a file's bytes lie on the disk."""
    os.sync()
    said = subprocess.run(["xfs_io", "-r", "-c", "fiemap", path], capture_output=True, text=True, check=True)
    return re.findall(r"]: (\d+\.\.\d+)", said.stdout)


@pytest.mark.parametrize("kind", ["copy", "hardlink", "symlink", "reflink,copy"])
def test_add_and_checkout_leave_the_files_as_they_were(tmp_path: Path, kind: str) -> None:
    repo = make(tmp_path / "repo", kind)
    repo.add(["data"])
    assert contents(repo.root / "data") == FILES
    assert not repo.status()
    shutil.rmtree(repo.root / "data")
    repo.checkout()
    assert contents(repo.root / "data") == FILES
    assert not repo.status()
    assert not repo.checkout()


@pytest.mark.parametrize("kind", ["copy", "hardlink", "symlink"])
def test_what_was_put_in_place_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Linked files were hashed, stored and linked again by each add, since moving and linking change a file's times."""
    repo = make(tmp_path / "repo", kind)
    for path in (repo.root / "data").rglob("*"):
        os.utime(path, (1, 1))

    def slowly(paths: Sequence[str], sizes: Sequence[int]) -> Iterator[tuple[int, str]]:
        time.sleep(0.05)
        return workers.digest_files(paths, sizes)

    # The new objects are older than a tick of the clock by then, and younger than the command.
    monkeypatch.setattr("dvkf_prefect.data.workspace.links.digest_files", slowly)
    repo.add(["data"])
    read: list[str] = []
    monkeypatch.setattr(
        "dvkf_prefect.data.cache._copier._digest_one", lambda path: read.append(path) or "0" * 32
    )
    monkeypatch.setattr(
        "dvkf_prefect.data.cache.cache.Cache.add_files",
        lambda cache, files, sizes, **how: read.extend(files) or iter(()),
    )
    repo.add(["data"])
    assert not repo.status()
    # Of large data; of little, all whose change time moved is read.
    monkeypatch.setattr("dvkf_prefect.data.workspace.links._RECHECKED", -1)
    if kind != "copy":  # new copies are too young to be trusted without a look
        shutil.rmtree(repo.root / "data")
        repo.checkout()
        (repo.root / "data/a.txt").unlink()
        repo.checkout()
        assert not repo.status()
    assert read == []


def test_a_large_object_is_read_where_its_links_do_not_explain_its_change_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written through a link with its old time put back, it was linked again for a week."""
    monkeypatch.setattr("dvkf_prefect.data.workspace.links._RECHECKED", -1)
    repo = make(tmp_path / "repo", "hardlink")
    repo.add(["data"])
    repo.checkout(relink=True)
    stored = object_of(repo, "a.txt")
    data, before = stored.read_bytes(), stored.stat()
    stored.chmod(0o644)
    stored.write_bytes(b"#" * len(data))
    os.utime(stored, ns=(before.st_atime_ns, before.st_mtime_ns))
    stored.chmod(0o444)
    assert stored.stat().st_nlink == before.st_nlink
    with pytest.raises(DvkfError, match="changed in the cache by a write to a file linked"):
        repo.checkout(relink=True, force=True)
    # One more link elsewhere explains it.
    other = object_of(repo, "large.bin")
    read: list[str] = []
    monkeypatch.setattr(
        "dvkf_prefect.data.workspace.links.digest_files",
        lambda paths, sizes: read.extend(map(str, paths)) or iter(()),
    )
    os.link(other, tmp_path / "elsewhere")
    with suppress(DvkfError):
        repo.checkout(relink=True)
    assert str(other) not in read


def test_a_link_that_is_there_already_leaves_nothing_beside_it(tmp_path: Path) -> None:
    """To rename one name of a file to another name of the same file does nothing, and leaves both."""
    repo = make(tmp_path / "repo", "hardlink")
    repo.add(["data"])
    files = contents(repo.root)
    shutil.rmtree(repo.root / ".dvc/tmp")
    repo.add(["data"])
    repo.checkout(relink=True)
    assert {path for path in contents(repo.root) if not path.startswith(".dvc/tmp")} == {
        path for path in files if not path.startswith(".dvc/tmp")
    }


def test_a_hardlink_is_the_object_and_a_symlink_leads_to_it(tmp_path: Path) -> None:
    hard, soft = make(tmp_path / "hard", "hardlink"), make(tmp_path / "soft", "symlink")
    for repo in (hard, soft):
        repo.add(["data"])
        assert os.path.samefile(repo.root / "data/a.txt", object_of(repo, "a.txt"))
    assert (hard.root / "data/a.txt").stat().st_mode & 0o222 == 0
    assert os.readlink(soft.root / "data/a.txt") == str(object_of(soft, "a.txt"))
    # Empty files are nobody's but their own.
    assert (hard.root / "data/empty").stat().st_nlink == 1
    assert not (soft.root / "data/empty").is_symlink()


def test_dvc_agrees_with_what_we_linked(tmp_path: Path) -> None:
    for kind in ("hardlink", "symlink"):
        repo = make(tmp_path / kind, kind)
        repo.add(["data"])
        with repo.config.edit() as sections:
            sections["cache"]["type"] = kind
        said = subprocess.run(["dvc", "status"], cwd=repo.root, capture_output=True, text=True, check=True)
        assert "up to date" in said.stdout
        said = subprocess.run(["dvc", "checkout"], cwd=repo.root, capture_output=True, text=True, check=True)
        assert said.stdout.strip() == ""
        assert not repo.status()


def test_an_executable_file_is_a_copy_and_its_object_stays_read_only(tmp_path: Path) -> None:
    """DVC makes the object executable together with the hard link that leads to it."""
    repo = make(tmp_path / "repo", "hardlink")
    tool = repo.root / "tool.sh"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    repo.add(["tool.sh"])
    tool.unlink()
    repo.checkout()
    assert tool.stat().st_mode & 0o111
    stored = repo.cache.path(repo.version("tool.sh").digest)
    assert stored.stat().st_mode & 0o777 == 0o444
    assert not os.path.samefile(tool, stored)


@pytest.mark.parametrize("kind", ["hardlink", "symlink"])
def test_writing_through_a_link_is_noticed_and_mended(tmp_path: Path, kind: str) -> None:
    """DVC deletes the object at the next status, and says nothing."""
    repo = make(tmp_path / "repo", kind)
    repo.add(["data"])
    repo.push()
    file = repo.root / "data/sub/b.txt"
    stored = object_of(repo, "sub/b.txt")
    file.chmod(0o644)
    file.write_bytes(b"other")
    assert [change.state for change in repo.status().changes] == ["modified"]
    with pytest.raises(TransferError, match="changed in the cache") as caught:
        repo.checkout(force=True)
    # Two files had that content; nothing else was harmed, and the bytes that were written are still to be had.
    assert set(caught.value.failures) == {"data/same", "data/sub/b.txt"}
    assert not stored.exists()
    assert [p.read_bytes() for p in (repo.cache.root / "tmp-dvkf").glob("*corrupt-*")] == [b"other"]
    repo.pull(force=True)
    assert contents(repo.root / "data") == FILES
    assert not repo.status()


def test_what_was_written_through_a_link_can_be_kept(tmp_path: Path) -> None:
    repo = make(tmp_path / "repo", "hardlink")
    repo.add(["data"])
    file = repo.root / "data/a.txt"
    file.chmod(0o644)
    file.write_bytes(b"better")
    repo.commit()
    assert not repo.status()
    assert object_of(repo, "a.txt").read_bytes() == b"better"
    shutil.rmtree(repo.root / "data")
    repo.checkout()
    assert contents(repo.root / "data") == {**FILES, "a.txt": b"better"}


def test_a_type_that_does_not_work_gives_way_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: object, target: object, **options: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    repo = make(tmp_path / "repo", "hardlink,symlink")
    repo.add(["data"])
    assert (repo.root / "data/a.txt").is_symlink()
    monkeypatch.setattr(os, "symlink", refuse)
    with pytest.raises(OutputError, match="Add 'copy'"):
        make(tmp_path / "none", "hardlink,symlink").add(["data"])


def test_relink_turns_copies_into_links_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = make(tmp_path / "repo", "copy")
    repo.add(["data"])
    stored = object_of(repo, "a.txt")
    monkeypatch.chdir(repo.root)
    for kind, same in (("hardlink", True), ("copy", False), ("symlink", True), ("copy", False)):
        assert main(["config", "cache.type", kind]) == 0
        assert main(["checkout", "--relink"]) == 0
        assert os.path.samefile(repo.root / "data/a.txt", stored) is same
        assert not (repo.root / "data/a.txt").is_symlink() or kind == "symlink"
        assert contents(repo.root / "data") == FILES
        assert main(["status", "-q"]) == 0
    # What is not as it was recorded is not touched.
    (repo.root / "data/a.txt").write_bytes(b"mine")
    assert main(["checkout", "--relink"]) == 255
    assert (repo.root / "data/a.txt").read_bytes() == b"mine"


def test_reflinks_share_blocks_both_ways(reflink_disk: Path) -> None:
    repo = make(reflink_disk / "repo", "reflink,copy")
    before = shutil.disk_usage(reflink_disk).used
    repo.add(["data"])
    assert blocks(repo.root / "data/large.bin") == blocks(object_of(repo, "large.bin")) != []
    shutil.rmtree(repo.root / "data")
    repo.checkout()
    assert blocks(repo.root / "data/large.bin") == blocks(object_of(repo, "large.bin"))
    assert contents(repo.root / "data") == FILES
    assert shutil.disk_usage(reflink_disk).used - before < 4 << 20
    # A write to the file is the file's alone.
    stored = object_of(repo, "large.bin")
    (repo.root / "data/large.bin").write_bytes(b"other")
    assert stored.read_bytes() == FILES["large.bin"]


def test_many_files_come_through_several_processes_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_cores", lambda: 3)
    repo = make(tmp_path / "repo", "copy")
    wanted = dict(FILES)
    for number in range(3000):
        name = f"many/{number % 7}/{number}"
        wanted[name] = b"%d" % (number // 2) * (number % 50)
        (repo.root / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (repo.root / "data" / name).write_bytes(wanted[name])
    repo.add(["data"])
    shutil.rmtree(repo.root / "data")
    repo.checkout()
    assert contents(repo.root / "data") == wanted
    assert subprocess.run(["dvc", "status", "-q"], cwd=repo.root, check=False).returncode == 0


def test_a_helper_that_dies_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = workers._start

    def doomed() -> subprocess.Popen[bytes]:
        process = start()
        process.kill()
        return process

    monkeypatch.setattr(workers, "_cores", lambda: 3)
    monkeypatch.setattr(workers, "_start", doomed)
    files = [tmp_path / str(number) for number in range(2000)]
    for file in files:
        file.write_text(file.name)
    rows = [
        row
        for start, found in workers.share("digest", (), ([str(f) for f in files],))
        for row in range(start, start + len(found))
    ]
    assert sorted(rows) == list(range(2000))
