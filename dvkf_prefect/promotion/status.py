"""State of a model: versions by stage, published places, services, and promotions under way or ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dvkf_prefect.errors import ServingError
from dvkf_prefect.models.facts import read_facts
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.tags import tag_name
from dvkf_prefect.models.version import ModelVersion
from dvkf_prefect.promotion.journal import Record, journals
from dvkf_prefect.promotion.places import ServingPlace, ServingState

_RECORDS = 10


@dataclass(frozen=True)
class ModelStatus:
    """State of a model.

    Attributes:
        model: Its name.
        versions: Versions that are not withdrawn, highest first.
        stages: Version that holds each stage.
        published: Addresses by version.
        serving: By place, what it serves; None if it serves no version.
        problems: By place, the reason why it could not be asked.
        records: Promotions and rollbacks, those of each stage newest first.
    """

    model: str
    versions: tuple[ModelVersion, ...]
    stages: Mapping[str, str]
    published: Mapping[str, tuple[str, ...]]
    serving: Mapping[str, ServingState | None]
    problems: Mapping[str, str]
    records: tuple[Record, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the state as plain values for JSON."""
        return {
            "model": self.model,
            "versions": [version.version for version in self.versions],
            "stages": dict(self.stages),
            "published": {version: list(urls) for version, urls in self.published.items()},
            "serving": {where: asdict(state) if state else None for where, state in self.serving.items()},
            "problems": dict(self.problems),
            "promotions": [record.as_dict() for record in self.records],
        }

    def __str__(self) -> str:
        lines = [self.model]
        for version in self.versions:
            stages = "".join(
                f" #{stage}" for stage, holder in self.stages.items() if holder == version.version
            )
            lines.append(f"  {version.version}{stages}")
            lines += [f"    published at {url}" for url in self.published.get(version.version, ())]
        lines += [f"  {where}: {state or 'no version is served'}" for where, state in self.serving.items()]
        lines += [f"  {where}: not known: {problem}" for where, problem in self.problems.items()]
        lines += [f"  {record}" for record in self.records]
        return "\n".join(lines)


def model_status(
    registry: ModelRegistry, model: str, places: Sequence[ServingPlace] = (), *, limit: int = _RECORDS
) -> ModelStatus:
    """Return the state of a model.

    Args:
        registry: The registry.
        model: Name of the model.
        places: Serving places to ask.
        limit: Maximum number of promotions and rollbacks of each stage.

    Raises:
        ModelNotFoundError: No model of that name is registered.

    Example:
        >>> print(model_status(registry, "digits", [ModelServer()]))
    """
    versions = tuple(registry.list(model))
    published = {}
    for version in versions:
        facts = read_facts(registry.git, tag_name("register", model, version=version.version))
        urls = tuple(str(fact["where"]) for fact in facts if fact["kind"] == "published" and "where" in fact)
        if urls:
            published[version.version] = urls
    serving: dict[str, ServingState | None] = {}
    problems: dict[str, str] = {}
    for place in places:
        try:
            serving[place.where] = place.state(model)
        except ServingError as error:
            problems[place.where] = str(error)
    return ModelStatus(
        model,
        versions,
        {stage: version.version for version in versions for stage in version.stages},
        published,
        serving,
        problems,
        tuple(each for journal in journals(registry.git, model).values() for each in journal.records(limit)),
    )
