"""Cards of served models and their predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from shlex import quote
from typing import TYPE_CHECKING

from dvkf_prefect.cards.card import Card, artifact_key
from dvkf_prefect.cards.markdown import ROWS, address, block, code, count_text, escape, link, markdown_table

if TYPE_CHECKING:
    from dvkf_prefect.models.version import ModelVersion
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
        ("digest", endpoint.digest),
    ]
    if version:
        rows.append(("commit", version.rev[:10]))
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
    rows = [(code(each["gate"]), words[each["passed"]], each["detail"]) for each in findings]  # type: ignore[index]
    refused = sum(bool(each["blocks"]) for each in findings)
    verdict = f"{count_text(refused, 'gate')} refused it" if refused else "no gate refused it"
    return Card(
        artifact_key("gates", name, model),
        f"**{escape(model)}** {escape(version)} of **{escape(name)}**: {verdict}.",
        markdown=markdown_table(("gate", "judgement", "detail"), rows, limit=limit),
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
