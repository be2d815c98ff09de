"""What the registry's tags add up to, by the rules of GTO's reader.

Source: GTO 1.9, ``gto.base``: a version stands while its newest own tag registers it; it is in a stage while the newest
of its tags for that stage assigns it; of several versions in a stage, the one assigned last holds it. Of the same
second, the withdrawing tag counts as the newer one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from dvkf_prefect.models.tags import TagEvent, is_version, version_key

#: The trailer of an assignment that goes back to an earlier version; it names the version left.
ROLLED_BACK = "Rolled-Back-From"


@dataclass(eq=False)
class Registered:
    """One version of a model; one that was assigned a stage without being registered is named by its commit."""

    name: str
    rev: str
    registrations: list[TagEvent] = field(default_factory=list)
    withdrawals: list[TagEvent] = field(default_factory=list)
    stages: dict[str, list[TagEvent]] = field(default_factory=dict)

    @property
    def event(self) -> TagEvent:
        """The tag that made it what it is: its newest registration, or else its newest tag."""
        if self.registrations:
            return self.registrations[-1]
        others = [*self.withdrawals, *(event for events in self.stages.values() for event in events)]
        return max(others, key=lambda event: event.created)

    @property
    def active(self) -> bool:
        """Whether it was not withdrawn."""
        own = [*self.registrations, *self.withdrawals]
        return not own or _newest(own).action == "register"

    def assigned(self, stage: str) -> datetime | None:
        """Return when it came to a stage that it is still in."""
        events = self.stages.get(stage)
        if not events or _newest(events).action != "assign":
            return None
        return max(event.created for event in events if event.action == "assign")


class ModelHistory:
    """The tags of one model, and what follows from them.

    Args:
        name: The model.
        events: Its tags, oldest first.
    """

    def __init__(self, name: str, events: Sequence[TagEvent]) -> None:
        self.name = name
        self.events = events
        self._versions: dict[tuple[str, str], Registered] = {}
        for event in events:
            if event.version is not None:
                key = (event.version, event.rev)
                version = self._versions.setdefault(key, Registered(*key))
                (version.registrations if event.action == "register" else version.withdrawals).append(event)
        for event in events:
            if event.stage is not None:
                self._at(event.rev).stages.setdefault(event.stage, []).append(event)

    def _at(self, rev: str) -> Registered:
        """Return the version a stage tag on a commit speaks of."""
        here = [version for version in self._versions.values() if version.rev == rev]
        if not here:
            return self._versions.setdefault((rev, rev), Registered(rev, rev))
        return max(here, key=lambda version: (version.active, *_order(version.name)))

    @property
    def active(self) -> bool:
        """Whether the model was not deprecated, or was used again after that."""
        deprecated = [event.created for event in self.events if event.action == "deprecate"]
        others = [event.created for event in self.events if event.action != "deprecate"]
        return not deprecated or bool(others and max(others) >= max(deprecated))

    @property
    def versions(self) -> list[Registered]:
        """Every version, the highest first; those named by a commit come last."""
        return sorted(self._versions.values(), key=lambda version: _order(version.name), reverse=True)

    @property
    def standing(self) -> list[Registered]:
        """The versions that were not withdrawn, the highest first."""
        return [version for version in self.versions if version.active]

    def find(self, name: str) -> Registered | None:
        """Return the version of that name, the one that stands where there are several."""
        found = [version for version in self.versions if version.name == name]
        return max(found, key=lambda version: version.active) if found else None

    def stages(self) -> dict[str, Registered]:
        """Return the version that holds each stage."""
        names = sorted({event.stage for event in self.events if event.stage is not None})
        holders = {name: self.holder(name) for name in names}
        return {name: holder for name, holder in holders.items() if holder is not None}

    def holder(self, stage: str) -> Registered | None:
        """Return the version that holds a stage now."""
        # Of versions assigned in the same second GTO takes the one that was registered first.
        by_age = sorted(
            (version for version in self._versions.values() if version.active),
            key=lambda version: version.event.created,
            reverse=True,
        )
        since = [(moment, version) for version in by_age if (moment := version.assigned(stage))]
        newest = max((moment for moment, _ in since), default=None)
        return next((version for moment, version in reversed(since) if moment == newest), None)

    def before(self, stage: str) -> Registered | None:
        """Return the version that held a stage before the one that holds it now and can hold it again.

        A rollback takes the version it left off the line, so that one after another goes further back and never to a
        version that was rolled back from.
        """
        line: list[Registered] = []
        for event in self.events:
            if event.stage != stage:
                continue
            version = self._at(event.rev)
            if event.action == "unassign":
                line = [earlier for earlier in line if earlier is not version]
            elif ROLLED_BACK in event.trailers and version in line:
                del line[line.index(version) + 1 :]
            elif not line or line[-1] is not version:
                line.append(version)
        current = self.holder(stage)
        return next(
            (version for version in reversed(line) if version is not current and version.active), None
        )


def gather(events: Iterable[TagEvent]) -> dict[str, ModelHistory]:
    """Sort tags by model, in the order of the names."""
    by_model: dict[str, list[TagEvent]] = {}
    for event in events:
        by_model.setdefault(event.model, []).append(event)
    return {name: ModelHistory(name, by_model[name]) for name in sorted(by_model)}


def _newest(events: Sequence[TagEvent]) -> TagEvent:
    return max(events, key=lambda event: (event.created, event.action in ("deregister", "unassign")))


def _order(name: str) -> tuple[bool, tuple[object, ...]]:
    return (True, version_key(name)) if is_version(name) else (False, (name,))
