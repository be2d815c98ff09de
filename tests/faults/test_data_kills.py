"""Verbs of data killed at any moment: nothing committed is lost, the next run completes, nothing is left."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from faults_world import DVKF, VERBS, Verb, World, discard, label

pytestmark = pytest.mark.timeout(7200)

# How many kills of each verb; FAULTS_KILLS=10 makes 300 in all, which takes half an hour.
KILLS = int(os.environ.get("FAULTS_KILLS", "1"))
_CONTAINED = {"add", "checkout", "push", "pull", "gc"}
_SHORT = {"add", "push"}


# One kill of each verb, and of some of them in a container; the long tier kills all of them in both, many times.
_CASES = [
    pytest.param(
        verb,
        apart,
        id=f"{verb.name}-{'container' if apart else 'here'}",
        marks=[pytest.mark.long] if apart and verb.name not in _SHORT else [],
    )
    for verb in VERBS
    for apart in (False, True)
    if not apart or KILLS > 1 or verb.name in _CONTAINED
]


def _can_unshare() -> bool:
    if not shutil.which("unshare"):
        return False
    command = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize(("verb", "apart"), _CASES)
def test_a_killed_verb_is_finished_by_the_next(template: World, verb: Verb, apart: bool) -> None:
    """Also in a process namespace of its own, where numbers of processes repeat."""
    if apart and not _can_unshare():
        pytest.skip("needs root and unshare")
    prefix = ["unshare", "--pid", "--fork", "--mount-proc"] if apart else []
    command = [*prefix, *DVKF, *verb.command]
    where = template.copy(verb, "timed")
    started = time.monotonic()
    subprocess.run(command, cwd=where / "r", env=template.env, capture_output=True, timeout=300)
    lasts = time.monotonic() - started
    discard(where)
    rng = random.Random()
    for _ in range(KILLS):
        where = template.copy(verb, "killed")
        process = subprocess.Popen(
            command,
            cwd=where / "r",
            env=template.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        # Most of the time goes into starting.
        time.sleep(lasts * rng.uniform(0.15, 1.05))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        problems = template.finish(where, verb)
        assert not problems, label(problems)
        discard(where)
