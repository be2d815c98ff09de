"""Runs whose results are not all recorded, which a later dispatcher continues with.

Stages are recorded as they end. So a dispatcher that follows a killed one has fewer stages to run, and their content
gives another key than that of the run. Each start therefore writes a list of its stages to ``dvkf/open/<key>.json`` on
the remote before it sends its request (`dvkf_prefect.kubeflow.cluster.announced`): an identity of each stage without
its dependencies, and the digests of its dependencies, "" for those that stages of the run write. A dispatcher looks
there for a run that has all of its own stages. A dependency that is recorded by now must have the digest that the run's
stage wrote. The list is removed once all results were collected; a collection of garbage removes those of forgotten
runs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.data.remotes.remote import Remote
from dvkf_prefect.data.transfer.manifests import read_manifest
from dvkf_prefect.errors import CorruptObjectError, MissingObjectError
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.kubeflow.exchange.objects import uncached
from dvkf_prefect.kubeflow.exchange.runs import RESULT, run_place
from dvkf_prefect.kubeflow.pod.kfp_task import outputs_text, with_upstream
from dvkf_prefect.paths import is_within
from dvkf_prefect.pipeline.step.spec import StepContent, StepResult, StepSpec

FOLDER = "dvkf/open"
_LIMIT = 16 << 20


class Manifests:
    """Manifests of outputs, and the digests of their parts, which are not stored.

    Args:
        cache: Cache of the repository.
        remote: Remote with the outputs.
    """

    def __init__(self, cache: Cache, remote: Remote) -> None:
        self._cache = cache
        self._remote = remote

    def read_tree(self, digest: str) -> Tree:
        """Return a directory's manifest."""
        return read_manifest(digest, caches=[self._cache], remotes=[self._remote, uncached(self._remote)])

    def add_tree(self, tree: Tree) -> str:
        """Return the digest of a manifest."""
        return tree.digest


@dataclass(frozen=True, slots=True)
class OpenStage:
    """A stage of a run.

    Attributes:
        task: Name of its task.
        identity: Digest of its commands, parameters, outputs, sources and pod.
        deps: Digest of each dependency by path; "" if a stage of the run writes it.
        outs: Paths of its outputs.
        needs: Stages of the run that it waits for.
        known: Dependencies of its last run, whose outputs the pod may take; None if it must run.
    """

    task: str
    identity: str
    deps: Mapping[str, str]
    outs: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    known: Mapping[str, str] | None = None

    def continues(self, started: OpenStage, pending: Collection[str] = ()) -> bool:
        """Return True if this stage is one that was started, judged without results.

        Two callers judge by this rule. A start knows the digests of all dependencies that stages outside of its run
        write. The choice of parts for several runs is made before, when those of ``pending`` outputs are not known; the
        start of such a part judges it again.

        Args:
            started: The stage as it was started.
            pending: Outputs of stages in other runs, whose digests are not known yet.
        """
        if self.identity != started.identity or self.deps.keys() != started.deps.keys():
            return False
        unknown = {
            path
            for path, digest in self.deps.items()
            if not digest and any(is_within(path, out) for out in pending)
        }
        if any(
            digest and path not in unknown and self.deps[path] != digest
            for path, digest in started.deps.items()
        ):
            return False
        # A stage that was recorded since, but not one that it reads, may take its last run; it was started to run.
        if self.known == started.known or started.known is None:
            return True
        # Its dependencies are recorded by now. The same ones as of its last run mean that it must run again.
        if self.known is not None:
            return False
        return bool(unknown) or (all(self.deps.values()) and self.deps != started.known)


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that was started.

    Attributes:
        key: Key of its results on the remote.
        run_id: Id of the run on the server; "" until its dispatcher has the answer to its request.
        note: Name of the local file that records the run.
        stages: Its stages by address.
        name: Name of the run on the server.
        experiment: Id of its experiment.
        owner: Owner of the dispatcher that starts it, as in its interests.
    """

    key: str
    run_id: str
    note: str
    stages: Mapping[str, OpenStage]
    name: str = ""
    experiment: str = ""
    owner: str = ""

    @property
    def place(self) -> str:
        """Key of its list of stages on the remote."""
        return f"{FOLDER}/{self.key}.json"

    def write(self, storage: Storage) -> None:
        """Store the list of stages.

        Raises:
            RemoteError: The remote cannot be used.
        """
        storage.write(self.place, json.dumps(asdict(self)).encode())

    @classmethod
    def from_json(cls, data: bytes) -> OpenRun:
        """Read a list of stages.

        Raises:
            ValueError: The bytes are not JSON.
            TypeError: A field is missing or unknown.
        """
        values = json.loads(data)
        stages = {
            address: OpenStage(**{**each, "outs": tuple(each["outs"]), "needs": tuple(each["needs"])})
            for address, each in values.pop("stages").items()
        }
        return cls(**values, stages=stages)

    def has(self, wanted: Mapping[str, OpenStage], storage: Storage, trees: Manifests) -> bool:
        """Return True if all wanted stages are stages of this run, with the same content.

        Args:
            wanted: The stages by address.
            storage: Storage of the remote.
            trees: Store of manifests.

        Raises:
            RemoteError: The remote cannot be used.
        """
        if not (wanted.keys() <= self.stages.keys()):
            return False
        if not all(stage.continues(self.stages[address]) for address, stage in wanted.items()):
            return False
        recorded = {
            path: digest
            for address, stage in wanted.items()
            for path, digest in stage.deps.items()
            if digest and not self.stages[address].deps[path]
        }
        return self._wrote(recorded, storage, trees)

    def _wrote(self, recorded: Mapping[str, str], storage: Storage, trees: Manifests) -> bool:
        """Return True if the run's stages wrote these contents."""
        writers = {
            stage.task
            for stage in self.stages.values()
            if any(is_within(path, out) for out in stage.outs for path in recorded)
        }
        try:
            results = [result_of(storage, self.key, task) for task in sorted(writers)]
            if any(result is None or result.failed for result in results):
                return False
            blank = tuple(StepContent(path, Content("", 0)) for path in recorded)
            texts = [outputs_text(result) for result in results if result is not None]
            found = with_upstream(StepSpec("", (), "", deps=blank), texts, trees)
        except MissingObjectError:
            return False
        return {dep.path: dep.digest for dep in found.deps} == dict(recorded)

    def forget(self, storage: Storage) -> None:
        """Remove the list of stages.

        Raises:
            RemoteError: The remote cannot be used.
        """
        storage.delete([self.place])


def open_runs(storage: Storage) -> Iterator[OpenRun]:
    """Yield the runs whose results were not all collected; unreadable lists are ignored.

    Raises:
        RemoteError: The remote cannot be used.
    """
    for place in list(storage.keys(FOLDER)):
        with suppress(
            MissingObjectError, CorruptObjectError, ValueError, TypeError, KeyError, AttributeError
        ):
            yield OpenRun.from_json(storage.read(place, limit=_LIMIT))


def result_of(storage: Storage, key: str, task: str) -> StepResult | None:
    """Return the result of a task; None if it has none yet.

    Raises:
        RemoteError: The remote cannot be used.
    """
    try:
        return StepResult.from_json(storage.read(run_place(key, task, RESULT)))
    except (MissingObjectError, ValueError, TypeError):
        return None
