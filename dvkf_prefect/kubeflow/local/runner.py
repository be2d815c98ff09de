"""Runner for stages on KFP's own local runner, on this machine."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from dvkf_prefect import leftovers
from dvkf_prefect.data.git.command import Git
from dvkf_prefect.errors import RunnerError, StageCancelledError
from dvkf_prefect.kubeflow.compile.compile import task_names
from dvkf_prefect.leftovers import OwnedFolder
from dvkf_prefect.pipeline.step.step import StepResult, StepSpec, clean_log
from dvkf_prefect.processes import leash

_TAIL_BYTES = 2000
_NAME = 80
_STAMPED = re.compile(r"\d{8}T\d{6}\.\d{9}-")
# Seconds for the host to end by itself, in addition to its stages' grace.
_MARGIN = 10.0


class KfpLocalRun:
    """A running stage.

    Attributes:
        stage: Address of the stage.
        folder: Folder of KFP's files: ``kfp.log``, and its pipeline root ``pipeline``.
    """

    def __init__(self, stage: str, owned: OwnedFolder, host: _Host, number: int) -> None:
        self.stage = stage
        self.folder = owned.path
        self._owned = owned
        self._host = host
        self._number = number
        self._ended = threading.Event()
        self._cancelled = False
        self._problem = ""
        self._found: StepResult | None = None

    def __repr__(self) -> str:
        return f"<KfpLocalRun of stage {self.stage!r} in {self.folder}>"

    def wait(self, timeout: float | None = None) -> StepResult:
        """Wait for the stage's end.

        Args:
            timeout: Maximum number of seconds; None waits without a limit.

        Returns:
            The result of the stage.

        Raises:
            TimeoutError: The stage still runs.
            StageError: The stage failed; the class gives the kind of failure.
            StageCancelledError: `cancel` or the runner's ``close`` stopped it.
            RunnerError: KFP's local runner failed or was killed, so the outcome is unknown.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"stage '{self.stage}' is still running after {timeout:g} s")
        result = self._found
        if self._cancelled and (result is None or result.failed):
            raise StageCancelledError(f"stage '{self.stage}' was stopped before its end")
        if result is None:
            raise RunnerError(f"stage '{self.stage}' has no result: {self._problem}")
        result.check()
        return result

    def cancel(self) -> None:
        """Stop the stage: SIGTERM to all its processes, then SIGKILL if they linger; return at once."""
        if not self._ended.is_set():
            self._cancelled = True
            self._host.send({"cancel": self._number})

    def _end(self, problem: str, *, cancelled: bool = False) -> None:
        self._problem = problem + _tail(self.folder / "kfp.log")
        self._cancelled = self._cancelled or cancelled
        shutil.rmtree(self.folder / "tmp", ignore_errors=True)
        with suppress(OSError, ValueError, TypeError):  # a killed process may have written half of it
            self._found = StepResult.from_json((self.folder / "result.json").read_text(encoding="utf-8"))
        self._owned.release(keep=True)
        self._ended.set()


class KfpLocalRunner:
    """Runner that executes each stage as a KFP pipeline on KFP's local runner, several at the same time.

    One process imports KFP and forks a child with its own session for each stage. None of them outlives this process,
    even if it is killed. Nothing is started before the first stage.

    Args:
        root: Folder of KFP's pipeline roots and logs, with a subfolder for each stage run.
        keep: Number of folders of ended runs to keep, the newest.
        grace: Seconds between SIGTERM and SIGKILL when a stage is stopped.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> with KfpLocalRunner(Path(mkdtemp())) as runner:
        ...     runner.name
        'kubeflow-local'
    """

    name = "kubeflow-local"

    def __init__(self, root: Path, *, keep: int = 50, grace: float = 10.0) -> None:
        self.root = Path(os.path.abspath(root))
        self._keep = keep
        self._grace = grace
        self._lock = threading.Lock()
        self._host: _Host | None = None
        self._closed = False

    def __enter__(self) -> KfpLocalRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, spec: StepSpec) -> KfpLocalRun:
        """Start a stage; return at once.

        Args:
            spec: The stage. Its log is written to ``spec.log``, or to ``stage.log`` in the run's folder if that is
                None.

        Returns:
            The run to wait for.

        Raises:
            RunnerError: The runner is closed.
        """
        with self._lock:
            if self._closed:
                raise RunnerError(f"stage '{spec.stage}' cannot start: the runner is closed")
            if self._host is None or self._host.ended:
                self._sweep()
                self._host = _Host(self._folder("host"), self._grace)
            host = self._host
            folder = self._folder(task_names([spec.stage])[spec.stage])
        # The stage runs in another folder than this process.
        spec = replace(
            spec,
            cache_dir=os.path.abspath(spec.cache_dir),
            workspace=spec.workspace and os.path.abspath(spec.workspace),
            log=os.path.abspath(spec.log or folder.path / "stage.log"),
            sources=_sources(spec),
        )
        return host.start(spec, folder)

    def close(self) -> None:
        """Stop all running stages and end the host process; a second call does nothing."""
        with self._lock:
            self._closed = True
            host, self._host = self._host, None
        if host is not None:
            host.close()
            self._sweep()

    def _folder(self, name: str) -> OwnedFolder:
        moment = time.time_ns()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(moment // 10**9))
        return OwnedFolder(self.root, f"{stamp}.{moment % 10**9:09d}-{name[:_NAME]}-")

    def _sweep(self) -> None:
        """Remove the folders of old runs, except those held by a process."""
        with suppress(FileNotFoundError):
            folders = sorted((f for f in self.root.iterdir() if _STAMPED.match(f.name)), reverse=True)
            for folder in folders[self._keep :]:
                leftovers.discard(str(folder))


class _Host:
    """The host process (`local.host`) and its running stages."""

    def __init__(self, owned: OwnedFolder, grace: float) -> None:
        self.ended = False
        folder = owned.path
        self._owned = owned
        self._grace = grace
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._runs: dict[int, KfpLocalRun] = {}
        self._closing = False
        self._log = folder / "host.log"
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        with self._log.open("wb") as log:
            self._process = leash.LeashedProcess(
                leash.module_argv("dvkf_prefect.kubeflow.local.host", str(grace)),
                env=environment,
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._reader = threading.Thread(target=self._read, name="kfp-local-host", daemon=True)
        self._reader.start()

    def start(self, spec: StepSpec, folder: OwnedFolder) -> KfpLocalRun:
        with self._lock:
            number = next(self._numbers)
            run = KfpLocalRun(spec.stage, folder, self, number)
            if self.ended:
                run._end(self._problem())
                return run
            self._runs[number] = run
        self.send(
            {
                "start": number,
                "spec": spec.to_json(),
                "folder": str(run.folder),
                "environment": dict(os.environ),
            }
        )
        return run

    def send(self, request: dict[str, Any]) -> None:
        # A dead host closes its output too, and the reader then ends every run.
        with self._lock, suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def close(self) -> None:
        with self._lock:
            self._closing = True
        self._hang_up()
        self._reader.join(self._grace + _MARGIN)
        if self._reader.is_alive():
            # The host hangs; its leash kills its children with it.
            self._process.kill()
            self._reader.join(30)

    def _read(self) -> None:
        """End runs as the host reports them, and all remaining runs when the host has ended."""
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                answer = json.loads(line)
                with self._lock:
                    run = self._runs.pop(answer["done"])
                run._end(f"KFP's local runner {_outcome(answer['code'])}", cancelled=self._closing)
        self._process.wait()
        self._hang_up()
        self._owned.release(keep=True)
        with self._lock:
            self.ended = True
            left = list(self._runs.values())
            self._runs.clear()
        for run in left:
            run._end(self._problem(), cancelled=self._closing)

    def _hang_up(self) -> None:
        # Without the lock: a host that does not read may block a writer that holds it.
        with suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def _problem(self) -> str:
        return f"the process that runs KFP's local runner {_outcome(self._process.wait())}{_tail(self._log)}"


def _sources(spec: StepSpec) -> str | None:
    """Return the workspace, whose git-tracked files are the sources; None without git."""
    if spec.workspace is None or Git.find(Path(spec.workspace)) is None:
        return None
    return os.path.abspath(spec.workspace)


def _outcome(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _tail(log: Path) -> str:
    """Return the last lines of a log as part of a message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = clean_log(file.read()).strip()
    except FileNotFoundError:
        text = ""
    return f". The end of {log}:\n{text}" if text else ""
