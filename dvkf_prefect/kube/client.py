"""Client of Kubernetes' API, by a kubeconfig or the account of the pod."""

from __future__ import annotations

import os
from typing import Any


def kube_client(config_file: str | None = None, context: str | None = None) -> Any:
    """Return a ``kubernetes.client.ApiClient`` that does not retry.

    Args:
        config_file: A kubeconfig; None for the pod's own account, or else the user's kubeconfig.
        context: A context of the kubeconfig.

    Raises:
        kubernetes.config.ConfigException: There is no usable configuration.
    """
    from kubernetes import client, config  # type: ignore[import-untyped]

    settings = client.Configuration()
    # By default the client tries three times, each with the full timeout.
    settings.retries = False
    if config_file or context:
        config.load_kube_config(config_file, context, settings, persist_config=False)
    else:
        try:
            config.load_incluster_config(settings)
        except config.ConfigException:
            # The library reads the variable when it is imported.
            place = os.environ.get("KUBECONFIG") or None
            config.load_kube_config(place, client_configuration=settings, persist_config=False)
    return client.ApiClient(settings)
