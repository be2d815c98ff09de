"""Commands of a stage: their shell, their environment and their output."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import IO

from dvkf_prefect.errors import StageCancelledError, StageFailedError
from dvkf_prefect.pipeline.step.distributed import launcher, without_torch
from dvkf_prefect.pipeline.step.spec import StepSpec
from dvkf_prefect.processes import leash

PYTHONPATH_VARIABLE = "DVKF_STAGE_PYTHONPATH"
"""Variable with the commands' PYTHONPATH, set by a starter that changes its own for this process."""

_TAIL_BYTES = 16_384
_TAIL_LINES = 60
_TERMINAL_CODES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_INTERRUPTED = "the stage was interrupted before its end"
_SHELL_FLAGS = {"zsh": ["--no-rcs"], "bash": ["--noprofile", "--norc"]}


class Interrupts:
    """Ctrl-C handling of a process that runs one stage.

    The stage's command gets the interrupt, as with DVC in a terminal, and may still succeed.

    Attributes:
        came: True once an interrupt arrived.
    """

    def __init__(self) -> None:
        self.came = False
        self._process: leash.LeashedProcess | None = None

    def listen(self) -> None:
        """Forward interrupts of this process from now on; a process that ignores them continues to do so."""
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._take)

    def hand_to(self, process: leash.LeashedProcess | None) -> None:
        """Set the running command; an earlier interrupt is sent to it at once.

        Args:
            process: The command, or None for none.
        """
        self._process = process
        if process is not None and self.came:
            process.send_signal(signal.SIGINT)

    def _take(self, number: int, frame: object) -> None:
        self.came = True
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)


interrupts = Interrupts()
"""Interrupts of this process."""


class Commands:
    """The commands of a stage, run one after another.

    Args:
        spec: The stage.
        root: Folder that serves as the repository's root.

    Attributes:
        seconds: Running time of the commands.
        warnings: Notes on the way they ran.
    """

    def __init__(self, spec: StepSpec, root: Path) -> None:
        self._spec = spec
        self._root = root
        self._tail: deque[bytes] = deque()
        self.seconds = 0.0
        self.warnings: tuple[str, ...] = ()

    @property
    def log_tail(self) -> str:
        """Last lines of the commands' output, as plain text."""
        return clean_log(b"".join(self._tail))

    def run(self) -> None:
        """Run all commands.

        Raises:
            StageFailedError: A command failed; the commands after it were not run.
            StageCancelledError: A command was interrupted. If the last command succeeds in spite of it, the stage
                succeeds.
        """
        shell = os.environ.get("SHELL") or "/bin/sh"
        argv = [shell, *_flags(shell), "-c"]
        environment = self._environment()
        if (distributed := self._spec.distributed) is not None:
            start_all = launcher(distributed, environment)
            if not start_all:
                self.warnings = (f"stage '{self._spec.stage}': {without_torch(distributed, environment)}",)
            argv = [*start_all, *argv]
        log = open(self._spec.log, "wb", buffering=0) if self._spec.log else None  # noqa: SIM115 (closed below)
        start = time.monotonic()
        try:
            for command in self._spec.cmd:
                if interrupts.came:
                    raise StageCancelledError(_INTERRUPTED)
                self._say(f"> {command}\n".encode(), log, tail=False)
                code = self._run([*argv, command], environment, log)
                if code and interrupts.came:
                    raise StageCancelledError(_INTERRUPTED)
                if code:
                    raise StageFailedError(self._spec.stage, command, code, self.log_tail)
        finally:
            self.seconds = time.monotonic() - start
            if log:
                log.close()

    def _run(self, argv: list[str], environment: dict[str, str], log: IO[bytes] | None) -> int:
        process = leash.LeashedProcess(
            argv,
            env=environment,
            cwd=self._root / self._spec.wdir,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        interrupts.hand_to(process)
        reader = threading.Thread(target=self._read, args=(process.stdout, log), daemon=True)
        reader.start()
        try:
            # No timeout: a training may take days. The starter of the step ends it.
            return process.wait()
        finally:
            interrupts.hand_to(None)
            leash.end(process)
            reader.join(5)
            if process.stdout and not reader.is_alive():
                process.stdout.close()

    def _environment(self) -> dict[str, str]:
        """Return the environment as DVC builds it, with the module path of the run's starter."""
        environment = {**os.environ, **self._spec.env, "DVC_STAGE": self._spec.stage}
        if (path := environment.pop(PYTHONPATH_VARIABLE, None)) is not None:
            environment.pop("PYTHONPATH", None)
            if path:
                environment["PYTHONPATH"] = path
        if not self._spec.in_place or "DVC_ROOT" not in environment:
            environment["DVC_ROOT"] = str(self._root)
        return environment

    def _read(self, stream: IO[bytes], log: IO[bytes] | None) -> None:
        fd = stream.fileno()
        while chunk := os.read(fd, 65_536):
            self._say(chunk, log)

    def _say(self, chunk: bytes, log: IO[bytes] | None, *, tail: bool = True) -> None:
        if log:
            log.write(chunk)
        # A closed output of this process must not fail the stage.
        with suppress(OSError, ValueError):
            binary = getattr(sys.stdout, "buffer", None)
            if binary:
                binary.write(chunk)
            else:
                sys.stdout.write(chunk.decode(errors="replace"))
            sys.stdout.flush()
        if tail:
            self._tail.append(chunk)
            size = sum(map(len, self._tail))
            while len(self._tail) > 1 and size - len(self._tail[0]) >= _TAIL_BYTES:
                size -= len(self._tail.popleft())


def _flags(shell: str) -> list[str]:
    """Return the flags that keep a shell from reading its settings. Source: dvc/stage/run.py, ``_make_cmd``."""
    name = os.path.basename(shell).lower()
    if name == "fish":
        with suppress(OSError, ValueError, subprocess.SubprocessError):
            said = subprocess.run([shell, "--version"], capture_output=True, text=True, timeout=10).stdout
            major, minor = said.split()[-1].split(".")[:2]
            return ["--no-config"] if (int(major), int(minor)) >= (3, 3) else []
        return []
    return _SHELL_FLAGS.get(name, [])


def clean_log(data: bytes) -> str:
    """Return the end of a log as plain text: no terminal codes, only the last state of progress bars."""
    text = _TERMINAL_CODES.sub("", data[-2 * _TAIL_BYTES :].decode(errors="replace"))
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return "\n".join(lines[-_TAIL_LINES:])[-_TAIL_BYTES:]
