"""S3 as the remote, by obstore and by s3fs: what either tool pushed the other pulls."""

from __future__ import annotations

import json
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest
from repos import make_repo
from servers import S3Server

from dvkf_prefect.data.transfer.transfer import Remote
from dvkf_prefect.errors import RemoteDeniedError, RemoteUnreachableError, TransferError
from dvkf_prefect.repo import Repo

FILES = {
    "data/a": b"a" * 100,
    "data/sub/b c": b"b",
    "data/sub/ü": b"u",
    "data/empty": b"",
    "big": b"0123456789" * 500_000,
}


@pytest.fixture(params=["obstore", "fsspec"])
def repo(
    request: pytest.FixtureRequest, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> Repo:
    root = tmp_path / "repo"
    made = make_repo(root)
    url = s3.make_bucket(f"lake-{uuid.uuid4().hex[:12]}")
    with made.config.edit() as sections:
        sections["remote"]["lake"] = {"url": f"{url}/some/prefix", **s3.options()}
        sections["core"]["remote"] = "lake"
    if request.param == "fsspec":
        from dvkf_prefect.data import remotes

        real = remotes.open_storage
        monkeypatch.setattr(
            remotes,
            "open_storage",
            lambda url, options, name: real(url, options, name=name, backend="fsspec"),
        )
    for name, data in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return made


def dvc(repo: Repo, *args: str) -> str:
    done = subprocess.run(["dvc", *args], cwd=repo.root, capture_output=True, text=True)
    assert done.returncode == 0, f"dvc {args}: {done.stdout}{done.stderr}"
    return done.stdout


def forget(repo: Repo) -> None:
    shutil.rmtree(repo.cache.root)
    shutil.rmtree(repo.root / "data")
    (repo.root / "big").unlink()


def workspace(repo: Repo) -> dict[str, bytes]:
    return {name: (repo.root / name).read_bytes() for name in FILES}


def test_dvc_pulls_what_we_pushed(repo: Repo) -> None:
    repo.add(["data", "big"])
    assert repo.push().files == 6
    assert repo.push().files == 0
    dvc(repo, "status", "-c", "-q")
    forget(repo)
    dvc(repo, "pull")
    assert workspace(repo) == FILES


def test_we_pull_what_dvc_pushed(repo: Repo) -> None:
    dvc(repo, "add", "data", "big")
    dvc(repo, "push")
    forget(repo)
    assert repo.pull().transfer.files == 6
    assert workspace(repo) == FILES
    assert json.loads(dvc(repo, "status", "--json")) == {}


def test_a_missing_and_a_damaged_object_cost_only_themselves(repo: Repo) -> None:
    repo.add(["data", "big"])
    repo.push()
    storage = repo.remote().storage
    tree = repo.cache.read_tree(repo.version("data").digest)
    digests = dict(tree.items())
    storage.delete([f"files/md5/{digests['a'][:2]}/{digests['a'][2:]}"])
    storage.write(f"files/md5/{digests['sub/b c'][:2]}/{digests['sub/b c'][2:]}", b"damaged")
    forget(repo)
    with pytest.raises(TransferError) as caught:
        repo.pull()
    assert set(caught.value.failures) == {"data/a", "data/sub/b c"}
    assert "is not on the remote" in caught.value.failures["data/a"]
    assert "is damaged on the remote" in caught.value.failures["data/sub/b c"]
    assert (repo.root / "big").read_bytes() == FILES["big"]
    assert sorted(p.name for p in (repo.root / "data").rglob("*") if p.is_file()) == ["empty", "ü"]


def test_refused_credentials_and_a_dead_address_are_told_apart(repo: Repo, s3: S3Server) -> None:
    repo.add(["data"])
    with repo.config.edit("local") as sections:
        sections["remote"]["lake"] = {"secret_access_key": "not-the-secret"}
    with pytest.raises(RemoteDeniedError, match="lake") as denied:
        repo.push()
    assert s3.secret_key not in str(denied.value)
    assert "not-the-secret" not in str(denied.value)
    with repo.config.edit("local") as sections:
        sections["remote"]["lake"] = {"endpointurl": "http://127.0.0.1:1"}
    with pytest.raises(RemoteUnreachableError, match=r"lake.*127\.0\.0\.1:1|127\.0\.0\.1:1.*lake"):
        repo.push()


def test_a_push_with_nothing_new_asks_little(repo: Repo) -> None:
    """At most three requests for each complete directory."""
    repo.add(["data"])
    repo.push()
    remote = repo.remote()
    asked: list[str] = []
    storage = remote.storage
    for name in ("size", "read", "list", "stream", "write", "upload"):
        real = getattr(storage, name)
        setattr(storage, name, lambda *a, real=real, name=name, **k: (asked.append(name), real(*a, **k))[1])
    from dvkf_prefect.data.transfer import transfer

    assert isinstance(remote, Remote)
    assert transfer.push(repo.outputs(), repo.cache, remote).files == 0
    assert asked == ["size"]
