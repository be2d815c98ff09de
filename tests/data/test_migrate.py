"""What DVC 2.x left: its objects under today's digests, and files that name them so."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect.cli import main
from dvkf_prefect.repo import Repo

DOS, UNIX, BINARY = b"one\r\ntwo\r\n", b"unix\n", bytes(range(256))
LOCK = """\
schema: '2.0'
stages:
  s:
    cmd: cp dos out
    deps:
    - path: dos
      md5: {0}
      size: 10
    outs:
    - path: out
      md5: {0}
      size: 10
"""


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def old_digest(data: bytes) -> str:
    return md5(data if b"\0" in data else data.replace(b"\r\n", b"\n"))


def put(root: Path, digest: str, data: bytes) -> None:
    path = root / ".dvc/cache" / digest[:2] / digest[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(data)
        path.chmod(0o444)


def file(root: Path, name: str, data: bytes, *, here: bool = True, cached: bool = True) -> None:
    """A file as `dvc add` of 2.x left it."""
    if cached:
        put(root, old_digest(data), data)
    if here:
        (root / name).write_bytes(data)
    (root / f"{name}.dvc").write_text(
        f"outs:\n- md5: {old_digest(data)}\n  size: {len(data)}\n  path: {name}\n"
    )


def folder(root: Path, name: str, files: dict[str, bytes], *, here: bool = True) -> None:
    rows = []
    for relpath, data in sorted(files.items()):
        put(root, old_digest(data), data)
        rows.append({"md5": old_digest(data), "relpath": relpath})
        if here:
            (root / name / relpath).parent.mkdir(parents=True, exist_ok=True)
            (root / name / relpath).write_bytes(data)
    manifest = json.dumps(rows).encode()
    put(root, md5(manifest) + ".dir", manifest)
    size = sum(map(len, files.values()))
    (root / f"{name}.dvc").write_text(
        f"# note\nouts:\n- md5: {md5(manifest)}.dir\n  size: {size}\n  nfiles: {len(files)}\n  path: {name}\nmeta: 1\n"
    )


FOLDER = {"a": b"a\r\n", "sub/b": b"b\n", "c": BINARY}


def make(root: Path) -> Repo:
    repo = make_repo(root)
    file(root, "dos", DOS)
    file(root, "unix", UNIX)
    file(root, "bin", BINARY)
    folder(root, "dir", FOLDER)
    (root / "new").write_text("new")
    repo.add(["new"])
    (root / "dvc.yaml").write_text(
        "stages:\n  s:\n    cmd: cp dos out\n    deps:\n    - dos\n    outs:\n    - out\n"
    )
    (root / "out").write_bytes(DOS)
    (root / "dvc.lock").write_text(LOCK.format(old_digest(DOS)))
    (root / ".gitignore").write_text("/dos\n/unix\n/bin\n/dir\n/new\n/out\n")
    return repo


def files(root: Path) -> dict[str, bytes]:
    """All files but git's, temporary ones, and the run cache, in which dvc notes the stage once more."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not {".git", "tmp", "tmp-dvkf", "runs"} & set(path.relative_to(root).parts)
    }


@pytest.mark.parametrize("links", ["copy", "symlink"])
def test_migration_leaves_what_dvc_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], links: str
) -> None:
    said = []
    for root, run in (
        (tmp_path / "real", ["dvc", "cache", "migrate"]),
        (tmp_path / "ours", None),
    ):
        make(root)
        (root / ".dvc/config").write_text(f"[cache]\n    type = {links}\n")
        for path in ("dos", "unix", "dir"):
            shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()
        Repo(root).checkout(["dos", "unix", "dir"])
        monkeypatch.chdir(root)
        for options in (["--dry", "--dvc-files"], [], ["--dvc-files"], ["--dry", "--dvc-files"]):
            if run:
                told = subprocess.run([*run, *options], check=True, capture_output=True, text=True).stdout
            else:
                assert main(["cache", "migrate", *options]) == 0
                told = capsys.readouterr().out
            said.append(sorted(told.partition("\n\nTo track")[0].splitlines()))
    assert said[4:] == said[:4]
    ours = files(tmp_path / "ours")
    assert ours == files(tmp_path / "real")
    assert b"hash: md5" in ours["dir.dvc"] and ours["dir.dvc"].startswith(b"# note\n")
    for path in ("dos", "dir/a"):
        one = tmp_path / "ours" / path
        assert "files/md5" in os.readlink(one) if links == "symlink" else not one.is_symlink()
    assert subprocess.run(["dvc", "status"], capture_output=True, text=True).stdout.endswith("up to date.\n")


def test_objects_become_links_and_the_old_ones_stay(tmp_path: Path) -> None:
    repo = make(tmp_path / "repo")
    assert repo.migrate_cache(dry_run=True).found == 6
    assert not repo.cache.exists(md5(DOS))
    migration = repo.migrate_cache()
    assert (migration.found, migration.added, migration.files) == (6, 6, ())
    old, new = repo.cache.path(old_digest(DOS), "md5-dos2unix"), repo.cache.path(md5(DOS))
    assert old.stat().st_ino == new.stat().st_ino and new.stat().st_mode & 0o777 == 0o444
    assert repo.migrate_cache().added == 0
    assert repo.verify().problems == ()


def test_content_that_is_not_in_the_workspace_is_taken_from_the_cache(tmp_path: Path) -> None:
    """DVC writes files then that it cannot read any more."""
    repo = make(tmp_path / "repo")
    shutil.rmtree(repo.root / "dir")
    (repo.root / "dos").unlink()
    (repo.root / "unix").write_text("changed")
    file(repo.root, "lost", b"lost\r\n", here=False, cached=False)
    migration = repo.migrate_cache(dvc_files=True)
    assert migration.left == ("lost",)
    assert migration.files == ("bin.dvc", "dir.dvc", "dos.dvc", "dvc.lock", "unix.dvc")
    assert "hash" not in (repo.root / "lost.dvc").read_text()
    outputs = {output.path: output for output in repo.outputs()}
    assert outputs["dos"].digest == md5(DOS) and outputs["unix"].digest == md5(UNIX)
    (repo.root / "unix").unlink()
    repo.checkout(["dir", "dos", "unix"])
    assert {p: (repo.root / "dir" / p).read_bytes() for p in FOLDER} == FOLDER
    assert (repo.root / "dos").read_bytes() == DOS


def test_the_line_ends_of_the_workspace_count(tmp_path: Path) -> None:
    """One object of 2.x stands for a text with either kind of line ends."""
    repo = make(tmp_path / "repo")
    file(repo.root, "again", DOS.replace(b"\r\n", b"\n"))
    repo.migrate_cache(dvc_files=True)
    digests = {output.path: output.digest for output in repo.outputs()}
    assert digests["again"] == old_digest(DOS) != digests["dos"]
    assert repo.status().changes == ()


def test_damaged_objects_are_left_alone(tmp_path: Path) -> None:
    repo = make(tmp_path / "repo")
    path = repo.cache.path(old_digest(BINARY), "md5-dos2unix")
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    (repo.root / "bin").unlink()
    shutil.rmtree(repo.root / "dir")
    migration = repo.migrate_cache(dvc_files=True)
    assert migration.damaged == (old_digest(BINARY),)
    assert migration.left == ("bin", "dir")
    assert not repo.cache.exists(md5(b"damaged"))
