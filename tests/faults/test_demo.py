"""The demo: killed at five moments of its work, then finished; what it leaves is a repository that dvc agrees with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What the demo says when it comes to a moment, and who is killed then.
MOMENTS = [
    ("A repository", "flow"),
    ("The pipeline on version 1", "supervisor"),
    ("Serve digits", "flow"),
    ("The pipeline on version 2", "flow"),
    ("Roll back", "supervisor"),
]


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", str(folder / "flows/quickstart.py")],
        env={**os.environ, "PREFECT_HOME": str(folder / ".demo/prefect"), "PATH": path_with_python()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
    )


def path_with_python() -> str:
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def belonging_to(folder: Path) -> dict[int, str]:
    """Every live process that was started, directly or not, by a demo in the folder."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if str(folder).encode() in (entry / "environ").read_bytes() and state != "Z":
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, ProcessLookupError):
                continue
    return found


def wait_until_none(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while (left := belonging_to(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_killed_demo_leaves_nothing_behind_and_is_finished_by_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "flows", folder / "flows")
    (folder / ".demo").mkdir()
    for said, victim in MOMENTS:
        demo = start(folder)
        assert demo.stdout
        lines = []
        for line in demo.stdout:
            lines.append(line)
            if said in line:
                break
        else:
            pytest.fail(f"the demo never came to '{said}':\n{''.join(lines)}")
        pid = demo.pid
        if victim == "flow":
            (pid,) = [
                p
                for p, command in belonging_to(folder).items()
                if command.endswith("quickstart.py --run ") and "_watcher" not in command
            ]
        os.kill(pid, signal.SIGKILL)
        demo.communicate()
        wait_until_none(folder)

    demo = start(folder)
    output, _ = demo.communicate()
    assert demo.returncode == 0, output
    wait_until_none(folder)
    summary = json.loads((folder / ".demo/summary.json").read_text())
    assert [row["files"] for row in summary["versions"]] == [700, 1437]
    assert summary["metrics"]["v2"]["accuracy"] >= 0.93
    assert summary["metrics"]["v2"]["accuracy"] > summary["metrics"]["v1"]["accuracy"]
    assert summary["predictions"]["v2"] != summary["predictions"]["after_rollback"]
    assert summary["in_production"] == summary["model_versions"][0]

    repo = folder / ".demo/repo"

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=repo, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    assert run("git", "status", "--porcelain") == ""
    run("dvc", "status", "-q")
    assert json.loads(run("dvc", "diff", "--json")) == {}
    shutil.rmtree(repo / ".dvc/cache")
    run("dvc", "pull")
    assert "up to date" in run("dvc", "repro", "--dry")
    assert run("git", "status", "--porcelain") == ""

    # What was pulled is enough to go on with: run again, everything is skipped.
    demo = start(folder)
    output, _ = demo.communicate()
    assert demo.returncode == 0, output
    assert output.count("Stage '") == output.count("skip (nothing changed)") == 4
