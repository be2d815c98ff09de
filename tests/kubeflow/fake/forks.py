"""Processes that start in milliseconds: a host that has imported KFP and the project forks them.

`Host.popen` takes the place of `subprocess.Popen`. A pod's command (``python3 -m kfp.dsl.executor_main``) runs KFP's
own executor in the fork, on the source that the container brings. Other commands are executed as they are. So a pod is
a process as before, with its own session, environment and exit code; only the imports are shared.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_EXECUTOR = "-m kfp.dsl.executor_main"
_CALL = "call:"
# The folder of this file has a module ``platform``, so it must not be searched.
_BOOT = "import runpy, sys; sys.path.pop(0); runpy.run_path(sys.argv[1], run_name='__main__')"


class Forked:
    """A process that the host started; the part of `subprocess.Popen` that is used."""

    def __init__(self, pid: int, host: Host) -> None:
        self.pid = pid
        self._host = host

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        return self._host.codes.get(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit code."""
        with self._host.changed:
            if not self._host.changed.wait_for(lambda: self.pid in self._host.codes, timeout):
                raise subprocess.TimeoutExpired([str(self.pid)], timeout or 0)
        return self._host.codes[self.pid]

    def kill(self) -> None:
        """End the process at once."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class Host:
    """The process that forks; a context manager."""

    def __init__(self) -> None:
        self.codes: dict[int, int] = {}
        self.changed = threading.Condition()
        self._started: list[int] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Host:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._thread.join(20)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def popen(
        self, argv: Sequence[str], *, cwd: Path, env: dict[str, str], stdout: Any, **more: Any
    ) -> Forked:
        """Start a command; its output is appended to the file ``stdout``."""
        # As the stage's container since KFP 2.16 (v2/driver/security_context.go).
        dropped = bool(more.get("drops_capabilities"))
        job = {"argv": list(argv), "cwd": str(cwd), "env": env, "log": stdout.name, "dropped": dropped}
        return self._start(job)

    def call(
        self, file: str, function: str, *arguments: Any, cwd: Path, env: dict[str, str], log: Path
    ) -> Forked:
        """Start a function of a Python file with arguments that JSON can hold."""
        argv = [_CALL, file, function, json.dumps(arguments)]
        return self._start({"argv": argv, "cwd": str(cwd), "env": env, "log": str(log)})

    def _start(self, job: dict[str, Any]) -> Forked:
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
            with self.changed:
                if not self.changed.wait_for(lambda: self._started, 60):
                    raise AssertionError("the host of processes does not answer")
                return Forked(self._started.pop(), self)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            pid, code = json.loads(line)
            with self.changed:
                if code is None:
                    self.codes.pop(pid, None)  # of an earlier process with the same number
                    self._started.append(pid)
                else:
                    self.codes[pid] = code
                self.changed.notify_all()


# -- the host's process ------------------------------------------------------------------------------------------------


def _serve() -> None:
    if os.environ.get("DVKF_MUTANT"):
        _load(str(Path(__file__).parents[1] / "mutants.py"), "apply")  # its import puts the mutant in place
    import kfp.compiler
    import kfp.dsl.executor_main
    import kfp.kubernetes  # noqa: F401

    import dvkf_prefect.kubeflow.cluster.runner
    import dvkf_prefect.kubeflow.pod.pod
    import dvkf_prefect.pipeline.run.repro
    import dvkf_prefect.repo  # noqa: F401

    woken, wakes = os.pipe()
    for end in (woken, wakes):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    running: set[int] = set()
    pending = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            with suppress(BlockingIOError):
                os.read(woken, 4096)
        for pid in list(running):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                running.discard(pid)
                _say(pid, os.waitstatus_to_exitcode(status))
        if 0 not in ready:
            continue
        data = os.read(0, 1 << 20)
        if not data:
            break
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(woken)
                os.close(wakes)
                _become(json.loads(line))
            with suppress(PermissionError, ProcessLookupError):
                os.setpgid(pid, pid)
            running.add(pid)
            _say(pid, None)
    for pid in running:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _say(pid: int, code: int | None) -> None:
    os.write(1, json.dumps([pid, code]).encode() + b"\n")


def _become(job: dict[str, Any]) -> None:
    """Run a job in the fork, and end the process."""
    code = 1
    try:
        with suppress(PermissionError):
            os.setsid()
        log = os.open(job["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.environ.clear()
        os.environ.update(job["env"])
        os.chdir(job["cwd"])
        tempfile.tempdir = None
        if job.get("dropped"):
            _drop_capabilities()
        argv = job["argv"]
        if argv[0] == _CALL:
            _load(argv[1], argv[2])(*json.loads(argv[3]))
        elif argv[:2] == ["sh", "-ec"] and _EXECUTOR in argv[2] and "pip install" not in argv[2]:
            _execute(argv[3], argv[4:])
        else:
            os.execvp(argv[0], argv)
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _drop_capabilities() -> None:
    """Give up every capability for this process and all that it starts (``drop: [ALL]``, no privilege escalation)."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(64):
        libc.prctl(
            24, capability, 0, 0, 0
        )  # PR_CAPBSET_DROP; fails for numbers that the kernel does not have
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.prctl(38, 1, 0, 0, 0) or libc.capset(header, none):  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "the capabilities cannot be dropped")


def _load(file: str, function: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)


def _execute(source: str, arguments: Sequence[str]) -> None:
    """Do as the container's command: write the source to a file, and let KFP's executor run it."""
    from kfp.dsl import executor_main

    file = Path(tempfile.mkdtemp()) / "ephemeral_component.py"
    file.write_text(source)
    os.environ["_KFP_RUNTIME"] = "true"
    sys.argv = ["executor_main", "--component_module_path", str(file), *arguments]
    executor_main.executor_main()


if __name__ == "__main__":
    _serve()
