"""Client of Kubernetes' API, by a kubeconfig or the account of the pod."""

from __future__ import annotations

import os
from typing import Any

from dvkf_prefect.errors import DvkfError, explained
from dvkf_prefect.text import nearest


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
    # The library reads the variable when it is imported.
    place = config_file or os.environ.get("KUBECONFIG") or None
    if not config_file and not context:
        try:
            config.load_incluster_config(settings)
            return client.ApiClient(settings)
        except config.ConfigException:
            pass
    try:
        config.load_kube_config(place, context, settings, persist_config=False)
        return client.ApiClient(settings)
    except Exception as error:
        # The library raises the errors of a wrong document as Python has them.
        raise config.ConfigException(_fault(place or "~/.kube/config", context, error)) from error


def _fault(place: str, context: str | None, error: Exception) -> str:
    """Return what is wrong with a kubeconfig, without a full stop."""
    from kubernetes import config

    if not any(os.path.isfile(os.path.expanduser(each)) for each in place.split(os.pathsep)):
        return f"the kubeconfig {place} does not exist"
    if isinstance(error, (OSError, DvkfError)):
        return f"the kubeconfig {place}: {explained(error)}".rstrip(".")
    try:
        contexts, current = config.list_kube_config_contexts(place)
        names = [str(each["name"]) for each in contexts]
    except Exception:  # noqa: BLE001 (a document of any form)
        return f"the kubeconfig {place} is not one: {' '.join(str(error).split())}".rstrip(".")
    wanted = context or (current or {}).get("name", "")
    if context and context not in names:
        near = nearest(context, names)
        known = ", ".join(names) or "none"
        return f"the kubeconfig {place} has no context '{context}' (contexts: {known})" + (
            f", but '{near}'" if near else ""
        )
    return f"the kubeconfig {place}, context '{wanted}': {' '.join(str(error).split())}".rstrip(".")
