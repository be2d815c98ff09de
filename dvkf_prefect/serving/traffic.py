"""Models of a server, their versions, and the split of requests between versions.

A split gives each version a percentage. A request with the header ``X-Sticky-Key`` goes by a hash of model and key,
so equal keys go to one version. The newest version has the lowest hashes: raising its percentage moves keys to it and
none away from it. A request without the header goes by a random number.
A V2 path with a version ignores the split, and so does a request that names one in the header ``X-Model-Version``.

Every method runs on the server's event loop. So a request sees the split before a change or after it, never between.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from dvkf_prefect.errors import ServingError
from dvkf_prefect.serving.intake import HttpError
from dvkf_prefect.serving.lanes import Lane
from dvkf_prefect.serving.served import Protocol

STICKY_HEADER = "x-sticky-key"
_STEPS = 10_000
_PATHS = 1000
_REST = re.compile(r"(:predict|:explain|(/versions/[^/]+)?(/ready|/infer)?)")
_ENDS: dict[Protocol, re.Pattern[str]] = {
    "v1": re.compile("(?P<version>(?!)x)?:predict"),
    "v2": re.compile("(/versions/(?P<version>[^/]+))?/infer"),
}
# Number of versions that did not load, to keep for the index.
_OTHERS = 100


@dataclass
class Split:
    """The loaded versions of one model.

    Attributes:
        lanes: By version, the newest first.
        percents: Percentage of requests by version; together 100.
    """

    lanes: dict[str, Lane] = field(default_factory=dict)
    percents: dict[str, int] = field(default_factory=dict)

    @property
    def main(self) -> Lane:
        """Version with the largest percentage, the older one of equals."""
        return max(reversed(self.lanes.values()), key=lambda lane: self.percents[lane.version])

    def choose(self, model: str, key: str | None) -> Lane:
        """Return the version for a request.

        Args:
            model: Name of the model.
            key: Value of the sticky header, None without it.
        """
        if len(self.lanes) == 1:
            return next(iter(self.lanes.values()))
        if key is None:
            position = random.randrange(_STEPS)  # noqa: S311 - a split is no secret
        else:
            digest = hashlib.md5(f"{model}\0{key}".encode(errors="replace"), usedforsecurity=False).digest()
            position = int.from_bytes(digest[:8], "big") % _STEPS
        limit = 0
        for version, lane in self.lanes.items():
            limit += self.percents[version] * _STEPS // 100
            if position < limit:
                return lane
        return self.main


@dataclass(frozen=True)
class State:
    """State of one version on the server, as the repository index lists it.

    Attributes:
        name: Name of the model.
        version: The version.
        state: ``READY``, ``LOADING`` or ``UNAVAILABLE``.
        reason: Reason why it is not available.
    """

    name: str
    version: str
    state: str
    reason: str = ""


class Models:
    """All models of a server, by name."""

    def __init__(self) -> None:
        self._splits: dict[str, Split] = {}
        # Versions that are loading or did not load, by name and version.
        self._others: dict[tuple[str, str], State] = {}
        # Models of paths for predictions, until the models change.
        self._paths: dict[str, tuple[str, str | None, Protocol] | None] = {}

    def longest(self, rest: str) -> str | None:
        """Return the model that a path after ``/v1/models/`` or ``/v2/models/`` names; None for none of the server.

        A longer name wins: ``a/ready`` is not the readiness of ``a`` if there is a model of that name.
        """
        for name in sorted(self._splits, key=len, reverse=True):
            if rest.startswith(name) and _REST.fullmatch(rest[len(name) :]):
                return name
        return None

    def find(self, path: str) -> tuple[str, str | None, Protocol] | None:
        """Return model, version and protocol of the path of a request for a prediction; None for other paths."""
        if path not in self._paths:
            if len(self._paths) >= _PATHS:
                self._paths.clear()
            self._paths[path] = self._find(path)
        return self._paths[path]

    def _find(self, path: str) -> tuple[str, str | None, Protocol] | None:
        for protocol, end in _ENDS.items():
            prefix = f"/{protocol}/models/"
            if path.startswith(prefix) and (name := self.longest(path[len(prefix) :])) is not None:
                version = end.fullmatch(path[len(prefix) + len(name) :])
                return (name, version["version"], protocol) if version else None
        return None

    def states(self) -> list[State]:
        """Return the state of each version, sorted by name."""
        ready = [
            State(name, version, "READY") for name, split in self._splits.items() for version in split.lanes
        ]
        known = {(state.name, state.version) for state in ready}
        others = [state for key, state in self._others.items() if key not in known]
        return sorted([*ready, *others], key=lambda state: (state.name, state.version))

    def note(self, state: State) -> None:
        """Keep the state of a version that is not loaded."""
        self._others.pop((state.name, state.version), None)
        self._others[state.name, state.version] = state
        while len(self._others) > _OTHERS:
            del self._others[next(iter(self._others))]

    def remove(self, name: str) -> list[Lane]:
        """Remove a model; return its versions, which get no request any more. Close them."""
        for key in [key for key in self._others if key[0] == name]:
            del self._others[key]
        self._paths.clear()
        split = self._splits.pop(name, None)
        return [] if split is None else [*split.lanes.values()]

    @property
    def names(self) -> list[str]:
        """Names of the models, sorted."""
        return sorted(self._splits)

    def end(self) -> None:
        """Free what the models hold, at the end of the server."""
        for name in self.names:
            for lane in self.remove(name):
                lane.end()

    def split(self, name: str) -> Split:
        """Return the versions of a model.

        Raises:
            HttpError: The server has no such model; 404.
        """
        if name not in self._splits:
            if any(key[0] == name and state.state == "LOADING" for key, state in self._others.items()):
                raise HttpError(503, f"model '{name}' is loading. Try again later.", {"retry-after": "1"})
            raise HttpError(404, f"no model '{name}' on this server. Use {self._known()}.")
        return self._splits[name]

    def lane(self, name: str, version: str | None = None, key: str | None = None) -> Lane:
        """Return the version that answers a request.

        Args:
            name: Name of the model.
            version: Version of the path; None for the split's choice.
            key: Value of the sticky header, None without it.

        Raises:
            HttpError: The server has no such model or version; 404.
        """
        split = self.split(name)
        if version is None:
            return split.choose(name, key)
        if version not in split.lanes:
            raise HttpError(404, f"no model '{name}' version {version} on this server. Use {self._known()}.")
        return split.lanes[version]

    def put(self, name: str, lane: Lane, percent: int = 100) -> list[Lane]:
        """Add a loaded version, and give it a percentage of the requests.

        With less than 100, the main version keeps the rest; any third version is removed.

        Args:
            name: Name of the model.
            lane: The loaded version.
            percent: Percentage of the requests.

        Returns:
            Versions that get no request any more; close them.
        """
        self._others.pop((name, lane.version), None)
        self._paths.clear()
        old = self._splits.get(name)
        rest = {} if old is None else {v: each for v, each in old.lanes.items() if v != lane.version}
        if old is None or not rest or percent == 100:
            self._splits[name] = Split({lane.version: lane}, {lane.version: 100})
        else:
            main = old.main if old.main.version in rest else next(iter(rest.values()))
            self._splits[name] = Split(
                {lane.version: lane, main.version: main},
                {lane.version: percent, main.version: 100 - percent},
            )
        return self._left(name, old)

    def shift(self, name: str, percents: Mapping[str, int]) -> list[Lane]:
        """Change the percentages of loaded versions; a version that is not named is removed.

        Args:
            name: Name of the model.
            percents: Percentages by version; together 100.

        Returns:
            Versions that get no request any more; close them.

        Raises:
            ServingError: A version is not loaded, or the percentages do not make 100.
        """
        old = self._splits.get(name)
        lanes = {} if old is None else old.lanes
        if lost := [version for version in percents if version not in lanes]:
            raise ServingError(f"no version {', '.join(lost)} of '{name}' is loaded. Deploy it first.")
        if sum(percents.values()) != 100 or min(percents.values(), default=0) < 0:
            raise ServingError(f"the percentages of '{name}' make {sum(percents.values())}. Give them 100.")
        kept = {version: lane for version, lane in lanes.items() if version in percents}
        self._splits[name] = Split(kept, dict(percents))
        return self._left(name, old)

    def _left(self, name: str, old: Split | None) -> list[Lane]:
        kept = {id(lane) for lane in self._splits[name].lanes.values()}
        return [] if old is None else [lane for lane in old.lanes.values() if id(lane) not in kept]

    def _known(self) -> str:
        return (
            ", ".join(
                f"'{name}' version {' or '.join(split.lanes)}" for name, split in sorted(self._splits.items())
            )
            or "it after its deployment: none is served"
        )
