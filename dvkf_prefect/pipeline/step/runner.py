"""Execution of stages: the contract of a runner, and the runner of plain child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, runtime_checkable

from dvkf_prefect.errors import ParseError, RunnerError, StageCancelledError
from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.leftovers import OwnedFolder, sweep
from dvkf_prefect.pipeline.step.commands import PYTHONPATH_VARIABLE
from dvkf_prefect.pipeline.step.spec import StepResult, StepSpec
from dvkf_prefect.processes import leash

# Prefix that identifies folders of killed runs; the next run removes them.
_PREFIX = "dvkf-stages-"


class StageRun(Protocol):
    """One running stage."""

    def wait(self, timeout: float | None = None) -> StepResult:
        """Wait for the stage's end and return its result.

        Args:
            timeout: Seconds; None waits without a limit.

        Raises:
            TimeoutError: The stage still runs.
            StageError: The stage failed; the class gives the kind of failure.
            StageCancelledError: `cancel` or the runner's ``close`` stopped it.
            RunnerError: The outcome is unknown.
        """

    def cancel(self) -> None:
        """Stop the stage and all its processes; `wait` then raises `StageCancelledError`."""


@runtime_checkable
class Interruptible(StageRun, Protocol):
    """A stage that can forward Ctrl-C to its command, as in a terminal."""

    def interrupt(self) -> None:
        """Forward Ctrl-C and return at once; `wait` still returns the result if the command succeeds."""


class Runner(Protocol):
    """Executor of stages, several at once; as a context manager it ends all of them on exit."""

    @property
    def name(self) -> str:
        """Name of the runner for users."""

    def start(self, spec: StepSpec) -> StageRun:
        """Start a stage and return at once."""

    def close(self) -> None:
        """Stop all running stages."""

    def __enter__(self) -> Runner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class BatchRunner(Runner, Protocol):
    """A runner that takes stages together with those they wait for, and starts each when its inputs are ready.

    A cluster runs them as one pipeline: outputs go from stage to stage by digest, without this machine. Any other
    runner gets a stage only when all its inputs are known.

    Attributes:
        fetches: True if a stage's objects are in the cache of its specification when `StageRun.wait` returns. If
            False, they are on the remote, and the result has their digests. Then only outputs that stay out of the
            cache are downloaded, to `StepResult.side_dir`.
    """

    fetches: bool

    def start_all(
        self, specs: Sequence[StepSpec], edges: Mapping[str, Sequence[str]] | None = None
    ) -> Mapping[str, StageRun]:
        """Start stages that may depend on each other; return when they are submitted.

        Args:
            specs: The stages, in any order. A dependency's digest is ignored if another of these stages writes it;
                `StepResult.deps` then has the actual one.
            edges: Additional predecessors by stage address, besides the writers of its inputs.

        Returns:
            The run of each stage by its address. ``wait`` returns as soon as that stage has ended. If one fails, the
            stages that need it raise `StageCancelledError`; others may, too. ``cancel`` of one cancels all.

        Raises:
            StageGraphError: The stages do not form a graph.
            RunnerError: The stages could not be started.
        """


@runtime_checkable
class Keeper(Protocol):
    """A runner whose results outlive it, such as on a remote, until they are recorded."""

    def keep(self, stage: str) -> None:
        """Keep the result of a stage that could not be recorded here, so that the next start takes it.

        Args:
            stage: Address of a stage whose `StageRun.wait` has returned.
        """


@contextmanager
def kept_on_failure(runner: Runner, stage: str) -> Iterator[None]:
    """Let the runner keep a stage's result if the body, which records it, raises.

    Args:
        runner: The runner of the stage.
        stage: Address of the stage.
    """
    try:
        yield
    except BaseException:
        if isinstance(runner, Keeper):
            runner.keep(stage)
        raise


def runs_in_place(runner: Runner, stage: Stage) -> bool:
    """Return True if a stage runs in the workspace: the runner does so and the stage allows it.

    Args:
        runner: The runner; without an ``in_place`` attribute it gives each stage a clean folder.
        stage: The stage; ``meta: {dvkf: {hermetic: true}}`` requests a clean folder.
    """
    return bool(getattr(runner, "in_place", False)) and not is_hermetic(stage)


def is_hermetic(stage: Stage) -> bool:
    """Return True if a stage requests a clean folder.

    Args:
        stage: The stage.

    Raises:
        ParseError: ``meta.dvkf`` has an unknown key or value.
    """
    values = stage.meta.get("dvkf") if isinstance(stage.meta, Mapping) else None
    if values is None:
        return False
    if not isinstance(values, Mapping) or not set(values) <= {"hermetic"}:
        raise ParseError(stage.file, f"stage '{stage.address}', key 'meta.dvkf': expected only `hermetic`")
    hermetic = values.get("hermetic", False)
    if not isinstance(hermetic, bool):
        raise ParseError(
            stage.file, f"stage '{stage.address}', key 'meta.dvkf.hermetic': expected true or false"
        )
    return hermetic


def is_lenient(runner: Runner, stage: Stage) -> bool:
    """Return True if a stage in a work folder may write more than its outputs: no clean folder is requested.

    Args:
        runner: The runner.
        stage: The stage.
    """
    return not (getattr(runner, "hermetic", False) or is_hermetic(stage))


class LocalRunner:
    """Runner that gives each stage a child process with its own session; the child dies with this process.

    Args:
        echo: Pass the stages' output through to this process's own.
        in_place: True runs stages in the workspace, as DVC does; False gives each a clean folder.
        patience: Seconds for an interrupted command to end by itself, before SIGTERM and then SIGKILL.

    Example:
        >>> import tempfile
        >>> from dvkf_prefect.pipeline.step.spec import StepOutput, StepSpec
        >>> spec = StepSpec("greet", ("echo hello > x",), tempfile.mkdtemp(), outs=(StepOutput("x"),))
        >>> with LocalRunner(echo=False) as runner:
        ...     runner.start(spec).wait(60).exit_code
        0
    """

    name = "local"

    def __init__(self, *, echo: bool = True, in_place: bool = True, patience: float = 30.0) -> None:
        self._echo = echo
        self._patience = patience
        self.in_place = in_place
        self.hermetic = not in_place
        import tempfile  # slow to import

        sweep(tempfile.gettempdir(), _PREFIX)
        self._folder = OwnedFolder(tempfile.gettempdir(), _PREFIX)
        self._folder.path.chmod(0o700)
        self._runs: list[_ProcessRun] = []
        self._lock = threading.Lock()

    def start(self, spec: StepSpec) -> StageRun:
        """Start a stage and return at once."""
        with self._lock:
            place = self._folder.path / str(len(self._runs))
            place.mkdir()
            run = _ProcessRun(spec, place, self, echo=self._echo, patience=self._patience)
            self._runs.append(run)
        return run

    def close(self) -> None:
        """Stop all running stages."""
        for run in self._runs:
            run.cancel()
        self._folder.release()

    def __enter__(self) -> LocalRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _ProcessRun:
    def __init__(
        self, spec: StepSpec, place: Path, runner: LocalRunner, *, echo: bool, patience: float
    ) -> None:
        self._patience = patience
        self._timer: threading.Timer | None = None
        self._runner = (
            runner  # keeps the runner's folder, which holds the result, until the run is no longer used
        )
        self._stage = spec.stage
        self._result = place / "result.json"
        (place / "spec.json").write_text(spec.to_json())
        self._cancelled = False
        output = None if echo else subprocess.DEVNULL
        self._process = leash.LeashedProcess(
            leash.module_argv("dvkf_prefect.pipeline.step.step", "spec.json", "result.json"),
            cwd=place,
            env=_environment(),
            stdout=output,
            stderr=output,
        )

    def wait(self, timeout: float | None = None) -> StepResult:
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"stage '{self._stage}' is still running after {timeout:.0f} s") from None
        if self._timer is not None:
            self._timer.cancel()
        if self._result.exists():
            result = StepResult.from_json(self._result.read_bytes())
            result.check()
            return result
        if self._cancelled:
            raise StageCancelledError(f"stage '{self._stage}' was stopped before its end")
        raise RunnerError(
            f"the process that ran stage '{self._stage}' ended with exit code {code} and no result"
        )

    def cancel(self) -> None:
        if self._process.poll() is None:
            self._cancelled = True
            leash.end(self._process)

    def interrupt(self) -> None:
        """Forward Ctrl-C and return at once; the command may still succeed."""
        if self._process.poll() is None and self._timer is None:
            self._cancelled = True
            self._process.send_signal(signal.SIGINT)
            self._timer = threading.Timer(self._patience, self.cancel)
            self._timer.daemon = True
            self._timer.start()


def _environment() -> dict[str, str]:
    """Return the child's environment, in which it finds this same package."""
    package = str(Path(__file__).resolve().parents[3])
    if package not in sys.path or "site-packages" in package:
        return dict(os.environ)
    inherited = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join([package, *([inherited] if inherited else [])])
    return {**os.environ, "PYTHONPATH": path, PYTHONPATH_VARIABLE: inherited}
