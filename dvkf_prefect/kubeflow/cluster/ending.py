"""End of the runs of a dispatcher that was killed before it could end them, as when its cancellation took too long."""

from __future__ import annotations

from contextlib import closing

from dvkf_prefect.data.remotes.remote import Remote
from dvkf_prefect.kubeflow.cluster.announced import settle_run
from dvkf_prefect.kubeflow.cluster.api import ENDED
from dvkf_prefect.kubeflow.cluster.open_runs import open_runs
from dvkf_prefect.kubeflow.cluster.settings import ClusterSettings
from dvkf_prefect.kubeflow.exchange.interests import give_up_for


def end_runs_of(owner: str, settings: ClusterSettings, remote: Remote) -> list[str]:
    """Give up all interests of an owner, and terminate the runs that no other dispatcher follows.

    Args:
        owner: Owner of the interests, such as the ID of a flow run, whose processes have ended.
        settings: Settings of the cluster.
        remote: Remote of the runs.

    Returns:
        Ids of the terminated runs on the server.

    Raises:
        ConfigError: The address or the certificates of the server are wrong.
        RunnerError: The server cannot be used.
        RemoteError: The remote cannot be used.

    Example:
        ``end_runs_of("0197…", pipelines.settings(), repo.remote())``
    """
    ended = []
    with closing(settings.connect()) as api:
        for run in open_runs(remote.storage):
            if not give_up_for(remote.storage, run.key, owner, is_starter=run.owner == owner):
                continue
            started = settle_run(api, run, settings, remote.storage)
            found = api.run(started.run_id) if started is not None else None
            if found is not None and found.get("state") not in ENDED:
                api.terminate(found["run_id"])
                ended.append(str(found["run_id"]))
    return ended
