"""What becomes of every option that DVC's schema has for a remote: it reaches the library that serves it, or it is
refused, or it is said here why it means nothing to a storage."""

from __future__ import annotations

import base64
import contextlib
import importlib
import inspect
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from dvkf_prefect.data.remotes import open_storage
from dvkf_prefect.data.remotes.aws import needs_s3fs, obstore_arguments
from dvkf_prefect.data.remotes.clouds import azure_arguments, gs_arguments
from dvkf_prefect.data.remotes.errors import Place
from dvkf_prefect.data.remotes.options import parse_options
from dvkf_prefect.data.remotes.protocols import protocol_of
from dvkf_prefect.errors import ConfigError

KEY = base64.b64encode(b"k" * 32).decode()
KEYS = {"access_key_id": "key", "secret_access_key": "secret"}
LOGIN = {"user": "me", "password": "pass"}
AZURE = {"account_name": "acc", "account_key": "a2V5"}


@dataclass(frozen=True)
class Reaches:
    """With the option, each of the libraries is given something else than without."""

    libraries: tuple[str, ...]
    value: str
    along: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Refused:
    """`ConfigError`, saying so."""

    value: str
    message: str
    along: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Nothing:
    """Accepted, and nothing is given to any library: ``why``."""

    value: str
    why: str
    along: tuple[tuple[str, str], ...] = ()


Fate = Reaches | Refused | Nothing


def both(value: str, **along: str) -> Reaches:
    return Reaches(("obstore", "s3fs"), value, tuple(along.items()))


def by(library: str, value: str, **along: str) -> Reaches:
    return Reaches((library,), value, tuple(along.items()))


COMMON: dict[str, Fate] = {
    "url": Nothing("x", "it is what is opened"),
    "jobs": Nothing("3", "how many transfers its caller makes at once: `Storage.jobs`"),
    "checksum_jobs": Nothing("3", "how many files are hashed at once, which is no storage's doing"),
    "no_traverse": Nothing("true", "obsolete in DVC too"),
    "worktree": Nothing("false", "read where remotes are chosen"),
    "version_aware": Nothing("false", "read where remotes are chosen"),
    "verify": Nothing("true", "what arrives is always verified"),
}
S3: dict[str, Fate] = {
    "region": both("eu-north-1", **KEYS),
    "profile": both("team"),
    "credentialpath": both("{home}/keys"),
    "configpath": both("{home}/config"),
    "endpointurl": both("http://127.0.0.1:1", **KEYS),
    "access_key_id": both("key", secret_access_key="secret"),
    "secret_access_key": both("secret", access_key_id="key"),
    "session_token": both("token", **KEYS),
    "listobjects": Nothing("false", "obsolete in DVC too"),
    "use_ssl": by("s3fs", "false", **KEYS),
    "allow_anonymous_login": both("true"),
    "ssl_verify": both("false", **KEYS),
    "sse": both("AES256", **KEYS),
    "sse_kms_key_id": both("id", **KEYS),
    "sse_customer_algorithm": Nothing(
        "AES256", "there is one, and it goes with the key", (("sse_customer_key", KEY),)
    ),
    "sse_customer_key": both(KEY, **KEYS),
    "acl": by("s3fs", "private", **KEYS),
    "grant_read": by("s3fs", "id=x", **KEYS),
    "grant_read_acp": by("s3fs", "id=x", **KEYS),
    "grant_write_acp": by("s3fs", "id=x", **KEYS),
    "grant_full_control": by("s3fs", "id=x", **KEYS),
    "cache_regions": Nothing("true", "a region that is not said is always found out, once"),
    "read_timeout": both("7", **KEYS),
    "connect_timeout": both("7", **KEYS),
}
GS: dict[str, Fate] = {
    "projectname": Nothing("p", "only who makes a bucket needs one; objects are found without"),
    "credentialpath": by("obstore", "{home}/keys"),
    "endpointurl": by("obstore", "http://127.0.0.1:1"),
    "allow_anonymous_login": by("obstore", "true"),
}
GCSFS: dict[str, Fate] = {
    "projectname": by("fsspec", "p"),
    "credentialpath": by("fsspec", "{home}/keys"),
    "endpointurl": by("fsspec", "http://127.0.0.1:1"),
    "allow_anonymous_login": by("fsspec", "true"),
}
_never = "such credentials are never looked for here"
AZ: dict[str, Fate] = {
    "connection_string": by("obstore", "AccountName=a;AccountKey=a2V5"),
    "sas_token": by("obstore", "sig=x", account_name="acc"),
    "account_name": by("obstore", "acc"),
    "account_key": by("obstore", "a2V5", account_name="acc"),
    "tenant_id": by("obstore", "t", account_name="acc"),
    "client_id": by("obstore", "t", account_name="acc"),
    "client_secret": by("obstore", "t", account_name="acc"),
    "allow_anonymous_login": by("obstore", "true", account_name="acc"),
    "exclude_environment_credential": Refused(
        "true", "not supported. Give the credentials", tuple(AZURE.items())
    ),
    "exclude_managed_identity_credential": Refused(
        "true", "not supported. Give the credentials", tuple(AZURE.items())
    ),
    "exclude_visual_studio_code_credential": Nothing("true", _never),
    "exclude_shared_token_cache_credential": Nothing("true", _never),
    "timeout": by("obstore", "7"),
    "read_timeout": by("obstore", "7"),
    "connection_timeout": by("obstore", "7"),
}
SSH: dict[str, Fate] = {
    "type": Nothing("symlink", "how a cache links files; DVC's remotes make no use of it either"),
    "port": by("fsspec", "2222"),
    "user": by("fsspec", "me"),
    "password": by("fsspec", "pass"),
    "ask_password": Refused("true", "no terminal to ask for the password"),
    "passphrase": by("fsspec", "pass"),
    "ask_passphrase": Refused("true", "no terminal to ask for the passphrase"),
    "keyfile": by("fsspec", "/k"),
    "timeout": by("fsspec", "7"),
    "gss_auth": by("fsspec", "true"),
    "allow_agent": by("fsspec", "false"),
    "max_sessions": by("fsspec", "7"),
}
HTTP: dict[str, Fate] = {
    "auth": by("fsspec", "custom", custom_auth_header="X-Auth", **LOGIN),
    "custom_auth_header": by("fsspec", "X-Auth", auth="custom", password="pass"),
    "user": by("fsspec", "me", password="pass"),
    "password": by("fsspec", "pass", user="me"),
    "ask_password": Refused(
        "true", "no terminal to ask for the password", (("auth", "basic"), ("user", "me"))
    ),
    "ssl_verify": by("fsspec", "false"),
    "method": by("fsspec", "put"),
    "connect_timeout": by("fsspec", "7"),
    "read_timeout": by("fsspec", "7"),
}
WEBDAV: dict[str, Fate] = {
    "user": by("fsspec", "me"),
    "password": by("fsspec", "pass", user="me"),
    "ask_password": Refused("true", "no terminal to ask for the password", (("user", "me"),)),
    "token": by("fsspec", "t"),
    "bearer_token_command": by("fsspec", "echo t"),
    "custom_auth_header": by("fsspec", "X-Auth", password="pass"),
    "cert_path": by("fsspec", "/c"),
    "key_path": by("fsspec", "/k", cert_path="/c"),
    "timeout": by("fsspec", "7"),
    "ssl_verify": by("fsspec", "false"),
}
HDFS: dict[str, Fate] = {
    "user": by("fsspec", "me"),
    "kerb_ticket": by("fsspec", "/t"),
    "replication": by("fsspec", "2"),
}
WEBHDFS: dict[str, Fate] = {
    "kerberos": by("fsspec", "true"),
    "kerberos_principal": by("fsspec", "p"),
    "proxy_to": by("fsspec", "u"),
    "ssl_verify": by("fsspec", "false"),
    "token": by("fsspec", "t"),
    "use_https": by("fsspec", "true"),
    "user": by("fsspec", "me"),
    "password": by("fsspec", "pass", user="me"),
    "data_proxy_target": by("fsspec", "https://h"),
}
OSS: dict[str, Fate] = {
    "oss_key_id": by("fsspec", "k"),
    "oss_key_secret": by("fsspec", "s"),
    "oss_endpoint": by("fsspec", "e"),
}
LOCAL: dict[str, Fate] = {
    "type": Nothing("symlink", "how a cache links files; DVC's remotes make no use of it either"),
    "protected": Nothing("true", "obsolete in DVC too"),
    "shared": by("folder", "group"),
    "slow_link_warning": Nothing("false", "of a cache"),
}
TABLE = {
    "": LOCAL,
    "s3": S3,
    "gs": GS,
    "azure": AZ,
    "ssh": SSH,
    "http": HTTP,
    "https": HTTP,
    "webdav": WEBDAV,
    "webdavs": WEBDAV,
    "hdfs": HDFS,
    "webhdfs": WEBHDFS,
    "oss": OSS,
}
URLS = {
    "": "/folder",
    "s3": "s3://b/p",
    "gs": "gs://b/p",
    "azure": "azure://c/p",
    "ssh": "ssh://h/p",
    "http": "http://h/p",
    "https": "https://h/p",
    "webdav": "webdav://h/p",
    "webdavs": "webdavs://h/p",
    "hdfs": "hdfs://h/p",
    "webhdfs": "webhdfs://h/p",
    "oss": "oss://b/p",
}
PLACE = Place("store", "it")


def test_the_table_has_every_option_of_dvc() -> None:
    schema = pytest.importorskip("dvc.config_schema")
    theirs = {
        scheme: {str(getattr(option, "schema", option)) for option in options}
        for scheme, options in schema.REMOTE_SCHEMAS.items()
        if scheme not in ("remote", "gdrive")  # any of them; not served
    }
    assert theirs.keys() == TABLE.keys()
    for scheme, options in theirs.items():
        # Not quite all of the common ones are everywhere.
        assert set(TABLE[scheme]) <= options <= TABLE[scheme].keys() | COMMON.keys(), scheme


def shown(value: Any) -> Any:
    """Something that can be compared with what another call made."""
    if isinstance(value, dict):
        return {name: shown(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(inner) for inner in value]
    # What adds a login to requests.
    login = getattr(value, "__self__", value)
    if hasattr(login, "server"):
        return [login.server, dict(login.headers)]
    if callable(value):
        found = value()
        return shown({name: found[name] for name in ("access_key_id", "secret_access_key", "token")})
    if hasattr(value, "get_config_variable"):
        return [value.get_config_variable(name) for name in ("credentials_file", "config_file", "profile")]
    if hasattr(value, "get_ca_certs"):
        return str(value.verify_mode)
    return value if isinstance(value, (str, int, float, bool, bytes, timedelta, type(None))) else repr(value)


def given(library: str, scheme: str, options: dict[str, str]) -> Any:
    """What the library's constructor is given."""
    url = URLS[scheme]
    parsed = parse_options(scheme or "file", options, "store")
    if library == "folder":
        return vars(open_storage(url, options))["_shared"]
    if library == "obstore":
        if scheme == "s3":
            return shown(obstore_arguments("b", parsed, PLACE).arguments)
        return shown((gs_arguments if scheme == "gs" else azure_arguments)(parsed, PLACE)[0])
    protocol = protocol_of(url, parsed, PLACE)
    assert urlsplit(url).path.strip("/") in protocol.root
    return shown(protocol.arguments | {"put": protocol.put})


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Path:
    """With files of AWS that say one thing, and others that options name."""
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    folder = Path(os.environ["HOME"])
    (folder / ".aws").mkdir()
    text = "[{}]\naws_access_key_id = {}\naws_secret_access_key = s\n"
    (folder / ".aws/credentials").write_text(
        text.format("default", "of-default") + text.format("team", "of-team")
    )
    (folder / "keys").write_text(text.format("default", "of-keys"))
    # Keys too, since what a configuration says of the credentials file comes first.
    (folder / "config").write_text("[default]\nendpoint_url = http://of-config\n")
    return folder


CASES = [
    pytest.param(scheme, option, fate, id=f"{scheme or 'folder'}-{option}")
    for scheme, fates in [*TABLE.items()]
    for option, fate in (fates | COMMON).items()
]
CASES += [pytest.param("gs", option, fate, id=f"gcsfs-{option}") for option, fate in GCSFS.items()]


@pytest.mark.parametrize(("scheme", "option", "fate"), CASES)
def test_no_option_is_passed_over(home: Path, scheme: str, option: str, fate: Fate) -> None:
    before = dict(fate.along)
    after = before | {option: fate.value.format(home=home)}
    if isinstance(fate, Refused):
        with pytest.raises(ConfigError, match=f"option '{option}': .*{fate.message}"):
            open_storage(URLS[scheme], after, name="store")
        return
    if isinstance(fate, Reaches):
        for library in fate.libraries:
            without = None
            # Some are refused without this one.
            with contextlib.suppress(ConfigError):
                without = given(library, scheme, before)
            assert given(library, scheme, after) != without, library
        if scheme == "s3":
            assert bool(needs_s3fs(parse_options("s3", after, "store"))) == ("obstore" not in fate.libraries)
        return
    for library in {
        "": ("folder",),
        "s3": ("obstore", "s3fs"),
        "gs": ("obstore",),
        "azure": ("obstore",),
    }.get(scheme, ("fsspec",)):
        assert given(library, scheme, after) == given(library, scheme, before), fate.why


def test_gdrive_is_refused_whatever_its_options_say() -> None:
    with pytest.raises(ConfigError, match="Google Drive is not supported"):
        open_storage("gdrive://root/p", {"gdrive_client_id": "x"})


@pytest.mark.parametrize(("scheme", "table"), [("hdfs", HDFS), ("webhdfs", WEBHDFS)])
def test_no_library_is_given_what_it_does_not_take(scheme: str, table: dict[str, Fate]) -> None:
    """Where no server can run here: the constructor's own parameters, since some swallow any others."""
    options = {option: fate.value for option, fate in table.items()}
    protocol = protocol_of(URLS[scheme], parse_options(scheme, options, "store"), PLACE)
    kind = getattr(importlib.import_module(protocol.module), protocol.kind)
    assert set(protocol.arguments) - {"skip_instance_cache"} <= set(
        inspect.signature(kind.__init__).parameters
    )
