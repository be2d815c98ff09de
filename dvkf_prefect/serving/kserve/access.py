"""Access of a service to the published models: a Secret with the remote's credentials, and its service account.

KServe takes credentials from the Secrets that the account lists under ``secrets``, and options of the service from the
Secret's annotations (kserve 0.20, ``pkg/credentials/service_account_credentials.go:211``, ``credentials/s3``). They are
copied when a pod is created.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from dvkf_prefect.errors import ConfigError, ServingError
from dvkf_prefect.kube.objects import KubeError, KubeObjects

MANAGER = "dvkf"
_OPTION = "serving.kserve.io/s3-"


def s3_secret(name: str, namespace: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a Secret for an S3 remote.

    Args:
        name: Name of the Secret.
        namespace: Its namespace.
        options: Options of the remote by DVC's names.

    Raises:
        ConfigError: The remote has no keys.
    """
    key, secret = options.get("access_key_id"), options.get("secret_access_key")
    if not key or not secret:
        raise ConfigError(
            "the remote has no access_key_id and secret_access_key that a service could use. Set them in the DVC "
            "Remote block or in .dvc/config.local, or name a service account with access to the models."
        )
    annotations: dict[str, str] = {}
    endpoint = str(options.get("endpointurl") or "")
    if endpoint:
        parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        annotations["endpoint"] = parts.netloc + parts.path.rstrip("/")
        annotations["usehttps"] = "0" if parts.scheme == "http" else "1"
        annotations["usevirtualbucket"] = "0"
    if region := options.get("region"):
        annotations["region"] = str(region)
    verify = str(options.get("ssl_verify", "")).lower()
    if verify == "false":
        annotations["verifyssl"] = "0"
    elif verify not in ("", "true"):
        raise ConfigError(
            f"ssl_verify '{options['ssl_verify']}' is a file of this machine, which a service cannot read. Name a "
            "service account whose Secret has the annotation serving.kserve.io/s3-cabundle-configmap."
        )
    data = {"AWS_ACCESS_KEY_ID": str(key), "AWS_SECRET_ACCESS_KEY": str(secret)}
    if token := options.get("session_token"):
        data["AWS_SESSION_TOKEN"] = str(token)
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "annotations": {f"{_OPTION}{option}": value for option, value in annotations.items()},
        },
        "type": "Opaque",
        "data": {each: base64.b64encode(value.encode()).decode() for each, value in data.items()},
    }


def ensure_account(kube: KubeObjects, namespace: str, options: Mapping[str, Any]) -> str:
    """Apply a Secret and a service account for an S3 remote; return the account's name.

    The name depends on the place and the key, so services of one remote share it, and other keys get another one.

    Args:
        kube: Kubernetes.
        namespace: Namespace of the service.
        options: Options of the remote by DVC's names.

    Raises:
        ConfigError: The remote has no keys.
        ServingError: The API server refused it or does not answer. The message has no secrets.
    """
    place = f"{options.get('endpointurl', '')} {options.get('access_key_id', '')}"
    name = f"dvkf-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
    secret = s3_secret(name, namespace, options)
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": namespace},
        "secrets": [{"name": name}],
    }
    base = f"/api/v1/namespaces/{namespace}"
    for path, obj in ((f"{base}/secrets/{name}", secret), (f"{base}/serviceaccounts/{name}", account)):
        try:
            kube.apply(path, obj, MANAGER, force=True)
        except KubeError as error:
            # The answer to a refused Secret may repeat its values.
            said = (
                error.said
                if error.lacks_right
                else error.reason or f"status {error.status}"
                if error.status
                else "no answer"
            )
            raise ServingError(
                f"{obj['kind']} '{name}' of namespace '{namespace}' cannot be applied: {said}. Ask for `create` and "
                "`patch` of secrets and serviceaccounts, or name a service account with access to the models."
            ) from (None if obj is secret else error)
    return name
