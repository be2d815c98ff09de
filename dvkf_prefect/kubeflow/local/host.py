"""Host process that keeps KFP imported and forks a child for every stage.

KFP's local runner is one per process. It replaces ``builtins.print`` and the root logger's handlers, and SIGTERM
leaves its step running. So each stage gets a child with its own session. The child is forked from a host that
imported KFP once and has no threads.

``python -m dvkf_prefect.kubeflow.local.host GRACE`` reads requests as JSON lines from standard input: ``{"start": id,
"spec": StepSpec, "folder": path, "environment": {…}}`` and ``{"cancel": id}``. When a child and its group have ended,
it writes ``{"done": id, "code": exit code}`` to standard output. The end of the input ends all children and then the
host.
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import signal
import sys
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvkf_prefect.kubeflow.compile.compile import compile_stages
from dvkf_prefect.kubeflow.pod import kfp_task
from dvkf_prefect.pipeline.step.step import StepOutput, StepSpec
from dvkf_prefect.processes.leash import Leash

# Variables that KFP's side of a task must not inherit, and a stage's command gets back: see `kfp_task.run`.
_APART = ("PYTHONDONTWRITEBYTECODE", "PYTHONWARNINGS", "TMPDIR")
_REMINDER = 0.1  # seconds


@dataclass
class _Child:
    number: int
    pid: int
    pidfd: int
    leash: Leash
    deadline: float | None = None


class _Host:
    """Loop over requests and children.

    Args:
        grace: Seconds between a child's SIGTERM and its SIGKILL.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._children: dict[int, _Child] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(0, selectors.EVENT_READ)
        self._open = True

    def serve(self) -> None:
        buffer = b""
        while self._open or self._children:
            for key, _ in self._selector.select(self._patience()):
                if key.fd != 0:
                    self._reap(self._children[key.data])
                elif data := os.read(0, 1 << 16):
                    *lines, buffer = (buffer + data).split(b"\n")
                    for line in lines:
                        self._handle(json.loads(line))
                else:
                    self._open = False
                    self._selector.unregister(0)
                    for child in self._children.values():
                        self._end(child)
            for child in self._children.values():
                if child.deadline is not None:
                    # Repeated: the first signal may have arrived before KFP started its step.
                    if child.deadline <= time.monotonic():
                        child.leash.hang_up()
                    else:
                        _signal(child.pid, signal.SIGTERM)

    def _patience(self) -> float | None:
        return _REMINDER if any(c.deadline is not None for c in self._children.values()) else None

    def _handle(self, request: dict[str, Any]) -> None:
        if "start" in request:
            self._start(request["start"], request)
        elif child := self._children.get(request["cancel"]):
            self._end(child)

    def _start(self, number: int, request: dict[str, Any]) -> None:
        leash = Leash()
        try:
            pid = os.fork()
        except OSError as error:
            leash.close()
            Path(request["folder"], "kfp.log").write_text(f"cannot start another process: {error}\n")
            _answer(number, 1)
            return
        if pid == 0:
            self._become_child(leash, request)
        leash.hold()
        child = _Child(number, pid, os.pidfd_open(pid), leash)
        self._children[number] = child
        self._selector.register(child.pidfd, selectors.EVENT_READ, number)

    def _become_child(self, leash: Leash, request: dict[str, Any]) -> None:
        """Run one stage; does not return."""
        code = 1
        try:
            os.setsid()
            leash.follow()
            # A handler, not SIG_IGN: exec resets it. KFP's step gets the signal too, and this process waits for it.
            signal.signal(signal.SIGTERM, lambda *_: None)
            null = os.open(os.devnull, os.O_RDONLY)
            log = os.open(Path(request["folder"], "kfp.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            for source, target in ((null, 0), (log, 1), (log, 2)):
                os.dup2(source, target)
            os.close(null)
            os.close(log)
            self._selector.close()
            for child in self._children.values():
                os.close(child.pidfd)
            _run(StepSpec.from_json(request["spec"]), Path(request["folder"]), request["environment"])
            code = 0
        except BaseException:  # noqa: BLE001 (on any error this process must end here, not in the host's loop)
            traceback.print_exc()
        finally:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _end(self, child: _Child) -> None:
        if child.deadline is None:
            child.deadline = time.monotonic() + self._grace

    def _reap(self, child: _Child) -> None:
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        _, status = os.waitpid(child.pid, 0)
        child.leash.close()
        del self._children[child.number]
        _answer(child.number, os.waitstatus_to_exitcode(status))


def _signal(pid: int, number: int) -> None:
    """Signal a child's group, or the child alone before it leads one."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _answer(number: int, code: int) -> None:
    os.write(1, json.dumps({"done": number, "code": code}).encode() + b"\n")


def _run(step: StepSpec, folder: Path, environment: dict[str, str]) -> None:
    """Compile one stage and run it by KFP's local runner, with the environment of the stage's starter."""
    from kfp import components, local

    warnings.simplefilter("ignore")  # about settings for clusters only
    spec = compile_stages([step], name=step.stage, folder=folder)
    temporary = folder / "tmp"
    temporary.mkdir()
    result = folder / "result.json"
    apart = {key: environment.pop(key, None) for key in _APART}
    os.environ.clear()
    os.environ.update(environment | kfp_task.local_environment(result, apart | dict(step.env)))
    os.environ["TMPDIR"] = str(temporary)
    os.chdir(temporary)
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(folder / "pipeline"),
        workspace_root=str(temporary / "workspace"),
        raise_on_error=True,
        enable_caching=False,
    )
    components.load_component_from_text(json.dumps(spec))()


def main(arguments: list[str]) -> None:
    """Serve requests until the input ends.

    Args:
        arguments: One element, the seconds between SIGTERM and SIGKILL.
    """
    _warm_up()
    _Host(float(arguments[0])).serve()


def _warm_up() -> None:
    """Import and initialise what every child needs, so that children share its memory."""
    from kfp import components

    step = StepSpec("warm-up", ("true",), "/", outs=(StepOutput("m", kind="metric"),))
    components.load_component_from_text(json.dumps(compile_stages([step], name="warm-up")))
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    main(sys.argv[1:])
