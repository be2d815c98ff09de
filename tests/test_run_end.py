"""A test run that is killed leaves nothing: no server, no process in a session of its own, no mount, no folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from processes import wait_until
from reaper import marked

TESTS = Path(__file__).parent
_SAMPLE = """
import os, subprocess, sys, time
from pathlib import Path
from servers import PrefectServer

def test_servers(s3, tmp_path, monkeypatch):
    (tmp_path / "tree").mkdir()
    if os.getuid() == 0:
        (tmp_path / "a disk").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / "a disk"])
    server = PrefectServer(tmp_path)
    server.start("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(server.port))
    subprocess.Popen(["sleep", "900"], start_new_session=True)
    # One that loses its parent and its mark.
    subprocess.Popen(["sh", "-c", "env -i sleep 901 & wait"], start_new_session=True)
    with subprocess.Popen(["sh", "-c", "setsid sleep 902 & echo"], stdout=subprocess.DEVNULL):
        pass
    outer = os.environ["OUTER"].split()
    mark = next(name for name in os.environ if name.startswith("PYTEST_RUN_") and name not in outer)
    Path(os.environ["READY"] + ".new").write_text(mark)
    os.rename(os.environ["READY"] + ".new", os.environ["READY"])
    time.sleep(900)
"""


def _commands(mark: str) -> set[bytes]:
    found = set()
    for pid in marked(mark):
        with suppress(OSError):
            found.add(Path(f"/proc/{pid}/cmdline").read_bytes())
    return found


# SIGKILL leaves the most to be removed. The marks of all runs around one are looked at, so these run one by one.
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        *(pytest.param(each, marks=pytest.mark.long) for each in (signal.SIGTERM, signal.SIGINT)),
    ],
    ids=lambda number: number.name,
)
def test_a_run_that_is_ended_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    conftest = (
        f"import runpy\nfound = runpy.run_path({str(TESTS / 'conftest.py')!r})\n"
        "globals().update({k: v for k, v in found.items() if not k.startswith('__')})\n"
    )
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_sample.py").write_text(_SAMPLE)
    ready = tmp_path / "ready"
    outer = " ".join(name for name in os.environ if name.startswith("PYTEST_RUN_"))
    base = tmp_path / "base"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--basetemp={base}",
        "-o",
        f"pythonpath={TESTS} {TESTS / 'interop'}",
        "test_sample.py",
    ]
    run = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "READY": str(ready), "OUTER": outer},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: ready.exists() or run.poll() is not None, 300)
        assert run.poll() is None
        mark = ready.read_text()
        wanted = [b"weed", b"prefect", *(b"sleep\x0090%d\0" % n for n in (0, 1, 2))]
        wait_until(lambda: all(any(each in name for name in _commands(mark)) for each in wanted), 120)
        run.send_signal(number)
        run.wait(120)
        wait_until(lambda: not marked(mark), 120)
        # What lost its mark and its parent at once ends a moment later.
        wait_until(lambda: all(b"sleep\x00901\0" not in _commands(each) for each in outer.split()), 120)
        wait_until(lambda: str(base) not in Path("/proc/mounts").read_text(), 120)
        if number == signal.SIGKILL:
            wait_until(lambda: not base.exists(), 120)
    finally:
        run.kill()
        run.wait()
