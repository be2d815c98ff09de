"""Selection of the fsspec filesystem for a url, and translation of DVC's options for it."""

from __future__ import annotations

import base64
import getpass
import importlib
import re
import shlex
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit

from dvkf_prefect.data.remotes import reading, s3_objects
from dvkf_prefect.data.remotes.errors import Place
from dvkf_prefect.data.remotes.options import Options
from dvkf_prefect.data.remotes.patience import seconds_refused
from dvkf_prefect.data.remotes.urls import split_url
from dvkf_prefect.errors import ConfigError
from dvkf_prefect.text import did_you_mean

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_TIMEOUT = 60.0
# Arguments: filesystem, folder, token of a page or None. Result: files of the page, token of the next page or None.
Pages = Callable[[Any, str, "str | None"], tuple[list[dict[str, Any]], "str | None"]]


@dataclass(frozen=True)
class Protocol:
    """A filesystem to create, and the way to store blobs on it.

    Args:
        module: Module of its class.
        package: Package to install if the module is missing.
        kind: Name of its class.
        arguments: Arguments of its constructor.
        root: The remote's root in the filesystem's own path syntax.
        refused: Seconds to retry while the service refuses connections.
        settings: Attributes to set after creation.
        atomic: True if a put shows the whole file or none; otherwise a temporary name is renamed.
        lists: True if it supports listing.
        folders: True if a listing takes one request per folder, so that parallel requests are faster.
        put: Arguments of ``put_file``.
        puts_open_files: True to pass an open file to ``put_file``, which would not close one of its own.
        upload: Function that uploads a local file into an existing folder, instead of ``put_file``.
        move: Function that renames a file and replaces the target, instead of ``mv``.
        pages: Function that returns one page of a listing and the token of the next, instead of ``find``.
        read: Function that yields a file, or a version of it, from a byte on, instead of ``open``.
        copy: Function that copies a file of a known size inside the service, instead of ``cp_file``.
        starting: Function that yields path, size and etag of the files whose path starts with a text.
        drop: Function that drops the uploads in parts to paths that start with a text, and returns their number.
        open: Arguments of ``open`` to read a file from its start.
        open_at: Arguments of ``open`` to read from another position.
        space: Function that returns the free bytes at a folder.
        close: Function that returns another one, to close the connections when the filesystem is released.
        escapes: True if its paths are url paths, with ``?``, ``#`` and ``%`` to escape.
        refuses: Characters that it cannot handle in a key.
        credentials: Name of the credentials in messages.
        secrets: Secrets from other sources than the options.
    """

    module: str
    kind: str
    package: str
    root: str
    arguments: dict[str, Any] = field(default_factory=dict, repr=False)
    settings: dict[str, Any] = field(default_factory=dict)
    refused: float | None = None
    atomic: bool = False
    lists: bool = True
    folders: bool = False
    put: dict[str, Any] = field(default_factory=dict)
    puts_open_files: bool = False
    upload: Callable[[Any, str, str], None] | None = None
    move: Callable[[Any, str, str], None] | None = None
    space: Callable[[Any, str], int] | None = None
    pages: Pages | None = None
    read: Callable[[Any, str, int, str | None], Iterator[bytes]] | None = None
    copy: Callable[[Any, str, str, int], None] | None = None
    starting: Callable[[Any, str], Iterator[tuple[str, int, str | None]]] | None = None
    drop: Callable[[Any, str], int] | None = None
    open: dict[str, Any] = field(default_factory=dict)
    open_at: dict[str, Any] = field(default_factory=dict)
    close: Callable[[Any], Callable[[], None]] | None = None
    escapes: bool = False
    refuses: str = ""
    credentials: str = "the credentials of the remote's options"
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def connect(self, place: Place) -> AbstractFileSystem:
        """Create the filesystem.

        Raises:
            ConfigError: Its package is not installed, or it rejects its arguments.
        """
        try:
            kind = getattr(importlib.import_module(self.module), self.kind)
        except ImportError as error:
            raise ConfigError(
                f"remote '{place.name}': {place.url} needs the package '{self.package}': "
                f"pip install {self.package}"
            ) from error
        filesystem = kind(**self.arguments)
        for name, value in self.settings.items():
            setattr(filesystem, name, value)
        if self.close:
            weakref.finalize(filesystem, self.close(filesystem))
        return filesystem


def protocol_of(url: str, options: Options, place: Place) -> Protocol:
    """Select the filesystem for a url.

    Raises:
        ConfigError: No filesystem serves the url, or its options contradict each other.
    """
    parts = split_url(url)
    make = _PROTOCOLS.get(parts.scheme)
    if make is not None:
        made = make(parts, options, place)
        patience = options.get("connect_timeout") or options.get("timeout")
        return replace(made, refused=seconds_refused(patience))
    if parts.scheme == "gdrive":
        raise ConfigError(
            f"remote '{place.name}': Google Drive is not supported. Copy the remote to another with dvc."
        )
    import fsspec

    try:
        kind = fsspec.get_filesystem_class(parts.scheme)
    except ValueError as error:
        known = [*_PROTOCOLS, *fsspec.available_protocols()]
        step = (
            did_you_mean(parts.scheme, known)
            or " Use the url of a folder or of a store, such as s3://BUCKET."
        )
        raise ConfigError(
            f"remote '{place.name}': {parts.scheme}:// urls are not supported.{step}"
        ) from error
    except ImportError as error:
        raise ConfigError(f"remote '{place.name}': {place.url}: {error}") from error
    arguments = kind._get_kwargs_from_urls(url)
    return Protocol(
        kind.__module__,
        kind.__name__,
        kind.__module__.partition(".")[0],
        kind._strip_protocol(url),
        {**arguments, "skip_instance_cache": True},
    )


def _file(parts: SplitResult, options: Options, place: Place) -> Protocol:
    return Protocol(
        "fsspec.implementations.local",
        "LocalFileSystem",
        "fsspec",
        parts.path.rstrip("/"),
        {"auto_mkdir": True, "skip_instance_cache": True},
        credentials="this user's rights",
    )


def _memory(parts: SplitResult, options: Options, place: Place) -> Protocol:
    root = f"/{parts.netloc}{parts.path}".rstrip("/")
    return Protocol("fsspec.implementations.memory", "MemoryFileSystem", "fsspec", root)


def _s3(parts: SplitResult, options: Options, place: Place) -> Protocol:
    from dvkf_prefect.data.remotes.aws import s3fs_arguments

    s3 = s3fs_arguments(options, place)
    return Protocol(
        "s3fs",
        "S3FileSystem",
        "s3fs",
        _bucket_root(parts),
        s3.arguments,
        # `Gate` retries: s3fs and botocore would ignore the wait that a service asks for.
        {"retries": 1},
        atomic=True,
        put={"chunksize": 8 << 20, "max_concurrency": 4},
        pages=reading.s3_pages,
        read=reading.s3,
        copy=s3_objects.copy,
        starting=s3_objects.starting_with,
        drop=s3_objects.drop_uploads,
        credentials=s3.credentials,
    )


def _gs(parts: SplitResult, options: Options, place: Place) -> Protocol:
    arguments: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if options.get("allow_anonymous_login"):
        arguments["token"] = "anon"  # noqa: S105 - gcsfs's word for none
    elif options.get("credentialpath"):
        arguments["token"] = options["credentialpath"]
    if options.get("projectname"):
        arguments["project"] = options["projectname"]
    if options.get("endpointurl"):
        arguments["endpoint_url"] = options["endpointurl"]
    return Protocol("gcsfs", "GCSFileSystem", "gcsfs", _bucket_root(parts), arguments, atomic=True)


def _azure(parts: SplitResult, options: Options, place: Place) -> Protocol:
    names = ("connection_string", "sas_token", "account_name", "account_key", "tenant_id", "client_id")
    arguments: dict[str, Any] = {n: options[n] for n in (*names, "client_secret") if options.get(n)}
    arguments["anon"] = bool(options.get("allow_anonymous_login"))
    for option in options:
        if option.startswith("exclude_") or option.endswith("timeout"):
            raise ConfigError(f"remote '{place.name}', option '{option}': not supported through adlfs")
    return Protocol(
        "adlfs",
        "AzureBlobFileSystem",
        "adlfs",
        _bucket_root(parts),
        {**arguments, "skip_instance_cache": True, "use_listings_cache": False},
        atomic=True,
        put={"overwrite": True},
    )


def _ssh(parts: SplitResult, options: Options, place: Place) -> Protocol:
    timeout = options.get("timeout", _TIMEOUT)
    arguments: dict[str, Any] = {
        "host": parts.hostname,
        # asyncssh's default, the user's known_hosts; sshfs would trust any host.
        "known_hosts": (),
        "connect_timeout": timeout,
        "login_timeout": timeout,
        "keepalive_interval": 15,
        "compression_algs": None,
        "skip_instance_cache": True,
    }
    user = options.get("user") or parts.username
    # The user's ssh configuration may use both in a command line (`ProxyCommand`, `Match exec`).
    for name, said in (("host", parts.hostname), ("user", user)):
        if said and not re.fullmatch(_PLAIN_NAME, str(said)):
            raise ConfigError(
                f"remote '{place.name}': the {name} {str(said)!r} of its url is not a plain name"
            )
    password = options.get("password") or (unquote(parts.password) if parts.password else None)
    if not password and options.get("ask_password"):
        password = _ask(place, "ask_password", f"password of {user or 'you'} at {parts.hostname}")
    passphrase = options.get("passphrase")
    if not passphrase and options.get("ask_passphrase"):
        passphrase = _ask(place, "ask_passphrase", f"passphrase of the key for {parts.hostname}")
    for name, value in (
        ("username", user),
        ("port", options.get("port") or parts.port),
        ("password", password),
        ("passphrase", passphrase),
        ("client_keys", [options["keyfile"]] if options.get("keyfile") else None),
        ("max_sessions", options.get("max_sessions")),
    ):
        if value:
            arguments[name] = value
    if options.get("allow_agent") is False:
        arguments["agent_path"] = None
    if options.get("gss_auth") is not True:
        arguments["gss_host"] = None
    return Protocol(
        "sshfs",
        "SSHFileSystem",
        "sshfs",
        parts.path.rstrip("/"),
        arguments,
        folders=True,
        space=_ssh_space,
        credentials=f"the password or keys of user '{user or getpass.getuser()}'",
        secrets=tuple(str(s) for s in (password, passphrase) if s),
    )


# Names without options or shell syntax; IPv6 addresses and Windows domain names need some signs.
_PLAIN_NAME = r"[A-Za-z0-9_.][A-Za-z0-9_.:%@+-]*\$?|::[0-9A-Fa-f:.%]*"


def _ssh_space(fs: Any, folder: str) -> int:
    import asyncio

    from fsspec.asyn import sync

    async def ask() -> int:
        async with fs._pool.get() as channel:
            found = await asyncio.wait_for(channel.statvfs(folder), _TIMEOUT)
            return int(found.bavail * found.frsize)

    return int(sync(fs.loop, ask))


def _http(parts: SplitResult, options: Options, place: Place) -> Protocol:
    import aiohttp

    auth = options.get("auth")
    user = options.get("user") or parts.username
    password = options.get("password") or (unquote(parts.password) if parts.password else None)
    if auth and not password and options.get("ask_password"):
        password = _ask(place, "ask_password", f"password of {user or 'you'} at {parts.hostname}")
    client: dict[str, Any] = {
        "trust_env": True,
        "timeout": aiohttp.ClientTimeout(
            total=None,
            sock_connect=float(options.get("connect_timeout") or _TIMEOUT),
            sock_read=float(options.get("read_timeout") or _TIMEOUT),
        ),
    }
    login: dict[str, str] = {}
    if auth == "digest":
        raise ConfigError(
            f"remote '{place.name}', option 'auth': digest is not supported. Use basic or custom."
        )
    if auth == "custom":
        if not options.get("custom_auth_header") or not password:
            raise ConfigError(
                f"remote '{place.name}', option 'auth': custom needs 'custom_auth_header' and 'password'"
            )
        login = {str(options["custom_auth_header"]): str(password)}
    elif auth == "basic" or password:
        if not user or not password:
            raise ConfigError(f"remote '{place.name}', option 'auth': basic needs 'user' and 'password'")
        encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
        login = {"Authorization": f"Basic {encoded}"}
    arguments: dict[str, Any] = {"client_kwargs": client, "skip_instance_cache": True}
    verify = options.get("ssl_verify")
    if verify is False:
        arguments["ssl"] = False
    elif isinstance(verify, str):
        import ssl

        arguments["ssl"] = ssl.create_default_context(cafile=verify)
    host = parts.netloc.rpartition("@")[2]
    if login:
        client["middlewares"] = (_Login(f"{parts.scheme}://{host}", login),)
    return Protocol(
        "fsspec.implementations.http",
        "HTTPFileSystem",
        "aiohttp",
        f"{parts.scheme}://{host}{parts.path}".rstrip("/"),
        arguments,
        atomic=True,
        lists=False,
        put={"method": str(options.get("method", "post"))},
        puts_open_files=True,
        read=reading.web,
        escapes=True,
        credentials=f"auth = {auth}" if auth else "no credentials",
        secrets=(str(password),) if password else (),
    )


@dataclass(frozen=True)
class _Login:
    """Hook that adds headers to requests to one server, but not to redirects to another.

    The instance is an aiohttp middleware; `add` is an httpx hook.

    Args:
        server: Scheme and host of the server.
        headers: Headers to add.
    """

    server: str
    headers: Mapping[str, str] = field(repr=False)

    async def __call__(self, request: Any, handler: Any) -> Any:
        """Add the headers, and pass the request on."""
        self.add(request)
        return await handler(request)

    def add(self, request: Any) -> None:
        """Add the headers to a request for the server; remove them from a redirect to another."""
        ours = _origin(str(request.url)) == _origin(self.server)
        for name, value in self.headers.items():
            request.headers.pop(name, None)
            if ours:
                request.headers[name] = value


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _webdav(parts: SplitResult, options: Options, place: Place) -> Protocol:
    scheme = parts.scheme.replace("webdav", "http")
    user = options.get("user") or parts.username
    password = options.get("password") or (unquote(parts.password) if parts.password else None)
    if user and not password and options.get("ask_password"):
        password = _ask(place, "ask_password", f"password of {user} at {parts.hostname}")
    token = options.get("token")
    if options.get("bearer_token_command"):
        token = _run_for_token(str(options["bearer_token_command"]), place)
    arguments: dict[str, Any] = {
        # The server alone, since the root may not exist yet.
        "base_url": f"{scheme}://{parts.netloc.rpartition('@')[2]}",
        "timeout": options.get("timeout", _TIMEOUT),
        "verify": options.get("ssl_verify", True),
        "skip_instance_cache": True,
    }
    login: dict[str, str] = {}
    if token:
        login = {"Authorization": f"Bearer {token}"}
    elif options.get("custom_auth_header"):
        login = {str(options["custom_auth_header"]): str(password or "")}
    elif user:
        arguments["auth"] = (str(user), str(password or ""))
    if login:
        server = f"{scheme}://{parts.netloc.rpartition('@')[2]}"
        arguments["event_hooks"] = {"request": [_Login(server, login).add]}
    if options.get("cert_path"):
        key = options.get("key_path")
        arguments["cert"] = (options["cert_path"], key) if key else options["cert_path"]
    return Protocol(
        "webdav4.fsspec",
        "WebdavFileSystem",
        "webdav4[fsspec]",
        unquote(parts.path).strip("/"),
        arguments,
        # webdav4 escapes them in some requests only.
        refuses="?#%",
        folders=True,
        read=reading.webdav,
        close=lambda fs: fs.client.http.close,
        upload=_webdav_upload,
        move=_webdav_move,
        secrets=tuple(str(s) for s in (password, token) if s),
    )


def _webdav_upload(fs: Any, local: str, path: str) -> None:
    # ``put_file`` checks the folder three times first.
    fs.client.upload_file(local, path, overwrite=True)


def _webdav_move(fs: Any, path: str, target: str) -> None:
    # ``mv`` copies and deletes, so a reader could see a partial copy.
    fs.client.move(path, target, overwrite=True)


def _hdfs(parts: SplitResult, options: Options, place: Place) -> Protocol:
    arguments: dict[str, Any] = {"host": parts.hostname or "default", "skip_instance_cache": True}
    user = options.get("user") or parts.username
    for name, value in (
        ("port", parts.port),
        ("user", user),
        ("kerb_ticket", options.get("kerb_ticket")),
        ("replication", options.get("replication")),
    ):
        if value:
            arguments[name] = value
    root = parts.path.rstrip("/")
    return Protocol("fsspec.implementations.arrow", "HadoopFileSystem", "pyarrow", root, arguments)


def _webhdfs(parts: SplitResult, options: Options, place: Place) -> Protocol:
    port = parts.port or 50070
    arguments: dict[str, Any] = {"host": parts.hostname, "port": port, "skip_instance_cache": True}
    for name in ("kerberos", "token", "user", "password", "proxy_to", "use_https"):
        if options.get(name):
            arguments[name] = options[name]
    if options.get("kerberos_principal"):
        arguments["kerb_kwargs"] = {"principal": options["kerberos_principal"]}
    if options.get("data_proxy_target"):
        scheme = "https" if options.get("use_https") else "http"
        node = f"{scheme}://{parts.hostname}:{port}/webhdfs/v1"
        arguments["data_proxy"] = {node: options["data_proxy_target"]}
    if "ssl_verify" in options:
        arguments["session_verify"] = options["ssl_verify"]
    root = parts.path.rstrip("/")
    return Protocol("fsspec.implementations.webhdfs", "WebHDFS", "requests", root, arguments, folders=True)


def _oss(parts: SplitResult, options: Options, place: Place) -> Protocol:
    arguments: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    for option, name in (("oss_key_id", "key"), ("oss_key_secret", "secret"), ("oss_endpoint", "endpoint")):
        if options.get(option):
            arguments[name] = options[option]
    return Protocol("ossfs", "OSSFileSystem", "ossfs", _bucket_root(parts), arguments, atomic=True)


_PROTOCOLS: dict[str, Callable[[SplitResult, Options, Place], Protocol]] = {
    "file": _file,
    "memory": _memory,
    "s3": _s3,
    "gs": _gs,
    "azure": _azure,
    "ssh": _ssh,
    "http": _http,
    "https": _http,
    "webdav": _webdav,
    "webdavs": _webdav,
    "hdfs": _hdfs,
    "webhdfs": _webhdfs,
    "oss": _oss,
}


def _bucket_root(parts: SplitResult) -> str:
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def _ask(place: Place, option: str, what: str) -> str:
    if not sys.stdin.isatty():
        raise ConfigError(f"remote '{place.name}', option '{option}': no terminal to ask for the {what}")
    return getpass.getpass(f"{place.name}: {what}: ")


def _run_for_token(command: str, place: Place) -> str:
    try:
        ended = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=60, check=True)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = f"exit code {error.returncode}" if isinstance(error, subprocess.CalledProcessError) else ""
        raise ConfigError(
            f"remote '{place.name}', option 'bearer_token_command': the command printed no token "
            f"({reason or type(error).__name__})"
        ) from None
    return ended.stdout.strip()
