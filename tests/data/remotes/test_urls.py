"""Characters that urls give a meaning, in the keys of stores: they are taken as they are written."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import S3Server, SshServer

from dvkf_prefect.data.remotes import open_storage
from dvkf_prefect.data.remotes.urls import split_url
from dvkf_prefect.data.verbs.get import get_url, list_url
from dvkf_prefect.errors import ConfigError

NAMES = ["team#1", "what?x=1", "50%25", "a b+c", "ünï 文", "semi;colon&and=", "h#1?q#2"]
Keys = Callable[[], set[str]]


@pytest.fixture
def raw(s3: S3Server, bucket: str) -> Iterator[Keys]:
    """List the bucket by another client."""

    with s3.client() as client:

        def keys() -> set[str]:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket.removeprefix("s3://"))
            return {item["Key"] for page in pages for item in page.get("Contents", [])}

        yield keys


@pytest.mark.parametrize("backend", ["obstore", "fsspec"])
@pytest.mark.parametrize("name", NAMES)
def test_a_prefix_in_a_bucket(s3: S3Server, bucket: str, raw: Keys, name: str, backend: str) -> None:
    prefix = f"{uuid.uuid4().hex}/{name}"
    storage = open_storage(f"{bucket}/{prefix}", s3.options(), backend=backend)  # type: ignore[arg-type]
    storage.write(f"in/{name}", b"1")
    assert f"{prefix}/in/{name}" in raw()
    assert storage.read(f"in/{name}") == b"1"
    assert list(storage.list()) == [(f"in/{name}", 1)]


@pytest.mark.parametrize("name", NAMES)
def test_a_url_that_is_read(s3: S3Server, bucket: str, tmp_path: Path, name: str) -> None:
    prefix = f"{bucket}/{uuid.uuid4().hex}"
    open_storage(prefix, s3.options()).write(f"{name}/file", name.encode())
    assert list_url(f"{prefix}/{name}", fs_config=s3.options()) == [("file", len(name.encode()))]
    out = get_url(f"{prefix}/{name}", tmp_path / "out", fs_config=s3.options())
    assert (Path(out) / "file").read_text() == name


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_a_host(ssh: SshServer, tmp_path: Path, name: str) -> None:
    storage = open_storage(f"ssh://127.0.0.1{tmp_path}/{name}", ssh.options())
    storage.write(f"in/{name}", b"1")
    assert (tmp_path / name / "in" / name).read_bytes() == b"1"


@pytest.mark.parametrize("name", NAMES)
def test_a_folder(tmp_path: Path, name: str) -> None:
    open_storage(f"file://{tmp_path}/{name}").write("one", b"1")
    assert (tmp_path / name / "one").read_bytes() == b"1"
    open_storage(f"file://{tmp_path}/{name}", backend="fsspec").write("two", b"1")
    assert (tmp_path / name / "two").read_bytes() == b"1"


@pytest.mark.parametrize("url", ["https://host/team#1", "http://host/a?token=1", "webdav://host/a#b"])
def test_a_remote_on_the_web_says_what_it_cannot_mean(url: str) -> None:
    with pytest.raises(ConfigError, match="%23"):
        open_storage(url)


def test_the_parts_of_a_url() -> None:
    parts = split_url("SFTP://me:p%40ss@host:22/a?b#c")
    assert (parts.scheme, parts.hostname, parts.port) == ("ssh", "host", 22)
    assert (parts.username, parts.password, parts.path) == ("me", "p%40ss", "/a?b#c")
