"""Retry of a failed pipeline run: the same run on the server goes on, in place of a new one.

Kubeflow Pipelines keeps the tasks that succeeded, deletes the failed pods and runs their tasks again, under the same id
(``RetryRun`` and ``GenerateRetryExecution`` of KFP 2.5 to 2.17). The results of a stage are stored by run and task. So
what the failed pods wrote is removed before: their results, and their counts of attempts.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.errors import MissingObjectError
from dvkf_prefect.kubeflow.cluster.api import ENDED, KfpAnswerError, KfpApi, KfpUnreachableError
from dvkf_prefect.kubeflow.exchange.claims import Claim
from dvkf_prefect.kubeflow.exchange.runs import ATTEMPTS, RESULT, run_place
from dvkf_prefect.pipeline.step.spec import StepResult

# Seconds until the server has stored the states of the restarted tasks; it reports the workflow at intervals.
_SETTLE = 60.0
_REFUSED = frozenset({400, 403, 404, 405, 409, 500, 501})


def retry_run(api: KfpApi, storage: Storage | None, run_id: str, key: str) -> bool:
    """Run what failed in a run again; return False if the server does not retry it.

    Args:
        api: Connection to the server.
        storage: Storage of the remote with the results; None if it is unknown, and attempts stay counted.
        run_id: Id of the run.
        key: Key of its results.

    Raises:
        RunnerError: The server cannot be reached.
        RemoteError: The remote cannot be used.
    """
    before = _failed_tasks(api.run(run_id) or {})
    if storage is not None:
        forget_failures(storage, key)
    try:
        api.retry(run_id)
    except (KfpAnswerError, KfpUnreachableError) as error:
        if isinstance(error, KfpAnswerError) and error.status not in _REFUSED:
            raise
        # The answer may be lost, and another client may have retried it.
        run = api.run(run_id)
        if run is None or run.get("state") in ENDED:
            return False
    _settle(api, run_id, before)
    return True


def retry_once(api: KfpApi, storage: Storage, run: Mapping[str, Any], key: str, *, patience: float) -> bool:
    """Retry a failed run, unless another dispatcher does; return True if the run goes on.

    A run that was terminated is not retried. A claim on the retry keeps all but one dispatcher from removing results.

    Args:
        api: Connection to the server.
        storage: Storage of the remote with the results.
        run: The run as the server returns it.
        key: Key of its results.
        patience: Maximum seconds to wait for another dispatcher.

    Raises:
        RunnerError: The server cannot be reached.
        RemoteError: The remote cannot be used.
    """
    run_id = str(run["run_id"])
    workflow = api.workflow(run_id) if run.get("state") == "FAILED" else None
    if run.get("state") != "FAILED" or (workflow is not None and workflow.stopped):
        return False

    def running() -> bool:
        return (api.run(run_id) or {"state": "FAILED"}).get("state") not in ENDED

    # Apart from the claims on the run's start, which any finder of the run clears.
    claim = Claim(storage, f"{key}/retry")
    if claim.take(patience, running) is not None:
        return True
    try:
        return running() or retry_run(api, storage, run_id, key)
    finally:
        claim.release()


def forget_failures(storage: Storage, key: str) -> None:
    """Remove the results of failed stages, and the counts of attempts, of a run.

    Args:
        storage: Storage of the remote.
        key: Key of the run's results.

    Raises:
        RemoteError: The remote cannot be used.
    """
    gone = []
    for place in storage.keys(run_place(key)):
        name = place.rpartition("/")[2]
        if name == ATTEMPTS:
            gone.append(place)
        elif name == RESULT:
            with suppress(MissingObjectError, ValueError, TypeError):
                if StepResult.from_json(storage.read(place)).failed:
                    gone.append(place)
    if gone:
        storage.delete(gone)


def _failed_tasks(run: Mapping[str, Any]) -> set[str]:
    """Return the names of a run's failed tasks."""
    details = (run.get("run_details") or {}).get("task_details") or ()
    names = {str(d.get("display_name")) for d in details if d.get("state") == "FAILED"}
    # Single attempts, "executor(1)", stay in the server's list.
    return {name for name in names if not name.endswith(")")}


def _settle(api: KfpApi, run_id: str, before: Collection[str]) -> None:
    """Wait until the tasks that had failed have other states, or the run has ended again."""
    end = time.monotonic() + _SETTLE
    wait = 0.2
    while time.monotonic() < end:
        run = api.run(run_id) or {}
        if not _failed_tasks(run) & set(before) or run.get("state") in ENDED:
            return
        time.sleep(wait)
        wait = min(wait * 2, 5.0)
