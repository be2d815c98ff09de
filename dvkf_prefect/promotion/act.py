"""Parts of promotions and rollbacks: who may act, what is recorded, and steps that both have."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import quote

from dvkf_prefect.data.repository.locks import RepoLock
from dvkf_prefect.errors import DvkfError, LockedError, ModelError, ModelNotFoundError
from dvkf_prefect.models.history import ROLLED_BACK
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.version import ModelVersion
from dvkf_prefect.openlineage.sending import send_deployed
from dvkf_prefect.promotion.journal import Holder, Journal, Kind, Record, now
from dvkf_prefect.promotion.places import ServingPlace, ServingState

#: Trailers of the stage's tag.
PROMOTION = "Dvkf-Promotion"
PREVIOUS = "Previous-Version"
APPROVED = "Approved-By"
#: `Record.served` of a service that something else deployed.
OTHER = "a version of another tool"
_logger = logging.getLogger(__name__)

Mirror = Callable[[], object]
#: State of a run: it has completed, or ended in another way, or runs or waits. Empty if it is not known.
RunState = Literal["completed", "ended", "running", ""]


@dataclass(frozen=True)
class Acting:
    """Circumstances of a promotion or a rollback.

    Attributes:
        place: Serving place; None to change the stage alone.
        mirror: Mirrors the model in another registry; None for no mirror.
        why: Reason, for the journal and the tag.
        run: Id of the run that acts, such as Prefect's; the same run continues on any machine.
        run_state: Returns the state of the run of an id, so that an act of one that is over does not wait for it; None
            if no run can be asked for.
        shared: Share the journal, tags and notes with git's remote ``origin`` at each step.
        take_over: Continue what another machine began. It ends there at its next step.
        trailers: More trailers of the stage's tag.
    """

    place: ServingPlace | None = None
    mirror: Mirror | None = None
    why: str = ""
    run: str = ""
    run_state: Callable[[str], RunState] | None = None
    shared: bool = False
    take_over: bool = False
    trailers: Mapping[str, str] | None = None


class Act:
    """One model and stage, while a promotion or a rollback changes them.

    Args:
        registry: The registry.
        model: Name of the model.
        stage: The stage.
        acting: Circumstances.
    """

    def __init__(self, registry: ModelRegistry, model: str, stage: str, acting: Acting) -> None:
        self.registry = registry
        self.model = model
        self.stage = stage
        self.acting = acting
        self.journal = Journal(registry.git, model, stage, acting.shared)
        self._lock = registry.repo.tmp_dir / "promotions" / f"{quote(f'{model}#{stage}', safe='')}.lock"

    @contextmanager
    def alone(self) -> Iterator[Record | None]:
        """Exclude other processes; yield the newest record.

        Raises:
            LockedError: Another process changes this stage of the model now; the message names it.
        """
        lock = RepoLock(self._lock)
        held = lock.hold(0)
        try:
            held.__enter__()
        except LockedError as error:
            record = self.journal.read()
            raise (self.journal.held(record) if record and record.open else error) from error
        try:
            self.journal.fetch()
            yield self.journal.read()
        finally:
            held.__exit__(None, None, None)

    def check_holder(self, record: Record) -> None:
        """Refuse to continue what a process of another machine may carry out now.

        Raises:
            LockedError: Another machine began it; this lock cannot tell if its process runs.
        """
        here, there = Holder.here(self.acting.run), record.holder
        if here.host != there.host and not (here.run and here.run == there.run) and not self.acting.take_over:
            raise LockedError(
                f"{record.what} was begun by {there}, for {record.who} at {record.began}. If that process has ended, "
                "continue here with --take-over."
            )

    def run_state(self, record: Record) -> RunState:
        """Return the state of the run that carried out a record last; empty for that of this act."""
        ask, run = self.acting.run_state, record.holder.run
        return ask(run) if ask is not None and run not in ("", self.acting.run) else ""

    def begin(self, kind: Kind, version: str, serve: str, *, served: str = "") -> Record:
        """Record the start; ``served`` is the version to name as served before if the place serves none now."""
        acting, state = self.acting, self.state()
        record = Record(
            id=secrets.token_hex(8),
            kind=kind,
            model=self.model,
            stage=self.stage,
            version=version,
            was=self.holder(),
            served=served if state is None else state.version or OTHER,
            serve=serve,
            who=self.registry.git.identity(),
            why=acting.why,
            began=now(),
            where=acting.place.where if acting.place else "",
            holder=Holder.here(acting.run),
        )
        return self.record(record)

    def resume(self, record: Record) -> Record:
        """Record that this process continues."""
        self.check_holder(record)
        where = self.acting.place.where if self.acting.place else ""
        if record.where != where:
            raise ModelError(
                f"{record.what} was begun at {record.where or 'no serving place'}, not at {where or 'none'}. "
                "Continue it with the same place, or roll it back."
            )
        return self.record(replace(record, holder=Holder.here(self.acting.run)))

    def record(self, record: Record) -> Record:
        """Write an entry."""
        self.journal.write(record)
        return record

    def finish(self, record: Record, name: str, said: str) -> Record:
        """Record a completed step."""
        _logger.info("%s: %s: %s", record.what, name, said)
        return self.record(record.with_step(name, said))

    def find(self, version: str) -> ModelVersion:
        """Return a version of the model."""
        return self.registry.show(self.model, version)

    def holder(self) -> str:
        """Return the version that holds the stage; empty for none."""
        try:
            return self.find(f"#{self.stage}").version
        except ModelNotFoundError:
            return ""

    def state(self) -> ServingState | None:
        """Return the versions that are served; None without a place."""
        return self.acting.place.state(self.model) if self.acting.place else None

    def note_service(self, version: ModelVersion, url: str) -> None:
        """Note on a version's tag where it is served; the version is served all the same if that fails."""
        place = self.acting.place
        if place:
            send_deployed(self.registry.repo, version, place.where)
        try:
            if place:
                self.registry.note(version, "service", {"where": place.where, "url": url})
        except DvkfError as error:
            _logger.warning("the service was not noted for the lineage of %s: %s", version.version, error)

    def give_back(self, record: Record, to: str, why: str) -> str:
        """Give the stage from the version of a promotion to the one before; return a sentence."""
        current = self.holder()
        if current == to:
            return f"{self.stage} is {to or 'held by no version'}"
        trailers = {**(self.acting.trailers or {}), PROMOTION: record.id, ROLLED_BACK: current}
        if to:
            text = f"Rolling back stage {self.stage} of artifact {self.model} from version {current} to {to}"
            message = f"{text}\n\n{why}".strip()
            self.registry.assign(self.model, to, self.stage, message=message, trailers=trailers)
        else:
            self.registry.unassign(self.model, current, self.stage, message=why, trailers=trailers)
        return f"{self.stage} is {to or 'held by no version'} again"

    def mirrored(self, record: Record) -> Record:
        """Carry out the last step; a failed mirror is left to the next run.

        A mirror follows git's tags, so it takes the stage of this record or of a later one.
        """
        if record.done("alias"):
            return record
        if self.acting.mirror is None:
            return self.finish(record, "alias", "no registry to mirror in")
        try:
            said = str(self.acting.mirror()).splitlines()[0]
        except DvkfError as error:
            _logger.warning("%s: the mirror failed: %s", record.what, error)
            return self.record(replace(record, state="mirroring", problem=f"the mirror failed: {error}"))
        return self.finish(record, "alias", said)


def one_line(text: str) -> str:
    """Return a text that fits into a trailer."""
    return " ".join(text.split())
