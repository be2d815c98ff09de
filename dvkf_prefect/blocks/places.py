"""Serving places of a model, as blocks: those that its deployments noted, and this machine."""

from __future__ import annotations

from pathlib import Path

from dvkf_prefect.blocks.kserve import KServeModelServer
from dvkf_prefect.blocks.serving import ModelServer
from dvkf_prefect.models.facts import read_facts
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.tags import tag_name

_KSERVE = "kserve:"


def places_of(registry: ModelRegistry, model: str) -> list[ModelServer | KServeModelServer]:
    """Return the places that serve a model or did, by the facts on its versions, after this machine's usual one.

    Args:
        registry: The registry.
        model: Name of the model.

    Raises:
        ModelNotFoundError: No model of that name is registered.
    """
    found: dict[str, ModelServer | KServeModelServer] = {}
    usual = ModelServer()
    found[usual.where] = usual
    for version in registry.list(model):
        for fact in read_facts(registry.git, tag_name("register", model, version=version.version)):
            where = str(fact.get("where", ""))
            if fact["kind"] != "service" or where in found:
                continue
            if where.startswith(_KSERVE):
                context, _, namespace = where.removeprefix(_KSERVE).rpartition("/")
                found[where] = KServeModelServer(namespace=namespace, context=context or None)
            elif Path(where).is_dir():
                found[where] = ModelServer(state_dir=where)
    return list(found.values())
