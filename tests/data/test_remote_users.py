"""Projects that push to one remote: a mark of each, and no collection of what another of them relies on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest
import servers

from dvkf_prefect.cli import main
from dvkf_prefect.data.git.origin import origin_address
from dvkf_prefect.data.transfer import remote_users
from dvkf_prefect.data.upkeep.gc import GcOptions, GcScope
from dvkf_prefect.data.upkeep.inventory import inventory_of
from dvkf_prefect.errors import RemoteDeniedError, RemoteError
from dvkf_prefect.repo import Repo

WORKSPACE = GcScope(workspace=True)


def git(root: Path, *args: str) -> str:
    return subprocess.run(["git", *args], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def make(root: Path, *, scm: bool = True, **remote: str) -> Repo:
    root.mkdir(parents=True)
    if scm:
        git(root, "init", "-q")
    made = Repo.init(root, no_scm=not scm)
    with made.config.edit() as sections:
        sections["remote"]["store"] = remote or {"url": str(root.parent / "store")}
        sections["core"]["remote"] = "store"
    return Repo.open(root)


def save(repo: Repo, text: str, *, push: bool = True) -> None:
    """Track a file with this content, commit and push."""
    (repo.root / "file").write_text(text)
    repo.add(["file"])
    if repo.git:
        repo.git.run("add", "-A")
        repo.git.run("commit", "-q", "-m", f"{repo.root.name}: {text}")
    if push:
        repo.push()


def on_remote(repo: Repo) -> int:
    return len(inventory_of(repo.remote().storage).keys())


def marks(repo: Repo) -> list[str]:
    return sorted(repo.remote().storage.keys("users-dvkf"))


@pytest.fixture(params=["folder", "s3"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Repo, Repo]:
    """Two projects on one remote, the second with content that the first had, and uses no more."""
    remote = {"url": str(tmp_path / "store")}
    if request.param == "s3":
        s3: servers.S3Server = request.getfixturevalue("s3")
        remote = {"url": f"{s3.make_bucket(f'users-{uuid.uuid4().hex[:12]}')}/data", **s3.options()}
    first, second = make(tmp_path / "first", **remote), make(tmp_path / "second", **remote)
    save(first, "shared content")
    save(first, "newer content")
    save(second, "shared content")
    return first, second


def test_what_another_project_relies_on_is_not_removed(pair: tuple[Repo, Repo], tmp_path: Path) -> None:
    """All of it is known to the first, so only the mark of the second tells."""
    first, second = pair
    assert len(marks(first)) == 2 and on_remote(first) == 2
    for dry in (True, False):
        with pytest.raises(
            RemoteError, match=r"used by 1 other project \(\S*second\).*-p.*--assume-unshared"
        ):
            first.gc(WORKSPACE, GcOptions(cloud=True, grace=0, dry_run=dry))
    assert on_remote(first) == 2
    assert not first.gc(WORKSPACE, GcOptions(cloud=True, grace=0, projects=[second.root]))
    shutil.rmtree(second.cache.root)
    (second.root / "file").unlink()
    second.pull()
    assert (second.root / "file").read_text() == "shared content"
    # Whoever says that there is nobody else is believed.
    assert first.gc(WORKSPACE, GcOptions(cloud=True, grace=0, assume_unshared=True)).objects == 2
    assert on_remote(first) == 1
    # One that is gone for good is forgotten by hand.
    save(first, "newest content")
    with pytest.raises(RemoteError, match=r"remove its mark \('users-dvkf/[0-9a-f]{32}'\)"):
        first.gc(WORKSPACE, GcOptions(cloud=True, grace=0))
    first.remote().storage.delete([user.key for user in remote_users.others(first.remote(), [first])])
    assert first.gc(WORKSPACE, GcOptions(cloud=True, grace=0)).objects == 2


def test_a_project_that_pushes_while_it_is_collected(
    pair: tuple[Repo, Repo], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    first.remote().storage.delete(marks(first))
    shutil.rmtree(second.root / ".dvc/tmp")
    real = remote_users.others
    looks: list[int] = []

    def others(remote: object, repos: object) -> object:
        found = real(remote, repos)  # type: ignore[arg-type]
        if not looks:
            second.push()
        looks.append(len(found))
        return found

    monkeypatch.setattr(remote_users, "others", others)
    with pytest.raises(RemoteError, match="used by 1 other project"):
        first.gc(WORKSPACE, GcOptions(cloud=True, grace=0))
    assert looks == [0, 1]
    assert on_remote(first) == 2


def test_clones_of_a_project_are_the_project(tmp_path: Path) -> None:
    """Whole, shallow, moved, on another machine, with another spelling of the origin."""
    repo = make(tmp_path / "repo")
    save(repo, "one")
    save(repo, "two")
    store = str(tmp_path / "store")
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repo.root}", "shallow")
    git(tmp_path, "clone", "-q", str(repo.root), "whole")
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repo.root}", "named")
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repo.root}", "other-spelling")
    git(tmp_path / "named", "remote", "set-url", "origin", "git@host.example:team/data.git")
    git(
        tmp_path / "other-spelling", "remote", "set-url", "origin", "https://user:word@host.example/team/data"
    )
    for name in ("shallow", "whole", "named", "other-spelling"):
        with (tmp_path / name / ".dvc/config.local").open("w") as stream:
            stream.write(f"['remote \"store\"']\n    url = {store}\n")
        clone = Repo.open(tmp_path / name)
        clone.pull()
        clone.push()
    # The two share one, and so do the whole ones.
    assert len(marks(repo)) == 3
    for path in (tmp_path / "store/users-dvkf").iterdir():
        assert "word" not in path.read_text()
        told = json.loads(path.read_text())
        path.unlink()
        path.write_text(json.dumps({**told, "host": "elsewhere"}))
    (tmp_path / "repo").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved/.dvc/tmp")
    moved = Repo.open(tmp_path / "moved")
    assert moved.gc(WORKSPACE, GcOptions(cloud=True, grace=0)).objects == 2

    # A fresh repository with the same files is another project, and so is one in a folder of the same repository.
    save(moved, "three")
    git(tmp_path, "clone", "-q", str(moved.root), "inner")
    shutil.rmtree(tmp_path / "inner/.dvc")
    inner = make(tmp_path / "inner/sub", scm=False, url=store)
    with inner.config.edit() as sections:
        sections["core"].pop("no_scm")
    inner = Repo.open(inner.root)
    assert inner.git_prefix == "sub/"
    save(inner, "three")
    save(moved, "four")
    with pytest.raises(RemoteError, match=r"\(\S*inner/sub\)"):
        moved.gc(WORKSPACE, GcOptions(cloud=True, grace=0))
    # The one in its own cache, and none on the remote beside it.
    assert moved.gc(WORKSPACE, GcOptions(cloud=True, grace=0, projects=[inner.root])).objects == 2
    assert on_remote(moved) == 2


def test_a_project_before_its_first_commit_and_one_without_git(tmp_path: Path) -> None:
    for name, scm in (("young", True), ("plain", False)):
        repo = make(tmp_path / name / "repo", scm=scm)
        for text in ("one", "two"):
            (repo.root / "file").write_text(text)
            repo.add(["file"])
            repo.push()
        assert len(marks(repo)) == 1
        assert repo.gc(WORKSPACE, GcOptions(cloud=True, grace=0)).objects == 2
        # What was pushed too early to be known by its clones is known with the next push.
        save(repo, "three")
        assert len(marks(repo)) == 1
        told = json.loads((tmp_path / name / "store" / marks(repo)[0]).read_text())
        assert bool(told["commit"]) == scm and len(told["keys"]) == 1 + scm


def test_a_remote_that_takes_no_mark_takes_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = make(tmp_path / "repo")
    storage = type(repo.remote().storage)
    real = storage.write

    def write(self: object, key: str, data: bytes) -> None:
        if key.startswith("users-dvkf"):
            raise RemoteDeniedError("no")
        real(self, key, data)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write", write)
        save(repo, "one")
    assert on_remote(repo) == 1 and not marks(repo)
    repo.push()
    assert len(marks(repo)) == 1
    # A mark that cannot be read is somebody's.
    save(repo, "two")
    for text in ("[]", "{", json.dumps({"keys": 3}), "[" * 50_000):
        repo.remote().storage.write(f"users-dvkf/{'0' * 32}", text.encode())
        with pytest.raises(RemoteError, match=r"1 other project .*unknown project"):
            repo.gc(WORKSPACE, GcOptions(cloud=True, grace=0))
    # What nobody named so is nobody's.
    repo.remote().storage.write("users-dvkf/README", b"x")
    repo.remote().storage.delete([f"users-dvkf/{'0' * 32}"])
    assert repo.gc(WORKSPACE, GcOptions(cloud=True, grace=0)).objects == 2


def test_a_mark_that_was_removed_comes_back(tmp_path: Path) -> None:
    repo = make(tmp_path / "repo")
    save(repo, "one")
    repo.remote().storage.delete(marks(repo))
    repo.push()
    assert not marks(repo)
    (note,) = (repo.root / ".dvc/tmp/dvkf").glob("pushes-*")
    os.utime(note, (1, 1))
    repo.push()
    assert len(marks(repo)) == 1


def test_the_real_dvc_does_not_see_a_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = make(tmp_path / "repo")
    save(repo, "one")
    save(repo, "two")
    (mark,) = marks(repo)
    before = (tmp_path / "store" / mark).read_bytes()

    def dvc(*args: str) -> str:
        done = subprocess.run(["dvc", *args], cwd=repo.root, capture_output=True, text=True, check=True)
        return done.stdout

    assert "in sync" in dvc("status", "-c")
    assert "up to date" in dvc("push")
    assert "Removed 1 objects from repo cache" in dvc("gc", "-w", "-f")
    assert "Removed 1 objects from remote" in dvc("gc", "-w", "-c", "-f")
    shutil.rmtree(repo.cache.root)
    (repo.root / "file").unlink()
    dvc("pull")
    assert (repo.root / "file").read_text() == "two"
    assert (tmp_path / "store" / mark).read_bytes() == before
    monkeypatch.chdir(repo.root)
    assert main(["gc", "-w", "-c", "-f", "--grace", "0"]) == 0


def test_addresses() -> None:
    same = {
        origin_address(url)
        for url in (
            "https://host/team/data",
            "https://host/team/data.git",
            "https://host/team/data/",
            "git@host:team/data.git",
            "ssh://git@HOST/team/data.git",
        )
    }
    assert same == {"host/team/data"}
    assert {origin_address(url) for url in ("/srv/data", "../data", "~/x", "file:///srv/data", "")} == {""}
