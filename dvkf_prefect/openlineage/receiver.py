"""Receiver of OpenLineage events: whether the environment names one, and the client that sends to it.

Nothing of OpenLineage is imported unless `OPENLINEAGE_URL`, `OPENLINEAGE_CONFIG` or ``OPENLINEAGE__TRANSPORT...`` is
set. Source: the documentation and the source of openlineage-python 1.54.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient

PRODUCER = "https://dvkf-prefect.readthedocs.io/"
_TIMEOUT = 5.0


def is_configured() -> bool:
    """Return True if the environment names a receiver of events."""
    if os.environ.get("OPENLINEAGE_DISABLED", "").lower() == "true":
        return False
    names = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG")
    return any(os.environ.get(name) for name in names) or any(
        name.startswith("OPENLINEAGE__TRANSPORT") for name in os.environ
    )


def open_client() -> OpenLineageClient:
    """Return the client of the configuration; for a plain url, one that waits briefly and does not repeat.

    Raises:
        ImportError: OpenLineage's client is not installed.
    """
    from openlineage.client import OpenLineageClient
    from openlineage.client.event_v2 import set_producer
    from openlineage.client.transport.http import HttpConfig, HttpTransport

    set_producer(PRODUCER)
    url = os.environ.get("OPENLINEAGE_URL")
    if not url:
        return OpenLineageClient()
    values: dict[str, Any] = {
        "url": url,
        "endpoint": os.environ.get("OPENLINEAGE_ENDPOINT") or "api/v1/lineage",
        "timeout": _TIMEOUT,
        "retry": {"total": 0, "connect": 0, "read": 0},
    }
    if key := os.environ.get("OPENLINEAGE_API_KEY"):
        values["auth"] = {"type": "api_key", "apiKey": key}

    class Client(OpenLineageClient):
        def _alias_env_vars(self) -> None:
            """Set no variables for a second way of configuration, which stages would inherit."""

    return Client(transport=HttpTransport(HttpConfig.from_dict(values)))
