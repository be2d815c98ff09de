"""Triggers of deployments by new data."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from prefect.events import DeploymentEventTrigger

from dvkf_prefect.blocks import DvcRepository, find_block
from dvkf_prefect.cards import PUSHED, dataset_id
from dvkf_prefect.errors import StageNotFoundError
from dvkf_prefect.pipeline.plan.sources import sources_of
from dvkf_prefect.tasks._names import listed


def data_trigger(
    repository: DvcRepository | str, targets: str | Sequence[str] = (), *, name: str | None = None
) -> DeploymentEventTrigger:
    """Return a trigger that starts a deployment when data that its stages read gets a new version.

    The trigger waits for ``dvkf.dataset.pushed`` of the outputs that the stages, and those upstream of them, read but
    do not write. `push_data` emits that event when the version is on the remote. A push of other data, or of nothing
    new, starts nothing. A later change of the dependencies in dvc.yaml needs a new deployment.

    Args:
        repository: The repository. Its name is a part of the events, so the flow that pushes needs the same label.
        targets: Stages, dvc.yaml files or outputs; all stages if empty.
        name: Name of the automation; Prefect's default if None.

    Returns:
        The trigger, for ``triggers=`` of ``flow.to_deployment``, ``flow.serve`` and ``flow.deploy``.

    Raises:
        StageNotFoundError: A target is no stage, or the stages read no tracked data.
        StageGraphError: The stages do not form a graph.

    Example:
        ``train.serve(name="train", triggers=[data_trigger(DvcRepository.load("local"), "train")])``
    """
    repository = find_block(DvcRepository, repository, "repository")
    wanted = listed(targets)
    sources = sources_of(repository.open(), wanted)
    if not sources:
        raise StageNotFoundError(
            f"{', '.join(wanted) or 'all stages'} of {repository.name} read no tracked data. Track it with "
            "`dvkf add`, or name other stages."
        )
    return DeploymentEventTrigger(
        name=name,
        expect={PUSHED},
        match={"prefect.resource.id": [dataset_id(repository.name, output.path) for output in sources]},
        threshold=1,
        within=timedelta(0),
    )
