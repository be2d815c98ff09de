"""Reasons to run a stage, and the decision derived from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.verbs.status import Status
from dvkf_prefect.errors import StageNotFoundError
from dvkf_prefect.formats.dvclock import Entry
from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.formats.objects import LEGACY, MD5
from dvkf_prefect.formats.params import flatten
from dvkf_prefect.pipeline.plan.outside import mark_of, place_of
from dvkf_prefect.pipeline.plan.snapshot import UNKNOWN, Inputs, Snapshot
from dvkf_prefect.urls import without_secrets

Kind = Literal["new", "dependency", "parameter", "command", "output", "always", "forced"]
Action = Literal["run", "skip", "restore"]
_VERBS: dict[Action, str] = {"run": "run", "skip": "skip", "restore": "restore from the cache"}


@dataclass(frozen=True, slots=True)
class Reason:
    """One difference from the stage's last run.

    Attributes:
        kind: Kind of difference. ``new``: the stage has no record. ``command``, ``dependency``, ``parameter`` or
            ``output``: it changed or is missing. ``always``: the stage runs every time. ``forced``: the user forced
            the run.
        name: A path, ``file:key`` of a parameter, or the stage.
        old: Digest, value or command of the last run; None if there was none.
        new: Current digest, value or command; None if absent or not known yet.
        note: Description of the difference, if old and new do not show it.
    """

    kind: Kind
    name: str
    old: Any = None
    new: Any = None
    note: str = ""

    def __str__(self) -> str:
        match self.kind:
            case "new":
                return "it has no entry in dvc.lock"
            case "always":
                return "it runs every time"
            case "forced":
                return "it was forced"
            case "command":
                return f"command changed: {_show(self.old)} → {_show(self.new)}"
            case _:
                what = f"{self.kind} '{without_secrets(self.name)}'"
                return (
                    f"{what} {self.note}" if self.note else f"{what}: {_show(self.old)} → {_show(self.new)}"
                )

    def as_dict(self) -> dict[str, Any]:
        """Return the reason in JSON form: ``kind``, ``name``, ``old``, ``new``, and a readable ``text``."""
        name = without_secrets(self.name)
        return {"kind": self.kind, "name": name, "old": self.old, "new": self.new, "text": str(self)}


@dataclass(frozen=True, slots=True)
class Decision:
    """A planned or completed action on a stage.

    Attributes:
        stage: Address of the stage.
        action: ``run``, ``skip``, or ``restore``: take its outputs from the cache instead of running it.
        reasons: Reasons of the action; empty if nothing changed.
        commands: Commands of the stage.
    """

    stage: str
    action: Action
    reasons: tuple[Reason, ...] = ()
    commands: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        why = "; ".join(map(str, self.reasons)) or "nothing changed"
        return f"Stage '{self.stage}': {_VERBS[self.action]} ({why})"

    def as_dict(self) -> dict[str, Any]:
        """Return the decision in JSON form: ``stage``, ``action``, and the ``reasons``, see `Reason.as_dict`."""
        reasons = [reason.as_dict() for reason in self.reasons]
        return {"stage": self.stage, "action": self.action, "reasons": reasons}

    def markdown(self) -> str:
        """Return the decision as Markdown: the action, and a table of the changes with old and new values."""
        head = f"**{_escape(self.stage)}**: {_VERBS[self.action]}"
        if not self.reasons:
            return f"{head}, nothing changed"
        lines = [head, "", "| why | what | old | new |", "|---|---|---|---|"]
        for reason in self.reasons:
            new = reason.note or ("" if reason.new is None and reason.old is None else _show(reason.new))
            cells = (
                reason.kind,
                without_secrets(reason.name),
                "" if reason.old is None else _show(reason.old),
                new,
            )
            lines.append(f"| {' | '.join(map(_escape, cells))} |")
        return "\n".join(lines)


def _escape(text: str) -> str:
    """Escape a text for a cell of a Markdown table."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text).replace("\n", " ")


def _show(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
        value = " && ".join(value)
    text = str(value)
    if len(text) in (32, 36) and text.removesuffix(".dir").isalnum():
        return text[:8]
    return text if len(text) <= 120 else text[:117] + "…"


def reasons_for(snapshot: Snapshot, stage: Stage, entry: Entry | None, inputs: Inputs) -> tuple[Reason, ...]:
    """Compare a stage with its last run.

    Args:
        snapshot: State of the workspace.
        stage: The stage.
        entry: Last run of the stage.
        inputs: Current inputs of the stage.

    Returns:
        All differences, inputs first; empty if the stage is up to date.
    """
    if entry is None:
        always = (Reason("always", stage.address),) if stage.runs_always and not stage.frozen else ()
        return (Reason("new", stage.address), *always)
    reasons: list[Reason] = []
    command = list(stage.command) if isinstance(stage.command, tuple) else stage.command
    if entry["cmd"] != command:
        reasons.append(Reason("command", "cmd", entry["cmd"], command))
    if not stage.frozen:
        reasons += [leaf for reason in _input_reasons(stage, entry, inputs) for leaf in _leaves(reason)]
        if stage.runs_always:
            reasons.append(Reason("always", stage.address))
    return (*reasons, *output_reasons(snapshot, stage, entry))


def _input_reasons(stage: Stage, entry: Entry, inputs: Inputs) -> Iterable[Reason]:
    recorded = {item["path"]: mark_of(item) for item in entry.get("deps", ())}
    for name, stored in inputs.deps.items():
        old = recorded.get(name)
        if stored is UNKNOWN:
            yield Reason("dependency", name, old, None, "will be rewritten")
        elif stored is None:
            said = inputs.wrong.get(name)
            yield Reason("dependency", name, old, None, f"cannot be read: {said}" if said else "is missing")
        elif old != stored.digest:
            yield Reason("dependency", name, old, stored.digest)
    for name, lock in inputs.datasets.items():
        yield from _dataset_reasons(name, _recorded_dataset(entry, name), lock)
    for file, keys in stage.params.items():
        before = entry.get("params", {}).get(file, {})
        if file not in inputs.params:
            yield Reason("parameter", file, None, None, "is missing")
            continue
        now = inputs.params[file]
        for key in keys or list(dict.fromkeys((*now, *before))):
            if key not in now or key not in before or now[key] != before[key]:
                yield Reason("parameter", f"{file}:{key}", before.get(key), now.get(key))


def _leaves(reason: Reason) -> list[Reason]:
    """Return a reason for each changed value below a group of parameters."""
    old, new = reason.old, reason.new
    if reason.kind != "parameter" or not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [reason]
    before, after = flatten(old), flatten(new)
    changed = [
        key
        for key in dict.fromkeys((*after, *before))
        if key not in before or key not in after or before[key] != after[key]
    ]
    leaves = [Reason("parameter", f"{reason.name}.{key}", before.get(key), after.get(key)) for key in changed]
    return leaves or [reason]


def _recorded_dataset(entry: Entry, name: str) -> Mapping[str, Any] | None:
    found = (item.get("dataset") for item in entry.get("deps", ()) if item["path"] == name)
    return next(found, None)


def _dataset_reasons(
    name: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None
) -> Iterable[Reason]:
    if new is None:
        yield Reason("dependency", name, _version(old), None, "has no version. Run `dvc dataset update`.")
    elif old is None or old != new:
        # The dataset's source may have changed without its version.
        note = "" if old is None or _version(old) != _version(new) else "differs"
        yield Reason("dependency", name, _version(old), _version(new), note)


def _version(dataset: Mapping[str, Any] | None) -> Any:
    """Return the version of a dataset: a commit, a number, or the metadata of its files."""
    if dataset is None:
        return None
    for key in ("rev_lock", "version"):
        if key in dataset:
            return dataset[key]
    return dataset.get("files") or dataset.get("meta")


def output_reasons(snapshot: Snapshot, stage: Stage, entry: Entry) -> Iterable[Reason]:
    """Compare a stage's outputs with the outputs of its last run."""
    recorded = {item["path"]: item for item in entry.get("outs", ())}
    for out in stage.outs:
        item = recorded.get(out.name, {})
        old = item.get("md5")
        hash_name = MD5 if item.get("hash") == MD5 or old is None else LEGACY
        found = snapshot.look(out.path, hash_name)
        if found.digest is None:
            yield Reason("output", out.name, old, None, "is missing")
        elif old != found.digest:
            yield Reason("output", out.name, old, found.digest)
        elif out.cached and not snapshot.is_cached(old, hash_name):
            yield Reason("output", out.name, old, found.digest, "is not in the cache")


def stage_status(repo: Repository, stages: Sequence[str] = ()) -> dict[str, tuple[Reason, ...]]:
    """Return the changes of stages; nothing is run and nothing is planned ahead.

    Args:
        repo: The repository.
        stages: Names, addresses, dvc.yaml files or outputs; all stages if empty.

    Returns:
        Reasons by address, only for stages that have any.

    Raises:
        StageNotFoundError: A target is none of these.
        ParseError: A file does not follow its format.

    Example:
        >>> stage_status(Repo.open("path/to/repository"), ["train"])
    """
    snapshot = Snapshot(repo, only_looks=True)
    wanted = {address for target in stages for address in snapshot.graph.find(target)} or None
    return _status(snapshot, snapshot.graph.order(wanted, alone=True))


def _status(snapshot: Snapshot, stages: Iterable[Stage]) -> dict[str, tuple[Reason, ...]]:
    status = {}
    for stage in stages:
        entry = snapshot.entry(stage)
        inputs = snapshot.inputs(stage, entry)
        reasons = reasons_for(snapshot, stage, entry, inputs)
        if reasons:
            status[stage.address] = reasons
    return status


def status_report(repo: Repository, data: Status, targets: Sequence[str] = ()) -> dict[str, list[Any]]:
    """Return the status of outputs and stages in the shape of ``dvc status --json``.

    Args:
        repo: The repository.
        data: Result of `Repo.status` for the same targets.
        targets: Restrict the report to these; all if empty.

    Returns:
        By `.dvc` file or stage: ``{"changed deps": …}``, ``{"changed outs": …}``, ``"changed command"``, ``"always
        changed"``.
    """
    snapshot = Snapshot(repo, only_looks=True, lenient=True)
    report: dict[str, list[Any]] = {}
    outs: dict[str, dict[str, str]] = {}
    for change in data.changes:
        if change.stage is None:
            report.setdefault(change.source, [{"changed outs": {}}])[0]["changed outs"][change.path] = (
                change.state
            )
        else:
            address = snapshot.graph.find(f"{change.source}:{change.stage}")[0]
            outs.setdefault(address, {})[change.path] = change.state
    wanted: set[str] = set()
    for target in targets:
        try:
            wanted.update(snapshot.graph.find(target))
        except StageNotFoundError:
            continue  # a `.dvc` file or its output; `data` covers it
    for stage in snapshot.graph.order(wanted if targets else None, alone=True):
        entry = snapshot.entry(stage)
        inputs = snapshot.inputs(stage, entry, on_disk=True)
        groups: list[Any] = []
        if not stage.frozen and not (stage.runs_always and not stage.always_changed):
            deps = _changed_deps(repo, stage, entry, inputs)
            if deps:
                groups.append({"changed deps": deps})
        if stage.address in outs:
            groups.append({"changed outs": outs[stage.address]})
        if stage.runs_always:
            groups.append("always changed")
        command = list(stage.command) if isinstance(stage.command, tuple) else stage.command
        if entry is not None and entry["cmd"] != command:
            groups.append("changed command")
        if groups:
            report[stage.address] = groups
    return report


def _changed_deps(repo: Repository, stage: Stage, entry: Entry | None, inputs: Inputs) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    paths = {
        dep.name: without_secrets(place_of(repo, stage, dep)) if dep.external else dep.path
        for dep in stage.deps
    }
    old_params = (entry or {}).get("params", {})
    for reason in _input_reasons(stage, entry or {}, inputs):
        if reason.kind == "dependency" and reason.name in inputs.datasets:
            unknown = inputs.datasets[reason.name] is None
            state = "not in sync" if unknown else "new" if reason.old is None else "modified"
            changed[reason.name] = state
            continue
        if reason.kind == "dependency":
            # DVC also calls a dependency modified that was never read.
            gone = reason.new is None and reason.name not in inputs.wrong
            changed[paths[reason.name]] = "deleted" if gone else "modified"
            continue
        file, colon, key = reason.name.partition(":")
        path = stage.params_path(file)
        if not colon:
            changed[path] = "deleted"
        elif file not in old_params:
            changed[path] = "new"
        elif isinstance(changed.setdefault(path, {}), dict):
            now = key in inputs.params[file]
            changed[path][key] = "deleted" if not now else "modified" if key in old_params[file] else "new"
    return changed
