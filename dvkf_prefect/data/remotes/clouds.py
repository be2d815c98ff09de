"""Arguments of obstore for Google Cloud Storage, Azure Blob Storage and process memory."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.remotes.aws import client_options
from dvkf_prefect.data.remotes.errors import Place
from dvkf_prefect.data.remotes.options import Options
from dvkf_prefect.errors import ConfigError

if TYPE_CHECKING:
    from obstore.store import MemoryStore

_memory: dict[str, MemoryStore] = {}
_memory_lock = threading.Lock()


def memory_store(name: str) -> MemoryStore:
    """Return this process's store ``memory://name``, the same one on each call."""
    from obstore.store import MemoryStore

    with _memory_lock:
        return _memory.setdefault(name, MemoryStore())


def gs_arguments(options: Options, place: Place) -> tuple[dict[str, Any], str]:
    """Return the arguments of `obstore.store.GCSStore`, and the name of the credentials in messages."""
    arguments: dict[str, Any] = {"client_options": client_options(place)}
    if options.get("endpointurl"):
        arguments["base_url"] = options["endpointurl"]
    if options.get("allow_anonymous_login"):
        arguments["skip_signature"] = True
        return arguments, "no credentials (allow_anonymous_login)"
    if options.get("credentialpath"):
        path = Path(str(options["credentialpath"])).expanduser()
        if not path.is_file():
            raise ConfigError(
                f"remote '{place.name}', option 'credentialpath': the file {path} does not exist"
            )
        arguments["application_credentials"] = str(path)
        return arguments, "the remote's credentialpath"
    return arguments, "Google's application default credentials"


def azure_arguments(options: Options, place: Place) -> tuple[dict[str, Any], str]:
    """Return the arguments of `obstore.store.AzureStore`, and the name of the credentials in messages.

    Source of connection strings: https://learn.microsoft.com/azure/storage/common/storage-configure-connection-string
    """
    for option in ("exclude_environment_credential", "exclude_managed_identity_credential"):
        if options.get(option):
            raise ConfigError(
                f"remote '{place.name}', option '{option}': not supported. Give the credentials by "
                "account_key, sas_token, connection_string or client_secret instead."
            )
    for option in ("exclude_visual_studio_code_credential", "exclude_shared_token_cache_credential"):
        if options.get(option) is False:
            raise ConfigError(
                f"remote '{place.name}', option '{option}': such credentials are never used. Remove it."
            )
    arguments: dict[str, Any] = {}
    for option, argument in (
        ("account_name", "account_name"),
        ("account_key", "account_key"),
        ("sas_token", "sas_key"),
        ("tenant_id", "tenant_id"),
        ("client_id", "client_id"),
        ("client_secret", "client_secret"),
    ):
        if options.get(option):
            arguments[argument] = options[option]
    credentials = "the machine's Azure identity"
    if options.get("connection_string"):
        arguments |= parse_connection_string(str(options["connection_string"]), place)
        credentials = "the remote's connection_string"
    else:
        given = next((o for o in ("account_key", "sas_token", "client_secret") if options.get(o)), None)
        if given:
            credentials = f"the remote's {given}"
        elif options.get("allow_anonymous_login"):
            arguments["skip_signature"] = True
            credentials = "no credentials (allow_anonymous_login)"
    arguments["client_options"] = client_options(
        place,
        connect=options.get("connection_timeout"),
        read=options.get("read_timeout") or options.get("timeout"),
    )
    return arguments, credentials


def parse_connection_string(text: str, place: Place) -> dict[str, Any]:
    """Parse a connection string of Azure Storage into arguments of obstore.

    Example:
        >>> parse_connection_string("AccountName=a;AccountKey=azE=", Place("r", "azure://c"))
        {'account_name': 'a', 'account_key': 'azE='}
    """
    fields: dict[str, str] = {}
    for part in text.strip().strip(";").split(";"):
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"remote '{place.name}', option 'connection_string': expected Name=Value;…")
        fields[name.strip().lower()] = value.strip()
    if fields.get("usedevelopmentstorage", "").lower() == "true":
        return {"use_emulator": True}
    arguments: dict[str, Any] = {}
    for name, argument in (
        ("accountname", "account_name"),
        ("accountkey", "account_key"),
        ("sharedaccesssignature", "sas_key"),
        ("blobendpoint", "endpoint"),
    ):
        if fields.get(name):
            arguments[argument] = fields[name]
    suffix = fields.get("endpointsuffix")
    if suffix and "endpoint" not in arguments and "account_name" in arguments:
        protocol = fields.get("defaultendpointsprotocol", "https")
        arguments["endpoint"] = f"{protocol}://{arguments['account_name']}.blob.{suffix}"
    if "account_name" not in arguments and "endpoint" in arguments:
        host = arguments["endpoint"].partition("://")[2]
        arguments["account_name"] = host.partition(".")[0]
    return arguments
