"""Disks that fail at any call: nothing committed is lost, the next run completes, nothing is left."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from faults_world import DVKF, VERBS, World, discard, label
from sizes import size

pytestmark = pytest.mark.timeout(7200)

# How many errors; FAULTS_ERRORS=200 takes about ten minutes.
ERRORS = int(size("FAULTS_ERRORS", "2", "8"))
SEED = int(os.environ.get("FAULTS_SEED", "1"))
CALLS = {
    "write": (errno.EIO, errno.ENOSPC, "short"),
    "read": (errno.EIO, "short"),
    "copy_file_range": (errno.EIO, errno.ENOSPC, "short"),
    "fsync": (errno.EIO,),
    "rename": (errno.EIO, errno.ENOSPC),
    "mkdir": (errno.ENOSPC,),
    "unlink": (errno.EIO,),
}


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    if "musl" in subprocess.run(["ldd", "--version"], capture_output=True, text=True).stderr:
        pytest.skip("needs a C library that is not musl")
    target = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).with_name("shim.c")
    command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(target), str(source), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return target


def test_a_verb_that_met_an_error_is_finished_by_the_next(template: World, shim: Path) -> None:
    rng = random.Random(SEED)
    met = 0
    for number in range(ERRORS * 3):
        verb = rng.choice(VERBS)
        call = rng.choice(list(CALLS))
        how = rng.choice(CALLS[call])
        at = int(2 ** rng.uniform(0, 8))
        where = template.copy(verb, f"error{number}")
        log = where / "log"
        env = {
            **template.env,
            "LD_PRELOAD": str(shim),
            "FAULT_CALL": call,
            "FAULT_HOW": str(how),
            "FAULT_AT": str(at),
            "FAULT_UNDER": str(where),
            "FAULT_LOG": str(log),
        }
        command = [*DVKF, *verb.command]
        done = subprocess.run(command, cwd=where / "r", env=env, capture_output=True, text=True, timeout=300)
        if log.exists():
            met += 1
            told = f"{verb.name}, {call} {at}: {how} (seed {SEED}, {number})"
            assert "Traceback" not in done.stderr, (told, done.stderr)
            if how == "short":
                assert done.returncode == 0 or verb.name in ("verify", "gc"), (told, done.stderr)
            problems = template.finish(where, verb)
            assert not problems, f"{told}: rc {done.returncode} {done.stderr[-400:]}\n{label(problems)}"
        discard(where)
        if met == ERRORS:
            break
    print(f"{met} errors met")
    assert met >= ERRORS // 2
