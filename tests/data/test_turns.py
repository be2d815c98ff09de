"""Turns in a workspace: a flow has it alone, commands that run stages share it, and each wait ends."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

import pytest
from processes import wait_until
from repos import make_repo

from dvkf_prefect.data.repository.turns import turn
from dvkf_prefect.errors import LockedError
from dvkf_prefect.repo import Repo


def taken(path: Path, holder: str = "") -> bool:
    """Return True if a caller with a context of its own does not get the turn."""
    found: list[bool] = []

    def attempt() -> None:
        try:
            with turn(path, holder=holder, timeout=0):
                found.append(False)
        except LockedError:
            found.append(True)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return found[0]


def test_one_has_it_alone_and_others_share_it(tmp_path: Path) -> None:
    path = tmp_path / "tmp/turn"
    with turn(path):
        assert (taken(path), taken(path, "flow run 'b'")) == (False, True)
    with turn(path, holder="flow run 'a'"):
        assert (taken(path), taken(path, "flow run 'b'")) == (True, True)
        # What belongs to the holder passes: a call inside, a thread with a copy of its context.
        with turn(path), turn(path, holder="flow run 'a'"):
            pass
        inner: list[None] = []

        def call() -> None:
            with turn(path, holder="flow run 'c'", timeout=0):
                inner.append(None)

        thread = threading.Thread(target=copy_context().run, args=(call,))
        thread.start()
        thread.join()
        assert inner and taken(path)
    assert not taken(path, "flow run 'b'")


def test_a_coroutine_does_not_wait_for_another_of_its_thread(tmp_path: Path) -> None:
    """Two async flows of one event loop stood still for the whole timeout, by default a day."""

    async def have_it(taken: asyncio.Event, ended: asyncio.Event) -> None:
        with turn(tmp_path / "turn", holder="flow run 'a'"):
            taken.set()
            await ended.wait()

    async def attempt() -> None:
        taken, ended = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(have_it(taken, ended))
        await taken.wait()
        with pytest.raises(LockedError, match=r"flow run 'a' .*of this thread, so a wait would never end"):
            with turn(tmp_path / "turn", holder="flow run 'b'"):
                pass
        ended.set()
        await first
        with turn(tmp_path / "turn", holder="flow run 'b'", timeout=0):
            pass

    asyncio.run(attempt())


def test_a_wait_names_the_holder_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "turn"
    with turn(path, holder="flow run '\x1b[31mred'"):
        said: list[str] = []

        def attempt() -> None:
            with pytest.raises(
                LockedError, match=r"workspace in use: .*, by flow run .*, for 0 s\. Let it finish"
            ):
                with turn(path, timeout=0.3, on_wait=said.append):
                    pass

        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    assert len(said) == 1 and "\x1b" not in said[0]


def test_a_wait_names_the_commands_that_share_it_and_no_killed_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flow that waited for a shell was told of the killed flow before, or of no one."""
    path = tmp_path / "turn"
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    dead = f"alone\t{ended.stdout.strip()}\t{platform.node()}\tflow run 'killed'\n"
    path.write_text(dead)
    monkeypatch.setattr(sys, "argv", ["/bin/dvkf", "repro", "--set-param", "token=secret"])
    with turn(path):
        with path.open("a") as file:
            file.write(f"shared\t7\tother-host\t`train.py`\n{dead}")
        with ThreadPoolExecutor() as pool, pytest.raises(LockedError) as error:
            pool.submit(_attempt, path).result()
        said = f"by `dvkf repro` (process {os.getpid()}), `train.py` (process 7 on other-host), for 0 s."
        assert said in str(error.value)
    assert path.read_text() == "shared\t7\tother-host\t`train.py`\n"


def _attempt(path: Path) -> None:
    with turn(path, holder="flow run 'b'", timeout=0):
        pass


_HOLD = """
import sys, time
from pathlib import Path
from dvkf_prefect.data.repository.turns import turn
with turn(Path(sys.argv[1]), holder="flow run 'a'"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_stages_wait_for_a_flow_and_a_killed_one_is_no_obstacle(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "r", {"dvc.yaml": "stages:\n  a:\n    cmd: echo 1 > a\n    outs: [a]\n"})
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(repo.turn_file)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        ran: list[tuple[str, ...]] = []
        thread = threading.Thread(target=lambda: ran.append(Repo.open(repo.root).repro().ran))
        thread.start()
        wait_until(lambda: taken(repo.turn_file), 60)
        assert not ran and thread.is_alive()
        holder.send_signal(signal.SIGKILL)
        thread.join(60)
    assert ran == [("a",)]
