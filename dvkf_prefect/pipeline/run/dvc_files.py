"""Tracked data that stages read: changes are recorded, missing data is restored, imports are updated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import StageNotFoundError
from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.paths import overlaps
from dvkf_prefect.pipeline.plan.decide import Rules
from dvkf_prefect.pipeline.plan.graph import followed
from dvkf_prefect.pipeline.plan.snapshot import Snapshot

Action = Literal["skip", "record", "checkout", "pull", "update"]


@dataclass(frozen=True, slots=True)
class SourceEvent:
    """Action on a `.dvc` file whose output stages read.

    Attributes:
        source: Path of the `.dvc` file, relative to the root.
        action: ``skip``, ``record`` new content, ``checkout``, ``pull``, or ``update`` of an import.
        path: Path of the output, relative to the root.
        origin: Readable source of an import.
    """

    source: str
    action: Action
    path: str = ""
    origin: str = ""


def is_source(target: str) -> bool:
    """Return True if a target names a `.dvc` file."""
    return target.endswith(".dvc")


def add_users(snapshot: Snapshot, sources: Sequence[str]) -> list[str]:
    """Return the addresses of the stages that read the outputs of `.dvc` files.

    Raises:
        StageNotFoundError: There is no such `.dvc` file.
    """
    paths = [output.path for output in _of(snapshot, sources)]
    return [
        address
        for address, stage in snapshot.graph.stages.items()
        if any(overlaps(dep.path, path) for dep in stage.deps if not dep.external for path in paths)
    ]


def _of(snapshot: Snapshot, sources: Sequence[str]) -> list[Output]:
    found = []
    for source in sources:
        described = [output for output in snapshot.outputs.values() if output.source == source]
        if not described:
            raise StageNotFoundError(f"'{source}' does not exist")
        found += described
    return found


def late_sources(snapshot: Snapshot, stages: Sequence[Stage]) -> set[str]:
    """Return the outputs of imports that follow stages' outputs: they are updated after those stages.

    Args:
        snapshot: State of the workspace.
        stages: The stages that may run.
    """
    written = [out.path for stage in stages for out in stage.outs]
    late: set[str] = set()
    waiting = True
    while waiting:  # an import may follow another one
        found = {
            output.path
            for output in snapshot.outputs.values()
            if output.path not in late
            and (path := followed(output)) is not None
            and any(overlaps(path, other) for other in (*written, *late))
        }
        late |= found
        waiting = bool(found)
    return late


def read_by(stage: Stage, sources: Collection[str]) -> set[str]:
    """Return the tracked paths that a stage reads, whole or in part."""
    read = [dep.path for dep in stage.deps if not dep.external]
    return {path for path in sources if any(overlaps(path, dep) for dep in read)}


def settle(
    snapshot: Snapshot,
    stages: Sequence[Stage],
    sources: Sequence[str] = (),
    *,
    rules: Rules,
    on_source: Callable[[SourceEvent], None],
    late: Collection[str] = (),
    dry: bool = False,
) -> None:
    """Update `.dvc` files as DVC's repro does: those that stages read, and the named ones.

    Args:
        snapshot: State of the workspace.
        stages: The stages.
        sources: Paths of `.dvc` files.
        rules: Options to pull data, and to allow missing data.
        on_source: Called with the action on each file.
        late: Outputs to skip, see `late_sources`.
        dry: Only report; data that would be restored is recorded as expected.

    Raises:
        StageNotFoundError: There is no such `.dvc` file.
        DvkfError: An import could not be updated.
    """
    read = {dep.path for stage in stages if not stage.frozen for dep in stage.deps if not dep.external}
    folders = {path[:i] for path in read for i, letter in enumerate(path) if letter == "/"}
    named = {output.path for output in _of(snapshot, sources)}
    for output in list(snapshot.outputs.values()):
        if output.stage is not None or not output.cached or output.path in late:
            continue
        above = {output.path[:i] for i, letter in enumerate(output.path) if letter == "/"}
        if output.path not in named and output.path not in read | folders and not above & read:
            continue
        action = _judge(snapshot, output, rules)
        if not dry:
            _act(snapshot.repo, output, action)
        on_source(SourceEvent(output.source, action, output.path, str(output.origin or "")))
        if dry and action in ("checkout", "pull"):
            snapshot.expect(output)
        elif action != "skip":
            snapshot.forget([output.path])


def _judge(snapshot: Snapshot, output: Output, rules: Rules) -> Action:
    """Return the action on a `.dvc` file."""
    repo = snapshot.repo
    found = snapshot.look(output.path, output.hash_name)
    changed = found.digest is not None and found.digest != output.digest
    if output.origin is not None and not output.origin.frozen:
        from dvkf_prefect.data.imports.changes import changed_sources

        # An import has its source's content; an update does not overwrite manual changes that are stored nowhere
        # else.
        if changed or changed_sources(repo, [output]):
            return "update"
    if not output.digest or found.digest == output.digest:
        return "skip"
    if changed:
        return "record"
    if rules.allow_missing:
        return "skip"
    if snapshot.is_cached(output.digest, output.hash_name):
        return "checkout"
    return "pull" if rules.pull else "skip"


def _act(repo: Repository, output: Output, action: Action) -> None:
    match action:
        case "update":
            from dvkf_prefect.data.verbs.imports import update

            update(repo, [output.source])
        case "record":
            from dvkf_prefect.data.verbs.add import commit

            commit(repo, [output.path])
        case "checkout":
            from dvkf_prefect.data.verbs.checkout import checkout

            checkout(repo, [output.path])
        case "pull":
            from dvkf_prefect.data.verbs.pull import pull

            pull(repo, [output.path])
