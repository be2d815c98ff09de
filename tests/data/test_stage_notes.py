"""Who runs stages: told by a lock where there is one, by a process number only of a `dvc`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dvkf_prefect.data.repository.stage_notes import live_stages, note_stages
from dvkf_prefect.errors import LockedError

# Notes a stage under a number that another process has, as in another container, and waits.
OTHER = """
import os, sys
from pathlib import Path
from dvkf_prefect.data.repository.stage_notes import note_stages
os.getpid = lambda: int(sys.argv[2])
note_stages(Path(sys.argv[1]), read=["/in"], write=["/out"], anew=False)
print("noted", flush=True)
sys.stdin.read()
"""


def other(file: Path, number: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(file), str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "noted\n"
    return process


@pytest.mark.parametrize(
    "number", [os.getppid(), os.getpid(), 2**31 - 7], ids=["another's", "mine", "nobody's"]
)
def test_a_run_lasts_as_long_as_its_lock(tmp_path: Path, number: int) -> None:
    """A killed run whose number another process had blocked all others; one with an unknown number did not count."""
    file = tmp_path / "rwlock"
    process = other(file, number)
    found = {(note.mode, note.path, note.pid) for note in live_stages(file)}
    assert found == {("read", "/in", number), ("write", "/out", number)}
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert json.loads(file.read_text())["write"]["/out"]["pid"] == number
    assert live_stages(file) == []
    note_stages(file, read=[], write=["/mine"], anew=False)
    assert list(json.loads(file.read_text())["write"]) == ["/mine"]
    assert live_stages(file) == []
    note_stages(file, read=[], write=[], anew=True)
    assert json.loads(file.read_text()) == {"read": {}, "write": {}}
    assert os.listdir(tmp_path / "dvkf-stages") == []


def test_the_notes_of_dvc_are_told_by_their_number(tmp_path: Path) -> None:
    file = tmp_path / "rwlock"
    for number, count in ((os.getppid(), 1), (2**31 - 7, 0)):
        file.write_text(json.dumps({"write": {"/out": {"pid": number, "cmd": "dvc repro"}}}))
        assert len(live_stages(file)) == count


def test_a_link_in_place_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs" / ("0" * 16)
    theirs.mkdir(parents=True)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp/dvkf-stages").symlink_to(theirs.parent)
    with pytest.raises(LockedError, match="is a link"):
        note_stages(tmp_path / "tmp/rwlock", read=[], write=["/out"], anew=False)
    assert theirs.exists()
