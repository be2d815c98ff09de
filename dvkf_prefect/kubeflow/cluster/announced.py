"""Runs that a dispatcher announced before it sent its request, and may have been killed before it had the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.kubeflow.cluster.api import KfpApi
from dvkf_prefect.kubeflow.cluster.open_runs import OpenRun
from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
from dvkf_prefect.kubeflow.cluster.start import KubeWorkflows, RunStart
from dvkf_prefect.kubeflow.cluster.uploads import results_key
from dvkf_prefect.kubeflow.exchange.claims import Claim


def mark_of(key: str) -> str:
    """Return the first line of the description of the run with a key."""
    return f"dvkf-run {key}"


def find_run(api: KfpApi, run: OpenRun, namespace: str | None) -> dict[str, Any] | None:
    """Return a run as the server returns it, by its id or, on a server that gave it another one, by its name.

    Args:
        api: Connection to the server.
        run: The run.
        namespace: Namespace of the run.
    """
    if run.run_id:
        return api.run(run.run_id)
    return api.run(run.key) or api.find_run(
        run.name, mark_of(run.key), experiment_id=run.experiment, namespace=namespace
    )


def start_of(api: KfpApi, run: OpenRun, settings: ClusterSettings, storage: Storage) -> RunStart:
    """Return the start of an announced run.

    Args:
        api: Connection to the server.
        run: The run.
        settings: Settings of the cluster.
        storage: The remote's storage.
    """
    workflows = KubeWorkflows(settings, api) if settings.ask_kubernetes else None
    return RunStart(
        api,
        Claim(storage, run.key),
        run.key,
        run.name,
        lambda: find_run(api, run, settings.namespace),
        workflows,
    )


def record_found(run: OpenRun, found: Mapping[str, Any], storage: Storage) -> OpenRun:
    """Record the id of an announced run, and return it with that and with the key of its results.

    Args:
        run: The run as it was announced.
        found: The run as the server returns it.
        storage: The remote's storage.

    Raises:
        RemoteError: The remote cannot be used.
    """
    known = dataclasses.replace(run, run_id=str(found["run_id"]), key=results_key(found, run.key))
    known.write(storage)
    if known.place != run.place:
        run.forget(storage)
    return known


def settle_run(api: KfpApi, run: OpenRun, settings: ClusterSettings, storage: Storage) -> OpenRun | None:
    """Return a run with its id on the server; None if it was announced and never started.

    Waits while the request of an announced run may still start it.

    Args:
        api: Connection to the server.
        run: The run.
        settings: Settings of the cluster.
        storage: The remote's storage.

    Raises:
        RunnerError: A workflow without a run goes on, or the server cannot be used.
        RemoteError: The remote cannot be used.
    """
    if run.run_id:
        return run
    found = start_of(api, run, settings, storage).adopt()
    return record_found(run, found, storage) if found is not None else None
