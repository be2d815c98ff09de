"""Rollback of a stage: serving first, then the stage, by choice the data, and a mirror, each recorded.

The version before serves before the stage names it, so the stage never names a version that was not served, and
serving is never empty. A rollback of a promotion that was interrupted undoes it. A killed rollback is continued by the
next call. If it was killed after its last step and before its caller was told, the next call tells it, and goes no
version further back.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.verbs.checkout import checkout
from dvkf_prefect.data.verbs.pull import pull
from dvkf_prefect.errors import GitError, ModelError, RemoteNotFoundError
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.version import ModelVersion
from dvkf_prefect.promotion.act import OTHER, Act, Acting
from dvkf_prefect.promotion.journal import Holder, Record
from dvkf_prefect.promotion.promote import Planned

_LATE = (
    "it had ended before, and its result was not shown. Run the command again to go one version further back."
)
_CUT_SHORT = (
    "run {} carried it out and did not complete, so this run continues it. Name a version to go further back."
)
#: Steps in their order.
STEPS = ("serve", "assign", "data", "alias")


@dataclass(frozen=True)
class Rollback:
    """Settings of a rollback.

    Attributes:
        acting: Serving place, mirror, reason and run.
        data: Check out the data that the version learned from, too.
        to: Version to return to, which held the stage before; empty for the holder before the current one, or for that
            of an interrupted rollback. A rollback to a named version may be repeated.
        report: Tells the caller the state that was reached. A rollback that ended untold is reported by the next call
            of git's same user; None if the caller needs no report.
    """

    acting: Acting = field(default_factory=Acting)
    data: bool = False
    to: str = ""
    report: Callable[[Record], None] | None = None


def roll_back(registry: ModelRegistry, model: str, stage: str, rollback: Rollback) -> Record:
    """Serve the version that held a stage before, and give it the stage; or continue an interrupted rollback.

    Each rollback goes one version further back, see `ModelRegistry.rollback`, unless its settings name the version. If
    a promotion was interrupted, it is undone instead. A place that serves no version of the model is left so.

    Args:
        registry: The registry.
        model: Name of the model.
        stage: The stage.
        rollback: Settings.

    Returns:
        The record: ``done``, or ``mirroring`` if the mirror failed alone.

    Raises:
        ModelNotFoundError: No version holds the stage, or none did before; or the named one never did.
        ModelError: A rollback to another version than the named one was interrupted.
        ServingError: The version before does not serve. Nothing was changed; the stage is as it was.
        LockedError: Another process changes this stage, or another machine began to.
        GitError: Files of the data's revision have changes that are not committed.

    Example:
        >>> roll_back(registry, "digits", "prod", Rollback(Acting(place=ModelServer(), why="Wrong sevens")))
    """
    act = Act(registry, model, stage, rollback.acting)
    with act.alone() as last:
        ours = last if last is not None and last.kind == "rollback" else None
        if ours is not None and (ours.open or (ours.state == "mirroring" and _named(ours, rollback))):
            return _steps(act, act.resume(_same(ours, rollback)), rollback)
        if ours is not None and _named(ours, rollback) and _was_ours(act, ours, rollback):
            return _again(act, ours, rollback)
        version, serve = _target(act, last, rollback)
        if rollback.data and version:
            _changed(registry.repo, act.find(version))
        served = last.served if last is not None and last.open else ""
        return _steps(act, act.begin("rollback", version, serve, served=served), rollback)


def plan_rollback(registry: ModelRegistry, model: str, stage: str, rollback: Rollback) -> tuple[Planned, ...]:
    """Return the steps that `roll_back` would take, without any change.

    Args:
        registry: The registry.
        model: Name of the model.
        stage: The stage.
        rollback: Settings.

    Raises:
        ModelNotFoundError: No version holds the stage, or none did before; or the named one never did.
        ModelError: A rollback to another version than the named one was interrupted.
    """
    act = Act(registry, model, stage, rollback.acting)
    last = act.journal.read()
    ours = last if last is not None and last.kind == "rollback" and last.open else None
    if ours:
        _same(ours, rollback)
    elif (
        last is not None
        and last.kind == "rollback"
        and _named(last, rollback)
        and _was_ours(act, last, rollback)
    ):
        return tuple(Planned(step.name, step.said, True) for step in last.steps)
    version, serve = (ours.version, ours.serve) if ours else _target(act, last, rollback)
    state = act.state()
    shown = {
        "serve": f"{serve or 'no version'} in place of {state}"
        if state
        else "nothing, as no version is served",
        "assign": f"{stage} from {act.holder() or 'no version'} to {version or 'no version'}",
        "data": "it stays",
        "alias": "mirror the model" if rollback.acting.mirror else "no registry to mirror in",
    }
    if rollback.data and version:
        files = _changed(registry.repo, act.find(version))
        shown["data"] = f"restore {', '.join(files) or 'no file'}, and check out their data"
    return tuple(Planned(step, does, bool(ours and ours.done(step))) for step, does in shown.items())


def _named(record: Record, rollback: Rollback) -> bool:
    """Return True if a rollback has the target that the settings ask for."""
    return rollback.to in ("", record.version)


def _same(record: Record, rollback: Rollback) -> Record:
    if not _named(record, rollback):
        raise ModelError(
            f"{record.what}, by {record.holder} for {record.who}, was begun at {record.began} and has not ended. "
            f"Continue it before a rollback to {rollback.to}."
        )
    return record


def _was_ours(act: Act, record: Record, rollback: Rollback) -> bool:
    """Return True if an ended rollback is what the caller asks for now.

    It is of its run, or by name, or was not reported to it, or its run did not complete.
    """
    if _of_run(act, record):
        return True
    if rollback.to:
        state = act.state()
        served = state is None or (state.version == record.version and not state.canary)
        return served and act.holder() == record.version
    cut_short = record.state == "unreported" or act.run_state(record) in ("running", "ended")
    return cut_short and record.who == act.registry.git.identity()


def _of_run(act: Act, record: Record) -> bool:
    return act.acting.run != "" and record.holder.run == act.acting.run


def _target(act: Act, last: Record | None, rollback: Rollback) -> tuple[str, str]:
    """Return the version that gets the stage, and the one to serve; either may be empty for none."""
    if rollback.to:
        known = (act.holder(), last.was if last is not None and last.open else "")
        version = act.find(rollback.to).version
        if version not in known:
            version = act.registry.earlier(act.model, act.stage, version).version
        return version, version
    if last is None or not last.open:
        version = act.registry.earlier(act.model, act.stage).version
        return version, version
    version = last.was and act.find(last.was).version
    return version, version if last.served == OTHER else last.served


def _steps(act: Act, record: Record, rollback: Rollback) -> Record:
    if not record.done("serve"):
        record = act.finish(record, "serve", _serve(act, record))
    if not record.done("assign"):
        record = act.finish(record, "assign", act.give_back(record, record.version, record.why))
    if not record.done("data"):
        data = rollback.data and record.version != ""
        said = _check_out(act.registry.repo, act.find(record.version)) if data else "the data stays"
        record = act.finish(record, "data", said)
    return _report(act, act.mirrored(record), rollback)


def _again(act: Act, record: Record, rollback: Rollback) -> Record:
    """Tell the caller the end of a rollback that another call reached."""
    if rollback.to or _of_run(act, record):
        return _report(act, record, rollback)
    why = _LATE if record.state == "unreported" else _CUT_SHORT.format(record.holder.run)
    if act.acting.run:  # its retry continues it, too
        record = act.record(replace(record, holder=Holder.here(act.acting.run)))
    return _report(act, record, rollback, why)


def _report(act: Act, record: Record, rollback: Rollback, why: str = "") -> Record:
    """Tell the caller the state of a rollback, and why it is that of another call; record that it was told the end."""
    if record.open and record.done("alias") and rollback.report is not None:
        record = act.record(replace(record, state="unreported"))
    if rollback.report is not None:
        shown = replace(record, state="done") if record.done("alias") else record
        rollback.report(replace(shown, problem=why) if why else shown)
    if record.state == "done" or not record.done("alias"):
        return record
    return act.record(replace(record, state="done"))


def _serve(act: Act, record: Record) -> str:
    place, state = act.acting.place, act.state()
    if place is not None and state is None:
        place.end_preview(act.model)  # of an interrupted promotion
    if place is None or (state is None and not record.served):
        return "no version is served"
    if not record.serve:
        place.undeploy(act.model)
        return "no version is served any more, as before"
    if state is not None and state.version == record.serve and state.canary:
        url = place.abort_canary(act.model).url
    else:
        version = act.find(record.serve)
        url = place.deploy(act.registry, version).url
        act.note_service(version, url)
    return f"{record.serve} answers at {url}"


def _changed(repo: Repository, version: ModelVersion) -> list[str]:
    """Return the files of a version's commit that record data and differ in the workspace, from git's top.

    Raises:
        GitError: They have changes that are not committed.
    """
    git = repo.git
    if git is None:
        return []
    prefix = repo.root.resolve().relative_to(git.root.resolve()).as_posix()
    top = "" if prefix == "." else f"{prefix}/"
    names = [
        path
        for path in git.ls_tree(version.rev)
        if path.startswith(top) and (path.endswith(".dvc") or path.rpartition("/")[2] == "dvc.lock")
    ]
    found = []
    for name in names:
        here = None
        with suppress(FileNotFoundError):
            here = (git.root / name).read_bytes()
        if here != git.show(version.rev, name):
            found.append(name)
    lost = sorted(set(git.changed([f":(top,literal){name}" for name in found])) if found else ())
    if lost:
        raise GitError(
            f"{', '.join(lost)} of {git.root}: not committed. Commit or restore them, and run it again."
        )
    return found


def _check_out(repo: Repository, version: ModelVersion) -> str:
    files = _changed(repo, version)
    if files and repo.git is not None:
        env = {"GIT_LITERAL_PATHSPECS": "1"}
        repo.git.run("restore", f"--source={version.rev}", "--worktree", "--", *files, env=env)
    try:
        pull(repo)
    except RemoteNotFoundError:
        checkout(repo)  # the cache alone may have the content
    return f"the data is that of {version.version}"
