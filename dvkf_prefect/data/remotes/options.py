"""Options of a remote in DVC's configuration: their names and kinds.

Names and types follow DVC 3.67's ``dvc/config_schema.py``. Options that DVC keeps only for old files are accepted and
have no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dvkf_prefect.errors import ConfigError
from dvkf_prefect.text import nearest

Value = str | int | float | bool
Options = dict[str, Value]

_TRUE, _FALSE = "true", "false"


def _text(value: str) -> str:
    if not value:
        raise ValueError("expected a value")
    return value


def _bool(value: str) -> bool:
    if value.lower() not in (_TRUE, _FALSE):
        raise ValueError("expected true or false")
    return value.lower() == _TRUE


def _positive(value: str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError("expected a whole number, at least 1")
    return number


def _seconds(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1
    if not 0 <= number < 10**7:
        raise ValueError("expected seconds, a number of at least 0")
    return number


def _bool_or_path(value: str) -> bool | str:
    return value.lower() == _TRUE if value.lower() in (_TRUE, _FALSE) else _text(value)


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value.lower() not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return value.lower()

    return parse


Parser = Callable[[str], Value]


def _schema(**kinds: tuple[Parser, str]) -> dict[str, Parser]:
    return {name: parser for parser, names in kinds.values() for name in names.split()}


# Transfers use `url`, `jobs`, `verify` and the like; a storage only checks their values.
_COMMON = _schema(
    text=(_text, "url"),
    number=(_positive, "jobs checksum_jobs"),
    flag=(_bool, "verify worktree version_aware no_traverse"),
)
_LOCAL = _schema(
    text=(_text, "type"), flag=(_bool, "protected slow_link_warning"), shared=(_one_of("group"), "shared")
)
_S3 = _schema(
    text=(
        _text,
        "region profile credentialpath configpath endpointurl access_key_id secret_access_key session_token "
        "sse_kms_key_id sse_customer_key acl grant_read grant_read_acp grant_write_acp grant_full_control",
    ),
    sse=(_text, "sse sse_customer_algorithm"),
    flag=(_bool, "listobjects use_ssl allow_anonymous_login cache_regions"),
    ssl=(_bool_or_path, "ssl_verify"),
    seconds=(_seconds, "read_timeout connect_timeout"),
)
_GS = _schema(text=(_text, "projectname credentialpath endpointurl"), flag=(_bool, "allow_anonymous_login"))
_AZURE = _schema(
    text=(
        _text,
        "connection_string sas_token account_name account_key tenant_id client_id client_secret",
    ),
    flag=(
        _bool,
        "allow_anonymous_login exclude_environment_credential exclude_visual_studio_code_credential "
        "exclude_shared_token_cache_credential exclude_managed_identity_credential",
    ),
    seconds=(_seconds, "timeout read_timeout connection_timeout"),
)
_SSH = _schema(
    text=(_text, "type user password passphrase keyfile"),
    number=(_positive, "port max_sessions"),
    flag=(_bool, "ask_password ask_passphrase gss_auth allow_agent"),
    seconds=(_seconds, "timeout"),
)
_HTTP = _schema(
    text=(_text, "custom_auth_header user password"),
    auth=(_one_of("basic", "digest", "custom"), "auth"),
    method=(_one_of("post", "put"), "method"),
    flag=(_bool, "ask_password"),
    ssl=(_bool_or_path, "ssl_verify"),
    seconds=(_seconds, "connect_timeout read_timeout"),
)
_WEBDAV = _schema(
    text=(_text, "user password token bearer_token_command custom_auth_header cert_path key_path"),
    flag=(_bool, "ask_password"),
    ssl=(_bool_or_path, "ssl_verify"),
    seconds=(_seconds, "timeout"),
)
_HDFS = _schema(text=(_text, "user kerb_ticket"), number=(_positive, "replication"))
_WEBHDFS = _schema(
    text=(_text, "kerberos_principal proxy_to token user password data_proxy_target"),
    flag=(_bool, "kerberos use_https"),
    ssl=(_bool_or_path, "ssl_verify"),
)
_OSS = _schema(text=(_text, "oss_key_id oss_key_secret oss_endpoint"))
_GDRIVE = _schema(
    text=(
        _text,
        "profile gdrive_client_id gdrive_client_secret gdrive_user_credentials_file "
        "gdrive_service_account_user_email gdrive_service_account_json_file_path",
    ),
    flag=(_bool, "gdrive_use_service_account gdrive_trash_only gdrive_acknowledge_abuse"),
)
_SCHEMAS: dict[str, dict[str, Parser]] = {
    "file": _LOCAL,
    "s3": _S3,
    "gs": _GS,
    "azure": _AZURE,
    "ssh": _SSH,
    "http": _HTTP,
    "https": _HTTP,
    "webdav": _WEBDAV,
    "webdavs": _WEBDAV,
    "hdfs": _HDFS,
    "webhdfs": _WEBHDFS,
    "oss": _OSS,
    "gdrive": _GDRIVE,
}
SECRETS = (
    "access_key_id",
    "secret_access_key",
    "session_token",
    "sse_customer_key",
    "password",
    "passphrase",
    "token",
    "connection_string",
    "sas_token",
    "account_key",
    "client_secret",
    "oss_key_secret",
    "gdrive_client_secret",
)


def parse_options(scheme: str, options: Mapping[str, str], remote: str) -> Options:
    """Validate the options of a remote and convert their types.

    Args:
        scheme: Scheme of the url: ``s3``, ``ssh``, …; ``file`` for a folder.
        options: Values from the configuration.
        remote: The remote's name or url, for the message.

    Returns:
        The options by name, as whole numbers, seconds, booleans and texts.

    Raises:
        ConfigError: An option is unknown for this kind of remote, or a value is invalid.

    Example:
        >>> parse_options("s3", {"region": "eu-west-1", "use_ssl": "true"}, "store")
        {'region': 'eu-west-1', 'use_ssl': True}
    """
    schema = _COMMON | _SCHEMAS.get(scheme, {})
    parsed: Options = {}
    for option, value in options.items():
        parser = schema.get(option)
        if parser is None:
            close = nearest(option, schema)
            hint = f"; did you mean '{close}'?" if close else ""
            raise ConfigError(f"remote '{remote}': {scheme} remotes have no option '{option}'{hint}")
        try:
            parsed[option] = parser(str(value))
        except ValueError as error:
            raise ConfigError(f"remote '{remote}', option '{option}': {error}") from None
    return parsed


def secrets_of(options: Mapping[str, Value]) -> tuple[str, ...]:
    """Return the option values that no message may show."""
    return tuple(str(options[name]) for name in SECRETS if options.get(name))
