"""Verbs on single runs of a server, by hand: retry, terminate, archive, restore from the archive, delete."""

from __future__ import annotations

from typing import Any

from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.errors import RunnerError
from dvkf_prefect.kubeflow.cluster.api import KfpApi
from dvkf_prefect.kubeflow.cluster.retry import retry_run
from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings


class Runs:
    """Runs of a server.

    Args:
        settings: Settings of the server.
        api: Connection to it.
    """

    def __init__(self, settings: ClusterSettings, api: KfpApi) -> None:
        self._settings = settings
        self._api = api

    def find(self, run_id: str) -> dict[str, Any]:
        """Return a run as the server returns it.

        Args:
            run_id: ID of the run.

        Raises:
            RunnerError: There is no such run, or the server cannot be used.
        """
        run = self._api.run(run_id)
        if run is None:
            raise RunnerError(
                f"no run {run_id} on {self._api.host}. `dvkf runs list --all` lists all of them."
            )
        return run

    def retry(self, run_id: str, storage: Storage | None = None) -> str:
        """Run the failed stages of a failed run again, in the same run; return its page, "" if unknown.

        Args:
            run_id: ID of the run.
            storage: Storage of the remote with its results, from which those of failed stages and their counts of
                attempts are removed. None keeps them, so that stages without attempts left fail at once.

        Raises:
            RunnerError: The run has not failed, or the server does not retry it.
            RemoteError: The remote cannot be used.
        """
        run = self.find(run_id)
        if run.get("state") != "FAILED":
            raise RunnerError(
                f"run {run_id} is {str(run.get('state', 'new')).lower()}; only a failed run can be retried."
            )
        if not retry_run(self._api, storage, run_id, run_id):
            raise RunnerError(f"Kubeflow Pipelines does not retry run {run_id}. Start the stages again.")
        return self._settings.links(self._api).run(run_id)

    def terminate(self, run_id: str) -> None:
        """End a run; do nothing if it has ended. Its state is FAILED afterwards.

        Args:
            run_id: ID of the run.

        Raises:
            RunnerError: There is no such run, or the server refuses it.
        """
        self.find(run_id)
        self._api.terminate(run_id)

    def archive(self, run_id: str) -> None:
        """Move a run to the archive, where lists and the UI hide it.

        Args:
            run_id: ID of the run.

        Raises:
            RunnerError: There is no such run, or the server refuses it.
        """
        self._api.archive(run_id)

    def unarchive(self, run_id: str) -> None:
        """Move a run back from the archive.

        Args:
            run_id: ID of the run.

        Raises:
            RunnerError: There is no such run, its experiment is archived too, or the server refuses it.
        """
        self._api.unarchive(run_id)

    def delete(self, run_id: str) -> None:
        """Delete a run from the server; its results on the remote stay.

        Args:
            run_id: ID of the run.

        Raises:
            RunnerError: There is no such run, or the server refuses it.
        """
        self._api.delete_run(run_id)
