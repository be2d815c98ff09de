"""Flow that looks for versions which others pushed: `watch` announces each one as an event."""

from typing import Any

from prefect import flow

from dvkf_prefect import DvcRepository, find_block, watch_data


@flow(name="watch")
def watch(repository: DvcRepository | str = "local") -> list[dict[str, Any]]:
    """Announce versions of data that are new in git and whole on the remote, each once.

    Schedule it every few minutes. A plain ``dvc push`` and ``git push`` then start deployments with a `data_trigger`.

    Args:
        repository: DVC Repository block, or its name. A block with a git URL follows a branch of that URL.

    Returns:
        The announced versions: path, digest, size and commit.
    """
    data = find_block(DvcRepository, repository, "repository")
    return [version.as_dict() for version in watch_data(data)]
