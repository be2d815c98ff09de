"""Flows that work with saved blocks: ingest data, run a pipeline, train, promote a model, maintain a repository.

Each is deployed as ``dvkf_prefect.flows.NAME``, or copied and changed: the flows use only what `dvkf_prefect` exports.

Example:
    ``train(model="digits", stage="prod", metric="accuracy", minimum=0.9)``
"""

from dvkf_prefect.flows.ingestion import ingest
from dvkf_prefect.flows.maintenance import maintain
from dvkf_prefect.flows.pipelines import repro, train
from dvkf_prefect.flows.promotion import promote
from dvkf_prefect.flows.serving import rollback, serve
from dvkf_prefect.flows.watching import watch

__all__ = ["ingest", "maintain", "promote", "repro", "rollback", "serve", "train", "watch"]
