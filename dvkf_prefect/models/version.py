"""A registered version of a model, as every reader of the registry gets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class ModelVersion:
    """A version of a model.

    Attributes:
        name: Name of the model; ``folder:model`` if declared in folder/dvc.yaml.
        version: ``v`` and a semantic version; the commit if a stage was assigned without a registration.
        rev: The commit.
        path: The model's file or folder, relative to the repository's root; None if the commit declares none.
        digest: Its md5, with ``.dir`` for a folder; None if DVC recorded none at that commit.
        size: Size in bytes; None if not recorded.
        nfiles: Number of files; 1 for a file.
        stages: Stages the version holds now, sorted.
        created: Time of the registration.
        author: Name of the tagger who registered it.
        message: Message of its tag, without trailers.
        trailers: Trailers of its tag, such as the run that produced the model.
        active: False if the version was withdrawn or the model is deprecated.
    """

    name: str
    version: str
    rev: str
    path: str | None
    digest: str | None
    size: int | None
    nfiles: int | None
    stages: tuple[str, ...]
    created: datetime
    author: str
    message: str
    trailers: Mapping[str, str] = field(default_factory=dict)
    active: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Return the version as plain values for JSON; the time as ISO 8601."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            **values,
            "stages": [*self.stages],
            "trailers": dict(self.trailers),
            "created": self.created.isoformat(),
        }

    def __str__(self) -> str:
        stages = "".join(f" #{stage}" for stage in self.stages)
        return f"{self.name} {self.version}{stages} ({self.rev[:7]}, {(self.digest or 'no digest')[:8]})"
