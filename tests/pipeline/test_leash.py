"""A leashed program never outlives the process that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from processes import alive, wait_until

from dvkf_prefect.processes import leash


def pids_in(path: Path, count: int) -> list[int]:
    def read():
        pids = path.read_text().split() if path.exists() else []
        return [int(p) for p in pids] if len(pids) == count else None

    return wait_until(read)


# A shell that starts a child and a grandchild and records all three.
FAMILY = "echo $$ >> {0}; (sleep 300 & echo $! >> {0}; exec sleep 301) & echo $! >> {0}; sleep 302"


def test_sigkill_of_the_parent_takes_the_grandchildren(tmp_path):
    pids = tmp_path / "pids"
    script = textwrap.dedent(f"""
        import threading
        from dvkf_prefect.processes import leash
        # Started from a thread that ends at once: the bond is to the process, not to the thread.
        started = []
        argv = ["sh", "-c", {FAMILY.format(pids)!r}]
        t = threading.Thread(target=lambda: started.append(leash.LeashedProcess(argv)))
        t.start(); t.join()
        started[0].wait()
    """)
    parent = subprocess.Popen([sys.executable, "-c", script])
    try:
        family = pids_in(pids, 3)
        assert all(alive(pid) for pid in family)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not any(alive(pid) for pid in family))


def test_end_stops_the_whole_group_even_if_it_ignores_sigterm(tmp_path):
    pids = tmp_path / "pids"
    process = leash.LeashedProcess(["sh", "-c", "trap '' TERM; " + FAMILY.format(pids)])
    family = pids_in(pids, 3)
    assert leash.end(process, grace=0.1) == -signal.SIGKILL
    wait_until(lambda: not any(alive(pid) for pid in family))


def test_end_lets_a_program_finish_in_its_own_way(tmp_path):
    process = leash.LeashedProcess(
        ["sh", "-c", f"trap 'exit 7' TERM; echo $$ >> {tmp_path}/pids; while :; do sleep 0.1; done"]
    )
    pids_in(tmp_path / "pids", 1)
    assert leash.end(process, grace=30) == 7
    assert leash.end(process) == 7


def test_what_a_program_leaves_behind_ends_with_it(tmp_path):
    pids = tmp_path / "pids"
    process = leash.LeashedProcess(["sh", "-c", f"sleep 300 & echo $! > {pids}"])
    assert process.wait(30) == 0
    (left,) = pids_in(pids, 1)
    wait_until(lambda: not alive(left))


def test_output_ends_with_the_program_and_exit_codes_come_through():
    process = leash.LeashedProcess(["sh", "-c", "echo out; echo err >&2; exit 3"], stdout=-1, stderr=-1)
    assert process.communicate(timeout=30) == (b"out\n", b"err\n")
    assert process.returncode == 3


def test_the_program_sees_an_ordinary_world(tmp_path):
    """Its children are its own, and SIGPIPE ends a writer as everywhere else."""
    code = "import os\ntry: os.wait(); print('not mine')\nexcept ChildProcessError: print('none')"
    process = leash.LeashedProcess([sys.executable, "-c", code], stdout=-1)
    assert process.communicate(timeout=30)[0] == b"none\n"
    process = leash.LeashedProcess(
        ["sh", "-c", "(yes; echo $? >&2) | head -1"], stdout=-1, stderr=-1, cwd=tmp_path
    )
    assert process.communicate(timeout=30) == (b"y\n", b"141\n")


def test_a_program_that_does_not_exist():
    process = leash.LeashedProcess(["/no/such/program"], stderr=-1)
    assert process.communicate(timeout=30)[1] == b"/no/such/program: No such file or directory\n"
    assert process.returncode == 127


def test_many_at_once_from_threads(tmp_path):
    codes: list[int] = []

    def one(n: int) -> None:
        codes.append(leash.LeashedProcess(["sh", "-c", f"exit {n}"]).wait(60))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(codes) == list(range(12))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_on_a_leash_dies_with_its_parent_and_not_before(tmp_path):
    """A child forked later must hold no end of an earlier one's leash, or that one would live on."""
    pids = tmp_path / "pids"
    script = textwrap.dedent(f"""
        import os, time
        from dvkf_prefect.processes.leash import Leash
        bonds = []
        for _ in range(2):
            bond = Leash()
            pid = os.fork()
            if pid == 0:
                os.setsid()
                bond.follow()
                time.sleep(300)
            bond.hold()
            bonds.append(bond)
            with open({str(pids)!r}, "a") as f:
                f.write(f"{{pid}}\\n")
        time.sleep(300)
    """)
    parent = subprocess.Popen([sys.executable, "-c", script])
    family = pids_in(pids, 2)
    assert all(alive(pid) for pid in family)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not any(alive(pid) for pid in family))
    assert os.getpid() not in family
