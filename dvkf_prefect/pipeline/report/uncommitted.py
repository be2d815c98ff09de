"""Inputs of recorded runs that differ from git's last commit: code, parameters and values of templates.

A commit of dvc.lock alone would name digests and parameters that the commit's own files contradict.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from dvkf_prefect.data.git.command import Git
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import DvkfError, GitError
from dvkf_prefect.formats.dvclock import Entry, lock_file, read_lock
from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.paths import is_within
from dvkf_prefect.pipeline.plan.snapshot import Snapshot
from dvkf_prefect.pipeline.plan.why import Reason, reasons_for


@dataclass(frozen=True, slots=True)
class UncommittedInput:
    """A file that stages read and that differs from git's last commit.

    Attributes:
        path: The file, relative to the repository's root.
        stages: Stages that read it, by address.
        rewritten: True if its content is no longer the content that one of these stages read.
    """

    path: str
    stages: tuple[str, ...]
    rewritten: bool

    def __str__(self) -> str:
        return f"{self.path} (read by {', '.join(self.stages)})"


def uncommitted_inputs(repo: Repository, *, unrecorded: bool = False) -> tuple[UncommittedInput, ...]:
    """Return the files in git that stages read and that differ from the last commit.

    Data that DVC tracks is not among them, for its digest is in a commit. A changed file of a stage that has not run
    since counts only with ``unrecorded``.

    Args:
        repo: The repository; without git the result is empty.
        unrecorded: Include inputs of stages that have not run since the last commit.

    Raises:
        ParseError: A file does not follow its format.
        GitError: Git refused.
    """
    git = repo.git
    if git is None:
        return ()
    changed = _changed(repo, git)
    if not changed:
        return ()
    snapshot = Snapshot(repo, only_looks=True, lenient=True)
    committed = _Committed(repo, git)
    found: dict[str, tuple[list[str], bool]] = {}
    for stage in snapshot.graph.stages.values():
        entry = snapshot.entry(stage)
        ran = entry is not None and entry != committed.entry(stage)
        if not ran and (entry is None or stage.frozen) and not unrecorded:
            continue
        stale = _stale(stage, snapshot, entry)
        for path, cause in _inputs(stage, snapshot, changed):
            rewritten = cause in stale
            if rewritten and not ran and not unrecorded:
                continue
            stages, before = found.get(path, ([], False))
            found[path] = ([*stages, stage.address], before or (rewritten and ran))
    return tuple(
        UncommittedInput(path, tuple(dict.fromkeys(stages)), rewritten)
        for path, (stages, rewritten) in sorted(found.items())
    )


class _Committed:
    """Entries of the dvc.lock files in git's last commit."""

    def __init__(self, repo: Repository, git: Git) -> None:
        self._repo = repo
        self._head = git.head()
        self._locks: dict[str, Mapping[str, Entry]] = {}

    def entry(self, stage: Stage) -> Entry | None:
        if stage.file not in self._locks:
            self._locks[stage.file] = self._read(stage)
        return self._locks[stage.file].get(stage.name)

    def _read(self, stage: Stage) -> Mapping[str, Entry]:
        if self._head is None:
            return {}
        try:
            return read_lock(self._repo.files(self._head), lock_file(stage.file))
        except GitError:
            raise
        except DvkfError:
            # An invalid dvc.lock in the commit records nothing.
            return {}


def _changed(repo: Repository, git: Git) -> list[str]:
    """Return the repository's files that differ from the last commit, relative to its root."""
    folder = repo.root.resolve().relative_to(git.root.resolve()).as_posix()
    prefix = "" if folder == "." else f"{folder}/"
    return [
        path[len(prefix) :] for path in git.changed([f":(top,literal){prefix}"]) if path.startswith(prefix)
    ]


def _stale(stage: Stage, snapshot: Snapshot, entry: Entry | None) -> frozenset[tuple[str, str]]:
    """Return the inputs that differ from the stage's last run, as kind and name."""
    if entry is None:
        return frozenset()
    inputs = snapshot.inputs(stage, entry, on_disk=True)
    return frozenset(_cause(stage, reason) for reason in reasons_for(snapshot, stage, entry, inputs))


def _cause(stage: Stage, reason: Reason) -> tuple[str, str]:
    if reason.kind == "parameter":
        names = (file for file in stage.params if f"{reason.name}:".startswith(f"{file}:"))
        return "parameter", next(names, reason.name)
    return reason.kind, "" if reason.kind == "command" else reason.name


def _inputs(
    stage: Stage, snapshot: Snapshot, changed: Iterable[str]
) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield the changed files that a stage reads, each with the kind and name of the input that it belongs to."""
    read = [(stage.file, ("command", "")), *((path, ("command", "")) for path in stage.used)]
    read += [(stage.params_path(file), ("parameter", file)) for file in stage.params]
    for dep in stage.deps:
        if dep.external or dep.dataset is not None:
            continue
        output = snapshot.tracked(dep.path)
        if output is None or not output.cached:
            read.append((dep.path, ("dependency", dep.name)))
    for path in changed:
        for place, cause in read:
            if is_within(path, place):
                yield path, cause
