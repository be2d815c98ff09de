"""Verbs of data killed at any moment: nothing committed is lost, the next run completes, nothing is left."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from faults_world import DVKF, VERBS, Verb, World, discard, label
from processes import wait_until
from repos import make_repo
from servers import BlobHandler, web_server

from dvkf_prefect.repo import Repo

pytestmark = pytest.mark.timeout(7200)

# How many kills of each verb; FAULTS_KILLS=10 makes 300 in all, which takes half an hour.
KILLS = int(os.environ.get("FAULTS_KILLS", "1"))
_CONTAINED = {"add", "checkout", "push", "pull", "gc"}
# Those that write to the workspace and to the remote, and that delete.
_SHORT = {"checkout", "push", "gc"}


# `make test` kills one verb of each kind. The long tier kills all of them, some also in a container.
_CASES = [
    pytest.param(
        verb,
        apart,
        id=f"{verb.name}-{'container' if apart else 'here'}",
        marks=[] if verb.name in _SHORT and not apart else [pytest.mark.long],
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


def test_a_killed_push_is_resumed(tmp_path: Path) -> None:
    """It is killed when the remote has five of thirteen objects; the next sends the other eight, and those alone."""
    with web_server() as web, web_server() as second:
        root = tmp_path / "r"
        make_repo(root, {f"d/{n}": f"{n}\n" for n in range(12)}, remote=f"{web.url}/store", add=["d"])
        blobs = second.handler.blobs = web.handler.blobs
        lock, reached, killed = threading.Lock(), threading.Event(), threading.Event()
        put = web.handler.do_PUT

        def stored() -> set[str]:
            return {path for path in blobs if "/files/" in path}

        def keep_five(self: BlobHandler) -> None:
            with lock:
                if "/files/" not in self.path or len(stored()) < 5:
                    put(self)
                    return
            reached.set()
            killed.wait()
            self.close_connection = True

        web.handler.do_PUT = keep_five  # type: ignore[method-assign]
        process = subprocess.Popen([*DVKF, "push", "-q"], cwd=root, start_new_session=True)
        wait_until(lambda: reached.is_set() or process.poll() is not None)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        killed.set()
        before, sent = stored(), []

        def note(self: BlobHandler) -> None:
            sent.append(self.path)
            put(self)

        # The same store at another port: what the killed process had sent cannot arrive there.
        second.handler.do_PUT = note  # type: ignore[method-assign]
        config = root / ".dvc/config"
        config.write_text(config.read_text().replace(web.url, second.url))
        Repo.open(root).push()
    assert len(before) == 5
    assert len(stored()) == 13
    assert sorted(path for path in sent if "/files/" in path) == sorted(stored() - before)
