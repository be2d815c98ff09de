"""Files of a training on the remote: the start of its nodes, written by the stage's pod, and their results.

Below the task's folder, in ``nodes/<name of the training>``: ``start.json`` with the specification of the stage and the
outputs of its upstream tasks, and of each node ``result-<rank>.json`` and ``log-<rank>.txt``. The first node's log is
the stage's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.errors import MissingObjectError, RunnerError, StageCancelledError, StageError
from dvkf_prefect.kubeflow.exchange.runs import LOG, PodRun
from dvkf_prefect.kubeflow.trainer.manifests import job_name, training_mark
from dvkf_prefect.kubeflow.trainer.verdict import Verdict
from dvkf_prefect.pipeline.step.spec import StepResult

NODE_VARIABLE = "DVKF_NODE"
"""Variable of a node with the training that it belongs to, as JSON."""

Start = tuple[str, Sequence[str], Mapping[str, Any]]
"""Start of the nodes: the stage's specification or its reference, the outputs of upstream tasks, and parameters."""


class Runs(Protocol):
    """Part of `dvkf_prefect.kubeflow.trainer.launch.Training` that is used here."""

    def run(self, environment: Mapping[str, str], failed: Callable[[], bool]) -> Verdict:
        """Start the training, or find it, and wait for its end."""


class Nodes:
    """Nodes of one training.

    Args:
        storage: The remote's storage.
        about: Parameters of the stage's pod.
        attempt: Number of failed attempts before.

    Attributes:
        name: Name of the training.
        mark: Text that identifies it.
    """

    def __init__(self, storage: Storage, about: PodRun, attempt: int) -> None:
        self._storage = storage
        self._about = about
        self._attempt = attempt
        self.name = job_name(about.task, about.key, attempt)
        self.mark = training_mark(about.task, about.key, attempt)
        self._seen: dict[int, StepResult] = {}

    @classmethod
    def of_variable(cls, text: str, open_storage: Callable[[PodRun], Storage]) -> Nodes:
        """Read the variable of a node.

        Args:
            text: Value of the variable.
            open_storage: Opens the remote's storage.

        Raises:
            TypeError: A field is missing or unknown.
            ValueError: The text is not JSON.
        """
        values = json.loads(text)
        about = PodRun.from_json(json.dumps(values["run"]))
        return cls(open_storage(about), about, values["attempt"])

    @property
    def about(self) -> PodRun:
        """Parameters of the stage's pod."""
        return self._about

    def variable(self) -> str:
        """Return the value of the nodes' variable."""
        # The volume of the run is mounted by the pods of its stages alone.
        about = json.loads(replace(self._about, training=None, volume="", keeps=False).to_json())
        return json.dumps({"run": about, "attempt": self._attempt})

    def place(self, file: str) -> str:
        """Return the key of a file of the training."""
        return self._about.place(f"nodes/{self.name}/{file}")

    def log_key(self, rank: int) -> str:
        """Return the key of a node's log."""
        return self.place(f"log-{rank}.txt") if rank else self._about.place(LOG)

    # -- start -------------------------------------------------------------------------------------------------------

    def prepare(self, start: Start) -> None:
        """Store what the nodes start from.

        Raises:
            RemoteError: The remote cannot be used.
        """
        text, upstream, params = start
        values = {"spec": text, "upstream": list(upstream), "params": dict(params)}
        self._storage.write(self.place("start.json"), json.dumps(values).encode())

    def start(self) -> Start:
        """Return the values of `prepare`.

        Raises:
            MissingObjectError: They are gone.
            RemoteError: The remote cannot be used.
        """
        values = json.loads(self._storage.read(self.place("start.json")))
        return values["spec"], values["upstream"], values["params"]

    # -- results -----------------------------------------------------------------------------------------------------

    def record(self, rank: int, result: StepResult) -> None:
        """Store the result of a node.

        Raises:
            RemoteError: The remote cannot be used.
        """
        data = replace(result, side_dir="").to_json().encode()
        self._storage.write(self.place(f"result-{rank}.json"), data)

    def recorded(self, rank: int) -> StepResult | None:
        """Return the result of a node; None before its end.

        Raises:
            RemoteError: The remote cannot be used.
        """
        try:
            return StepResult.from_json(self._storage.read(self.place(f"result-{rank}.json")))
        except MissingObjectError:
            return None

    def results(self) -> dict[int, StepResult]:
        """Return the results of all nodes that have ended, by rank.

        Raises:
            RemoteError: The remote cannot be used.
        """
        for key, _ in self._storage.list(self.place("").rstrip("/")):
            name = key.rpartition("/")[2]
            if name.startswith("result-") and name.endswith(".json"):
                rank = int(name[len("result-") : -len(".json")])
                if rank not in self._seen and (found := self.recorded(rank)) is not None:
                    self._seen[rank] = found
        return dict(sorted(self._seen.items()))

    def failure(self) -> tuple[int, StepResult] | None:
        """Return the first node that failed, and its result.

        The others are stopped then, and record that. So a node that failed by itself precedes those that were stopped.

        Raises:
            RemoteError: The remote cannot be used.
        """
        failed = [(rank, found) for rank, found in self.results().items() if found.failed]
        return min(failed, key=lambda each: each[1].error == StageCancelledError.__name__, default=None)


def train(training: Runs, nodes: Nodes, stage: str, start: Start) -> StepResult:
    """Run a training; return the result of its stage.

    Args:
        training: The training.
        nodes: Its nodes.
        stage: Address of the stage, for messages.
        start: Start of the nodes.

    Raises:
        RunnerError: Kubernetes refused the training, or its outcome is unknown.
        StageError: It ended without a result.
        RemoteError: The remote cannot be used.
    """
    nodes.prepare(start)
    verdict = training.run({NODE_VARIABLE: nodes.variable()}, lambda: nodes.failure() is not None)
    if (failure := nodes.failure()) is not None:
        rank, result = failure
        if rank == 0:
            return result
        return replace(
            result,
            message=f"node {rank}: {result.message}",
            log_tail=f"(log of node {rank})\n{result.log_tail}",
        )
    if verdict.phase == "failed":
        raise StageError(f"its training {nodes.name} failed: {verdict.message}")
    first = nodes.results().get(0)
    if first is None:
        raise RunnerError(
            f"its training {nodes.name} ended, and its first node left no result of stage '{stage}'"
        )
    return first
