"""The layout of runs on a remote, which the dispatcher and its pods share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.data.remotes.remote import Remote, open_remote
from dvkf_prefect.pipeline.step.step import clean_log

# Where a run's results lie below the root of a remote, and the names of what a task leaves there.
RESULT, LOG, SPEC = "result.json", "log.txt", "spec.json"
RUNS = "dvkf/runs"

# An option of the remote in the pod's environment, by a secret: DVKF_REMOTE_SECRET_ACCESS_KEY, ….
OPTION_VARIABLE = "DVKF_REMOTE_OPTION_"

SPILLED = "remote:"


@dataclass(frozen=True, slots=True)
class PodRun:
    """What every pod of a run is told, besides its stage. It can be read in the pipeline: nothing secret is in it.

    Attributes:
        key: The run's key; its results lie at ``dvkf/runs/<key>/<task>/``.
        url: The remote, without credentials.
        options: Its options, without those that are secret.
        name: Its name, for messages.
        bundle: The digest of the sources; "" when there are none.
        commit: The commit they are of.
        dirty: The files in which they differ from it.
        tasks: The task name of each stage.
        models: The outputs of each stage that are models.
    """

    key: str
    url: str
    options: Mapping[str, str]
    name: str
    bundle: str = ""
    commit: str = ""
    dirty: tuple[str, ...] = ()
    tasks: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return it as JSON in which KFP and Argo find nothing to replace."""
        return json.dumps(asdict(self)).replace("{{", "{\\u007b")

    @classmethod
    def from_json(cls, text: str) -> PodRun:
        """Read what `to_json` wrote.

        Raises:
            TypeError: A field is missing or unknown.
            ValueError: It is not JSON.
        """
        values = json.loads(text)
        values["dirty"] = tuple(values.get("dirty", ()))
        return cls(**values)

    def place(self, task: str, name: str = "") -> str:
        """Return where a task leaves something, below the root of the remote."""
        return run_place(self.key, task, name)

    def open(self, secrets: Mapping[str, str]) -> Remote:
        """Open the remote.

        Args:
            secrets: Options that are not in the pipeline.

        Raises:
            ConfigError: Its options are wrong.
        """
        return open_remote(self.name, {**self.options, **secrets, "url": self.url})


def run_place(key: str, task: str = "", name: str = "") -> str:
    """Return where a run, or a task of one, leaves something below the root of the remote."""
    return "/".join(part for part in (RUNS, key, task, name) if part)


def spill(storage: Storage, key: str, task: str, text: str) -> str:
    """Store a specification that is too large for a parameter; return what stands for it.

    Raises:
        RemoteError: The remote cannot be used.
    """
    place = run_place(key, task, SPEC)
    storage.write(place, text.encode())
    return SPILLED + place


def read_log(storage: Storage, key: str, task: str) -> str:
    """Return the end of the log that a task left on the remote; "" when there is none.

    Raises:
        RemoteError: The remote cannot be used.
    """
    place = run_place(key, task, LOG)
    return clean_log(storage.read(place)) if storage.size(place) else ""
