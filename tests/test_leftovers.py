"""Temporary files and folders have an owner, and go when it is gone: told by a lock, never by a number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dvkf_prefect import leftovers
from dvkf_prefect.files import is_temporary, temporary_beside, write_atomic
from dvkf_prefect.leftovers import OwnedFolder, claim, sweep, sweep_files

HOLDER = """
import sys
from dvkf_prefect.leftovers import OwnedFolder
folder = OwnedFolder(sys.argv[1])
(folder.path / "part").write_bytes(b"half")
print(folder.path, flush=True)
sys.stdin.read()
"""


def holder(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def test_a_folder_lasts_as_long_as_its_process(tmp_path: Path) -> None:
    process, folder = holder(tmp_path)
    sweep(tmp_path)
    assert (folder / "part").exists()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (folder / "part").exists()
    sweep(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_process_that_ends_well_leaves_what_others_may_go_on_with(tmp_path: Path) -> None:
    process, folder = holder(tmp_path)
    process.communicate()
    assert [path.name for left in claim(tmp_path) for path in left.iterdir() if path.name != "owner"] == [
        "part"
    ]
    assert not folder.exists()


def test_helpers_hold_the_folders_of_the_process_that_started_them(tmp_path: Path) -> None:
    folder = OwnedFolder(tmp_path)
    helper = subprocess.Popen(["sleep", "60"], pass_fds=leftovers.held())
    folder._end.detach()
    os.close(folder._descriptor)
    leftovers._held.pop(folder._descriptor)
    sweep(tmp_path)
    assert folder.path.exists()
    helper.kill()
    helper.wait()
    sweep(tmp_path)
    assert not folder.path.exists()


def test_other_names_and_links_are_nothing_to_a_sweep(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "dvkf-0123456789abcdef").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (tmp_path / "0123456789abcdef").symlink_to(outside)
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "mine",
        "dvkf-0123456789abcdef",
        "outside",
        "0123456789abcdef",
    }
    assert (outside / "kept").exists()
    sweep(tmp_path, "dvkf-")
    assert not (tmp_path / "dvkf-0123456789abcdef").exists()


def test_a_link_in_a_left_folder_is_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    left = tmp_path / "left" / "0123456789abcdef"
    left.mkdir(parents=True)
    (left / "link").symlink_to(outside)
    sweep(tmp_path / "left")
    assert not left.exists()
    assert (outside / "kept").exists()


def test_without_locks_only_age_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    young, old = tmp_path / "0123456789abcdef", tmp_path / "00000000deadbeef"
    for folder in (young, old):
        folder.mkdir()
        (folder / "owner").touch()
        (folder / "part").write_bytes(b"half")
    for path in (old / "owner", old / "part"):
        os.utime(path, (0, 0))
    sweep(tmp_path)
    assert young.exists()
    assert not old.exists()
    with OwnedFolder(tmp_path) as folder:
        assert folder.path.exists()


def test_files_being_written_are_no_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace
    swept: list[list[str]] = []

    def sweeping(source: str | Path, target: str | Path) -> None:
        sweep_files(tmp_path)
        swept.append(os.listdir(tmp_path))
        real(source, target)

    monkeypatch.setattr(os, "replace", sweeping)
    write_atomic(tmp_path / "file", b"data")
    assert len(swept) == 1
    assert (tmp_path / "file").read_bytes() == b"data"
    left = temporary_beside(tmp_path / "file")
    left.write_bytes(b"half")
    folder = temporary_beside(tmp_path / "file")
    folder.mkdir()
    (folder / "half").write_bytes(b"half")
    link = temporary_beside(tmp_path / "file")
    link.symlink_to(tmp_path / "file")
    assert is_temporary(left.name)
    sweep_files(tmp_path)
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_whose_temporary_name_was_swept_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    real = fcntl.flock
    tried: list[int] = []

    def swept_first(descriptor: int, operation: int) -> None:
        if not tried:
            for path in tmp_path.iterdir():
                path.unlink()
        tried.append(descriptor)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", swept_first)
    write_atomic(tmp_path / "file", b"data")
    assert len(tried) == 2
    assert (tmp_path / "file").read_bytes() == b"data"
