"""One contract, kept by every backend of a remote; and what each tells when its service fails."""

from __future__ import annotations

import base64
import errno
import hashlib
import http.server
import logging
import os
import socket
import tempfile
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from servers import S3Server

from dvkf_prefect.data.remotes import Storage, open_storage
from dvkf_prefect.data.remotes import objects as objects_module
from dvkf_prefect.data.remotes.aws import bucket_region
from dvkf_prefect.data.remotes.clouds import azure_arguments, gs_arguments
from dvkf_prefect.data.remotes.errors import Place, public_url
from dvkf_prefect.data.remotes.filesystems import FilesystemStorage
from dvkf_prefect.data.remotes.folder import FolderStorage
from dvkf_prefect.data.remotes.objects import ObjectStorage
from dvkf_prefect.errors import (
    ConfigError,
    DiskFullError,
    MissingObjectError,
    RemoteDeniedError,
    RemoteError,
    RemoteUnreachableError,
    UnsafePathError,
)

BACKENDS = [
    "folder",
    "file url",
    "memory",
    "s3 by obstore",
    "s3 by s3fs",
    "file by fsspec",
    "memory by fsspec",
]
S3_BACKENDS = ["obstore", "fsspec"]
SECRET = "wr0ng/secret+key=="
DIGEST = "files/md5/d3/b07384d113edec49eaa6238ad5ff00"


@pytest.fixture(scope="session")
def bucket(s3: S3Server) -> str:
    return s3.make_bucket("contract")


@pytest.fixture(params=BACKENDS)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    kind = request.param
    unique = uuid.uuid4().hex
    if kind.startswith("s3"):
        url = f"{request.getfixturevalue('bucket')}/{unique}/a prefix"
        options = request.getfixturevalue("s3").options()
        return open_storage(url, options, backend="fsspec" if kind == "s3 by s3fs" else None)
    return {
        "folder": lambda: open_storage(f"{tmp_path}/store"),
        "file url": lambda: open_storage(f"file://{tmp_path}/a%20store"),
        "memory": lambda: open_storage(f"memory://{unique}"),
        "file by fsspec": lambda: open_storage(f"{tmp_path}/store", backend="fsspec"),
        "memory by fsspec": lambda: open_storage(f"memory://{unique}", backend="fsspec"),
    }[kind]()


def make_file(path: Path, size: int) -> bytes:
    """A file whose every part differs, so that a part put in the wrong place shows."""
    block = b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(min(size, 1 << 20) // 32 + 1))
    data = b"".join(bytes([n]) + block for n in range(size // len(block) + 1))[:size]
    path.write_bytes(data)
    return data


# The contract


@pytest.mark.parametrize("size", [0, 1, 4096, 20_000_000])
def test_uploads_and_streams_back(storage: Storage, tmp_path: Path, size: int) -> None:
    data = make_file(tmp_path / "source", size)
    storage.upload(DIGEST, tmp_path / "source")
    assert storage.size(DIGEST) == size
    chunks = list(storage.stream(DIGEST))
    assert b"".join(chunks) == data
    assert all(type(chunk) is bytes and 0 < len(chunk) <= 16 << 20 for chunk in chunks)
    assert storage.read(DIGEST) == data


@pytest.mark.parametrize("start", [1, 1_500_000, 2_999_999])
def test_streams_from_the_middle(storage: Storage, tmp_path: Path, start: int) -> None:
    data = make_file(tmp_path / "source", 3_000_000)
    storage.upload(DIGEST, tmp_path / "source")
    assert b"".join(storage.stream(DIGEST, start=start)) == data[start:]


@pytest.mark.parametrize(("size", "start"), [(0, 0), (0, 1), (3, 3), (3, 10)])
def test_streams_nothing_past_the_end(storage: Storage, size: int, start: int) -> None:
    storage.write(DIGEST, b"x" * size)
    assert list(storage.stream(DIGEST, start=start)) == []


def test_writes_and_overwrites_whole(storage: Storage, tmp_path: Path) -> None:
    storage.write(DIGEST, b"first, and longer")
    storage.write(DIGEST, b"second")
    assert storage.read(DIGEST) == b"second"
    make_file(tmp_path / "source", 100)
    storage.upload(DIGEST, tmp_path / "source")
    assert storage.size(DIGEST) == 100
    assert list(storage.list()) == [(DIGEST, 100)]


def test_missing_blob(storage: Storage) -> None:
    assert storage.size("files/md5/00/none") is None
    for read in (
        storage.read,
        lambda key: list(storage.stream(key)),
        lambda key: list(storage.stream(key, start=5)),
    ):
        with pytest.raises(MissingObjectError, match="has no 'files/md5/00/none'"):
            read("files/md5/00/none")
    storage.write("files/md5/00/here", b"1")
    assert storage.size("files/md5/00/none") is None
    assert storage.size("files/md5/00") is None
    assert storage.size("files/md5/00/here/below") is None


def test_lists_below_a_folder_only(storage: Storage) -> None:
    blobs = {
        "files/md5/aa/1": 1,
        "files/md5/aa/2": 22,
        "files/md5/ab/3.dir": 3,
        "files/md5x/ab": 4,
        "runs/k/v": 5,
    }
    for key, size in blobs.items():
        storage.write(key, b"x" * size)
    assert dict(storage.list()) == blobs
    assert dict(storage.list("files/md5")) == {k: v for k, v in blobs.items() if k.startswith("files/md5/")}
    assert dict(storage.list("files/md5/aa/")) == {"files/md5/aa/1": 1, "files/md5/aa/2": 22}
    assert set(storage.keys()) == set(blobs)
    assert sorted(storage.keys("files/md5/aa")) == ["files/md5/aa/1", "files/md5/aa/2"]
    for nothing in ("nothing/here", "runs/k/v"):
        assert list(storage.list(nothing)) == []
        assert list(storage.keys(nothing)) == []


def test_lists_nothing_in_an_empty_remote(storage: Storage) -> None:
    assert list(storage.list()) == []
    assert list(storage.list("files/md5")) == []


def test_deletes_and_passes_over_what_is_not_there(storage: Storage) -> None:
    for key in ("a/1", "a/2", "a/3"):
        storage.write(key, b"x")
    storage.delete(["a/1", "a/none", "none", "a/3"])
    assert [key for key, _ in storage.list()] == ["a/2"]
    storage.delete([])


@pytest.mark.parametrize(
    "key",
    [
        "ünï/cödé-文件.txt",
        "with space/a+b&c=d?e#f%25g.txt",
        "dots/..a/.hidden/b..",
        "quote/'a'\"b\"/(1)[2]{3}",
    ],
)
def test_keys_of_any_character(storage: Storage, key: str) -> None:
    storage.write(key, key.encode())
    assert storage.size(key) == len(key.encode())
    assert storage.read(key) == key.encode()
    assert dict(storage.list()) == {key: len(key.encode())}
    storage.delete([key])
    assert storage.size(key) is None


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../out", "a/../../out", "a//b", "a/./b", "a/", "a\0b"])
def test_refuses_keys_that_leave_the_root(storage: Storage, tmp_path: Path, key: str) -> None:
    make_file(tmp_path / "source", 1)
    for act in (
        lambda: storage.size(key),
        lambda: storage.read(key),
        lambda: list(storage.stream(key)),
        lambda: storage.write(key, b""),
        lambda: storage.upload(key, tmp_path / "source"),
        lambda: storage.delete([key]),
    ):
        with pytest.raises(UnsafePathError):
            act()


def test_many_threads_at_once(storage: Storage) -> None:
    blobs = {f"files/md5/{i % 7:02x}/{i:030x}": os.urandom(1000 + i) for i in range(100)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda item: storage.write(*item), blobs.items()))
        assert list(pool.map(storage.read, blobs)) == list(blobs.values())
        assert list(pool.map(storage.size, blobs)) == [len(data) for data in blobs.values()]
    assert dict(storage.list("files/md5")) == {key: len(data) for key, data in blobs.items()}


def test_concurrent_writers_of_one_blob_leave_one_whole(storage: Storage, tmp_path: Path) -> None:
    versions = [bytes([65 + n]) * 300_000 for n in range(6)]
    for n, data in enumerate(versions):
        (tmp_path / f"v{n}").write_bytes(data)
    storage.upload(DIGEST, tmp_path / "v0")
    with ThreadPoolExecutor(8) as pool:
        writers = [
            pool.submit(storage.upload, DIGEST, tmp_path / f"v{n}") for n in range(6) for _ in range(3)
        ]
        readers = [pool.submit(storage.read, DIGEST) for _ in range(10)]
        for writer in writers:
            writer.result()
        assert all(reader.result() in versions for reader in readers)
    assert storage.read(DIGEST) in versions
    assert list(storage.list()) == [(DIGEST, 300_000)]


def test_a_source_that_is_not_there_is_the_callers(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        storage.upload(DIGEST, tmp_path / "none")
    assert not isinstance(caught.value, MissingObjectError)
    assert storage.size(DIGEST) is None


def test_is_called_by_name_and_url(storage: Storage) -> None:
    assert storage.name == storage.url
    assert storage.url in repr(storage)
    assert storage.jobs >= 1
    assert isinstance(storage.local_path("a"), Path) == isinstance(storage, FolderStorage)


# Which library serves what


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
        ("s3://b", {"jobs": "0"}, "remote 'store', option 'jobs': expected a whole number from 1 on"),
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
        ("gs://b", {"credentialpath": "/no/such.json"}, "option 'credentialpath': there is no file"),
        ("azure://c", {}, "Account must be specified"),
        ("azure://c", {"connection_string": "nonsense"}, "option 'connection_string': expected Name=Value"),
        ("azure://c", {"exclude_managed_identity_credential": "true"}, "cannot be kept out"),
        ("https://example.org", {"auth": "digest"}, "option 'auth': digest is not served"),
        ("https://example.org", {"auth": "basic"}, "option 'auth': basic needs 'user' and 'password'"),
        ("gdrive://root", {}, "Google Drive is not served"),
        ("nonsense://x", {}, "no filesystem serves nonsense:// urls"),
        ("webdav://h/p", {"bearer_token_command": "false"}, "the command gave no token"),
        ("relative/folder", {}, "is not an absolute path"),
        ("/folder", {"region": "x"}, "file remotes have no option 'region'"),
    ],
)
def test_bad_configuration_names_remote_and_option(url: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_storage(url, options, name="store")


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


# Folders


def test_folder_blobs_are_read_only_files_where_dvc_has_them(tmp_path: Path) -> None:
    storage = open_storage(f"{tmp_path}/store")
    storage.write(DIGEST, b"x")
    make_file(tmp_path / "source", 10)
    storage.upload("a/b", tmp_path / "source")
    for key in (DIGEST, "a/b"):
        path = storage.local_path(key)
        assert path == tmp_path / "store" / key
        assert path.stat().st_mode & 0o777 == 0o444
    assert (tmp_path / "source").stat().st_mode & 0o200


def test_folder_shared_with_the_group(tmp_path: Path) -> None:
    open_storage(f"{tmp_path}/store", {"shared": "group"}).write(DIGEST, b"x")
    assert (tmp_path / "store/files/md5").stat().st_mode & 0o7777 == 0o2775


def test_folder_whose_disk_is_not_mounted(tmp_path: Path) -> None:
    storage = open_storage(f"{tmp_path}/mnt/nas/store", name="nas")
    make_file(tmp_path / "source", 1)
    for act in (
        lambda: storage.write("a", b""),
        lambda: storage.upload("a", tmp_path / "source"),
        lambda: storage.size("a"),
        lambda: storage.read("a"),
        lambda: list(storage.list()),
    ):
        with pytest.raises(
            RemoteUnreachableError, match=r"remote 'nas' .*no folder .*/mnt/nas\. Mount the disk"
        ):
            act()
    assert not (tmp_path / "mnt").exists()


def test_folder_that_may_not_be_written() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        os.mkdir(f"{folder}/store", 0o555)
        storage = open_storage(f"{folder}/store", name="store")
        root = os.geteuid() == 0
        if root:
            # Root may write anywhere; nobody may not.
            os.seteuid(65534)
        try:
            with pytest.raises(
                RemoteDeniedError, match=r"remote 'store' .*this user's rights: Permission denied"
            ):
                storage.write("a/b", b"x")
        finally:
            if root:
                os.seteuid(0)


def test_folder_refusal_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a read-only mount answers, which root meets too."""
    storage = open_storage(f"{tmp_path}/store", name="store")
    storage.write("a/b", b"x")

    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(RemoteDeniedError, match=r"remote 'store' .*refused to write 'a/c'.*Read-only"):
        storage.write("a/c", b"x")
    assert [key for key, _ in storage.list()] == ["a/b"]
    assert len(list((tmp_path / "store/a").iterdir())) == 1


@pytest.mark.parametrize("call", ["write", "copy_file_range"])
def test_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    storage = open_storage(f"{tmp_path}/store", name="store")
    storage.write(DIGEST, b"before")
    make_file(tmp_path / "source", 100)

    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DiskFullError, match=r"remote 'store' .*no space left"):
        if call == "write":
            storage.write(DIGEST, b"after")
        else:
            storage.upload(DIGEST, tmp_path / "source")
    monkeypatch.undo()
    assert storage.read(DIGEST) == b"before"
    assert len(list((tmp_path / "store" / DIGEST).parent.iterdir())) == 1


def test_folder_copies_where_the_kernel_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*args: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", cannot)
    data = make_file(tmp_path / "source", 2_500_000)
    storage = open_storage(f"{tmp_path}/store")
    storage.upload(DIGEST, tmp_path / "source")
    assert storage.read(DIGEST) == data


def test_folder_listing_passes_over_unfinished_files_and_loops(tmp_path: Path) -> None:
    storage = open_storage(f"{tmp_path}/store")
    storage.write("a/b", b"x")
    (tmp_path / "store/a/.dvkf-tmp-1-2-3").write_bytes(b"part")
    (tmp_path / "store/a/loop").symlink_to(tmp_path / "store/a")
    (tmp_path / "store/broken").symlink_to(tmp_path / "none")
    assert dict(storage.list())["a/b"] == 1
    assert not any(".dvkf-tmp" in key for key, _ in storage.list())


# S3


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
        with pytest.raises(RemoteError, match=r"no (such )?bucket") as caught:
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


def test_lists_folders_in_parallel_when_there_are_many(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects_module, "_PAGE", 5)
    storage = open_storage(f"{bucket}/{uuid.uuid4().hex}", s3.options())
    blobs = {f"files/md5/{n % 13:02x}/{n}": n % 10 for n in range(80)} | {"files/md5/odd": 1}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda item: storage.write(item[0], b"x" * item[1]), blobs.items()))
    found = list(storage.list("files/md5"))
    assert len(found) == len(blobs)
    assert dict(found) == blobs
    assert len(list(storage.list())) == len(blobs)


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
    s3: S3Server, bucket: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    storage = open_storage(f"{bucket}/env", {"endpointurl": s3.endpoint}, backend=backend)
    storage.write("a", b"1")
    assert storage.read("a") == b"1"


@pytest.mark.parametrize("backend", S3_BACKENDS)
@pytest.mark.parametrize("by", ["home", "profile", "credentialpath", "AWS_PROFILE"])
def test_credentials_from_awss_files(
    s3: S3Server, bucket: str, backend: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    s3: S3Server, bucket: str, web: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a pod has whose service account is bound to a role: a token file, and STS to change it for keys."""
    (tmp_path / "token").write_text("a.web.token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/reader")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"{web}/sts")
    monkeypatch.setattr(_Handler, "tokens", [])
    monkeypatch.setattr(_Handler, "keys", (s3.access_key, s3.secret_key))
    storage = open_storage(f"{bucket}/role", {"endpointurl": s3.endpoint}, name="store", backend=backend)
    with pytest.raises(RemoteDeniedError, match="the role of the web identity token"):
        # The keys are good, but SeaweedFS knows no session of that token.
        storage.read("a")
    assert _Handler.tokens == ["a.web.token"]


class _Handler(http.server.BaseHTTPRequestHandler):
    """Keeps blobs by PUT or POST; says a bucket's region as S3 does; fails when it is told to."""

    status: int | None = None
    login = "Basic " + base64.b64encode(b"me:hunter22").decode()
    blobs: dict[str, bytes] = {}
    keys = ("", "")
    tokens: list[str] = []

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        if not self.path.startswith("/sts"):
            self.do_PUT()
            return
        form = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        query = parse_qs(form or self.path.partition("?")[2])
        self.tokens.append(query["WebIdentityToken"][0])
        key, secret = self.keys
        self._send(
            200,
            "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
            f"<AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>"
            "<SessionToken>session</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>"
            "</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>".encode(),
        )

    def do_PUT(self) -> None:
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        self.blobs[self.path] = data
        self._send(201, b"")

    def _answer(self) -> None:
        if self.path == "/bucket":
            self.send_response(403)
            self.send_header("x-amz-bucket-region", "eu-north-1")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.status is not None:
            self._send(self.status, b"")
        elif self.path.startswith("/closed") and self.headers.get("Authorization") != self.login:
            self._send(401, b"")
        elif self.path not in self.blobs:
            self._send(404, b"")
        else:
            self._send(200, self.blobs[self.path])

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def web() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_region_of_a_bucket_is_asked_for(web: str) -> None:
    assert bucket_region("bucket", service=web) == "eu-north-1"
    assert bucket_region("bucket", service="http://127.0.0.1:1") == "us-east-1"


def test_web_server_that_refuses_and_that_fails(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(f"{web}/data", name="web")
    for status, error in ((401, RemoteDeniedError), (404, MissingObjectError), (503, RemoteUnreachableError)):
        monkeypatch.setattr(_Handler, "status", status)
        with pytest.raises(error, match="remote 'web'"):
            storage.read("a")
    with pytest.raises(RemoteError, match="cannot list"):
        list(storage.list())


@pytest.mark.parametrize("method", ["post", "put"])
def test_web_server_that_keeps_blobs(web: str, tmp_path: Path, method: str) -> None:
    """Without ranges, which many such servers lack."""
    options = {"auth": "basic", "user": "me", "password": "hunter22", "method": method}
    storage = open_storage(f"{web}/closed/{method}", options)
    data = make_file(tmp_path / "source", 2_500_000)
    storage.upload("a/b", tmp_path / "source")
    storage.write("a/ü c", b"x")
    assert storage.size("a/b") == 2_500_000
    assert storage.size("a/none") is None
    assert b"".join(storage.stream("a/b")) == data
    assert b"".join(storage.stream("a/b", start=1_200_000)) == data[1_200_000:]
    assert storage.read("a/ü c") == b"x"
    with pytest.raises(RemoteDeniedError, match="no credentials"):
        open_storage(f"{web}/closed/{method}").read("a/b")


# Secrets


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ssh://me:pass@host:22/d", "ssh://me@host:22/d"),
        ("https://host/d?sig=abc", "https://host/d"),
        ("s3://b/p", "s3://b/p"),
        ("/a/folder", "/a/folder"),
    ],
)
def test_public_url(url: str, shown: str) -> None:
    assert public_url(url) == shown


def test_secrets_are_cut_from_what_a_library_reports() -> None:
    place = Place("store", "azure://c", ("s3cr/t",))
    for text in (
        "GET https://a.blob/c/k?sv=1&sig=Zm9v%3D&se=2 failed",
        "the key s3cr/t, or s3cr%2Ft in a url",
        "<Error><StringToSign>GET\nx-amz-security-token:tok</StringToSign></Error>",
        "Authorization: Bearer abcdefghijklmnop",
    ):
        cleaned = place.clean(text)
        assert not any(word in cleaned for word in ("Zm9v", "s3cr", "tok<", "abcdefghij"))
    harmless = OSError("nothing in it")
    assert place.cause(harmless) is harmless
    assert "s3cr/t" not in str(place.cause(OSError("s3cr/t")))


def test_a_password_in_a_url_is_never_shown() -> None:
    storage = open_storage("http://me:hunter22@127.0.0.1:1/data")
    with pytest.raises(RemoteUnreachableError) as caught:
        storage.read("a")
    told = "".join(traceback.format_exception(caught.value)) + repr(storage) + repr(caught.value)
    assert "hunter22" not in told
