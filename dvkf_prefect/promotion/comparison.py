"""Difference between the version that serves and a candidate: parameters, metrics and digests of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.trace import trace_version
from dvkf_prefect.models.version import ModelVersion

Kind = Literal["metric", "parameter", "data", "code"]


@dataclass(frozen=True)
class Difference:
    """A value that two versions do not share.

    Attributes:
        kind: ``metric``, ``parameter``, ``data`` or ``code``.
        name: Name of the value, or path of the data.
        champion: Value of the version that serves; None if it has none.
        candidate: Value of the candidate; None if it has none.
    """

    kind: Kind
    name: str
    champion: Any
    candidate: Any


@dataclass(frozen=True)
class VersionComparison:
    """A candidate beside the version that serves.

    Attributes:
        candidate: The candidate.
        champion: Version that holds the stage; None for the first one.
        differences: Values that differ: metrics, parameters, data, code.
        equal: Number of values that are equal.
    """

    candidate: ModelVersion
    champion: ModelVersion | None
    differences: tuple[Difference, ...]
    equal: int

    def __str__(self) -> str:
        before = self.champion.version if self.champion else "no version"
        return (
            f"{self.candidate.name} {self.candidate.version} and {before}: {len(self.differences)} values differ, "
            f"{self.equal} are equal"
        )


def compare_with_champion(
    registry: ModelRegistry, candidate: ModelVersion, champion: ModelVersion | None
) -> VersionComparison:
    """Compare a candidate with the version that serves.

    Args:
        registry: The registry of both.
        candidate: The candidate.
        champion: Version that serves; None for the first one.

    Raises:
        ParseError: A file of a commit without a record does not follow its format.

    Example:
        >>> print(compare_with_champion(registry, registry.show("digits"), registry.show("digits", "#prod")))
    """
    ours = _values(registry, candidate)
    theirs = _values(registry, champion) if champion else {}
    order: tuple[Kind, ...] = ("metric", "parameter", "data", "code")
    keys = sorted(ours.keys() | theirs.keys(), key=lambda key: (order.index(key[0]), key[1]))
    found = [Difference(*key, theirs.get(key), ours.get(key)) for key in keys]
    differences = tuple(each for each in found if each.champion != each.candidate)
    return VersionComparison(candidate, champion, differences, len(found) - len(differences))


def _values(registry: ModelRegistry, version: ModelVersion) -> Mapping[tuple[Kind, str], Any]:
    lineage = trace_version(registry, version)
    values: dict[tuple[Kind, str], Any] = {("metric", key): value for key, value in lineage.metrics.items()}
    values |= {("parameter", key): value for key, value in lineage.params.items()}
    for item in lineage.inputs:
        values["code" if item.kind == "code" else "data", item.path] = item.digest
    return values
