"""Flows that serve a registered model: `serve` deploys a version, `rollback` returns to the one before."""

from collections.abc import Sequence
from typing import Any

from prefect import flow

from dvkf_prefect import (
    DvcRepository,
    ModelServer,
    deploy_model,
    find_block,
    push_commits,
    request_predictions,
    rollback_model,
)


@flow(name="serve")
def serve(
    model: str,
    which: str = "#prod",
    instances: Sequence[Sequence[float]] = (),
    repository: DvcRepository | str = "local",
    server: ModelServer | str = "local",
) -> dict[str, Any]:
    """Serve a registered version of a model, and request a first prediction.

    The new version replaces the one that is served now without refusing a request. If it does not start, the old
    version stays in service.

    Args:
        model: Model to serve, by its name in dvc.yaml.
        which: Version to serve: a model stage after a hash, such as #prod; a version, such as v1.0.0; or latest.
        instances: Rows to predict, as a check of the new server; no check if empty.
        repository: DVC Repository block, or its name.
        server: Model Server block, or its name.

    Returns:
        The served version, its URL, and its predictions.
    """
    place = find_block(ModelServer, server, "server")
    data = find_block(DvcRepository, repository, "repository")
    endpoint = deploy_model(data, place, model, which)
    predictions = request_predictions(data, place, model, instances) if instances else ()
    return {
        "model": model,
        "version": endpoint.version,
        "url": endpoint.url,
        "predictions": list(predictions),
    }


@flow(name="rollback")
def rollback(
    model: str,
    stage: str = "prod",
    instances: Sequence[Sequence[float]] = (),
    reason: str = "",
    to: str = "",
    with_data: bool = False,
    repository: DvcRepository | str = "local",
    server: ModelServer | str = "local",
    push: bool = True,
) -> dict[str, Any]:
    """Serve the version that had a model stage before, and assign the stage to it.

    The version before serves before the stage names it. A run that was killed, or failed after the rollback, is
    continued by its retry, and by another run. After one that completed, another run goes one version further back.

    Args:
        model: Model to roll back, by its name in dvc.yaml.
        stage: The model stage.
        instances: Rows to predict, as a check of the server; no check if empty.
        reason: Reason of the rollback, for its tag.
        to: Version to return to, which held the stage before; the one before the current one if empty.
        with_data: Check out the data that the version learned from.
        repository: DVC Repository block, or its name.
        server: Model Server block, or its name.
        push: Push the tag that records the rollback to git's origin if there is one. For a git URL, push the journal at
            each step, so that any worker continues.

    Returns:
        The served version, its URL, and its predictions.
    """
    data = find_block(DvcRepository, repository, "repository")
    place = find_block(ModelServer, server, "server")
    share = None if push else False
    version = rollback_model(
        data, model, stage, server=place, to=to, data=with_data, reason=reason, share=share
    )
    endpoint = deploy_model(data, place, model, version.version)
    if push:
        push_commits(data)
    predictions = request_predictions(data, place, model, instances) if instances else ()
    return {
        "model": model,
        "version": endpoint.version,
        "url": endpoint.url,
        "predictions": list(predictions),
    }
