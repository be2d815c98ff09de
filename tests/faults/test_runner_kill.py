"""SIGKILL of any process between a caller and a stage's command leaves none of the others, and no one waiting.

The chain: caller, host (has KFP imported), child (KFP's local runner), sh and executor (KFP's), the command.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from processes import alive, wait_until

from dvkf_prefect.errors import RunnerError
from dvkf_prefect.kubeflow.local import runner as local
from dvkf_prefect.kubeflow.local.runner import KfpLocalRunner
from dvkf_prefect.pipeline.step.spec import StepOutput, StepSpec

LEVELS = {"executor": 1, "child": 3, "host": 4}
# A command with a child and a grandchild; each records itself.
FAMILY = "echo $$ >> {0}; (sleep 300 & echo $! >> {0}; exec sleep 301) & echo $! >> {0}; sleep 302"


def stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def family_in(path: Path) -> list[int]:
    """Return the command, its child and its grandchild."""

    def read():
        pids = [int(pid) for pid in path.read_text().split()] if path.exists() else []
        return pids if len(pids) == 3 else None

    return wait_until(read)


def ancestors(pid: int, count: int) -> list[int]:
    """Return the processes above one, without the watchers between them."""
    chain: list[int] = []
    while len(chain) < count:
        pid = int(stat(pid)[1])
        if "dvkf-watcher" not in Path(f"/proc/{pid}/comm").read_text():
            chain.append(pid)
    return chain


def everything(group: list[int]) -> list[int]:
    """Return these processes and those of their sessions, watchers included."""
    sessions = {int(stat(pid)[3]) for pid in group}
    found = set(group)
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int(stat(int(entry.name))[3]) in sessions:
                found.add(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(found)


def spec(tmp_path: Path, cmd: str, stage: str = "train") -> StepSpec:
    return StepSpec(stage, (cmd,), str(tmp_path / "cache"))


@pytest.mark.parametrize("level", LEVELS)
def test_sigkill_below_the_caller(tmp_path, level):
    pids = tmp_path / "pids"
    with KfpLocalRunner(tmp_path / "kfp") as runner:
        run = runner.start(spec(tmp_path, FAMILY.format(pids)))
        command = family_in(pids)
        chain = ancestors(command[0], 5)
        assert chain[4] == os.getpid()
        # Its session ends with the stage; the host's goes on, unless it is the one to be killed.
        stage = everything([*command, *chain[: 4 if level == "host" else 3]])
        assert all(alive(pid) for pid in [*command, *chain[:4]])
        os.kill(chain[LEVELS[level] - 1], signal.SIGKILL)
        with pytest.raises(RunnerError, match="stage 'train' has no result") as caught:
            run.wait(120)
        assert "\x1b" not in str(caught.value)
        wait_until(lambda: not any(alive(pid) for pid in stage))
        assert alive(chain[3]) is (level != "host")
        # The runner is whole again.
        assert not runner.start(spec(tmp_path, "true")).wait(120).failed


def test_sigkill_of_the_shell_between_kfp_and_its_executor_loses_nothing(tmp_path):
    """The stage goes on, so its result is waited for, and counts."""
    pids, go = tmp_path / "pids", tmp_path / "go"
    cmd = f"for i in 1 2 3; do echo $$ >> {pids}; done; until [ -e {go} ]; do sleep 0.02; done; echo 1 > out"
    with KfpLocalRunner(tmp_path / "kfp") as runner:
        run = runner.start(replace(spec(tmp_path, cmd), outs=(StepOutput("out"),)))
        os.kill(ancestors(family_in(pids)[0], 2)[1], signal.SIGKILL)
        go.touch()
        assert [out.path for out in run.wait(120).outs] == ["out"]


def test_sigkill_of_the_caller(tmp_path):
    pids = tmp_path / "pids"
    script = textwrap.dedent(f"""
        from pathlib import Path
        from dvkf_prefect.kubeflow.local.runner import KfpLocalRunner
        from dvkf_prefect.pipeline.step.spec import StepSpec
        runner = KfpLocalRunner(Path({str(tmp_path)!r}, "kfp"))
        runner.start(StepSpec("train", ({FAMILY.format(pids)!r},), {str(tmp_path / "cache")!r})).wait()
    """)
    caller = subprocess.Popen([sys.executable, "-c", script])
    try:
        command = family_in(pids)
        chain = ancestors(command[0], 5)
        assert chain[4] == caller.pid
        below = everything([*command, *chain[:4]])
    finally:
        caller.kill()
        caller.wait()
    wait_until(lambda: not any(alive(pid) for pid in below))


def test_sigkill_of_one_stage_leaves_the_others_alone(tmp_path):
    pids = tmp_path / "pids"
    go = tmp_path / "go"
    with KfpLocalRunner(tmp_path / "kfp") as runner:
        other = runner.start(spec(tmp_path, f"until [ -e {go} ]; do sleep 0.02; done", "other"))
        run = runner.start(spec(tmp_path, FAMILY.format(pids)))
        os.kill(ancestors(family_in(pids)[0], 3)[2], signal.SIGKILL)
        with pytest.raises(RunnerError, match="was killed by SIGKILL"):
            run.wait(120)
        go.touch()
        assert not other.wait(120).failed


def test_every_wait_ends_when_the_host_is_killed(tmp_path):
    """Also that of a stage whose request the host has not read yet."""
    pids = tmp_path / "pids"
    with KfpLocalRunner(tmp_path / "kfp") as runner:
        runs = [runner.start(spec(tmp_path, FAMILY.format(pids)))]
        host = ancestors(family_in(pids)[0], 4)[3]
        os.kill(host, signal.SIGSTOP)
        runs += [runner.start(spec(tmp_path, "true", f"s{n}")) for n in range(3)]
        os.kill(host, signal.SIGKILL)
        for run in runs:
            with pytest.raises(RunnerError, match="was killed by SIGKILL"):
                run.wait(120)
        wait_until(lambda: not any(alive(pid) for pid in family_in(pids)))


def test_close_ends_a_host_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_MARGIN", 0.2)
    pids = tmp_path / "pids"
    runner = KfpLocalRunner(tmp_path / "kfp", grace=0.1)
    run = runner.start(spec(tmp_path, FAMILY.format(pids)))
    command = family_in(pids)
    chain = ancestors(command[0], 4)
    os.kill(chain[3], signal.SIGSTOP)
    runner.close()
    assert not any(alive(pid) for pid in chain[3:])
    wait_until(lambda: not any(alive(pid) for pid in [*command, *chain]))
    with pytest.raises(Exception, match="stage 'train' was stopped before its end"):
        run.wait(60)
