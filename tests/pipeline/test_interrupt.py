"""Ctrl-C: the command gets SIGINT, as with `dvc` in a terminal, and has time to end well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dvkf_prefect.errors import StageCancelledError
from dvkf_prefect.pipeline.step.runner import LocalRunner
from dvkf_prefect.pipeline.step.spec import StepSpec

from .test_leash import alive, wait_until


def press_ctrl_c(project, started: Path) -> tuple[int, str]:
    """Run `dvkf repro` as the foreground process group of a terminal, interrupt that once, and return how it ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dvkf_prefect.cli", "repro"],
        cwd=project.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Whoever runs the tests in the background has had it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_until(lambda: started.exists() and started.read_text().endswith("\n"))
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out


@contextmanager
def restored_interrupts() -> Iterator[None]:
    """Have processes that are started meanwhile listen to SIGINT, whatever this one does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# Says which signal came, and ends as it is told to.
COMMAND = """\
import os, signal, sys, time
def handle(number, frame):
    with open("ckpt", "a") as file:
        file.write(signal.Signals(number).name + "\\n")
    if sys.argv[2] != "stay":
        sys.exit(int(sys.argv[2]))
signal.signal(signal.SIGINT, handle)
signal.signal(signal.SIGTERM, handle)
with open(sys.argv[1], "w") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(300)
"""


@pytest.mark.parametrize("hermetic", [False, True])
@pytest.mark.parametrize("code", [0, 3])
def test_a_command_gets_ctrl_c_and_what_ends_well_is_recorded(
    project, tmp_path: Path, code: int, hermetic: bool
) -> None:
    """It got SIGTERM, which few trainings listen to, and was never recorded."""
    project.write("train.py", COMMAND)
    cmd = f"exec {sys.executable} train.py {tmp_path}/started {code}"
    project.write(
        "dvc.yaml",
        f"stages:\n  a:\n    cmd: {cmd}\n    deps: [train.py]\n    outs: [ckpt: {{persist: true}}]\n"
        f"    meta: {{dvkf: {{hermetic: {str(hermetic).lower()}}}}}\n"
        "  b: {cmd: echo > b, deps: [ckpt], outs: [b]}\n",
    )
    ended, out = press_ctrl_c(project, tmp_path / "started")
    assert ended == 252, out
    assert project.read("ckpt") == "SIGINT\n"
    lock = project.root / "dvc.lock"
    assert lock.exists() == (code == 0)
    assert not (project.root / "b").exists()
    assert "Traceback" not in out
    assert not alive(int((tmp_path / "started").read_text()))


def test_a_command_that_stays_gets_sigterm_and_is_killed(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(COMMAND)
    ckpt = tmp_path / "ckpt"
    spec = StepSpec(
        "a",
        (f"cd {tmp_path} && exec {sys.executable} train.py started stay",),
        str(tmp_path / "cache"),
        workspace=str(tmp_path),
    )
    with restored_interrupts(), LocalRunner(echo=False, patience=0.5) as runner:
        run = runner.start(spec)
        wait_until(
            lambda: (tmp_path / "started").exists() and (tmp_path / "started").read_text().endswith("\n")
        )
        run.interrupt()  # type: ignore[attr-defined]
        with pytest.raises(StageCancelledError, match="before its end"):
            run.wait(120)
    assert ckpt.read_text().split()[:2] == ["SIGINT", "SIGTERM"]
    assert not alive(int((tmp_path / "started").read_text()))
