"""Specification and result of a stage's run: plain values that are passed as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dvkf_prefect import errors
from dvkf_prefect.errors import DvkfError, RunnerError, StageFailedError
from dvkf_prefect.formats.files import PIPELINE_FILE
from dvkf_prefect.formats.objects import Content

# Subfolder of a stage's work folder with its copy of the repository.
WORK = "work"
# Options of a plot in dvc.yaml.
PLOT_OPTIONS = ("template", "x", "y", "x_label", "y_label", "title", "header")


@dataclass(frozen=True, slots=True)
class StepContent:
    """Content of a dependency, or of an output as the command wrote it.

    Attributes:
        path: Posix path, relative to the repository's root.
        content: The content; a dependency without a known one has an empty digest.
    """

    path: str
    content: Content

    @property
    def digest(self) -> str:
        """Digest of the content."""
        return self.content.digest

    def as_dependency(self) -> dict[str, Any]:
        """Return the JSON form of a dependency."""
        content = self.content
        return {
            "path": self.path,
            "digest": content.digest,
            "size": content.size or 0,
            "isexec": content.isexec,
            "nfiles": content.nfiles,
        }

    def as_output(self) -> dict[str, Any]:
        """Return the JSON form of an output."""
        return {**self.as_dependency(), "hash_name": self.content.hash_name}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StepContent:
        """Read the values of `as_dependency` or `as_output`.

        Raises:
            TypeError: A field is missing or unknown.
        """
        if "path" not in values:
            raise TypeError("content of a step has a path")
        return cls(values["path"], Content(**{key: value for key, value in values.items() if key != "path"}))


@dataclass(frozen=True, slots=True)
class StepOutput:
    """An output that the command must write.

    Attributes:
        path: Posix path, relative to the repository's root.
        cached: False keeps it out of the cache; its content is then in `StepResult.side_dir`.
        kind: ``out``, ``metric`` or ``plot``.
        previous: Digest of a persistent output's content at the start of the command.
        isexec: True if that content is an executable file.
        persist: True keeps the output in place when the command starts, and when it fails.
    """

    path: str
    cached: bool = True
    kind: str = "out"
    previous: str | None = None
    isexec: bool = False
    persist: bool = False


@dataclass(frozen=True, slots=True)
class StepKnown:
    """A known earlier run of the same commands and parameters.

    Attributes:
        deps: Digests of its dependencies, by path.
        outs: Outputs of that run.
    """

    deps: Mapping[str, str]
    outs: tuple[StepContent, ...]


@dataclass(frozen=True, slots=True)
class StepMeta:
    """Metadata of a stage for other tools, and its place for messages.

    Attributes:
        values: The stage's ``meta``, of any type.
        file: Its dvc.yaml, relative to the repository's root.
        place: Keys that lead to ``meta`` in that file.
    """

    values: Any = None
    file: str = PIPELINE_FILE
    place: tuple[str | int, ...] = ()


@dataclass(frozen=True, slots=True)
class Distributed:
    """Processes of a distributed training.

    Attributes:
        nodes: Number of nodes.
        processes: Number of processes on each node.
    """

    nodes: int = 1
    processes: int = 1

    @property
    def total(self) -> int:
        """Number of all processes."""
        return self.nodes * self.processes


@dataclass(frozen=True, slots=True)
class StepSpec:
    """One run of one stage.

    Attributes:
        stage: Address of the stage.
        cmd: Commands, run one after another.
        cache_dir: Root of the cache.
        wdir: Folder they run in, relative to the root; "" for the root.
        deps: Contents of the folder at the start.
        params: Values the stage may read: ``{file: {dotted key: value}}``, files relative to the root. The key ""
            holds a whole file.
        outs: Outputs they must write.
        workspace: Folder to copy uncached dependencies from; None if all are cached.
        log: Additional file for the output of the commands.
        env: Additional environment variables.
        known: Earlier run whose outputs are taken, without running the commands, if the dependencies equal its own.
            Only for runners that start stages before all inputs are known.
        in_place: True runs the commands in the workspace itself, as DVC does.
        cache_config: Settings of the cache that stores such a run's outputs and that data is linked from. If empty,
            data is copied.
        sources: Folder whose files are copied into the clean folder, except declared paths; None for none.
        lenient: True lets a run in a clean folder write more than its outputs; the additional files are lost.
        models: Outputs that are models, posix paths relative to the root.
        distributed: Processes that run each command; None for one process that is not started by a launcher.
        plots: Definitions of plots whose files are outputs: ``{plot: {template, x, y, …}}``. Files are relative to
            the root.
        meta: Metadata for runners. It is not part of the JSON, because it may hold any value of YAML.
    """

    stage: str
    cmd: tuple[str, ...]
    cache_dir: str
    wdir: str = ""
    deps: tuple[StepContent, ...] = ()
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
    models: tuple[str, ...] = ()
    distributed: Distributed | None = None
    plots: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    meta: StepMeta = field(default_factory=StepMeta)

    def to_json(self) -> str:
        """Return the specification as JSON, without its metadata."""
        values = asdict(replace(self, deps=(), known=None, meta=StepMeta()))
        del values["meta"]
        if self.distributed is None:
            del values["distributed"]
        values["deps"] = [dep.as_dependency() for dep in self.deps]
        if self.known:
            outs = [out.as_output() for out in self.known.outs]
            values["known"] = {"deps": dict(self.known.deps), "outs": outs}
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str | bytes) -> StepSpec:
        """Read the JSON of `to_json`.

        Raises:
            TypeError: A field is missing or unknown.
            ValueError: The text is not JSON.
        """
        values = json.loads(text)
        values["cmd"] = tuple(values["cmd"])
        values["models"] = tuple(values.get("models", ()))
        values["deps"] = tuple(StepContent.from_dict(dep) for dep in values.get("deps", ()))
        values["outs"] = tuple(StepOutput(**out) for out in values.get("outs", ()))
        if distributed := values.get("distributed"):
            values["distributed"] = Distributed(**distributed)
        if known := values.get("known"):
            values["known"] = StepKnown(
                known["deps"], tuple(StepContent.from_dict(out) for out in known["outs"])
            )
        return cls(**values)


@dataclass(frozen=True, slots=True)
class StepResult:
    """Result of a run.

    Attributes:
        stage: Address of the stage.
        outs: Outputs written and stored; empty on failure.
        exit_code: Exit code of the command that ended the run; negative for the signal that killed it.
        seconds: Running time of the commands.
        log_tail: Last lines of the commands' output, without terminal codes.
        command: The command that failed.
        error: Name of the error's class in `dvkf_prefect.errors`; "" on success.
        message: Message of the error.
        side_dir: Root of a cache with the outputs that stay out of the real one; "" if there are none. The starter of
            the run takes them and removes its parent folder.
        deps: Dependencies with the content that the command read, if not all were known at the start. Stages of one
            batch pass digests to each other. Empty if the specification has them all.
        commit: Commit of the bundled sources, if any.
        dirty: Source files that differed from that commit.
        run: Id of the run that the stage was a task of, if any.
        restored: True if no command ran because the outputs were known: `StepSpec.known`.
        warnings: Undeclared reads and writes, as far as detected.
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
    deps: tuple[StepContent, ...] = ()
    commit: str = ""
    dirty: tuple[str, ...] = ()
    run: str = ""
    restored: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """True if the run ended with an error; otherwise all outputs were written and stored."""
        return bool(self.error)

    def check(self) -> None:
        """Raise the error that ended the run; do nothing on success.

        Raises:
            StageFailedError: A command ended with an error.
            StageOutputError: An output was not written.
            StageWriteError: Something other than the outputs was written.
            StageCancelledError: The run was stopped.
            DvkfError: Any other error of the run, in its own class.
        """
        if self.error == StageFailedError.__name__:
            raise StageFailedError(self.stage, self.command, self.exit_code, self.log_tail)
        if self.error:
            kind = getattr(errors, self.error, None)
            if isinstance(kind, type) and issubclass(kind, DvkfError) and _takes_a_message(kind):
                raise kind(self.message)
            raise RunnerError(self.message)

    def to_json(self) -> str:
        """Return the result as JSON."""
        values = asdict(replace(self, outs=(), deps=()))
        values["outs"] = [out.as_output() for out in self.outs]
        values["deps"] = [dep.as_dependency() for dep in self.deps]
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str | bytes) -> StepResult:
        """Read the JSON of `to_json`.

        Raises:
            TypeError: A field is missing or unknown.
            ValueError: The text is not JSON.
        """
        values = json.loads(text)
        values["outs"] = tuple(StepContent.from_dict(out) for out in values.get("outs", ()))
        values["deps"] = tuple(StepContent.from_dict(dep) for dep in values.get("deps", ()))
        values["dirty"] = tuple(values.get("dirty", ()))
        values["warnings"] = tuple(values.get("warnings", ()))
        return cls(**values)


def _takes_a_message(kind: type[DvkfError]) -> bool:
    own = [base for base in kind.__mro__ if base.__module__ == errors.__name__]
    return not any("__init__" in vars(base) for base in own)
