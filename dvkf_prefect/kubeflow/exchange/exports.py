"""Files of exported pipelines on a remote, and the run cache as pods use it.

An exported pipeline runs without a dispatcher, so its pods decide by themselves. A pod looks for an equal run in the
remote's run cache, and takes its outputs. Otherwise it runs the stage and adds the run. `dvkf repro --pull` then
restores the outputs from there.

Sources, specifications and records are at ``dvkf-exports/``, each by its digest. A collection removes old files below
``dvkf/`` only, so an exported pipeline stays usable until its folder is deleted. Source of the run cache's layout: DVC
3.x, see `dvkf_prefect.data.transfer.run_cache`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.errors import MissingObjectError
from dvkf_prefect.formats.documents import dump
from dvkf_prefect.formats.dvclock import Entry, Item, content_of, item_of, make_entry
from dvkf_prefect.kubeflow.exchange.objects import Below
from dvkf_prefect.kubeflow.exchange.runs import SPILLED
from dvkf_prefect.pipeline.plan.runcache import parse_run
from dvkf_prefect.pipeline.plan.signature import input_key, result_key
from dvkf_prefect.pipeline.step.spec import StepContent, StepKnown, StepSpec

EXPORTS = "dvkf-exports"
_RUNS = "runs"
_LARGEST = 16 << 20  # bytes of an entry


@dataclass(frozen=True, slots=True)
class Record:
    """Names of a stage's inputs and outputs in dvc.yaml, with which a pod forms its entry of the run cache.

    Attributes:
        command: The stage's command or commands, as in dvc.lock.
        deps: Path of each dependency, relative to the root, by its name.
        items: Dependencies without content, in the form of dvc.lock: datasets and outside files.
        params: Path of each parameters file, relative to the root, by its name.
        outs: Path of each output, relative to the root, by its name.
        force: True runs the stage even if an equal run is known.
    """

    command: str | Sequence[str]
    deps: Mapping[str, str] = field(default_factory=dict)
    items: Sequence[Item] = ()
    params: Mapping[str, str] = field(default_factory=dict)
    outs: Mapping[str, str] = field(default_factory=dict)
    force: bool = False

    def to_json(self) -> str:
        """Return the record as JSON."""
        return json.dumps(asdict(self))

    def entry(self, step: StepSpec, outs: Sequence[StepContent] = ()) -> Entry:
        """Return the entry of a run.

        Args:
            step: Specification of the run, with the content of all dependencies.
            outs: Content of the outputs; without it the entry holds their names only.
        """
        deps = {dep.path: dep.content for dep in step.deps}
        found = {out.path: out.content for out in outs}
        params = {name: _values(step.params[path]) for name, path in self.params.items()}
        return make_entry(
            self.command,
            [*self.items, *(item_of(name, deps[path]) for name, path in self.deps.items())],
            params,
            [item_of(name, found[path]) if outs else {"path": name} for name, path in self.outs.items()],
        )

    def known(self, storage: Storage, step: StepSpec) -> StepKnown | None:
        """Return the newest run with equal inputs in the remote's run cache; None if there is none.

        Args:
            storage: The remote's storage.
            step: Specification of the run, with the content of all dependencies.

        Raises:
            RemoteError: The remote cannot be used.
        """
        if self.force:
            return None
        key = input_key(self.entry(step))
        runs = sorted(storage.dated(f"{_RUNS}/{key[:2]}/{key}"), key=lambda run: (run[2] or 0.0, run[0]))
        for place, _, _ in reversed(runs):
            try:
                run = parse_run(storage.read(place, limit=_LARGEST), place)
            except MissingObjectError:
                continue  # a collection removed it
            recorded = {item["path"]: item for item in (run or {}).get("outs", ())}
            if run is not None and recorded.keys() == self.outs.keys():
                outs = [StepContent(path, content_of(recorded[name])) for name, path in self.outs.items()]
                return StepKnown({dep.path: dep.digest for dep in step.deps}, tuple(outs))
        return None

    def save(self, storage: Storage, step: StepSpec, outs: Sequence[StepContent]) -> None:
        """Add a run to the remote's run cache.

        Args:
            storage: The remote's storage.
            step: Specification of the run, with the content of all dependencies.
            outs: Outputs of the run; they are on the remote.

        Raises:
            RemoteError: The remote cannot be used.
        """
        save_run(storage, self.entry(step, outs))


def save_run(storage: Storage, entry: Entry) -> None:
    """Add an entry of dvc.lock to the remote's run cache, unless it has it.

    Raises:
        RemoteError: The remote cannot be used.
    """
    key = input_key(entry)
    place = f"{_RUNS}/{key[:2]}/{key}/{result_key(entry)}"
    if storage.size(place) is None:
        storage.write(place, dump(entry))


def read_record(storage: Storage, place: str) -> Record | None:
    """Return the record of a task; None for ``place`` ``""``, of a stage whose runs are not recorded.

    Raises:
        MissingObjectError: It was deleted.
        RemoteError: The remote cannot be used.
    """
    if not place:
        return None
    try:
        return Record(**json.loads(storage.read(place, limit=_LARGEST)))
    except MissingObjectError:
        raise MissingObjectError(
            f"'{place}' of the exported pipeline is not on {storage.url}. Export the pipeline again."
        ) from None


def store(storage: Storage, text: str) -> str:
    """Store a text by its digest; return its key.

    Raises:
        RemoteError: The remote cannot be used.
    """
    data = text.encode()
    place = f"{EXPORTS}/{hashlib.sha256(data).hexdigest()}"
    if storage.size(place) is None:
        storage.write(place, data)
    return place


def reference(storage: Storage, text: str) -> str:
    """Store a specification that is too large for a parameter; return its reference.

    Raises:
        RemoteError: The remote cannot be used.
    """
    return SPILLED + store(storage, text)


def export_sources(storage: Storage) -> Storage:
    """Return the area of a remote for the sources of exported pipelines."""
    return Below(storage, EXPORTS)


def _values(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parameters of a file as dvc.lock holds them; the key "" stands for the whole file."""
    whole: Mapping[str, Any] = params[""] if set(params) == {""} else params
    return whole
