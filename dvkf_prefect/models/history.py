"""State of the registry derived from its tags, by the rules of GTO's reader.

Source: GTO 1.9, ``gto.base``. A version is active if its newest own tag registers it. A version is in a stage if
the newest of its tags for that stage assigns it. Of several versions in a stage, the one assigned last holds it. Of
two tags with the same second, the withdrawing one counts as newer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from dvkf_prefect.models.tags import TagEvent, is_version, version_key

#: Trailer of an assignment that returns to an earlier version; it names the version left.
ROLLED_BACK = "Rolled-Back-From"


@dataclass(eq=False)
class Registered:
    """One version of a model; named by its commit if it was assigned a stage without being registered."""

    name: str
    rev: str
    registrations: list[TagEvent] = field(default_factory=list)
    withdrawals: list[TagEvent] = field(default_factory=list)
    stages: dict[str, list[TagEvent]] = field(default_factory=dict)

    @property
    def event(self) -> TagEvent:
        """The version's newest registration, or else its newest tag."""
        if self.registrations:
            return self.registrations[-1]
        others = [*self.withdrawals, *(event for events in self.stages.values() for event in events)]
        return max(others, key=lambda event: event.created)

    @property
    def active(self) -> bool:
        """True unless the version is withdrawn."""
        own = [*self.registrations, *self.withdrawals]
        return not own or _newest(own).action == "register"

    def assigned(self, stage: str) -> datetime | None:
        """Return the time of the latest assignment to a stage; None if the version is not in it."""
        events = self.stages.get(stage)
        if not events or _newest(events).action != "assign":
            return None
        return max(event.created for event in events if event.action == "assign")


class ModelHistory:
    """Tags of one model and the versions and stages derived from them.

    Args:
        name: Name of the model.
        events: Tags of the model, oldest first.
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
        """Return the version that a stage tag on this commit refers to."""
        here = [version for version in self._versions.values() if version.rev == rev]
        if not here:
            return self._versions.setdefault((rev, rev), Registered(rev, rev))
        return max(here, key=lambda version: (version.active, *_order(version.name)))

    def named(self, event: TagEvent) -> TagEvent:
        """Return an event of this model with its version; a stage's tag itself names none."""
        return event if event.stage is None else replace(event, version=self._at(event.rev).name)

    @property
    def active(self) -> bool:
        """True unless the model was deprecated and not used again since."""
        deprecated = [event.created for event in self.events if event.action == "deprecate"]
        others = [event.created for event in self.events if event.action != "deprecate"]
        return not deprecated or bool(others and max(others) >= max(deprecated))

    @property
    def versions(self) -> list[Registered]:
        """Every version, highest first; those named by a commit are last."""
        return sorted(self._versions.values(), key=lambda version: _order(version.name), reverse=True)

    @property
    def standing(self) -> list[Registered]:
        """The versions that are not withdrawn, highest first."""
        return [version for version in self.versions if version.active]

    def find(self, name: str) -> Registered | None:
        """Return the version with this name; of several, the active one."""
        found = [version for version in self.versions if version.name == name]
        return max(found, key=lambda version: version.active) if found else None

    def stages(self) -> dict[str, Registered]:
        """Return the version that holds each stage."""
        names = sorted({event.stage for event in self.events if event.stage is not None})
        holders = {name: self.holder(name) for name in names}
        return {name: holder for name, holder in holders.items() if holder is not None}

    def holder(self, stage: str) -> Registered | None:
        """Return the version that holds a stage now."""
        # Of versions assigned in the same second GTO takes the one registered first.
        by_age = sorted(
            (version for version in self._versions.values() if version.active),
            key=lambda version: version.event.created,
            reverse=True,
        )
        since = [(moment, version) for version in by_age if (moment := version.assigned(stage))]
        newest = max((moment for moment, _ in since), default=None)
        return next((version for moment, version in reversed(since) if moment == newest), None)

    def before(self, stage: str, name: str = "") -> Registered | None:
        """Return the version that held a stage before its current holder and is still active.

        A rollback removes the version it left from the line of holders. So repeated rollbacks go further back,
        never to a version that was rolled back from.

        Args:
            stage: The stage.
            name: Version to look for among all earlier holders; empty for the latest of them.
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
        earlier = (version for version in reversed(line) if version is not current and version.active)
        return next((version for version in earlier if name in ("", version.name)), None)


def gather(events: Iterable[TagEvent]) -> dict[str, ModelHistory]:
    """Group tags by model, in the order of the names."""
    by_model: dict[str, list[TagEvent]] = {}
    for event in events:
        by_model.setdefault(event.model, []).append(event)
    return {name: ModelHistory(name, by_model[name]) for name in sorted(by_model)}


def _newest(events: Sequence[TagEvent]) -> TagEvent:
    return max(events, key=lambda event: (event.created, event.action in ("deregister", "unassign")))


def _order(name: str) -> tuple[bool, tuple[object, ...]]:
    return (True, version_key(name)) if is_version(name) else (False, (name,))
