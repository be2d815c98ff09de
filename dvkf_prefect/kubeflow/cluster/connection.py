"""Connection to a server: its address, and the certificates to trust."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import urlsplit

from dvkf_prefect.errors import ConfigError


def checked_address(host: str) -> str:
    """Return the address of a server without a slash at its end.

    Args:
        host: Address, such as ``https://kubeflow.example.org/pipeline``.

    Raises:
        ConfigError: It is no such address, or contains a password.
    """
    try:
        parts = urlsplit(host)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.password
        valid = valid and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        shown = host.rpartition("@")[2]
        raise ConfigError(
            f"the address of Kubeflow Pipelines is http(s)://host[:port][/path] without a password, not {shown!r}"
        )
    return host.rstrip("/")


def trust(ca_file: str | None, *, verify: bool = True) -> ssl.SSLContext | bool:
    """Return the certificates to trust, as httpx takes them.

    Args:
        ca_file: Certificates to trust instead of the default ones.
        verify: False trusts every server.

    Raises:
        ConfigError: The certificates cannot be used.
    """
    if not (ca_file and verify):
        return verify
    try:
        return ssl.create_default_context(cafile=str(Path(ca_file).expanduser()))
    except OSError as error:
        raise ConfigError(f"the certificates in {ca_file} cannot be used: {error}") from error
