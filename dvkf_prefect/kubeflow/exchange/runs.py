"""Layout of runs on a remote, shared by the dispatcher and its pods."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.data.remotes.remote import Remote, open_remote
from dvkf_prefect.pipeline.step.step import clean_log

# Names of the files that a task writes, and the folder of all runs below the root of a remote.
RESULT, LOG, SPEC, OUTPUTS, ATTEMPTS = "result.json", "log.txt", "spec.json", "outputs.json", "attempts.json"
RUNS = "dvkf/runs"

# Prefix of variables with the remote's secret options in a pod, such as DVKF_REMOTE_OPTION_SECRET_ACCESS_KEY.
OPTION_VARIABLE = "DVKF_REMOTE_OPTION_"

SPILLED = "remote:"


@dataclass(frozen=True, slots=True)
class AttemptPolicy:
    """Attempts of a stage whose command fails.

    Attributes:
        count: Maximum number of attempts.
        wait: Seconds before the second attempt.
        factor: Multiplier of each further wait.
        window: Seconds since the start of the first attempt in which attempts may run; 0 for no limit.
        timeout: Maximum seconds of an attempt; 0 for no limit.
    """

    count: int = 1
    wait: float = 0.0
    factor: int = 2
    window: float = 0.0
    timeout: float = 0.0


@dataclass(frozen=True, slots=True)
class PodRun:
    """Parameters of every pod of a run, besides its stage. The pipeline shows them, so they contain no secret.

    Attributes:
        key: Key of the run; its results are at ``dvkf/runs/<key>/<task>/``. "" for the id of the run on the server.
        url: URL of the remote, without credentials.
        options: Options of the remote, without secret ones.
        name: Name of the remote, for messages.
        bundle: Digest of the sources; "" if there are none.
        commit: Commit of the sources.
        task: Name of the task.
        inline: Maximum length of its outputs' digests as a parameter of later tasks, in characters.
        attempts: Attempts of its stage.
        exported: True for a pipeline that runs without a dispatcher. Its sources are among those of exports.
        record: Key of the `Record` of its stage on the remote; "" if its runs are not recorded.
        volume: Mount path of the volume that the pods of the run share; "" for none.
        keeps: True if later stages read its outputs, which it keeps on that volume.
        training: Plan of the nodes of its distributed training, for `dvkf_prefect.kubeflow.trainer`; None without one.
    """

    key: str
    url: str
    options: Mapping[str, str]
    name: str
    bundle: str = ""
    commit: str = ""
    task: str = ""
    inline: int = 1024
    attempts: AttemptPolicy = AttemptPolicy()
    exported: bool = False
    record: str = ""
    volume: str = ""
    keeps: bool = False
    training: Mapping[str, Any] | None = None

    def to_json(self) -> str:
        """Return the parameters as JSON, without double braces that KFP and Argo would replace."""
        values = asdict(self)
        if self.training is None:
            del values["training"]
        return json.dumps(values).replace("{{", "{\\u007b")

    @classmethod
    def from_json(cls, text: str) -> PodRun:
        """Read the JSON of `to_json`.

        Raises:
            TypeError: A field is missing or unknown.
            ValueError: The text is not JSON.
        """
        values = json.loads(text)
        return cls(**{**values, "attempts": AttemptPolicy(**values.get("attempts", {}))})

    def place(self, name: str) -> str:
        """Return the key of a file of the task, below the root of the remote."""
        return run_place(self.key, self.task, name)

    def share(self, storage: Storage, text: str) -> str:
        """Return outputs' digests as the value of a parameter: themselves, or their reference on the remote.

        Raises:
            RemoteError: The remote cannot be used.
        """
        if len(text) <= self.inline:
            return text
        storage.write(self.place(OUTPUTS), text.encode())
        return SPILLED + self.task

    def shared(self, storage: Storage, value: str) -> str:
        """Return the outputs' digests that `share` of another task of the run returned a value for.

        Raises:
            RemoteError: The remote cannot be used.
        """
        if not value.startswith(SPILLED):
            return value
        return storage.read(run_place(self.key, value[len(SPILLED) :], OUTPUTS)).decode()

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
