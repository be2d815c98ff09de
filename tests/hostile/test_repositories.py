"""Hundreds of hostile repositories, tried with every verb that looks at one or brings its data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ZOO = Path(__file__).with_name("zoo.py")
PARTS = 24


def try_part(folder: Path, part: int, parts: int = PARTS) -> dict[str, object]:
    """Run a part of the table in a process without threads, from which each attempt is forked."""
    identity = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "Test"), ("EMAIL", "test@example.org"))
    }
    done = subprocess.run(
        [sys.executable, str(ZOO), str(folder), str(part), str(parts)],
        env={**os.environ, **identity, "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, object] = json.loads((folder / "result.json").read_text())
    return result


# All of them take some minutes: DVKF_ZOO_PARTS=24 tries every part, the default one of them.
@pytest.mark.parametrize("part", range(int(os.environ.get("DVKF_ZOO_PARTS", "1"))))
def test_a_hostile_repository_writes_nothing_outside_runs_nothing_and_ends(tmp_path: Path, part: int) -> None:
    """No write outside, no code run, no hang, no traceback, and at most 500 MB, whatever the verb."""
    result = try_part(tmp_path, part)
    print(result["repositories"], "repositories,", result["tries"], "attempts")
    assert result["wrong"] == []
