"""Cards of served models and their predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from shlex import quote
from typing import TYPE_CHECKING

from dvkf_prefect.cards.card import Card, artifact_key
from dvkf_prefect.cards.markdown import ROWS, address, block, code, count_text, escape, link, markdown_table
from dvkf_prefect.serving.kserve.endpoint import ServiceEndpoint

if TYPE_CHECKING:
    from dvkf_prefect.models.version import ModelVersion
    from dvkf_prefect.promotion.places import ServingState
    from dvkf_prefect.serving.endpoint import Endpoint


def endpoint_card(endpoint: Endpoint, name: str, version: ModelVersion | None = None) -> Card:
    """Show the address of a served model, and a request for predictions.

    Args:
        endpoint: The running endpoint.
        name: Short name of the repository.
        version: The registered version that it serves.
    """
    base = f"{endpoint.url}/v2/models/{endpoint.model}"
    ask = f"{endpoint.url}/v1/models/{endpoint.model}:predict"
    stages = f" ({', '.join(escape(s) for s in version.stages)})" if version and version.stages else ""
    rows = [
        ("model", endpoint.model),
        ("repository", name),
        (
            "version",
            f"{endpoint.version}{f' ({chr(44).join(version.stages)})' if version and version.stages else ''}",
        ),
        ("digest", code(endpoint.digest)),
    ]
    if version:
        rows.append(("commit", code(version.rev[:10])))
    if isinstance(endpoint, ServiceEndpoint) and endpoint.graph:
        rows.append(("graph", code(endpoint.graph)))
    body = "\n\n".join(
        [
            f"## {escape(endpoint.model)} {escape(endpoint.version)}{stages}",
            f"{link(endpoint.url, f'{endpoint.url}/v2')} · {link('metadata', base)} · {link('ready', f'{base}/ready')}",
            markdown_table(rows[0], rows[1:]),
            "Send a request by the V1 protocol:",
            block(f"curl {quote(ask)} -d '{{\"instances\": [[…]]}}'", "sh"),
        ]
    )
    description = (
        f"**{escape(endpoint.model)}** {escape(endpoint.version)}{stages} of **{escape(name)}** "
        f"answers at {address(endpoint.url)}"
    )
    return Card(artifact_key("endpoint", name, endpoint.model), description, markdown=body)


def canary_card(state: ServingState, model: str, name: str) -> Card:
    """Show the versions of a model that share its requests.

    Args:
        state: State of the model's service.
        model: Name of the model.
        name: Short name of the repository.
    """
    rest = state.version or "a version of another tool"
    description = (
        f"**{escape(model)}** of **{escape(name)}**: the canary {escape(state.canary)} has {state.percent} % of the "
        f"requests, {escape(rest)} the rest."
    )
    rows = [(state.canary, "canary", f"{state.percent} %"), (rest, "serves", f"{100 - state.percent} %")]
    table = markdown_table(("version", "role", "requests"), rows)
    at = f"Address: {address(state.url)}\n\n" if state.url else ""
    return Card(artifact_key("endpoint", name, model), description, f"{at}{table}")


def gates_card(
    model: str, version: str, name: str, findings: Sequence[Mapping[str, object]], *, limit: int = ROWS
) -> Card:
    """Show what the gates found about a version.

    Args:
        model: Name of the model.
        version: The version.
        name: Short name of the repository.
        findings: Findings as plain values, see `Finding.as_dict`.
        limit: Maximum number of gates.
    """
    words = {True: "passed", False: "failed", None: "not judged"}
    # Details are sentences, which a table of Prefect's pages does not wrap.
    lines = []
    for each in findings:
        detail = f": {escape(each['detail'])}" if each["detail"] else ""
        lines.append(f"- {code(each['gate'])}: **{words[each['passed']]}**{detail}")  # type: ignore[index]
    if len(lines) > limit:
        lines[limit:] = [f"- and {len(lines) - limit:,} more"]
    refused = sum(bool(each["blocks"]) for each in findings)
    verdict = f"{count_text(refused, 'gate')} refused it" if refused else "no gate refused it"
    return Card(
        artifact_key("gates", name, model),
        f"**{escape(model)}** {escape(version)} of **{escape(name)}**: {verdict}.",
        markdown="\n".join(lines),
    )


def predictions_card(
    endpoint: Endpoint, name: str, predictions: Sequence[object], *, limit: int = ROWS
) -> Card:
    """Show the predictions of a served model.

    Args:
        endpoint: The endpoint that answered.
        name: Short name of the repository.
        predictions: Predictions, one per row.
        limit: Maximum number of predictions.
    """
    shown = ", ".join(escape(value) for value in predictions[:10])
    more = ", …" if len(predictions) > 10 else ""
    description = (
        f"**{escape(endpoint.model)}** {escape(endpoint.version)} of **{escape(name)}** predicted "
        f"{count_text(len(predictions), 'row')}: {shown}{more}"
    )
    rows = list(enumerate(predictions))
    table = markdown_table(("row", "prediction"), rows, limit=limit)
    return Card(artifact_key("predictions", name, endpoint.model), description, markdown=table)
