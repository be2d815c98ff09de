"""Files that describe things are regular files: a fifo does not block a verb, a device is not read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dvkf_prefect.data.repo import Repo
from dvkf_prefect.errors import ParseError
from dvkf_prefect.files import read_description

# A hang is an error of the kind, a slow machine is not.
_LONG = 120
_STAGE = "stages:\n  s:\n    cmd: echo 1 > o\n    params: [i]\n    outs: [o]\n"


def _dvkf(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dvkf_prefect.cli", *args],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=_LONG,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    root = tmp_path / "repo"
    root.mkdir()
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    repo = Repo.init(root)
    (root / "f").write_text("1\n")
    repo.add(["f"])
    (root / "dvc.yaml").write_text(_STAGE)
    (root / "params.yaml").write_text("i: 1\n")
    return repo


@pytest.mark.parametrize("kind", ["fifo", "zero"])
@pytest.mark.parametrize(
    "name", ["f.dvc", "dvc.yaml", "dvc.lock", "params.yaml", ".dvcignore", ".dvc/config.local"]
)
def test_verbs_refuse_a_special_file(repo: Repo, name: str, kind: str) -> None:
    place = repo.root / name
    place.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero")
    for verb in (["status"], ["repro", "--dry"]):
        done = _dvkf(repo.root, *verb)
        said = done.stdout + done.stderr
        assert "Traceback" not in said
        assert done.returncode != 0, said
        assert "not a regular file" in said


def test_a_fifo_in_place_of_an_object_on_the_remote_fails_a_pull(repo: Repo, tmp_path: Path) -> None:
    assert _dvkf(repo.root, "remote", "add", "-d", "store", str(tmp_path / "store")).returncode == 0
    assert _dvkf(repo.root, "push").returncode == 0
    (stored,) = (p for p in (tmp_path / "store" / "files").rglob("*") if p.is_file())
    stored.unlink()
    os.mkfifo(stored)
    for kept in repo.cache.root.joinpath("files").rglob("*"):
        if kept.is_file():
            kept.chmod(0o644)
            kept.unlink()
    (repo.root / "f").unlink()
    done = _dvkf(repo.root, "pull")
    assert done.returncode not in (0, 252)
    assert not (repo.root / "f").exists()


def test_reading_ends_at_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes(b"x" * 11)
    assert read_description(file, limit=11) == b"x" * 11
    with pytest.raises(ParseError, match=r"params\.yaml"):
        read_description(file, limit=10)


def test_a_growing_file_of_no_stated_size_is_read_whole() -> None:
    assert read_description("/proc/self/status").startswith(b"Name:")
