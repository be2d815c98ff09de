"""Paths that a repository names: nothing is written or removed outside of it, or where git and DVC keep theirs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect.errors import DvkfError, OutputError, UnsafePathError
from dvkf_prefect.formats.dvcyaml import read_outputs
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.paths import check_output, check_relative, is_reserved
from dvkf_prefect.repo import Repo

_RESERVED = [
    ".git",
    ".git/hooks/post-checkout",
    ".GIT/config",
    ".Git /hooks/x",
    "git~1/hooks/x",
    ".git./config",
    ".git::$INDEX_ALLOCATION/config",
    ".g\u200cit/config",
    ".\uff47it/config",
    "data/.git/config",
    ".dvc/config",
    ".DVC/tmp/lock",
    "sub/.dvc/config.local",
    ".hg/hgrc",
    "a\\.git\\config",
]


def _out(path: str, digest: str, size: int = 5) -> str:
    return f"outs:\n- md5: {digest}\n  size: {size}\n  hash: md5\n  path: {json.dumps(path)}\n"


def _canaries(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    root = tmp_path / "repo"
    return make_repo(root)


@pytest.fixture
def evil(repo: Repo) -> str:
    """The digest of an object in the cache."""
    return repo.cache.add_bytes(b"evil\n")


@pytest.mark.parametrize("path", _RESERVED)
def test_reserved_in_every_spelling(path: str) -> None:
    assert is_reserved(path)
    with pytest.raises(UnsafePathError, match="folder of git or DVC"):
        check_output(path, "x.dvc")


@pytest.mark.parametrize(
    "path", [".github/x", ".gitignore", ".dvcignore", "a.git/b", "git/x", "x.dvc/y", "données/.gîte"]
)
def test_names_that_are_only_alike_are_free(path: str) -> None:
    check_output(path, "x.dvc")


@pytest.mark.parametrize(
    "path", ["", "/a", "../a", "a/../b", "a//b", "a\0b", "./a", "a" * 256, "a/" * 2048 + "b", "\ud800"]
)
def test_paths_that_are_not_plain(path: str) -> None:
    with pytest.raises(UnsafePathError):
        check_relative(path, "x.dvc")


@pytest.mark.parametrize("path", [p for p in _RESERVED if "\\" not in p])
def test_no_output_lies_in_a_folder_of_git_or_dvc(repo: Repo, evil: str, path: str) -> None:
    (repo.root / "x.dvc").write_text(_out(path, evil))
    before = _canaries(repo.root / ".git")
    with pytest.raises(UnsafePathError):
        repo.checkout(force=True)
    assert _canaries(repo.root / ".git") == before
    (repo.root / "x.dvc").unlink()
    (repo.root / "dvc.yaml").write_text(json.dumps({"stages": {"s": {"cmd": "true", "outs": [path]}}}))
    with pytest.raises(UnsafePathError):
        read_outputs(repo.files(), "dvc.yaml")


@pytest.mark.parametrize("path", [".git/hooks/post-checkout", "a/.GIT/x", ".dvc/config", "a/.g\u200cit/x"])
def test_no_manifest_names_a_folder_of_git_or_dvc(path: str) -> None:
    data = json.dumps([{"md5": "0" * 32, "relpath": path}]).encode()
    with pytest.raises(UnsafePathError, match="folder of git or DVC"):
        Tree.from_bytes(data, "a manifest")


def _tree(repo: Repo, *relpaths: str) -> str:
    tree = Tree.from_pairs((relpath, repo.cache.add_bytes(relpath.encode())) for relpath in relpaths)
    return repo.cache.add_bytes(tree.to_bytes(), tree=True)


def _parent(repo: Repo, outside: Path, evil: str) -> None:
    (repo.root / "link").symlink_to(outside)
    (repo.root / "x.dvc").write_text(_out("link/canary", evil))


def _grandparent(repo: Repo, outside: Path, evil: str) -> None:
    (repo.root / "link").symlink_to(outside.parent)
    (repo.root / "x.dvc").write_text(_out("link/outside/deep/evil", evil))


def _chain(repo: Repo, outside: Path, evil: str) -> None:
    (repo.root / "one").symlink_to("two")
    (repo.root / "two").symlink_to(outside)
    (repo.root / "x.dvc").write_text(_out("one/evil", evil))


def _itself(repo: Repo, outside: Path, evil: str) -> None:
    (repo.root / "d").symlink_to(outside)
    (repo.root / "d.dvc").write_text(_out("d", _tree(repo, "canary", "new")))


def _inside_an_output(repo: Repo, outside: Path, evil: str) -> None:
    (repo.root / "d").mkdir()
    (repo.root / "d" / "sub").symlink_to(outside)
    (repo.root / ".dvcignore").write_text("d/sub\n")
    (repo.root / "d.dvc").write_text(_out("d", _tree(repo, "sub/canary", "sub/new", "b")))


def _into_git(repo: Repo, outside: Path, evil: str) -> None:
    (repo.root / "link").symlink_to(".git/hooks")
    (repo.root / "x.dvc").write_text(_out("link/post-checkout", evil))


@pytest.mark.parametrize("build", [_parent, _grandparent, _chain, _itself, _inside_an_output, _into_git])
@pytest.mark.parametrize("force", [False, True])
def test_nothing_is_written_or_removed_through_a_link(
    repo: Repo, tmp_path: Path, evil: str, build: Callable[[Repo, Path, str], None], force: bool
) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "canary").write_text("keep\n")
    hooks = sorted(os.listdir(repo.root / ".git" / "hooks"))
    build(repo, outside, evil)
    for verb in (
        lambda: repo.checkout(force=force),
        lambda: repo.checkout(["x.dvc" if (repo.root / "x.dvc").exists() else "d.dvc"], force=force),
        lambda: repo.commit(),
        lambda: repo.remove(["x.dvc" if (repo.root / "x.dvc").exists() else "d.dvc"], outs=True, force=force),
    ):
        try:
            verb()
        except DvkfError:
            continue
    assert _canaries(outside) == {"canary": b"keep\n"}
    assert sorted(os.listdir(repo.root / ".git" / "hooks")) == hooks


@pytest.mark.parametrize("name", ["git~1/f", "sub/.Git /x", "\uff0egit"])
def test_what_no_manifest_may_name_is_not_added(repo: Repo, name: str) -> None:
    """It was added, and then neither pushed nor checked out: every reader refuses the name."""
    (repo.root / "d" / name).parent.mkdir(parents=True)
    (repo.root / "d" / name).write_text("x")
    with pytest.raises(UnsafePathError, match="Rename it"):
        repo.add(["d"])
    assert not (repo.root / "d.dvc").exists()
    (repo.root / "d" / name).rename(repo.root / "d" / "other")
    repo.add(["d"])
    assert not repo.status()


def test_a_link_to_a_folder_is_not_added(repo: Repo, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "a").write_text("1\n")
    (repo.root / "data").symlink_to(tmp_path / "shared")
    with pytest.raises(OutputError, match="is a link to the folder"):
        repo.add(["data"])
    with pytest.raises(OutputError, match="leaves"):
        repo.add(["data/a"])
    assert not (repo.root / "data.dvc").exists()
    assert sorted(os.listdir(tmp_path / "shared")) == ["a"]


@pytest.mark.parametrize(
    "name", [".dvc/tmp", ".dvc/tmp/lock", ".dvc/tmp/rwlock", ".dvc/tmp/dvkf", ".dvc/tmp/dvkf/memory"]
)
def test_state_that_is_a_link_is_refused(repo: Repo, tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "keys").write_text("my keys\n")
    place = repo.root / name
    if place.is_dir():
        place.rmdir()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(home if "lock" not in name else home / "keys")
    with pytest.raises(UnsafePathError, match="is a link"):
        Repo.open(repo.root).status()
    assert _canaries(home) == {"keys": b"my keys\n"}


def test_the_lock_is_not_taken_through_a_link(repo: Repo, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("my keys\n")
    (repo.root / ".dvc" / "tmp" / "lock").symlink_to(keys)
    with pytest.raises(OSError, match="symbolic links"), repo.lock(timeout=0):
        raise AssertionError("the lock was taken")
    assert keys.read_text() == "my keys\n"


def test_the_longest_name_that_dvc_adds(repo: Repo) -> None:
    name = "a" * 251
    (repo.root / name).write_text("1\n")
    repo.add([name])
    (repo.root / name).unlink()
    repo.checkout()
    assert (repo.root / name).read_text() == "1\n"
    assert hashlib.md5(b"1\n").hexdigest() in (repo.root / f"{name}.dvc").read_text()
