"""S3: credentials, failures, listings."""

from __future__ import annotations

import logging
import os
import socket
import traceback
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest
from servers import S3Server, WebServer

from dvkf_prefect.data.remotes import Storage, open_storage
from dvkf_prefect.data.remotes.aws import bucket_region
from dvkf_prefect.data.remotes.objects import ObjectStorage
from dvkf_prefect.errors import RemoteDeniedError, RemoteError, RemoteUnreachableError

Backend = Literal["obstore", "fsspec"]
S3_BACKENDS: list[Backend] = ["obstore", "fsspec"]
SECRET = "wr0ng/secret+key=="


@pytest.fixture(params=S3_BACKENDS)
def open_s3(request: pytest.FixtureRequest, s3: S3Server, bucket: str) -> Callable[..., Storage]:
    def open_it(url: str = f"{bucket}/errors", **options: str) -> Storage:
        quick = {"connect_timeout": "2", "read_timeout": "5"}
        return open_storage(url, {**s3.options(), **quick, **options}, name="store", backend=request.param)

    return open_it


def attempts(storage: Storage, source: Path) -> list[Callable[[], object]]:
    return [
        lambda: storage.size("a/b"),
        lambda: storage.read("a/b"),
        lambda: list(storage.stream("a/b")),
        lambda: storage.write("a/b", b""),
        lambda: storage.upload("a/b", source),
        lambda: list(storage.list("a")),
        lambda: storage.delete(["a/b"]),
    ]


@pytest.mark.parametrize(
    "wrong",
    [{"secret_access_key": SECRET}, {"access_key_id": "nobody", "secret_access_key": SECRET}],
    ids=["secret", "key"],
)
def test_wrong_credentials_are_not_a_missing_object(
    open_s3: Callable[..., Storage], tmp_path: Path, wrong: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "dvkf_prefect")
    (tmp_path / "source").write_bytes(b"x")
    storage = open_s3(**wrong)
    for act in attempts(storage, tmp_path / "source"):
        with pytest.raises(RemoteDeniedError) as caught:
            act()
        message = str(caught.value)
        assert "remote 'store' (s3://contract/errors) refused to" in message
        assert "the access key of the remote's options" in message
        told = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        assert SECRET not in told
        assert caught.value.__cause__ is not None
    assert SECRET not in repr(storage) + repr(vars(storage).get("_place")) + caplog.text


def test_no_credentials_at_all(
    open_s3: Callable[..., Storage], s3: S3Server, request: pytest.FixtureRequest
) -> None:
    storage = open_s3(allow_anonymous_login="true")
    with pytest.raises(RemoteDeniedError, match="no credentials"):
        storage.read("a/b")


def test_dead_endpoint(open_s3: Callable[..., Storage], tmp_path: Path) -> None:
    with socket.socket() as held:
        # Bound but not listening: nothing else can answer there.
        held.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{held.getsockname()[1]}"
        (tmp_path / "source").write_bytes(b"x")
        storage = open_s3(endpointurl=endpoint)
        with ThreadPoolExecutor(7) as pool:
            for error in pool.map(_error_of, attempts(storage, tmp_path / "source")):
                assert isinstance(error, RemoteUnreachableError), error
                assert "remote 'store' (s3://contract/errors) does not answer" in str(error)
                assert endpoint in str(error)


def _error_of(act: Callable[[], object]) -> Exception | None:
    try:
        act()
    except Exception as error:
        return error
    return None


def test_missing_bucket(open_s3: Callable[..., Storage]) -> None:
    storage = open_s3(url="s3://no-such-bucket/x")
    for act in (lambda: storage.size("a"), lambda: storage.read("a")):
        with pytest.raises(RemoteError, match=r"bucket .*does not exist") as caught:
            act()
        assert "remote 'store'" in str(caught.value)


def test_a_missing_object_costs_no_second_question(s3: S3Server, bucket: str) -> None:
    """A HEAD cannot tell a missing object from a missing bucket; it is asked once and remembered."""
    storage = open_storage(f"{bucket}/counted", s3.options())
    assert isinstance(storage, ObjectStorage)
    asked = []
    store = storage._store

    class Counting:
        def __getattr__(self, name: str) -> object:
            asked.append(name)
            return getattr(store, name)

    storage._store = Counting()  # type: ignore[assignment]
    assert [storage.size(f"a/{n}") for n in range(5)] == [None] * 5
    assert asked.count("head") == 5
    assert asked.count("get") == 1


def test_both_libraries_see_the_same_keys(s3: S3Server, bucket: str) -> None:
    """Each encodes keys in its own way; what one writes, the other must find."""
    url = f"{bucket}/{uuid.uuid4().hex}"
    one = open_storage(url, s3.options())
    other = open_storage(url, s3.options(), backend="fsspec")
    for key in ("ünï/文件.txt", "a b/c+d&e=f?g#h%25i", "plain"):
        one.write(key, b"1")
        assert other.read(key) == b"1"
        other.write(key, b"22")
        assert one.read(key) == b"22"
    assert dict(one.list()) == dict(other.list())


@pytest.mark.parametrize("backend", S3_BACKENDS)
def test_credentials_from_the_environment(
    s3: S3Server, bucket: str, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    storage = open_storage(f"{bucket}/env", {"endpointurl": s3.endpoint}, backend=backend)
    storage.write("a", b"1")
    assert storage.read("a") == b"1"


@pytest.mark.parametrize("backend", S3_BACKENDS)
@pytest.mark.parametrize("by", ["home", "profile", "credentialpath", "AWS_PROFILE"])
def test_credentials_from_awss_files(
    s3: S3Server, bucket: str, backend: Backend, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = "team" if "profile" in by.lower() else "default"
    text = f"[{section}]\naws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n"
    path = tmp_path / "keys" if by == "credentialpath" else Path(os.environ["HOME"], ".aws/credentials")
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    options = {"endpointurl": s3.endpoint}
    if by == "AWS_PROFILE":
        monkeypatch.setenv(by, section)
    elif by != "home":
        options[by] = str(path) if by == "credentialpath" else section
    storage = open_storage(f"{bucket}/files", options, backend=backend)
    storage.write("a", b"1")
    assert storage.read("a") == b"1"
    assert "AWS_SHARED_CREDENTIALS_FILE" not in os.environ


def test_options_win_over_the_environments_keys_and_token(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session token of another identity must not be sent along with the key of the options."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "other")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    storage = open_storage(f"{bucket}/win", s3.options())
    storage.write("a", b"1")
    assert storage.read("a") == b"1"


@pytest.mark.parametrize("backend", S3_BACKENDS)
def test_role_of_a_web_identity(
    s3: S3Server,
    bucket: str,
    web: WebServer,
    backend: Backend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a pod has whose service account is bound to a role: a token file, and STS to change it for keys."""
    (tmp_path / "token").write_text("a.web.token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/reader")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"{web.url}/sts")
    web.handler.keys = (s3.access_key, s3.secret_key)
    storage = open_storage(f"{bucket}/role", {"endpointurl": s3.endpoint}, name="store", backend=backend)
    with pytest.raises(RemoteDeniedError, match="the role of the web identity token"):
        # The keys are good, but SeaweedFS knows no session of that token.
        storage.read("a")
    assert web.handler.tokens == ["a.web.token"]


def test_region_of_a_bucket_is_asked_for(web: WebServer) -> None:
    assert bucket_region("bucket", service=web.url) == "eu-north-1"
    assert bucket_region("bucket", service="http://127.0.0.1:1") == "us-east-1"
