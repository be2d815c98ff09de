"""Card of a model after a change of its versions or stages."""

from __future__ import annotations

from dvkf_prefect.blocks import DvcRepository
from dvkf_prefect.cards import model_card
from dvkf_prefect.models import trace
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.serving.whereabouts import with_services
from dvkf_prefect.settings import DvkfSettings
from dvkf_prefect.tasks._artifacts import publish, run_links
from dvkf_prefect.tasks._logging import run_logger

# Versions whose metrics a model's card draws; each takes some calls of git.
_TRACED = 8


def publish_model(repository: DvcRepository, registry: ModelRegistry, name: str, said: str) -> None:
    """Log a sentence, and publish the card of a model.

    Args:
        repository: The repository.
        registry: Its models.
        name: Name of the model.
        said: Sentence on the change.
    """
    run_logger().info("%s", said)
    versions = registry.list(name)
    lineages = with_services([trace.trace_version(registry, version) for version in versions[:_TRACED]])
    card = model_card(
        versions,
        name,
        repository.name,
        said=said,
        lineages=lineages,
        runs=run_links(lineages[:1]),
        limit=DvkfSettings().card_rows,
    )
    publish(card)
