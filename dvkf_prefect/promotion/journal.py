"""Journal of the promotions and rollbacks of one model and stage, kept in git.

Each entry is a commit on ``refs/dvkf/promotions/MODEL#STAGE#log`` with one file, ``record.json``. Its parent is the
entry before it, so git moves the reference to one of two rival entries only. The reference is a branch in all but its
name: no clone, merge or ``git log`` of the code sees it. ``git push`` of it is refused if another machine has written
meanwhile, so machines that share a git remote exclude each other by the same rule.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any, Literal

from dvkf_prefect.data.git.command import Git
from dvkf_prefect.data.git.notes import fetch_registry, push_registry
from dvkf_prefect.errors import GitError, LockedError

ORIGIN = "origin"
PREFIX = "refs/dvkf/promotions/"
_FILE = "record.json"
_FORMAT = 1
_SHOWN = 500

Kind = Literal["promote", "rollback"]
State = Literal["running", "aborting", "mirroring", "unreported", "done", "refused", "aborted"]


@dataclass(frozen=True)
class Step:
    """A completed step.

    Attributes:
        name: Name of the step.
        at: Time of its end, ISO 8601.
        said: Sentence on its result.
    """

    name: str
    at: str
    said: str


@dataclass(frozen=True)
class Holder:
    """Process that carries out a promotion.

    Attributes:
        host: Name of its machine.
        pid: Id of the process.
        run: Id of the run that it works for, of Prefect for example; empty for none.
    """

    host: str
    pid: int
    run: str = ""

    @classmethod
    def here(cls, run: str = "") -> Holder:
        """Return the current process."""
        return cls(os.uname().nodename, os.getpid(), run)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f", run {self.run}" if self.run else "")


@dataclass(frozen=True)
class Record:
    """A promotion or a rollback, as far as it has come.

    Attributes:
        id: Its id, also in the trailer ``Dvkf-Promotion`` of the stage's tag.
        kind: ``promote`` or ``rollback``.
        model: Name of the model.
        stage: The stage.
        version: Version that gets the stage; empty if the rollback leaves the stage to no version.
        was: Version that held the stage before; empty for none.
        served: Version that was served before; empty for none.
        serve: Version to serve; empty for none.
        who: Name and e-mail address of git's user who began it.
        why: Reason.
        began: Time of its start, ISO 8601.
        where: Serving place; empty for none.
        holder: Process that carried it out last.
        state: ``running``, ``aborting``, or ``mirroring`` if only a mirror is missing; ``unreported`` if all is done
            and the caller was not told yet; at the end ``done``, ``refused`` (nothing was changed) or ``aborted`` (what
            was before is restored).
        steps: Completed steps.
        problem: Reason of its end, or of its last interruption.
    """

    id: str
    kind: Kind
    model: str
    stage: str
    version: str
    was: str
    served: str
    serve: str
    who: str
    why: str
    began: str
    where: str
    holder: Holder
    state: State = "running"
    steps: tuple[Step, ...] = ()
    problem: str = ""

    @property
    def open(self) -> bool:
        """True if serving or the stage may be half changed."""
        return self.state in ("running", "aborting")

    def done(self, step: str) -> bool:
        """Return True if a step is completed."""
        return any(each.name == step for each in self.steps)

    def with_step(self, name: str, said: str) -> Record:
        """Return the record with one more completed step."""
        problem = self.problem if self.state == "aborting" else ""
        return replace(self, steps=(*self.steps, Step(name, now(), said)), problem=problem)

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain values for JSON; the reverse of `from_dict`."""
        values = asdict(self)
        return {**values, "steps": list(values["steps"])}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Record:
        """Create a record from the values of `as_dict`."""
        steps = tuple(Step(**each) for each in values["steps"])
        return cls(**{**values, "steps": steps, "holder": Holder(**values["holder"])})

    @property
    def what(self) -> str:
        """Phrase that names it, for messages."""
        if self.kind == "promote":
            return f"promotion of {self.model} {self.version} to {self.stage}"
        return f"rollback of {self.model} {self.stage} to {self.version or 'no version'}"

    def __str__(self) -> str:
        last = f", last step {self.steps[-1].name}" if self.steps and self.open else ""
        problem = f" ({self.problem})" if self.problem else ""
        return f"{self.what}: {self.state}{last}, since {self.began} by {self.who}{problem}"


class Journal:
    """Entries of one model and stage.

    Args:
        git: The work tree.
        model: Name of the model.
        stage: The stage.
        shared: Share the journal, tags and notes with git's remote ``origin``.
    """

    def __init__(self, git: Git, model: str, stage: str, shared: bool = False) -> None:
        self.ref = journal_ref(model, stage)
        self._git = git
        self._shared = shared
        self._last = ""

    def read(self) -> Record | None:
        """Return the newest record; None if there is none.

        Raises:
            GitError: The entry was written by a later version of this package, or is damaged.
        """
        self._last = self._head()
        return self._record(self._last) if self._last else None

    def records(self, limit: int) -> list[Record]:
        """Return the newest records, each in its last state.

        Args:
            limit: Maximum number of records.

        Raises:
            GitError: An entry cannot be read.
        """
        if not self._head():
            return []
        found: dict[str, Record] = {}
        for commit in self._git.run("log", f"-{_SHOWN}", "--format=%H", self.ref).split():
            record = self._record(commit)
            if len(found) == limit and record.id not in found:
                break
            if found and record.id not in found and record.open:
                record = replace(record, state="aborted", problem=record.problem or "a rollback replaced it")
            found.setdefault(record.id, record)
        return list(found.values())

    def write(self, record: Record) -> None:
        """Append an entry to the last one read or written by this object, on disk and on the shared remote.

        Args:
            record: The record.

        Raises:
            LockedError: Another process has written an entry since the last one read here.
            GitError: Git refused, for example because no identity is configured.
        """
        if (head := self._head()) != self._last:
            raise self.held(self._record(head))
        data = json.dumps({"format": _FORMAT, **record.as_dict()}, indent=1, sort_keys=True)
        env = _durable()
        blob = self._git.run("hash-object", "-w", "--stdin", stdin=data.encode(), env=env)
        tree = self._git.run("mktree", stdin=f"100644 blob {blob}\t{_FILE}\n".encode(), env=env)
        last = record.steps[-1].name if record.steps else "begun"
        message = f"{record.what}: {last if record.open else record.state}"
        parents = ("-p", head) if head else ()
        commit = self._git.run("commit-tree", *parents, "-m", message, tree, env=env)
        self._git.run("update-ref", "--create-reflog", self.ref, commit, head or "0" * len(commit), env=env)
        self._last = commit
        if self._shared:
            self._push()

    def fetch(self) -> None:
        """Fetch the entries, the tags and the notes of the origin; nothing unless they are shared.

        Raises:
            GitError: The origin does not answer or refused.
        """
        if not self._shared:
            return
        fetch_registry(self._git.root)
        listed = self._git.run("ls-remote", "--", ORIGIN, self.ref).split()
        ours = self._head()
        if not listed or listed[0] == ours:
            return
        beside = f"{self.ref}-origin"
        self._git.run("fetch", "--quiet", "--no-tags", "--", ORIGIN, f"+{self.ref}:{beside}")
        # Entries that only this clone has may be those that the origin refused.
        if not ours or not self._has(ours, listed[0]):
            self._git.run("update-ref", self.ref, listed[0])
        self._git.run("update-ref", "-d", beside)

    def held(self, record: Record) -> LockedError:
        """Return the error that names the process that holds a promotion."""
        return LockedError(
            f"{record.what} is under way, by {record.holder}, for {record.who} since {record.began}. Let it end, or "
            "stop that process, and run the command again."
        )

    def _push(self) -> None:
        try:
            self._git.run("push", "--quiet", "--", ORIGIN, f"{self.ref}:{self.ref}")
        except GitError as error:
            if "rejected" not in str(error):
                raise
            self.fetch()
            newest = self.read()
            raise (self.held(newest) if newest else error) from error
        push_registry(self._git.root)

    def _head(self) -> str:
        return self._git.run("for-each-ref", "--format=%(objectname)", self.ref)

    def _has(self, newer: str, older: str) -> bool:
        """Return True if an entry follows another."""
        return older in self._git.run("rev-list", newer).split()

    def _record(self, commit: str) -> Record:
        try:
            values = json.loads(self._git.show(commit, _FILE))
            if values.pop("format") != _FORMAT:
                raise GitError(
                    f"{self.ref} was written by a later version of dvkf. Upgrade this installation of it."
                )
            return Record.from_dict(values)
        except (KeyError, TypeError, ValueError) as error:
            raise GitError(
                f"{self.ref}: entry {commit[:7]} is damaged ({error}). Delete the reference."
            ) from error


def journal_ref(model: str, stage: str) -> str:
    """Return the reference of a journal.

    Example:
        >>> journal_ref("vision:signs", "prod")
        'refs/dvkf/promotions/vision=signs#prod#log'
    """
    return f"{PREFIX}{model.replace(':', '=')}#{stage}#log"


def journals(git: Git, model: str) -> dict[str, Journal]:
    """Return the journals of a model by stage."""
    head = journal_ref(model, "").removesuffix("#log")
    refs = git.run("for-each-ref", "--format=%(refname)", PREFIX).splitlines()
    stages = [
        ref[len(head) :].removesuffix("#log") for ref in refs if ref.startswith(head) and ref.endswith("#log")
    ]
    return {stage: Journal(git, model, stage) for stage in stages}


def now() -> str:
    """Return the time, ISO 8601 in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _durable() -> dict[str, str]:
    """Return the environment in which git flushes each object to disk before a reference names it."""
    number = int(os.environ.get("GIT_CONFIG_COUNT") or 0)
    return {
        "GIT_CONFIG_COUNT": str(number + 1),
        f"GIT_CONFIG_KEY_{number}": "core.fsync",
        f"GIT_CONFIG_VALUE_{number}": "objects,reference",
    }
