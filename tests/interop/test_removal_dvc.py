"""`remove`, `move` and `unprotect` next to the real `dvc`: the same files stay, byte for byte."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from commands import Dvc, dvkf, git
from repos import make_repo

from dvkf_prefect.repo import Repo

Pair = tuple[Path, Path]

PIPELINE = """\
# the whole of it
stages:
  # first
  one:
    cmd: cp a one
    deps:
    - a
    outs:
    - one  # kept out of git
  two:
    cmd: cp one two && cp one m.json
    deps:
    - one
    outs:
    - two
    metrics:
    - m.json:
        cache: false
"""


def lay(root: Path, links: str) -> None:
    make_repo(root)
    (root / ".dvc/config").write_text(f"[cache]\n    type = {links}\n")
    for name in ("a", "dir/x", "dir/sub/y", "sub/b", "we ird#[1]", "csv/t.csv"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / ".gitignore").write_bytes(b"# first\n*.csv\n/kept")
    repo = Repo(root)
    repo.add(["a", "dir", "sub/b", "we ird#[1]", "csv/t.csv"])
    (root / "dvc.yaml").write_text(PIPELINE)


@pytest.fixture(params=["copy", "hardlink", "symlink"])
def pair(request: pytest.FixtureRequest, tmp_path: Path, dvc: Dvc) -> Pair:
    """Two repositories alike, with data, links and stages that ran; for dvc and for us."""
    pair = tmp_path / "real", tmp_path / "ours"
    for root in pair:
        root.mkdir()
        lay(root, request.param)
        dvc(root, "repro", "-q").ok()
        git(root, "add", "-A")
        git(root, "commit", "-q", "-m", "state")
    return pair


def both(pair: Pair, dvc: Dvc, *args: str, cd: str = ".", code: int = 0) -> None:
    assert dvc(pair[0] / cd, *args).code == code, args
    done = dvkf(pair[1] / cd, *args)
    assert done.code == code, (args, done.err)
    assert state(pair[1]) == state(pair[0]), args


def state(root: Path) -> dict[str, tuple[bytes, int, bool]]:
    """Each file but the repositories' own: its bytes, its permissions, and whether it is a link of any kind."""
    return {
        path.relative_to(root).as_posix(): (
            path.read_bytes(),
            path.stat().st_mode,
            path.is_symlink() or path.stat().st_nlink > 1,
        )
        for path in sorted(root.rglob("*"))
        if path.is_file() and not {".git", ".dvc"} & set(path.relative_to(root).parts)
    }


def test_removing_leaves_what_dvc_leaves(pair: Pair, dvc: Dvc) -> None:
    assert state(pair[1]) == state(pair[0])
    both(pair, dvc, "remove", "dir", code=1)
    both(pair, dvc, "remove", "nothing.dvc", code=1)
    both(pair, dvc, "remove", "nothing", code=1)
    both(pair, dvc, "remove", "three", code=1)
    both(pair, dvc, "remove", "dir.dvc")
    both(pair, dvc, "remove", "csv/t.csv.dvc")
    both(pair, dvc, "remove", "b.dvc", cd="sub")
    both(pair, dvc, "remove", "--outs", "a.dvc")
    both(pair, dvc, "remove", "one")
    assert (pair[1] / "dvc.yaml").read_text().startswith("# the whole of it\nstages:\n")
    both(pair, dvc, "remove", "--outs", "dvc.yaml:two")
    # dvc leaves the line of a name with special letters.
    dvc(pair[0], "remove", "we ird#[1].dvc").ok()
    dvkf(pair[1], "remove", "we ird#[1].dvc").ok()
    assert (pair[0] / ".gitignore").read_bytes() != (pair[1] / ".gitignore").read_bytes()
    assert (pair[1] / ".gitignore").read_bytes().startswith(b"# first\n*.csv\n/kept\n")
    assert not (pair[1] / "we ird#[1].dvc").exists()
    assert dvc(pair[1], "status", "-q").code == dvc(pair[0], "status", "-q").code


def test_unprotecting_makes_the_copies_that_dvc_makes(pair: Pair, dvc: Dvc) -> None:
    both(pair, dvc, "unprotect", "nothing", code=255)
    both(pair, dvc, "unprotect", "dir", "a")
    both(pair, dvc, "unprotect", "b", cd="sub")
    both(pair, dvc, "unprotect", "one", "m.json")
    (pair[1] / "dir/x").write_text("changed")
    assert Repo(pair[1]).verify().problems == ()
    assert dvc(pair[1], "status", "-q", "a.dvc", "sub/b.dvc").code == 0


def test_moving_goes_where_dvc_goes(pair: Pair, dvc: Dvc) -> None:
    for root in pair:
        (root / "into").mkdir()
    both(pair, dvc, "move", "one", "other", code=1)
    both(pair, dvc, "move", "nothing", "other", code=1)
    both(pair, dvc, "move", "a", "renamed")
    both(pair, dvc, "move", "dir", "into")
    both(pair, dvc, "move", "sub/b", "into/c")
    both(pair, dvc, "move", "into/c", "c")
    both(pair, dvc, "move", "csv/t.csv", "csv/u.txt")
    for root in pair:
        shutil.rmtree(root / "into/dir")
    both(pair, dvc, "move", "into/dir", "gone")
    assert dvc(pair[1], "status", "--json").json() == dvc(pair[0], "status", "--json").json()


def test_moving_an_import_signs_it_again(tmp_path: Path, dvc: Dvc) -> None:
    pair = tmp_path / "real", tmp_path / "ours"
    (tmp_path / "out").mkdir()
    (tmp_path / "out/f").write_text("f")
    for root in pair:
        make_repo(root)
        (root / "in").write_text("in")
        (root / "sub").mkdir()
        dvc(root, "import-url", "-q", "in", "copy").ok()
        dvc(root, "import-url", "-q", str(tmp_path / "out/f")).ok()
        dvc(root, "import-url", "-q", "../out/f", "rel").ok()
    both(pair, dvc, "move", "copy", "sub/copy")
    both(pair, dvc, "move", "f", "sub")
    both(pair, dvc, "move", "rel", "sub/rel")
    assert dvc(pair[1], "status", "-q").code == 0
    os.remove(tmp_path / "out/f")
