"""A run on the server that is followed: the ways to its states, results, pods and logs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dvkf_prefect.data.remotes.remote import Remote
from dvkf_prefect.kubeflow.cluster.api import KfpApi
from dvkf_prefect.kubeflow.cluster.pods import Pods
from dvkf_prefect.kubeflow.exchange.runs import run_place


@dataclass(frozen=True, slots=True)
class FollowedRun:
    """A run on the server.

    Attributes:
        api: The API.
        run_id: Id of the run.
        key: Key of its results on the remote.
        tasks: Task name of each stage.
        remote: Remote with the results.
        pods: Access to the pods in Kubernetes; None for no queries.
        namespace: Namespace of the pods.
        url: Page of the run in Kubeflow's UI; "" if unknown.
    """

    api: KfpApi
    run_id: str
    key: str
    tasks: Mapping[str, str]
    remote: Remote
    pods: Pods | None
    namespace: str
    url: str = ""

    def place(self, stage: str, name: str) -> str:
        """Return the key of a file of a stage, below the root of the remote.

        Args:
            stage: Address of the stage.
            name: Name of the file.
        """
        return run_place(self.key, self.tasks[stage], name)
