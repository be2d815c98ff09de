"""Which library serves what, and what DVC's options mean to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvkf_prefect.data.remotes import open_storage
from dvkf_prefect.data.remotes.clouds import azure_arguments, gs_arguments
from dvkf_prefect.data.remotes.errors import Place
from dvkf_prefect.data.remotes.filesystems import FilesystemStorage
from dvkf_prefect.data.remotes.folder import FolderStorage
from dvkf_prefect.data.remotes.objects import ObjectStorage
from dvkf_prefect.errors import ConfigError


def test_backends_are_chosen_by_url_and_options(tmp_path: Path) -> None:
    plain = {"region": "eu-west-1", "access_key_id": "a", "secret_access_key": "b"}
    assert isinstance(open_storage(str(tmp_path)), FolderStorage)
    assert isinstance(open_storage("s3://bucket/p", plain), ObjectStorage)
    assert isinstance(open_storage("s3://bucket/p", {**plain, "acl": "private"}), FilesystemStorage)
    assert isinstance(open_storage("s3://bucket/p", {**plain, "grant_read": "id=x"}), FilesystemStorage)
    assert isinstance(open_storage("s3://bucket/p", {**plain, "use_ssl": "false"}), FilesystemStorage)
    assert isinstance(open_storage("gs://bucket/p", {"allow_anonymous_login": "true"}), ObjectStorage)
    assert isinstance(
        open_storage("azure://c/p", {"account_name": "a", "account_key": "a2V5"}), ObjectStorage
    )
    assert isinstance(open_storage("https://example.org/data"), FilesystemStorage)
    with pytest.raises(ConfigError, match="'acl': obstore cannot"):
        open_storage("s3://bucket/p", {**plain, "acl": "private"}, backend="obstore")
    with pytest.raises(ConfigError, match="obstore does not serve"):
        open_storage("ssh://host/p", backend="obstore")


def test_jobs_come_from_the_options(tmp_path: Path) -> None:
    assert open_storage(str(tmp_path), {"jobs": "3"}).jobs == 3


def test_every_option_of_dvc_is_known() -> None:
    """Held against DVC's own schema, so that a configuration that dvc accepts loads here too."""
    schema = pytest.importorskip("dvc.config_schema")
    from dvkf_prefect.data.remotes.options import _COMMON, _SCHEMAS

    for scheme, options in schema.REMOTE_SCHEMAS.items():
        if scheme != "remote":
            ours = set(_COMMON) | set(_SCHEMAS[scheme or "file"])
            assert {str(getattr(option, "schema", option)) for option in options} <= ours, scheme


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        (
            "s3://b",
            {"regoin": "x"},
            r"remote 'store': s3 remotes have no option 'regoin'; did you mean 'region'\?",
        ),
        ("s3://b", {"use_ssl": "maybe"}, "remote 'store', option 'use_ssl': expected true or false"),
        ("s3://b", {"jobs": "0"}, "remote 'store', option 'jobs': expected a whole number, at least 1"),
        ("s3://b", {"read_timeout": "soon"}, "option 'read_timeout': expected seconds"),
        ("s3://b", {"access_key_id": "a"}, "option 'access_key_id': goes together with 'secret_access_key'"),
        ("s3://b", {"acl": "private", "grant_read": "id=x"}, "option 'acl': excludes 'grant_read'"),
        ("s3://b", {"sse": "rot13"}, "option 'sse': expected one of AES256"),
        (
            "s3://b",
            {"sse_customer_key": "c2hvcnQ="},
            "option 'sse_customer_key': expected 32 bytes in base64",
        ),
        ("s3://b", {"profile": "nobody"}, "option 'profile': The config profile"),
        (
            "s3://b",
            {"region": "x", "ssl_verify": "/no/ca.pem"},
            "option 'ssl_verify': cannot read /no/ca.pem",
        ),
        ("s3:///p", {"region": "x"}, "names no bucket"),
        ("gs://b", {"credentialpath": "/no/such.json"}, "option 'credentialpath': the file"),
        ("azure://c", {}, "Account must be specified"),
        ("azure://c", {"connection_string": "nonsense"}, "option 'connection_string': expected Name=Value"),
        ("azure://c", {"exclude_managed_identity_credential": "true"}, "not supported. Give the credentials"),
        ("https://example.org", {"auth": "digest"}, "option 'auth': digest is not supported"),
        ("https://example.org", {"auth": "basic"}, "option 'auth': basic needs 'user' and 'password'"),
        ("gdrive://root", {}, "Google Drive is not supported"),
        ("nonsense://x", {}, "nonsense:// urls are not supported"),
        ("webdav://h/p", {"bearer_token_command": "false"}, "the command printed no token"),
        ("relative/folder", {}, "is not an absolute path"),
        ("file://nas/data", {}, "names the host 'nas', and a folder has none.*such as ssh://nas/data"),
        ("/folder", {"region": "x"}, "file remotes have no option 'region'"),
    ],
)
def test_bad_configuration_names_remote_and_option(url: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_storage(url, options, name="store")


def test_missing_certificates_of_the_machine_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It was a "builder error" of obstore's client."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    options = {"region": "x", "access_key_id": "a", "secret_access_key": "b"}
    with pytest.raises(ConfigError, match=r"has no CA certificates. Install .* in SSL_CERT_FILE\."):
        open_storage("s3://bucket", options, name="store", backend="obstore")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sshfs", None)
    with pytest.raises(ConfigError, match="pip install sshfs"):
        open_storage("ssh://me@host/data", name="store")


def test_obsolete_and_transfer_options_are_accepted(tmp_path: Path) -> None:
    options = {"no_traverse": "true", "verify": "true", "checksum_jobs": "2", "worktree": "false"}
    open_storage(str(tmp_path), {**options, "protected": "true", "url": "x"}).write("a", b"1")
    open_storage("s3://b", {**options, "listobjects": "false", "cache_regions": "true", "region": "x"})


def test_azure_and_gs_options() -> None:
    place = Place("store", "azure://c")
    text = "DefaultEndpointsProtocol=https;AccountName=acc;AccountKey=a2V5;EndpointSuffix=core.windows.net"
    arguments, credentials = azure_arguments({"connection_string": text}, place)
    assert arguments["account_name"] == "acc"
    assert arguments["account_key"] == "a2V5"
    assert arguments["endpoint"] == "https://acc.blob.core.windows.net"
    assert "a2V5" not in credentials
    arguments, _ = gs_arguments({"allow_anonymous_login": True, "endpointurl": "http://h"}, place)
    assert arguments["skip_signature"] is True
    assert arguments["base_url"] == "http://h"
