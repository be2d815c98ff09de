"""Letting tracked data go without losing any of it, and making links writable."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect.cli import main
from dvkf_prefect.data.git import gitignore
from dvkf_prefect.errors import (
    MissingObjectError,
    OutputChangedError,
    OutputError,
    OutputInGitError,
    OutputNotFoundError,
    OutputOverlapError,
)
from dvkf_prefect.repo import Repo

STAGES = """\
stages:
  one:
    cmd: cp a m.json
    deps:
    - a
    metrics:
    - m.json:
        cache: false
  each:
    foreach: [x, y]
    do:
      cmd: echo ${item}
"""
LOCK = """\
schema: '2.0'
datasets:
- name: d
stages:
  one:
    cmd: cp a m.json
"""


def git(repo: Repo, *args: str) -> str:
    return subprocess.run(["git", *args], cwd=repo.root, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    """A repository with a file `a` and a directory `d`, added."""
    root = tmp_path / "repo"
    (root / "d/sub").mkdir(parents=True)
    made = make_repo(root)
    for name in ("a", "d/x", "d/sub/y"):
        (root / name).write_text(name)
    made.add(["a", "d"])
    return made


def test_removing_data_that_is_nowhere_else_is_refused(repo: Repo) -> None:
    (repo.root / "d/x").write_text("changed")
    (repo.root / "d/new").write_text("new")
    with pytest.raises(OutputChangedError) as told:
        repo.remove(["a.dvc", "d.dvc"], outs=True)
    assert told.value.paths == ("d/new", "d/x")
    assert (repo.root / "a").exists() and (repo.root / "a.dvc").exists()
    removal = repo.remove(["a.dvc", "d.dvc"], outs=True, force=True, dry_run=True)
    assert removal.deleted == ("a", "d") and (repo.root / "d/new").exists()
    assert repo.remove(["a.dvc", "d.dvc"], outs=True, force=True) == removal
    assert not (repo.root / "d").exists() and not (repo.root / "d.dvc").exists()
    assert not (repo.root / ".gitignore").exists()


def test_recorded_data_that_never_came_to_the_cache_counts_as_lost(repo: Repo) -> None:
    (repo.root / "n").write_text("n")
    repo.add(["n"], no_commit=True)
    with pytest.raises(OutputChangedError):
        repo.remove(["n.dvc"], outs=True)
    repo.remove(["n.dvc"])
    assert (repo.root / "n").read_text() == "n"


def test_nothing_is_removed_when_one_target_is_wrong(repo: Repo) -> None:
    (repo.root / "dvc.yaml").write_text(STAGES)
    for wrong in ("b.dvc", "two", "dvc.yaml:two", "sub/dvc.yaml:two"):
        with pytest.raises(OutputNotFoundError):
            repo.remove(["a.dvc", wrong])
    for wrong in ("each", "each@x", "dvc.yaml"):
        with pytest.raises(OutputError, match=r"'each' in dvc\.yaml generates its stages"):
            repo.remove(["a.dvc", wrong])
    with pytest.raises(OutputNotFoundError, match=r"do you mean 'a\.dvc'"):
        repo.remove(["a"])
    assert (repo.root / "a.dvc").exists()


def test_what_else_stands_in_the_files_stays(repo: Repo) -> None:
    """DVC removes dvc.yaml and dvc.lock with the last stage, artifacts and datasets with them."""
    (repo.root / "dvc.yaml").write_text("artifacts:  # mine\n  m:\n    path: a\n" + STAGES.split("  each")[0])
    (repo.root / "dvc.lock").write_text(LOCK)
    assert repo.remove(["one"]).stages == ("dvc.yaml:one",)
    assert (repo.root / "dvc.yaml").read_text() == "artifacts:  # mine\n  m:\n    path: a\n"
    assert (repo.root / "dvc.lock").read_text() == "schema: '2.0'\ndatasets:\n- name: d\n"


def test_outputs_that_git_keeps_may_go(repo: Repo) -> None:
    (repo.root / "dvc.yaml").write_text(STAGES.split("  each")[0])
    (repo.root / "m.json").write_text("{}")
    with pytest.raises(OutputChangedError):
        repo.remove(["one"], outs=True)
    git(repo, "add", "m.json")
    git(repo, "commit", "-q", "-m", "metrics")
    (repo.root / "m.json").write_text("[]")
    with pytest.raises(OutputChangedError):
        repo.remove(["one"], outs=True)
    git(repo, "checkout", "-q", "m.json")
    repo.remove(["one"], outs=True)
    assert not (repo.root / "m.json").exists() and not (repo.root / "dvc.yaml").exists()


def test_ignored_files_stay_in_a_directory_that_goes(repo: Repo) -> None:
    (repo.root / ".dvcignore").write_text("*.tmp\n")
    (repo.root / "d/k.tmp").write_text("kept")
    repo = Repo(repo.root)
    repo.remove(["d.dvc"], outs=True)
    assert [path.name for path in (repo.root / "d").iterdir()] == ["k.tmp"]


def test_lines_of_a_gitignore_are_taken_back_and_nothing_else(repo: Repo) -> None:
    file = repo.root / ".gitignore"
    file.write_bytes(b"# one\r\n\xff\r\n/a\r\n/b ")
    assert gitignore.unignore(repo.root / "a")
    assert not gitignore.unignore(repo.root / "a")
    assert file.read_bytes() == b"# one\r\n\xff\r\n/b "
    assert gitignore.ignore(repo.root / "c#[d]")
    assert file.read_bytes() == b"# one\r\n\xff\r\n/b \n/c\\#\\[d\\]\n"
    file.write_bytes(b"/c\\#\\[d\\]\n")
    assert gitignore.unignore(repo.root / "c#[d]") and not file.exists()


def test_what_other_patterns_ignore_gets_no_line(repo: Repo) -> None:
    file = repo.root / ".gitignore"
    file.write_text("*.csv\n!keep.csv\nfolder/\n")
    (repo.root / "folder").mkdir()
    assert not gitignore.ignore(repo.root / "x.csv")
    assert not gitignore.ignore(repo.root / "folder")
    assert gitignore.ignore(repo.root / "keep.csv")
    assert file.read_text() == "*.csv\n!keep.csv\nfolder/\n/keep.csv\n"


def linked(repo: Repo, kind: str) -> Repo:
    with repo.config.edit() as sections:
        sections["cache"]["type"] = kind
    repo = Repo(repo.root)
    shutil.rmtree(repo.root / "d")
    repo.checkout(["d"])
    return repo


@pytest.mark.parametrize("kind", ["hardlink", "symlink"])
def test_unprotected_files_do_not_lead_to_the_cache(repo: Repo, kind: str) -> None:
    repo = linked(repo, kind)
    assert not os.access(repo.root / "d/x", os.W_OK) or os.stat(repo.root / "d/x").st_mode & 0o200 == 0
    assert sorted(repo.unprotect(["d"])) == ["d/sub/y", "d/x"]
    assert repo.unprotect(["d"]) == []
    for name in ("d/x", "d/sub/y"):
        (repo.root / name).write_text("written")
        assert not (repo.root / name).is_symlink()
    assert repo.verify().problems == ()
    assert (repo.root / "a").stat().st_nlink == 1
    # A removal leaves such copies, too.
    repo.checkout(["d"], force=True)
    repo.remove(["d.dvc"])
    assert (repo.root / "d/x").stat().st_mode & 0o200 and (repo.root / "d/x").read_text() == "d/x"


def test_unprotecting_keeps_the_right_to_execute(repo: Repo) -> None:
    (repo.root / "d/x").chmod(0o555)
    os.link(repo.root / "d/x", repo.root / "other")
    repo.unprotect(["d/x"])
    assert (repo.root / "d/x").stat().st_mode & 0o700 == 0o700
    assert (repo.root / "other").stat().st_mode & 0o777 == 0o555


def test_what_cannot_be_unprotected_is_named(repo: Repo) -> None:
    (repo.root / "d/gone").symlink_to(repo.root / "nowhere")
    with pytest.raises(MissingObjectError, match="d/gone is a link"):
        repo.unprotect(["d"])
    for own in (".dvc", ".dvc/cache", ".git"):
        with pytest.raises(OutputError, match="belongs to the repository"):
            repo.unprotect([own])
    (repo.root / "d/gone").unlink()
    before = [path.stat().st_mode for path in sorted(repo.cache.root.rglob("*"))]
    repo.unprotect([""])
    assert [path.stat().st_mode for path in sorted(repo.cache.root.rglob("*"))] == before


def test_a_place_that_is_taken_is_left_alone(repo: Repo) -> None:
    (repo.root / "code.py").write_text("code")
    (repo.root / "b.dvc").write_text("outs: []\n")
    git(repo, "add", "code.py")
    for place, error in (
        ("code.py", OutputError),
        ("b", OutputError),
        (".dvc/x", OutputError),
        ("x.dvc", OutputError),
        ("d/z", OutputOverlapError),
    ):
        with pytest.raises(error):
            repo.move("a", place)
    (repo.root / "code.py").unlink()
    with pytest.raises(OutputInGitError):
        repo.move("a", "code.py")
    assert repo.status().changes == () and (repo.root / "a").read_text() == "a"


def test_moving_stages_and_keeps_comments(repo: Repo) -> None:
    file = repo.root / "d.dvc"
    file.write_text("# note\n" + file.read_text() + "meta:\n  by: me\n")
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "-m", "state")
    with repo.config.edit("local") as sections:
        sections["core"]["autostage"] = "true"
    moved = Repo(repo.root).move("d", "new/place")
    assert (moved.new_path, moved.new_file) == ("new/place", "new/place.dvc")
    text = (repo.root / "new/place.dvc").read_text()
    assert text.startswith("# note\nouts:\n") and text.endswith("path: place\nmeta:\n  by: me\n")
    assert git(repo, "status", "--short").splitlines() == [
        "M  .gitignore",
        "A  new/.gitignore",
        "R  d.dvc -> new/place.dvc",
    ]
    assert repo.status().changes == ()


def test_the_command_line_counts_from_the_folder_it_is_called_in(
    repo: Repo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repo.root / "d")
    assert main(["remove", "../d.dvc", "--dry", "--outs"]) == 0
    assert capsys.readouterr().out == "would remove d.dvc\nwould delete d\n"
    assert main(["mv", "../a", "../b"]) == 0
    assert "git add ../.gitignore ../a.dvc ../b.dvc\n" in capsys.readouterr().out
    assert main(["rm", "../b.dvc"]) == 0
    assert (repo.root / "b").exists() and not (repo.root / "b.dvc").exists()
    assert main(["rm", "../b.dvc"]) == 1


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("step", ["take", "write", "unignore", "unlink"])
def test_a_move_goes_on_from_where_it_was_killed(
    repo: Repo, monkeypatch: pytest.MonkeyPatch, kind: str, step: str
) -> None:
    """A folder that it had moved is not taken for one to move into."""

    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    from dvkf_prefect.data.verbs import move
    from dvkf_prefect.data.workspace.workspace import Workspace

    data = repo.root / "moved" / "x" if kind == "folder" else repo.root / "moved"
    data.parent.mkdir(exist_ok=True)
    data.write_text("changed later")
    repo.add(["moved"])
    data.chmod(0o644)
    data.write_text("changed")
    with monkeypatch.context() as patch:
        if step == "take":
            patch.setattr(Workspace, "take", kill)
        elif step == "write":
            write = move.write_atomic
            patch.setattr(move, "write_atomic", lambda p, d: kill() if p.suffix == ".dvc" else write(p, d))
        elif step == "unignore":
            patch.setattr(gitignore, "unignore", kill)
        else:
            patch.setattr(Path, "unlink", kill)
        with pytest.raises(Killed):
            repo.move("moved", "new")
    again = Repo.open(repo.root)
    moved = again.move("moved", "new")
    assert (moved.new_path, moved.new_file) == ("new", "new.dvc")
    place = repo.root / "new" / "x" if kind == "folder" else repo.root / "new"
    assert place.read_text() == "changed"
    assert not (repo.root / "moved").exists()
    assert not (repo.root / "moved.dvc").exists()
    assert not again.status(["new"])
    assert "/moved" not in (repo.root / ".gitignore").read_text().split()
    # Done, the same call means what it says: there is nothing to move, or a folder to move into.
    with pytest.raises(OutputNotFoundError):
        again.move("moved", "new")
