"""S3 settings for obstore and s3fs, from DVC's options, the environment and AWS's configuration files."""

from __future__ import annotations

import base64
import binascii
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dvkf_prefect.data.remotes.errors import Place
from dvkf_prefect.data.remotes.options import Options
from dvkf_prefect.errors import ConfigError

if TYPE_CHECKING:
    from botocore.session import Session  # type: ignore[import-untyped]

_GRANTS = {
    "grant_full_control": "GrantFullControl",
    "grant_read": "GrantRead",
    "grant_read_acp": "GrantReadACP",
    "grant_write_acp": "GrantWriteACP",
}
_ENCRYPTIONS = ("AES256", "aws:kms", "aws:kms:dsse")
_CONNECT_TIMEOUT = 5.0
_READ_TIMEOUT = 60.0


@dataclass(frozen=True)
class S3Arguments:
    """Constructor arguments of a library, with the names of credentials and service in messages."""

    arguments: dict[str, Any]
    credentials: str
    endpoint: str


def needs_s3fs(options: Options) -> str | None:
    """Return the option that obstore cannot serve, or None.

    obstore signs no additional headers, so it can send neither a canned ACL nor grants. Without an endpoint, it
    connects to AWS over TLS only.

    Example:
        >>> needs_s3fs({"acl": "private"})
        'acl'
    """
    for option in ("acl", *_GRANTS):
        if options.get(option):
            return option
    if options.get("use_ssl") is False and not options.get("endpointurl"):
        return "use_ssl"
    return None


def obstore_arguments(bucket: str, options: Options, place: Place) -> S3Arguments:
    """Return the arguments of `obstore.store.S3Store` for a remote.

    Args:
        bucket: The bucket's name.
        options: The parsed options of the remote.
        place: Name of the remote in messages.

    Raises:
        ConfigError: Options contradict each other, or a profile does not exist.
    """
    _check(options, place)
    session = _session(options, place)
    scoped = _scoped_config(session, place)
    endpoint = _text(options, "endpointurl") or _first_env("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    endpoint = endpoint or scoped.get("endpoint_url")
    region = (
        _text(options, "region") or _first_env("AWS_REGION", "AWS_DEFAULT_REGION") or scoped.get("region")
    )
    if not region:
        region = "us-east-1" if endpoint else bucket_region(bucket)
    arguments: dict[str, Any] = {"region": region}
    if endpoint:
        style = scoped.get("s3", {}).get("addressing_style")
        if style == "virtual":
            parts = urlsplit(endpoint)
            endpoint = f"{parts.scheme}://{bucket}.{parts.netloc}"
            arguments["virtual_hosted_style_request"] = True
        arguments["endpoint"] = endpoint
        if "AWS_ENDPOINT_URL_S3" in os.environ:
            # The variable would override `endpoint`.
            arguments["aws_endpoint_url_s3"] = endpoint
    credentials = _obstore_credentials(arguments, options, session, place)
    encryption = _text(options, "sse")
    if options.get("sse_kms_key_id"):
        arguments["sse_kms_key_id"] = options["sse_kms_key_id"]
        encryption = encryption or "aws:kms"
    if options.get("sse_customer_key"):
        arguments["sse_customer_key_base64"] = options["sse_customer_key"]
        encryption = "sse-c"
    if encryption:
        arguments["server_side_encryption"] = encryption
    verify = options.get("ssl_verify")
    if verify is None:
        verify = _first_env("AWS_CA_BUNDLE")
    arguments["client_options"] = client_options(
        place,
        verify=verify,
        connect=options.get("connect_timeout"),
        read=options.get("read_timeout"),
    )
    return S3Arguments(arguments, credentials, endpoint or f"https://s3.{region}.amazonaws.com")


def s3fs_arguments(options: Options, place: Place) -> S3Arguments:
    """Return the arguments of `s3fs.S3FileSystem` for a remote, as `obstore_arguments` does for obstore."""
    from aiobotocore.session import AioSession  # type: ignore[import-untyped]

    _check(options, place)
    from botocore.handlers import add_expect_header  # type: ignore[import-untyped]

    session = _configured(AioSession(profile=_text(options, "profile")), options)
    # aiohttp would wait for ever for a "100 Continue" answer; without the Expect header it does not wait.
    session.unregister("before-call.s3", add_expect_header)
    scoped = _scoped_config(session, place)
    extra: dict[str, Any] = {}
    for option, header in (
        ("sse", "ServerSideEncryption"),
        ("sse_kms_key_id", "SSEKMSKeyId"),
        ("acl", "ACL"),
        *_GRANTS.items(),
    ):
        if options.get(option):
            extra[header] = options[option]
    if options.get("sse_kms_key_id"):
        extra.setdefault("ServerSideEncryption", "aws:kms")
    if key := _text(options, "sse_customer_key"):
        extra["SSECustomerAlgorithm"] = "AES256"
        extra["SSECustomerKey"] = base64.b64decode(key)
    region = (
        _text(options, "region") or _first_env("AWS_REGION", "AWS_DEFAULT_REGION") or scoped.get("region")
    )
    endpoint = _text(options, "endpointurl")
    client = {"region_name": region, "endpoint_url": endpoint, "verify": options.get("ssl_verify")}
    config = {
        "connect_timeout": options.get("connect_timeout", _CONNECT_TIMEOUT),
        "read_timeout": options.get("read_timeout", _READ_TIMEOUT),
        "retries": {"mode": "standard", "total_max_attempts": 1},
        "max_pool_connections": 64,
    }
    style = scoped.get("s3", {}).get("addressing_style")
    if style:
        config["s3"] = {"addressing_style": style}
    anonymous = bool(options.get("allow_anonymous_login"))
    arguments: dict[str, Any] = {
        "anon": anonymous,
        "use_ssl": options.get("use_ssl", True),
        "client_kwargs": {name: value for name, value in client.items() if value is not None},
        "config_kwargs": config,
        "s3_additional_kwargs": extra,
        "session": session,
        "cache_regions": not region and not endpoint,
        "use_listings_cache": False,
        "skip_instance_cache": True,
    }
    if options.get("access_key_id") and not anonymous:
        arguments["key"] = options["access_key_id"]
        arguments["secret"] = options["secret_access_key"]
        arguments["token"] = options.get("session_token")
    return S3Arguments(
        arguments, _describe(options, session), endpoint or str(scoped.get("endpoint_url") or "AWS S3")
    )


def client_options(
    place: Place, *, verify: object = None, connect: object = None, read: object = None
) -> dict[str, Any]:
    """Return the HTTP client options of any obstore service.

    Args:
        place: Name of the remote in messages.
        verify: False to trust any certificate; a path to a private authority's certificate.
        connect: Connect timeout in seconds.
        read: Timeout for the next bytes, in seconds.
    """
    options: dict[str, Any] = {
        # The url's scheme decides.
        "allow_http": True,
        "connect_timeout": timedelta(seconds=_seconds(connect, _CONNECT_TIMEOUT)),
        "read_timeout": timedelta(seconds=_seconds(read, _READ_TIMEOUT)),
        # Limit of a whole request, which would cut off a large blob; the two timeouts above end a stall.
        "timeout": timedelta(days=1),
    }
    if verify is False:
        options["allow_invalid_certificates"] = True
    elif isinstance(verify, str):
        try:
            options["root_certificate"] = Path(verify).expanduser().read_bytes()
        except OSError as error:
            raise ConfigError(
                f"remote '{place.name}', option 'ssl_verify': cannot read {verify}: {error.strerror}"
            ) from error
    return options


def bucket_region(bucket: str, *, service: str = "https://s3.amazonaws.com", timeout: float = 5) -> str:
    """Return the region of an AWS bucket, a public value of S3; ``us-east-1`` if S3 does not answer.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadBucket.html (``x-amz-bucket-region``).
    """
    request = urllib.request.Request(f"{service}/{bucket}", method="HEAD")  # noqa: S310 - a fixed https url
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310
            headers = answer.headers
    except urllib.error.HTTPError as error:
        headers = error.headers
        error.close()
    except OSError:
        return "us-east-1"
    return headers.get("x-amz-bucket-region") or "us-east-1"


def _check(options: Options, place: Place) -> None:
    def wrong(option: str, why: str) -> ConfigError:
        return ConfigError(f"remote '{place.name}', option '{option}': {why}")

    if bool(options.get("access_key_id")) != bool(options.get("secret_access_key")):
        raise wrong("access_key_id", "goes together with 'secret_access_key'")
    if options.get("session_token") and not options.get("access_key_id"):
        raise wrong("session_token", "goes together with 'access_key_id' and 'secret_access_key'")
    if options.get("acl") and (grant := next((g for g in _GRANTS if options.get(g)), None)):
        raise wrong("acl", f"excludes '{grant}'")
    if options.get("sse") and options["sse"] not in _ENCRYPTIONS:
        raise wrong("sse", f"expected one of {', '.join(_ENCRYPTIONS)}")
    if options.get("sse_kms_key_id") and options.get("sse") == "AES256":
        raise wrong("sse_kms_key_id", "needs 'sse' to be aws:kms")
    if options.get("sse_customer_algorithm", "AES256") != "AES256":
        raise wrong("sse_customer_algorithm", "expected AES256, the only value that S3 supports")
    if options.get("sse_customer_key"):
        for other in ("sse_kms_key_id", "sse"):
            if options.get(other):
                raise wrong("sse_customer_key", f"excludes '{other}'")
        try:
            size = len(base64.b64decode(str(options["sse_customer_key"]), validate=True))
        except binascii.Error:
            size = 0
        if size != 32:
            raise wrong("sse_customer_key", "expected 32 bytes in base64")
    elif options.get("sse_customer_algorithm"):
        raise wrong("sse_customer_algorithm", "needs 'sse_customer_key'")


def _session(options: Options, place: Place) -> Session | None:
    """Return a session for AWS's own configuration, or None if there is none, since botocore's import is slow.

    A web identity is left to botocore too, since it reads the STS endpoint from the environment.
    """
    named = ("profile", "credentialpath", "configpath")
    files = (
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
    )
    if (
        not any(options.get(option) for option in named)
        and not _first_env("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE")
        and not any(Path(file).expanduser().exists() for file in files)
    ):
        return None
    import botocore.session  # type: ignore[import-untyped]

    return _configured(botocore.session.Session(profile=_text(options, "profile")), options)


def _configured(session: Any, options: Options) -> Any:
    """Set a session's files from the options; environment variables override them, as in DVC."""
    for option, setting, variable in (
        ("credentialpath", "credentials_file", "AWS_SHARED_CREDENTIALS_FILE"),
        ("configpath", "config_file", "AWS_CONFIG_FILE"),
    ):
        path = _text(options, option)
        if path and variable not in os.environ:
            session.set_config_variable(setting, str(Path(path).expanduser()))
    return session


def _scoped_config(session: Any, place: Place) -> dict[str, Any]:
    if session is None:
        return {}
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

    try:
        found: dict[str, Any] = session.get_scoped_config()
    except BotoCoreError as error:
        raise ConfigError(f"remote '{place.name}', option 'profile': {error}") from error
    return found


def _obstore_credentials(
    arguments: dict[str, Any], options: Options, session: Session | None, place: Place
) -> str:
    """Add the credentials to obstore's arguments; return their name in messages."""
    if options.get("allow_anonymous_login"):
        arguments["skip_signature"] = True
    elif options.get("access_key_id"):
        # A provider, since plain settings would mix with a session token of the environment.
        fixed = {
            "access_key_id": options["access_key_id"],
            "secret_access_key": options["secret_access_key"],
            "token": options.get("session_token"),
            "expires_at": None,
        }
        arguments["credential_provider"] = lambda: fixed
    elif session is not None:
        from botocore.exceptions import BotoCoreError

        try:
            found = session.get_credentials()
        except BotoCoreError as error:
            raise ConfigError(f"remote '{place.name}': AWS's configuration files: {error}") from error
        if found is not None:
            arguments["credential_provider"] = _provider(found)
    return _describe(options, session)


def _provider(found: Any) -> Any:
    from botocore.credentials import RefreshableCredentials  # type: ignore[import-untyped]

    def provide() -> dict[str, Any]:
        frozen = found.get_frozen_credentials()
        expires = None
        if isinstance(found, RefreshableCredentials):
            # botocore renews credentials 15 minutes ahead.
            expires = datetime.now(timezone.utc) + timedelta(minutes=10)
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": expires,
        }

    return provide


def _describe(options: Options, session: Any) -> str:
    if options.get("allow_anonymous_login"):
        return "no credentials (allow_anonymous_login)"
    if options.get("access_key_id"):
        return "the access key of the remote's options"
    if options.get("profile"):
        return f"profile '{options['profile']}' of AWS's files"
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return "the access key of the environment (AWS_ACCESS_KEY_ID)"
    if os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return "the role of the web identity token (AWS_WEB_IDENTITY_TOKEN_FILE)"
    if session is not None and (options.get("credentialpath") or options.get("configpath")):
        return "the remote's credentialpath or configpath"
    return (
        "the defaults of this machine (no access key in the remote's options or the environment; AWS's "
        "files, container and instance roles were tried)"
    )


def _first_env(*names: str) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _text(options: Options, name: str) -> str | None:
    value = options.get(name)
    return str(value) if value else None


def _seconds(value: object, default: float) -> float:
    return float(value) if isinstance(value, (int, float)) and value > 0 else default
