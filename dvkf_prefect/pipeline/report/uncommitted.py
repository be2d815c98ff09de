"""Inputs of recorded runs that differ from git's last commit: code, parameters and values of templates.

A commit of dvc.lock alone would name digests and parameters that the commit's own files contradict.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, replace

from dvkf_prefect.data.git.command import Git
from dvkf_prefect.data.git.unsaved import IGNORED, Unsaved, find_unsaved
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import DvkfError, GitError
from dvkf_prefect.formats.dvclock import Entry, lock_file, read_lock
from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.pipeline.plan.outside import place_in_git
from dvkf_prefect.pipeline.plan.snapshot import Snapshot
from dvkf_prefect.pipeline.plan.why import Reason, reasons_for

_DECLARATION = ("declaration", "")


@dataclass(frozen=True, slots=True)
class UncommittedInput:
    """A file that stages read and that differs from git's last commit.

    Attributes:
        path: The file, relative to the repository's root.
        stages: Stages that read it, by address.
        rewritten: True if its content is no longer the content that one of these stages read.
        obstacle: Reason why a commit cannot have it, such as ``ignored by git``; empty if it can.
    """

    path: str
    stages: tuple[str, ...]
    rewritten: bool
    obstacle: str = ""

    def __str__(self) -> str:
        obstacle = f"; {self.obstacle}" if self.obstacle else ""
        return f"{self.path} (read by {', '.join(self.stages)}{obstacle})"


def uncommitted_inputs(repo: Repository, *, unrecorded: bool = False) -> tuple[UncommittedInput, ...]:
    """Return the files that stages read and that differ from the last commit.

    Data that DVC tracks is not among them, for its digest is in a commit, and nothing outside of git's work tree. A
    changed file of a stage that has not run since counts only with ``unrecorded``.

    Args:
        repo: The repository; without git the result is empty.
        unrecorded: Include inputs of stages that have not run since the last commit, except frozen ones.

    Raises:
        ParseError: A file does not follow its format.
        GitError: Git refused.
    """
    git = repo.git
    if git is None:
        return ()
    snapshot = Snapshot(repo, only_looks=True, lenient=True)
    stages = snapshot.graph.stages.values()
    inputs = {stage.address: _inputs(stage, snapshot, git) for stage in stages}
    unsaved: dict[str, list[Unsaved]] = {}
    for each in find_unsaved(git, (place for places in inputs.values() for place in places)):
        unsaved.setdefault(each.place, []).append(each)
    if not unsaved:
        return ()
    folder = git.prefix(repo.root) or "."
    committed = _Committed(repo, git)
    found: dict[str, UncommittedInput] = {}
    for stage in stages:
        changed = [
            (each, cause) for place, cause in inputs[stage.address].items() for each in unsaved.get(place, ())
        ]
        if not changed:
            continue
        entry = snapshot.entry(stage)
        ran = entry is not None and entry != committed.entry(stage)
        if not ran and (stage.frozen or (entry is None and not unrecorded)):
            continue
        stale = _stale(stage, snapshot, entry)
        for each, cause in changed:
            path = posixpath.relpath(each.path, folder)
            rewritten = cause in stale
            if rewritten and not ran and not unrecorded:
                continue
            if each.obstacle == IGNORED and is_data(repo, snapshot.tracked(path), path):
                continue
            known = found.get(path, UncommittedInput(path, (), False, each.obstacle))
            found[path] = replace(
                known,
                stages=tuple(dict.fromkeys((*known.stages, stage.address))),
                rewritten=known.rewritten or (rewritten and ran),
            )
    return tuple(found[path] for path in sorted(found))


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


def _stale(stage: Stage, snapshot: Snapshot, entry: Entry | None) -> frozenset[tuple[str, str]]:
    """Return the inputs that differ from the stage's last run, as kind and name."""
    if entry is None:
        return frozenset()
    inputs = snapshot.inputs(stage, entry, on_disk=True)
    stale = {_cause(stage, reason) for reason in reasons_for(snapshot, stage, entry, inputs)}
    recorded = {item["path"] for item in entry.get("deps", ())}
    if any(dep.name not in recorded for dep in stage.deps) or stage.params.keys() - entry.get("params", {}):
        stale.add(_DECLARATION)  # dvc.yaml declares an input that the run did not have
    return frozenset(stale)


def _cause(stage: Stage, reason: Reason) -> tuple[str, str]:
    if reason.kind == "parameter":
        names = (file for file in stage.params if f"{reason.name}:".startswith(f"{file}:"))
        return "parameter", next(names, reason.name)
    return _DECLARATION if reason.kind == "command" else (reason.kind, reason.name)


def _inputs(stage: Stage, snapshot: Snapshot, git: Git) -> dict[str, tuple[str, str]]:
    """Return what a stage reads, without data of DVC: paths from git's top, with kind and name of the input."""
    prefix = git.prefix(snapshot.repo.root)
    read = {prefix + path: _DECLARATION for path in (stage.file, *stage.used)}
    for file in stage.params:
        read.setdefault(prefix + stage.params_path(file), ("parameter", file))
    for dep in stage.deps:
        place = place_in_git(snapshot.repo, git, stage, dep)
        output = None if dep.external else snapshot.tracked(dep.path)
        if place is not None and (output is None or not output.cached):
            read.setdefault(place, ("dependency", dep.name))
    return read


def is_data(repo: Repository, output: Output | None, path: str) -> bool:
    """Return True for a file ignored by git that is none of the project's sources: data, or not an input.

    Args:
        repo: The repository.
        output: The output that equals or contains the file, if any.
        path: The file, relative to the repository's root. Outside of it, git's ignored files are another's data.
    """
    if path.startswith("../"):
        return True
    return (output is not None and output.cached) or repo.ignore.matches(path)
