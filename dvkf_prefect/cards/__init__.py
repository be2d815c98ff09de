"""Cards for Prefect's pages: pure functions from results to markdown and tables.

A card becomes an artifact. Its key is stable: all cards of one dataset, model, pipeline or stage form a timeline. The
list of artifacts shows only the newest description, so each description is complete. Outside text is escaped, and long
lists are cut with a count of the remaining rows.
"""

from dvkf_prefect.cards.card import PUSHED, Card, artifact_key, dataset_id
from dvkf_prefect.cards.data import data_card, diff_card, transfer_text
from dvkf_prefect.cards.incoming import incoming_card
from dvkf_prefect.cards.markdown import (
    block,
    code,
    count_text,
    escape,
    link,
    markdown_table,
    plain,
    size_text,
)
from dvkf_prefect.cards.metrics import metrics_card
from dvkf_prefect.cards.models import (
    history_card,
    lineage_card,
    mirror_card,
    model_card,
    publication_card,
    unpublished_card,
)
from dvkf_prefect.cards.overview import overview_card, plots_card
from dvkf_prefect.cards.promotions import comparison_card, promotion_card
from dvkf_prefect.cards.serving import canary_card, endpoint_card, gates_card, predictions_card
from dvkf_prefect.cards.stages import TreeChange, pipeline_card, stage_card
from dvkf_prefect.cards.upkeep import garbage_card, verification_card

__all__ = [
    "PUSHED",
    "Card",
    "TreeChange",
    "artifact_key",
    "block",
    "canary_card",
    "code",
    "comparison_card",
    "count_text",
    "data_card",
    "dataset_id",
    "diff_card",
    "endpoint_card",
    "escape",
    "garbage_card",
    "gates_card",
    "history_card",
    "incoming_card",
    "lineage_card",
    "link",
    "markdown_table",
    "metrics_card",
    "mirror_card",
    "model_card",
    "overview_card",
    "pipeline_card",
    "plain",
    "plots_card",
    "predictions_card",
    "promotion_card",
    "publication_card",
    "size_text",
    "stage_card",
    "transfer_text",
    "unpublished_card",
    "verification_card",
]
