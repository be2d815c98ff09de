"""Overview of a repository: data, stages, models, services and health, as they are now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from dvkf_prefect.data.upkeep.doctor import Check
from dvkf_prefect.data.verbs.status import status
from dvkf_prefect.errors import DvkfError
from dvkf_prefect.formats.outputs import DataVersion
from dvkf_prefect.models.lineage import Lineage
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.trace import trace_version
from dvkf_prefect.pipeline.plan.snapshot import Snapshot
from dvkf_prefect.pipeline.plan.why import Decision
from dvkf_prefect.pipeline.report.dag import Drawing, draw
from dvkf_prefect.pipeline.run.dry_run import plan
from dvkf_prefect.repo import Repo
from dvkf_prefect.serving.whereabouts import with_services

_T = TypeVar("_T")


@dataclass(frozen=True)
class Overview:
    """State of a repository.

    Attributes:
        data: Recorded versions of the outputs.
        changed: State of each changed output, by path: ``modified``, ``deleted``, ``not in cache``, ...
        stages: Decision of the next run on each stage.
        graph: Graph of the stages and of tracked data.
        models: Lineage of the highest version of each model and of all versions that hold a stage.
        checks: Health checks, see `Repo.doctor`.
        faults: Parts that cannot be read, with the reason, by name.
    """

    data: tuple[DataVersion, ...]
    changed: Mapping[str, str]
    stages: tuple[Decision, ...]
    graph: Drawing
    models: tuple[Lineage, ...]
    checks: tuple[Check, ...]
    faults: Mapping[str, str]

    @property
    def stale(self) -> tuple[str, ...]:
        """Stages that the next run would run or restore."""
        return tuple(each.stage for each in self.stages if each.action != "skip")

    @property
    def findings(self) -> tuple[Check, ...]:
        """Health checks that are not right."""
        return tuple(check for check in self.checks if check.state != "ok")


def read_overview(repo: Repo, *, remote: bool = False) -> Overview:
    """Read the state of a repository. A part that cannot be read is a fault of the overview and no error.

    Args:
        repo: The repository.
        remote: Also check the remote, which asks its server.

    Example:
        >>> read_overview(Repo.open("path/to/repository")).stale
    """
    faults: dict[str, str] = {}

    def part(name: str, read: Callable[[], _T], otherwise: _T) -> _T:
        try:
            return read()
        except DvkfError as error:
            faults[name] = str(error)
            return otherwise

    # Stages, graph and changes share one look at the workspace.
    snapshot = part("stages", lambda: Snapshot(repo, only_looks=True), None)

    def data() -> tuple[DataVersion, ...]:
        outputs = repo.outputs()
        return tuple(repo.version_of(output) for output in outputs if output.digest and output.cached)

    def changed() -> dict[str, str]:
        found = status(repo, look=snapshot.look if snapshot else None)
        return {change.path: change.state for change in found.changes}

    def models() -> tuple[Lineage, ...]:
        if repo.git is None or repo.git.head() is None:
            return ()
        registry = ModelRegistry(repo)
        seen: set[str] = set()
        shown = []
        for version in registry.list():
            if version.stages or version.name not in seen:
                shown.append(trace_version(registry, version))
            seen.add(version.name)
        return tuple(with_services(shown))

    return Overview(
        data=part("data", data, ()),
        changed=part("changes", changed, {}),
        stages=part("stages", lambda: tuple(plan(repo, snapshot=snapshot)), ()),
        graph=part("graph", lambda: draw(repo, snapshot=snapshot), Drawing()),
        models=part("models", models, ()),
        checks=part("health", lambda: tuple(repo.doctor(remote=remote)), ()),
        faults=faults,
    )
