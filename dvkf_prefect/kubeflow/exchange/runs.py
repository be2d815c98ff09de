"""Layout of runs on a remote, shared by the dispatcher and its pods."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.data.remotes.remote import Remote, open_remote
from dvkf_prefect.pipeline.step.step import clean_log

# Names of the files that a task writes, and the folder of all runs below the root of a remote.
RESULT, LOG, SPEC = "result.json", "log.txt", "spec.json"
RUNS = "dvkf/runs"

# Prefix of variables with the remote's secret options in a pod, such as DVKF_REMOTE_OPTION_SECRET_ACCESS_KEY.
OPTION_VARIABLE = "DVKF_REMOTE_OPTION_"

SPILLED = "remote:"


@dataclass(frozen=True, slots=True)
class PodRun:
    """Parameters of every pod of a run, besides its stage. The pipeline shows them, so they contain no secret.

    Attributes:
        key: Key of the run; its results are at ``dvkf/runs/<key>/<task>/``.
        url: URL of the remote, without credentials.
        options: Options of the remote, without secret ones.
        name: Name of the remote, for messages.
        bundle: Digest of the sources; "" if there are none.
        commit: Commit of the sources.
        dirty: Files that differ from the commit.
        tasks: Task name of each stage.
        models: Outputs of each stage that are models.
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
        """Return the parameters as JSON, without double braces that KFP and Argo would replace."""
        return json.dumps(asdict(self)).replace("{{", "{\\u007b")

    @classmethod
    def from_json(cls, text: str) -> PodRun:
        """Read the JSON of `to_json`.

        Raises:
            TypeError: A field is missing or unknown.
            ValueError: The text is not JSON.
        """
        values = json.loads(text)
        values["dirty"] = tuple(values.get("dirty", ()))
        return cls(**values)

    def place(self, task: str, name: str = "") -> str:
        """Return the key of a task's file, below the root of the remote."""
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
    """Return the key of a file of a run or one of its tasks, below the root of the remote."""
    return "/".join(part for part in (RUNS, key, task, name) if part)


def spill(storage: Storage, key: str, task: str, text: str) -> str:
    """Store a specification that is too large for a parameter; return its reference.

    Raises:
        RemoteError: The remote cannot be used.
    """
    place = run_place(key, task, SPEC)
    storage.write(place, text.encode())
    return SPILLED + place


def read_log(storage: Storage, key: str, task: str) -> str:
    """Return the last lines of a task's log on the remote; "" if there is none.

    Raises:
        RemoteError: The remote cannot be used.
    """
    place = run_place(key, task, LOG)
    return clean_log(storage.read(place)) if storage.size(place) else ""
