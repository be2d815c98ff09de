"""What a stage's run needs, and what it gives back: plain values that travel as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dvkf_prefect import errors
from dvkf_prefect.errors import DvkfError, RunnerError, StageFailedError

# Where, in a stage's own folder, its copy of the repository is.
WORK = "work"


@dataclass(frozen=True, slots=True)
class StepDependency:
    """A dependency, by content.

    Attributes:
        path: Posix, relative to the repository's root.
        digest: md5 in hex, with ``.dir`` for a directory.
        size: Bytes.
        isexec: Whether a single file may be executed.
        nfiles: Number of files of a directory, where it is known.
    """

    path: str
    digest: str
    size: int = 0
    isexec: bool = False
    nfiles: int | None = None


@dataclass(frozen=True, slots=True)
class StepOutput:
    """An output that the command must write.

    Attributes:
        path: Posix, relative to the repository's root.
        cached: False keeps it out of the cache; its content then waits in `StepResult.side_dir`.
        kind: ``out``, ``metric`` or ``plot``.
        previous: The digest of the content that a persistent output has when the command starts.
        isexec: Whether that content is an executable file.
        persist: Whether the output is kept where it is when the command starts, and when it fails.
    """

    path: str
    cached: bool = True
    kind: str = "out"
    previous: str | None = None
    isexec: bool = False
    persist: bool = False


@dataclass(frozen=True, slots=True)
class StepContent:
    """An output as the command wrote it.

    Attributes:
        path: Posix, relative to the repository's root.
        digest: md5 in hex, with ``.dir`` for a directory.
        size: Bytes; of a directory the sum.
        nfiles: Number of files of a directory, None for a file.
        isexec: Whether a single file may be executed.
        hash_name: ``md5``, or ``md5-dos2unix`` for what an entry of DVC 2.x recorded.
    """

    path: str
    digest: str
    size: int
    nfiles: int | None = None
    isexec: bool = False
    hash_name: str = "md5"


@dataclass(frozen=True, slots=True)
class StepKnown:
    """A run of the same commands and parameters that is known already.

    Attributes:
        deps: The digest of each dependency that it read, by path.
        outs: What it wrote.
    """

    deps: Mapping[str, str]
    outs: tuple[StepContent, ...]


@dataclass(frozen=True, slots=True)
class StepSpec:
    """One run of one stage.

    Attributes:
        stage: The stage's address.
        cmd: The commands, run one after another.
        cache_dir: The cache's root.
        wdir: The folder they run in, relative to the root; "" for the root.
        deps: What the folder holds when they start.
        params: The values the stage may read: ``{file: {dotted key: value}}``, files relative to the root; the
            key "" holds a whole file.
        outs: What they must write.
        workspace: Where a dependency that is not in the cache is copied from; None when all are.
        log: A file that the output of the commands goes to as well.
        env: Further environment variables.
        known: A run to take the outputs of, instead of running the commands, should the dependencies turn out to be
            what it read. Only for runners that start stages before all that they read is known.
        in_place: Whether the commands run in the workspace itself, as DVC runs them.
        cache_config: The settings of the cache that the outputs of such a run go into, and that data is linked from;
            empty where it is copied.
        sources: A folder whose files are in a clean folder, too, under what is declared; None for none.
        lenient: Whether a run in a clean folder may write more than its outputs, which is then lost.
    """

    stage: str
    cmd: tuple[str, ...]
    cache_dir: str
    wdir: str = ""
    deps: tuple[StepDependency, ...] = ()
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    outs: tuple[StepOutput, ...] = ()
    workspace: str | None = None
    log: str | None = None
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    known: StepKnown | None = None
    in_place: bool = False
    cache_config: Mapping[str, str] = field(default_factory=dict)
    sources: str | None = None
    lenient: bool = False

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> StepSpec:
        """Read what `to_json` wrote.

        Raises:
            TypeError: A field is missing or unknown.
            ValueError: It is not JSON.
        """
        values = json.loads(text)
        values["cmd"] = tuple(values["cmd"])
        values["deps"] = tuple(StepDependency(**dep) for dep in values.get("deps", ()))
        values["outs"] = tuple(StepOutput(**out) for out in values.get("outs", ()))
        if known := values.get("known"):
            values["known"] = StepKnown(known["deps"], tuple(StepContent(**out) for out in known["outs"]))
        return cls(**values)


@dataclass(frozen=True, slots=True)
class StepResult:
    """How a run ended.

    Attributes:
        stage: The stage's address.
        outs: What was written and stored; empty when it failed.
        exit_code: Of the command that ended the run; negative for the signal that killed it.
        seconds: How long the commands ran.
        log_tail: The end of what they printed, without terminal codes.
        command: The command that failed.
        error: The name of the error's class in `dvkf_prefect.errors`; "" when all is well.
        message: The error's message.
        side_dir: The root of a cache that holds the outputs which stay out of the real one; whoever started
            the run takes them and removes its parent folder. "" when there are none.
        deps: The dependencies with the content that the command found, where they were not all known when the run
            was started: stages of one batch hand each other digests. Empty when the specification tells.
        commit: The commit that the sources were bundled of, where they were.
        dirty: The source files that were not as in that commit.
        run: The id of the run that the stage was a task of, where there is one.
        restored: Whether no command ran, since the outputs were known: `StepSpec.known`.
        warnings: What was read or written and not declared, as far as it was seen.
    """

    stage: str
    outs: tuple[StepContent, ...] = ()
    exit_code: int = 0
    seconds: float = 0.0
    log_tail: str = ""
    command: str = ""
    error: str = ""
    message: str = ""
    side_dir: str = ""
    deps: tuple[StepDependency, ...] = ()
    commit: str = ""
    dirty: tuple[str, ...] = ()
    run: str = ""
    restored: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether it ended with an error; otherwise every output was written and stored."""
        return bool(self.error)

    def check(self) -> None:
        """Raise the error that ended the run; do nothing when all is well.

        Raises:
            StageFailedError: A command ended with an error.
            StageOutputError: An output was not written.
            StageWriteError: Something other than the outputs was written.
            StageCancelledError: It was stopped.
            DvkfError: Whatever else the run met, in its own class.
        """
        if self.error == StageFailedError.__name__:
            raise StageFailedError(self.stage, self.command, self.exit_code, self.log_tail)
        if self.error:
            kind = getattr(errors, self.error, None)
            if isinstance(kind, type) and issubclass(kind, DvkfError) and _takes_a_message(kind):
                raise kind(self.message)
            raise RunnerError(self.message)

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> StepResult:
        """Read what `to_json` wrote.

        Raises:
            TypeError: A field is missing or unknown.
            ValueError: It is not JSON.
        """
        values = json.loads(text)
        values["outs"] = tuple(StepContent(**out) for out in values.get("outs", ()))
        values["deps"] = tuple(StepDependency(**dep) for dep in values.get("deps", ()))
        values["dirty"] = tuple(values.get("dirty", ()))
        values["warnings"] = tuple(values.get("warnings", ()))
        return cls(**values)


def _takes_a_message(kind: type[DvkfError]) -> bool:
    own = [base for base in kind.__mro__ if base.__module__ == errors.__name__]
    return not any("__init__" in vars(base) for base in own)
