"""Data from elsewhere: to a remote without keeping it here, or into the workspace; as DVC records it."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from repos import make_repo
from servers import S3Server, serving

from dvkf_prefect.cli import main
from dvkf_prefect.errors import (
    OutputError,
    OutputInGitError,
    OutputNotFoundError,
    OutputOverlapError,
    RemoteError,
)
from dvkf_prefect.repo import Repo


def make(root: Path) -> Repo:
    repo = make_repo(root)
    with repo.config.edit() as sections:
        sections["remote"]["store"] = {"url": "../../store"}
        sections["remote"]["store"]["url"] = str(root.parent / "store")
        sections["core"]["remote"] = "store"
    return Repo(root)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with a directory `d` and a file `f`."""
    folder = tmp_path / "source"
    (folder / "d/sub").mkdir(parents=True)
    for name in ("d/x", "d/sub/y", "f"):
        (folder / name).write_text(name)
    (folder / "f").chmod(0o755)
    return folder


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return make(tmp_path / "ours/repo")


def tree(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and not {".git", ".dvc"} & set(path.relative_to(root).parts)
        and not path.name.endswith(".tmp")
    }


def objects(root: Path) -> set[str]:
    return {name for name in tree(root) if name.startswith("files/")}


def test_the_command_line_is_dvcs(
    tmp_path: Path, repo: Repo, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = make(tmp_path / "real/repo")
    for root in (theirs.root, repo.root):
        (root / "into").mkdir()
        (root / "sub").mkdir()
        for name in ("z", "sub/w", "one.csv", "two.csv"):
            (root / name).write_text(name)
    away = os.path.relpath(source, repo.root)
    for args, folder, code in (
        (["add", f"{away}/d", "--to-remote"], ".", 0),
        (["add", f"{away}/d", "--to-remote"], ".", 0),
        (["add", f"{away}/f", "--to-remote", "-o", "into/g", "-r", "store"], ".", 0),
        (["add", f"{away}/f", "--to-remote", "-o", "into"], ".", 0),
        (["add", f"../{away}/f", "--to-remote"], "sub", 0),
        (["add", f"{away}/f", "-o", "h"], ".", 0),
        (["add", f"{away}/d", "-o", "sub"], ".", 0),
        (["add", "z", "--to-remote"], ".", 0),
        (["add", "sub/w", "--to-remote", "--remote-jobs", "2"], ".", 0),
        (["add", "--glob", "*.csv"], ".", 0),
        (["add", f"{away}/d", "-o", "h"], ".", 1),
        (["add", f"{away}/d/x", "-o", "h", "-f"], ".", 0),
        (["add", "nothing", "--to-remote"], ".", 1),
        (["add", "nothing"], ".", 1),
        (["add", "--glob", "*.none"], ".", 1),
        (["add", "z", "-r", "store"], ".", 1),
        (["add", "z", "--remote-jobs", "3"], ".", 1),
        (["add", "z", "h", "-o", "k"], ".", 1),
        (["add", "z", "--to-remote", "--glob"], ".", 1),
        (["add", "z", "--to-remote", "--no-commit"], ".", 1),
    ):
        done = subprocess.run(["dvc", *args], cwd=theirs.root / folder, capture_output=True, text=True)
        assert done.returncode == code, (args, done.stderr)
        monkeypatch.chdir(repo.root / folder)
        assert main(args) == code, args
    mine, real = tree(repo.root), tree(theirs.root)
    # dvc lets git take what is pulled later.
    ignores = {name: mine.pop(name) for name in list(mine) if name.endswith(".gitignore")}
    assert set(real) - set(mine) <= set(ignores)
    assert mine == {name: data for name, data in real.items() if name not in ignores}
    for name in ignores:
        assert set(real.get(name, b"").splitlines()) <= set(ignores[name].splitlines())
    assert objects(repo.root.parent / "store") == objects(theirs.root.parent / "store")
    assert subprocess.run(["dvc", "pull", "-f"], cwd=repo.root, capture_output=True).returncode == 0
    assert tree(repo.root / "d") == {"x": b"d/x", "sub/y": b"d/sub/y"}


def test_nothing_stays_here(repo: Repo, source: Path) -> None:
    version = repo.add_to_remote(str(source / "d"), out="data/d")
    assert (version.path, version.nfiles, version.size) == ("data/d", 2, 10)
    assert not (repo.root / "data/d").exists() and not repo.cache.exists(version.digest)
    assert not [*repo.tmp_dir.glob("to-remote-*")]
    assert (repo.root / "data/.gitignore").read_text() == "/d\n"
    shutil.rmtree(source)
    repo.pull()
    assert tree(repo.root / "data/d") == {"x": b"d/x", "sub/y": b"d/sub/y"}


def test_a_source_that_breaks_off_tracks_nothing(repo: Repo, source: Path) -> None:
    (source / "d/gone").symlink_to("nowhere")
    with pytest.raises(OutputError):
        repo.add_to_remote(str(source / "d"))
    (source / "d/gone").unlink()
    (repo.root.parent / "store/files").mkdir(parents=True)
    (repo.root.parent / "store/files/md5").write_text("in the way")
    with pytest.raises(RemoteError):
        repo.add_to_remote(str(source / "d"))
    assert not (repo.root / "d.dvc").exists()


def test_what_is_there_is_not_overwritten(repo: Repo, source: Path) -> None:
    (repo.root / "mine").write_text("mine")
    (repo.root / "code").write_text("code")
    subprocess.run(["git", "add", "code"], cwd=repo.root, check=True)
    (repo.root / "dvc.yaml").write_text("stages:\n  s:\n    cmd: x\n    outs:\n    - out\n")
    repo.add([repo.add_copy(str(source / "d"), out="data").path])
    (repo.root / "other.dvc").write_text("outs:\n- path: elsewhere\n")
    for out, error in (
        ("mine", OutputError),
        ("out", OutputError),
        ("code", OutputError),
        ("data/x", OutputError),
        ("data/new", OutputOverlapError),
        ("other", OutputError),
        ("x.dvc", OutputError),
        (".dvc/x", OutputError),
    ):
        with pytest.raises(error):
            repo.add_to_remote(str(source / "f"), out=out)
        with pytest.raises(error):
            repo.add_copy(str(source / "f"), out=out)
    with pytest.raises(OutputInGitError):
        repo.add_copy(str(source / "f"), out="code", force=True)
    with pytest.raises(OutputNotFoundError):
        repo.add_to_remote(str(source / "nothing"))
    assert (repo.root / "mine").read_text() == "mine"
    assert repo.add_copy(str(source / "f"), out="mine", force=True).nfiles == 1
    assert (repo.root / "mine").read_text() == "f"


def test_a_known_output_keeps_its_notes(repo: Repo, source: Path) -> None:
    repo.add_copy(str(source / "f"))
    file = repo.root / "f.dvc"
    file.write_text("# note\n" + file.read_text() + "meta: 1\n")
    (source / "f").write_text("new")
    repo.add_to_remote(str(source / "f"))
    text = file.read_text()
    assert text.startswith("# note\n") and text.endswith("meta: 1\n") and "size: 3\n" in text
    assert (repo.root / "f").read_text() == "f"
    repo.pull()
    assert (repo.root / "f").read_text() == "new"


@pytest.mark.parametrize("kind", ["symlink", "hardlink"])
def test_files_stay_what_they_are_without_relinking(
    repo: Repo, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with repo.config.edit() as sections:
        sections["cache"]["type"] = kind
    monkeypatch.chdir(repo.root)
    for name in ("a", "b"):
        (repo.root / name).write_text(name)
    assert main(["add", "--no-relink", "a"]) == 0 and main(["add", "b"]) == 0
    linked = {
        name: (repo.root / name).is_symlink() or (repo.root / name).stat().st_nlink > 1 for name in "ab"
    }
    assert linked == {"a": False, "b": True}


def test_new_files_are_staged_where_that_is_asked_for(repo: Repo, source: Path) -> None:
    with repo.config.edit() as sections:
        sections["core"]["autostage"] = "true"
    Repo(repo.root).add_to_remote(str(source / "f"), out="new/g")
    told = subprocess.run(["git", "status", "--short"], cwd=repo.root, capture_output=True, text=True).stdout
    assert {"A  new/.gitignore", "A  new/g.dvc"} <= set(told.splitlines())


@pytest.fixture
def web(source: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(source))
    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as port:
        yield f"http://127.0.0.1:{port}"


def test_from_the_web(repo: Repo, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo.root)
    assert main(["add", f"{web}/f?x=1", "--to-remote"]) == 0
    assert main(["add", f"{web}/d/x", "-o", "copied"]) == 0
    assert (repo.root / "copied").read_text() == "d/x"
    assert "path: f\n" in (repo.root / "f.dvc").read_text() and not (repo.root / "f").exists()
    repo.pull(["f"])
    assert (repo.root / "f").read_text() == "f"


def test_from_one_bucket_to_another(repo: Repo, source: Path, s3: S3Server) -> None:
    url = s3.make_bucket(f"to-remote-{uuid.uuid4().hex[:8]}")
    with repo.config.edit() as sections:
        sections["remote"]["raw"] = {"url": f"{url}/raw", **s3.options()}
        sections["remote"]["lake"] = {"url": f"{url}/lake", **s3.options()}
    repo = Repo(repo.root)
    repo.add_copy(str(source / "d"))
    repo.push(remote="raw")
    keys = {f"files/md5/{o.digest[:2]}/{o.digest[2:]}" for o in repo.outputs() if o.digest}
    version = repo.add_to_remote("remote://raw/files", out="copy", remote="lake")
    assert version.nfiles == 3 and not repo.cache.exists(version.digest)
    repo.pull(["copy"], remote="lake")
    assert keys <= {f"files/{name}" for name in tree(repo.root / "copy")}
