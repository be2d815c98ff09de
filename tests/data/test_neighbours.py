"""Repositories that share a cache: a collection refuses, waits for them, and looks again before it removes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect.data.imports.external import open_external
from dvkf_prefect.data.repository import cache_users
from dvkf_prefect.data.upkeep import gc
from dvkf_prefect.data.upkeep.gc import GcOptions, GcScope
from dvkf_prefect.data.upkeep.inventory import FolderInventory
from dvkf_prefect.errors import LockedError, ObjectError
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.repo import Repo

WORKSPACE = GcScope(workspace=True)


def make(root: Path, cache: Path | None = None) -> Repo:
    repo = make_repo(root)
    if cache:
        with repo.config.edit("local") as sections:
            sections["cache"]["dir"] = str(cache)
    return Repo.open(root)


def save(repo: Repo, *contents: str) -> None:
    """Track a file with one content after the other: all but the last are garbage."""
    for content in contents:
        (repo.root / "file").write_text(content)
        repo.add(["file"])


def cached(repo: Repo) -> int:
    return len(FolderInventory(repo.cache.root).keys())


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Repo, Repo]:
    """Two repositories with one cache outside both."""
    first, second = (make(tmp_path / name, tmp_path / "cache") for name in ("first", "second"))
    save(first, "a", "b")
    save(second, "c", "d")
    return first, second


def test_a_shared_cache_is_collected_only_with_all_that_use_it_named(pair: tuple[Repo, Repo]) -> None:
    first, second = pair
    with pytest.raises(ObjectError, match=r"used by 1 other repository .*second.*-p.*--assume-unshared"):
        first.gc(WORKSPACE, GcOptions(grace=0))
    with pytest.raises(ObjectError, match="used by 1 other"):
        first.gc(WORKSPACE, GcOptions(grace=0, dry_run=True))
    assert cached(first) == 4
    assert first.gc(WORKSPACE, GcOptions(grace=0, projects=[second.root])).objects == 2
    assert not second.status()
    assert first.gc(WORKSPACE, GcOptions(grace=0, assume_unshared=True)).objects == 1


def test_a_cache_outside_is_never_collected_by_guess(tmp_path: Path) -> None:
    repo = make(tmp_path / "repo", tmp_path / "cache")
    save(repo, "a", "b")
    with pytest.raises(ObjectError, match=r"outside the repository.*--assume-unshared"):
        repo.gc(WORKSPACE, GcOptions(grace=0))
    assert cached(repo) == 2


def test_ones_own_cache_that_another_uses(tmp_path: Path) -> None:
    lender = make(tmp_path / "lender")
    save(lender, "a", "b")
    user = make(tmp_path / "user", lender.cache.root)
    save(user, "c")
    with pytest.raises(ObjectError, match=r"used by 1 other repository .*user"):
        lender.gc(WORKSPACE)
    assert lender.gc(WORKSPACE, GcOptions(projects=[user.root])).objects == 1


def test_a_cache_reached_through_a_link_is_not_ones_own(tmp_path: Path) -> None:
    repo = make(tmp_path / "repo")
    (tmp_path / "cache").mkdir()
    repo.cache.root.symlink_to(tmp_path / "cache")
    save(repo, "a", "b")
    with pytest.raises(ObjectError, match="outside the repository"):
        repo.gc(WORKSPACE)


def test_a_repository_that_moved_is_known_by_its_new_place(pair: tuple[Repo, Repo], tmp_path: Path) -> None:
    first, second = pair
    second.root.rename(tmp_path / "moved")
    with pytest.raises(ObjectError, match=r"second.*moved or removed"):
        first.gc(WORKSPACE)
    moved = Repo.open(tmp_path / "moved")
    assert first.gc(WORKSPACE, GcOptions(projects=[moved.root])).young == 2
    assert not moved.status()
    with pytest.raises(ObjectError, match=r"\(\S*moved\)"):
        first.gc(WORKSPACE)


def test_a_copy_of_a_repository_is_another_one(pair: tuple[Repo, Repo], tmp_path: Path) -> None:
    first, second = pair
    shutil.copytree(second.root, tmp_path / "copy")
    copy = Repo.open(tmp_path / "copy")
    save(copy, "e")
    with pytest.raises(ObjectError, match=r"used by 1 other repository .*copy"):
        first.gc(WORKSPACE, GcOptions(projects=[second.root]))
    assert first.gc(WORKSPACE, GcOptions(grace=0, projects=[second.root, copy.root])).objects == 2


def test_a_repository_made_anew_at_the_same_place_is_no_stranger(pair: tuple[Repo, Repo]) -> None:
    first, second = pair
    shutil.rmtree(first.root / ".dvc" / "tmp")
    save(Repo.open(first.root), "f")
    assert first.gc(WORKSPACE, GcOptions(projects=[second.root])).young


def test_no_mark_is_left_in_a_folder_that_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    repo = make(tmp_path / "repo", tmp_path / "folder")
    with repo.lock():
        pass
    assert not list((tmp_path / "folder").iterdir())


def test_a_link_in_place_of_the_marks_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache" / "files" / "md5").mkdir(parents=True)
    (tmp_path / "cache" / "users-dvkf").symlink_to(tmp_path / "elsewhere")
    save(make(tmp_path / "repo", tmp_path / "cache"), "a")
    assert not list((tmp_path / "elsewhere").iterdir())


HOLD = """
import sys
from pathlib import Path
from dvkf_prefect.data.repository import cache_users
with cache_users.working(Path(sys.argv[1]), 0):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Start a process that works in a cache until its standard input ends."""
    running: list[subprocess.Popen[str]] = []

    def start(root: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout and process.stdout.readline() == "held\n"
        return process

    yield start
    for process in running:
        process.communicate()


def test_a_collection_waits_for_who_works_in_the_cache(
    pair: tuple[Repo, Repo],
    hold: Callable[[Path], subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = pair
    process = hold(first.cache.root)
    monkeypatch.setattr(gc, "_WAIT", 0.0)
    with pytest.raises(LockedError, match="is used by another command"):
        first.gc(WORKSPACE, GcOptions(grace=0, projects=[second.root]))
    assert cached(first) == 4
    process.communicate()
    assert first.gc(WORKSPACE, GcOptions(grace=0, projects=[second.root])).objects == 2


def test_a_command_waits_for_a_collection(pair: tuple[Repo, Repo]) -> None:
    root = pair[0].cache.root
    with cache_users.working(root, 0), cache_users.collecting(root, 0):
        done = subprocess.run(
            [sys.executable, "-c", HOLD, str(root)], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert "is being garbage-collected" in done.stderr
        failed: list[BaseException] = []

        def work() -> None:
            try:
                with cache_users.working(root, 0):
                    pass
            except LockedError as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert failed
    with cache_users.working(root, 0):
        pass


def test_who_reads_from_a_lender_keeps_collections_away(tmp_path: Path) -> None:
    lender = make(tmp_path / "lender")
    save(lender, "a", "b")
    with open_external(str(lender.root)):
        done = subprocess.run(
            [sys.executable, "-c", COLLECT, str(lender.root)], capture_output=True, text=True, check=False
        )
    assert "is used by another command" in done.stderr
    assert cached(lender) == 2


COLLECT = """
import sys
from dvkf_prefect.data.upkeep import gc
from dvkf_prefect.repo import Repo
gc._WAIT = 0.0
Repo.open(sys.argv[1]).gc(gc.GcScope(workspace=True))
"""


def test_what_changes_between_the_choice_and_the_removal_stays(
    pair: tuple[Repo, Repo], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    garbage = sorted(FolderInventory(first.cache.root).keys())
    chosen = gc._choose

    def choose(place: gc._Place, *rest: object) -> None:
        chosen(place, *rest)  # type: ignore[arg-type]
        # Another tool, which takes no lock of ours, stores the same content again.
        os.utime(first.cache.root / sorted(place.sizes)[0])

    monkeypatch.setattr(gc, "_choose", choose)
    assert first.gc(WORKSPACE, GcOptions(grace=0, projects=[second.root])).objects == 1
    assert len(garbage) - cached(first) == 1


def test_a_manifest_that_comes_late_keeps_its_files(
    pair: tuple[Repo, Repo], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    chosen = gc._choose

    def choose(place: gc._Place, *rest: object) -> None:
        chosen(place, *rest)  # type: ignore[arg-type]
        # A directory whose only file is there already, so that nothing but the manifest is written.
        tree = Tree.from_pairs([("one", digest_bytes(b"a"))])
        first.cache.add_bytes(tree.to_bytes(), tree=True)

    monkeypatch.setattr(gc, "_choose", choose)
    assert first.gc(WORKSPACE, GcOptions(grace=0, projects=[second.root])).objects == 1
    assert first.cache.exists(digest_bytes(b"a"))
