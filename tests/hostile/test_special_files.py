"""Files that describe things are regular files: a fifo does not block a verb, a device is not read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import alive, wait_until
from repos import make_repo

from dvkf_prefect.cli import main
from dvkf_prefect.data.git import process
from dvkf_prefect.data.git.command import Git, run_git
from dvkf_prefect.data.git.history import History
from dvkf_prefect.errors import GitTimeoutError, ParseError
from dvkf_prefect.files import read_description
from dvkf_prefect.repo import Repo

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
    repo = make_repo(root)
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


def test_no_dependency_makes_a_look_go_on_for_ever(repo: Repo, tmp_path: Path) -> None:
    """What the kernel makes up, most of a disk, a pipe and a link to itself: each is told, and each fails its stage."""
    deps = {
        "kernel": "/proc/kcore",
        "messages": "/proc/kmsg",
        "linked": "to-kernel",
        "zero": "/dev/zero",
        "disk": "/",
        "top": "/usr",
        "above": "..",
        "pipe": "pipe",
        "loop": "loop",
        "inside": "folder",
    }
    os.mkfifo(repo.root / "pipe")
    (repo.root / "loop").symlink_to("loop")
    (repo.root / "to-kernel").symlink_to("/proc/kcore")
    (repo.root / "folder").mkdir()
    (repo.root / "folder/loop").symlink_to("loop")
    stages = "".join(
        f"  {name}:\n    cmd: touch o-{name}\n    deps: [{dep}]\n    outs: [o-{name}]\n"
        for name, dep in deps.items()
    )
    (repo.root / "dvc.yaml").write_text(f"stages:\n{stages}  good:\n    cmd: touch good\n    outs: [good]\n")
    said = _dvkf(repo.root, "status", "--json")
    assert said.returncode == 0, said
    report = json.loads(said.stdout)
    assert all("changed deps" in report[name][0] for name in deps), report
    own = ("linked", "pipe", "loop", "inside")  # to run what reads the whole disk is the user's choice
    done = _dvkf(repo.root, "repro", "-k", *own, "good")
    assert done.returncode == 255 and (repo.root / "good").exists()
    assert not [name for name in own if (repo.root / f"o-{name}").exists()]
    assert all(f"stage '{name}'" in done.stderr for name in own), done.stderr
    assert "Traceback" not in done.stderr


_ASKING = ("status", "list . -R", "gc -w -f", "data status", "add new")


@pytest.mark.parametrize(
    ("name", "verbs"),
    [
        (".gitignore", _ASKING),
        ("sub/.gitignore", _ASKING),
        (".git/info/exclude", _ASKING),
        (".git/config", _ASKING),
        (".gitattributes", ("data status",)),
    ],
)
def test_git_does_not_wait_for_a_special_file(
    repo: Repo,
    name: str,
    verbs: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Git opened a fifo among its ignore files and waited for it for two minutes at each call."""
    (repo.root / "sub").mkdir()
    (repo.root / "sub" / "g").write_text("2\n")
    repo.add(["sub/g"])
    (repo.root / "dvc.yaml").unlink()
    (repo.root / "new").write_text("3\n")
    place = repo.root / name
    place.unlink(missing_ok=True)
    os.mkfifo(place)
    monkeypatch.chdir(repo.root)
    monkeypatch.setattr(process, "_SUSPICIOUS", 0.2)
    capsys.readouterr()
    for verb in verbs:
        assert main(verb.split()) != 0, verb
        assert (
            f"{place}: not a regular file, and git would wait for it. Replace it" in capsys.readouterr().err
        ), verb
    for verb in ("check-ignore f", "doctor", "diff"):
        main(verb.split())
    assert not (repo.root / "new.dvc").exists()
    assert not _git_processes(repo.root)


def _git_processes(root: Path) -> list[str]:
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in lines.splitlines() if line.startswith("git ") and f" {root} " in line]


def test_a_git_that_gives_no_answer_is_ended(
    tmp_path: Path, repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all processes that it started, which may hold its output open."""
    fake = tmp_path / "bin" / "git"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nsleep 987 & echo $! >> $0.pids\nsleep 987\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("dvkf_prefect.data.git.command._TIMEOUT", 0.5)
    monkeypatch.setattr(process, "_SUSPICIOUS", 0.2)
    monkeypatch.setattr(process, "ANSWER", 0.5)
    git = Git(repo.root)
    for ask in (
        git.head,
        lambda: git.is_ignored("f"),
        lambda: git.resolve("main"),
        lambda: git.tracked(["f"]),
    ):
        with pytest.raises(GitTimeoutError, match=r"did not answer in 0 s and was stopped\. Run it by hand"):
            ask()
    with pytest.raises(GitTimeoutError, match="did not answer"):
        run_git(repo.root, "fetch", "origin", timeout=0.5)
    with pytest.raises(GitTimeoutError, match="cat-file"), History(git) as history:
        list(history.walk(["0" * 40]))
    for pid in Path(f"{fake}.pids").read_text().split():
        wait_until(lambda pid=pid: not alive(int(pid)))
