"""Outputs, caches and folders that are links: the link is ours, what it leads to is not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect.errors import UnsafePathError
from dvkf_prefect.repo import Repo


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "a").write_text("1\n")
    return folder


@pytest.fixture
def repo(tmp_path: Path, shared: Path) -> Repo:
    """A repository whose folder `data` was moved away and linked."""
    root = tmp_path / "repo"
    repo = make_repo(root)
    (root / "data").mkdir()
    (root / "data" / "a").write_text("1\n")
    repo.add(["data"])
    (root / "data" / "a").unlink()
    (root / "data").rmdir()
    (root / "data").symlink_to(shared)
    return Repo.open(root)


def test_remove_leaves_the_link_and_what_it_leads_to(repo: Repo, shared: Path) -> None:
    repo.remove(["data.dvc"])

    assert not (repo.root / "data.dvc").exists()
    assert (repo.root / "data").is_symlink()
    assert (shared / "a").read_text() == "1\n"


def test_remove_of_the_data_takes_the_link_alone(repo: Repo, shared: Path) -> None:
    repo.remove(["data.dvc"], outs=True)

    assert not (repo.root / "data").is_symlink()
    assert (shared / "a").read_text() == "1\n"


def test_unprotect_changes_nothing_behind_a_link(repo: Repo, shared: Path) -> None:
    (shared / "a").chmod(0o444)

    assert repo.unprotect(["data"]) == []
    assert (shared / "a").stat().st_mode & 0o777 == 0o444


def test_checkout_of_a_commit_without_the_output_leaves_the_link(repo: Repo, shared: Path) -> None:
    (repo.root / "data").unlink()
    repo.checkout()
    (repo.root / "data" / "a").unlink()
    (repo.root / "data").rmdir()
    (repo.root / "data").symlink_to(shared)
    (repo.root / "data.dvc").unlink()

    Repo.open(repo.root).checkout()

    assert (shared / "a").read_text() == "1\n"


@pytest.mark.parametrize("target", ["/", "/proc", ".."])
def test_no_disk_is_looked_through_behind_a_link(repo: Repo, target: str) -> None:
    (repo.root / "data").unlink()
    (repo.root / "data").symlink_to(target)

    with pytest.raises(UnsafePathError, match="leaves"):
        repo.workspace.look("data")


@pytest.mark.parametrize("name", ["", "files", "files/md5", "files/md5/ab"])
def test_a_link_in_the_cache_that_git_tracks_is_refused_and_the_user_s_own_is_not(
    repo: Repo, tmp_path: Path, name: str
) -> None:
    place = repo.root / ".dvc" / "cache" / name
    if place.exists():
        place.rename(tmp_path / "moved")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(tmp_path / "moved")
    Repo.open(repo.root)

    subprocess.run(["git", "add", "-f", str(place)], cwd=repo.root, check=True)

    with pytest.raises(UnsafePathError, match="that git tracks"):
        Repo.open(repo.root)


def test_a_state_folder_that_is_a_link_is_refused(repo: Repo, tmp_path: Path) -> None:
    (repo.root / ".dvc").rename(tmp_path / "elsewhere")
    (repo.root / ".dvc").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(UnsafePathError, match=r"\.dvc is a link"):
        Repo.open(repo.root)
