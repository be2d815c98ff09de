"""Damage done to caches and remotes: found, named and repaired."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import servers

from dvkf_prefect.cli import main
from dvkf_prefect.data.upkeep.verify import VerifyOptions
from dvkf_prefect.errors import ConfigError, OutputNotFoundError, RemoteError
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.formats.objects import LEGACY
from dvkf_prefect.repo import Repo

FILES = {"data/a": "a", "data/sub/b": "bb", "data/same": "a", "one": "one", "large": "x" * 3_000_000}


def lay(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def repo(repo: Repo) -> Repo:
    """Everything is in the workspace, in the cache and on the remote."""
    lay(repo.root, FILES)
    repo.add(["data", "one", "large"])
    repo.push()
    return repo


def digest(text: str) -> str:
    return digest_bytes(text.encode())


def spoil(path: Path, data: bytes = b"spoilt") -> None:
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


def on_remote(repo: Repo, name: str) -> Path:
    path = repo.remote().storage.local_path(f"files/md5/{name[:2]}/{name[2:]}")
    assert path is not None
    return path


def found(repo: Repo, *args: str, code: int = 1) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-m", "dvkf_prefect.cli", "verify", "--json", *args],
        cwd=repo.root,
        capture_output=True,
    )
    assert done.returncode == code, done.stderr
    problems: list[dict[str, object]] = json.loads(done.stdout)["problems"]
    return problems


def test_what_is_good_is_good(repo: Repo, capsys: pytest.CaptureFixture[str]) -> None:
    # a, bb, one, large and the manifest
    assert repo.verify().objects == repo.verify(options=VerifyOptions(cloud=True)).objects == 5
    assert (
        repo.verify().size
        == sum(map(len, ("a", "bb", "one", FILES["large"])))
        + os.stat(repo.cache.path(str(repo.version("data").digest))).st_size
    )
    assert repo.verify(["data"]).objects == 3
    assert main(["verify"]) == 0
    assert capsys.readouterr().out == "5 objects checked (3.0 MB): no problems.\n"
    with pytest.raises(OutputNotFoundError, match="nowhere"):
        repo.verify(["nowhere"])


def test_damage_in_the_cache_is_named_and_left_alone(repo: Repo, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(repo.cache.path(digest("a")))
    verification = repo.verify()
    assert not verification
    (problem,) = verification.problems
    assert (problem.digest, problem.paths, problem.place) == (digest("a"), ("data/a", "data/same"), "cache")
    assert (problem.kind, problem.repaired) == ("damaged", False)
    assert repo.cache.path(digest("a")).read_bytes() == b"spoilt"
    assert main(["verify"]) == 1
    assert "damaged in the cache: data/a, data/same" in capsys.readouterr().out
    assert repo.verify(["one"])
    assert not repo.verify(["data.dvc"])


@pytest.mark.parametrize("name", ["data/sub/b", "large"])
@pytest.mark.parametrize("source", ["workspace", "remote"])
def test_the_cache_is_repaired(repo: Repo, name: str, source: str) -> None:
    """From whichever has it; the damaged one is kept."""
    spoil(repo.cache.path(digest(FILES[name])))
    if source == "workspace":
        on_remote(repo, digest(FILES[name])).unlink()
    else:
        (repo.root / name).write_text("something else")
    (problem,) = repo.verify(options=VerifyOptions(repair=True)).problems
    assert problem.paths == (name,)
    assert problem.repaired
    assert repo.cache.read_bytes(digest(FILES[name])) == FILES[name].encode()
    assert repo.verify().problems == ()
    (aside,) = (repo.cache.root / "tmp-dvkf").glob(f"*corrupt-{digest(FILES[name])}*")
    assert aside.read_bytes() == b"spoilt"
    assert str(aside) in problem.detail


def test_a_damaged_manifest_is_repaired_and_its_files_are_looked_at(repo: Repo) -> None:
    manifest = repo.version("data").digest
    spoil(repo.cache.path(manifest))
    spoil(repo.cache.path(digest("bb")))
    first, second = repo.verify(["data"], VerifyOptions(repair=True)).problems
    assert (first.digest, first.paths, first.repaired) == (manifest, ("data",), True)
    assert (second.digest, second.paths, second.repaired) == (digest("bb"), ("data/sub/b",), True)
    assert repo.verify()


def test_what_nobody_has_is_not_repaired(repo: Repo) -> None:
    spoil(repo.cache.path(digest("one")))
    spoil(on_remote(repo, digest("one")))
    (repo.root / "one").write_text("another")
    (problem,) = repo.verify(options=VerifyOptions(repair=True)).problems
    assert not problem.repaired
    assert "no good copy" in problem.detail
    # Out of the way, for dvc would take it.
    assert not repo.cache.exists(digest("one"))
    assert found(repo, "-c")[0]["kind"] == "lost"


def test_damage_of_an_older_version_is_named_by_its_commit(repo: Repo) -> None:
    assert repo.git
    repo.git.run("add", "-A")
    repo.git.run("commit", "-q", "-m", "first")
    first = repo.git.head() or ""
    lay(repo.root, {"data/a": "newer"})
    repo.add(["data"])
    repo.git.run("add", "-A")
    repo.git.run("commit", "-q", "-m", "second")
    spoil(repo.cache.path(digest("a")))
    assert repo.verify(["data"]).problems[0].paths == ("data/same",)
    lay(repo.root, {"data/same": "newer"})
    repo.add(["data"])
    assert repo.verify(["data"])
    (problem,) = repo.verify().problems
    assert set(problem.paths) == {f"{first[:7]}:data/a", f"{first[:7]}:data/same"} | {
        f"{(repo.git.head() or '')[:7]}:data/same"
    }
    assert not repo.verify(["data"], VerifyOptions(all_commits=True))


def test_files_behind_a_manifest_on_the_remote_are_looked_at(repo: Repo) -> None:
    """DVC's `status -c` and `push` say that all is there; we see at least what has another size."""
    on_remote(repo, digest("bb")).unlink()
    spoil(on_remote(repo, digest("a")))
    spoil(on_remote(repo, digest(FILES["large"])), FILES["large"].replace("x", "y").encode())
    assert repo.cloud_status() == {"data/a": "new"}
    assert repo.push().files == 1
    problems = repo.verify(options=VerifyOptions(cloud=True)).problems
    assert [(p.paths, p.kind, p.place) for p in problems] == [
        (("data/sub/b",), "missing", "store"),
        (("large",), "damaged", "store"),
    ]
    assert not any(p.repaired for p in problems)
    assert [p["repaired"] for p in found(repo, "-c", "--repair", code=0)] == [True, True]
    assert repo.verify(options=VerifyOptions(cloud=True)).problems == ()
    assert on_remote(repo, digest("a")).read_text() == "a"


def test_a_manifest_is_sent_only_with_all_of_its_files(repo: Repo) -> None:
    manifest = repo.version("data").digest
    on_remote(repo, manifest).unlink()
    on_remote(repo, digest("bb")).unlink()
    repo.cache.path(digest("bb")).unlink()
    (repo.root / "data/sub/b").unlink()
    problems = {p.digest: p for p in repo.verify(options=VerifyOptions(cloud=True, repair=True)).problems}
    assert (problems[digest("bb")].kind, problems[digest("bb")].repaired) == ("lost", False)
    assert not problems[manifest].repaired
    assert not on_remote(repo, manifest).exists()
    lay(repo.root, {"data/sub/b": "bb"})
    assert repo.verify(options=VerifyOptions(cloud=True, repair=True))
    assert on_remote(repo, manifest).exists()
    assert on_remote(repo, digest("bb")).read_text() == "bb"
    assert repo.verify(options=VerifyOptions(cloud=True)).problems == ()


def test_a_damaged_cache_does_not_go_to_the_remote(repo: Repo) -> None:
    on_remote(repo, digest("one")).unlink()
    spoil(repo.cache.path(digest("one")))
    (repo.root / "one").unlink()
    (problem,) = repo.verify(options=VerifyOptions(cloud=True, repair=True)).problems
    assert (problem.kind, problem.repaired) == ("lost", False)
    assert not on_remote(repo, digest("one")).exists()


def test_objects_of_dvc_2_are_hashed_as_it_hashed_them(repo: Repo) -> None:
    """Without the carriage returns of text."""
    # It takes a text in pieces of a mebibyte, and leaves the end of a line that two of them share.
    text = b"line\r\n" * 174_762 + b"end\r\nline\r\n"
    assert text[(1 << 20) - 1 : (1 << 20) + 1] == b"\r\n"
    name = digest_bytes(text[: 1 << 20].replace(b"\r\n", b"\n") + text[1 << 20 :].replace(b"\r\n", b"\n"))
    raw = digest_bytes(b"\0\r\n")
    for key, data in ((name, text), (raw, b"\0\r\n")):
        path = repo.cache.path(key, LEGACY)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        (repo.root / f"{key}.dvc").write_text(f"outs:\n- md5: {key}\n  path: {key}\n")
    assert repo.verify().problems == ()
    spoil(repo.cache.path(raw, LEGACY))
    assert [p.paths for p in repo.verify().problems] == [(raw,)]


def test_a_remote_that_is_a_service(repo: Repo, s3: servers.S3Server) -> None:
    url = s3.make_bucket(f"verify-{uuid.uuid4().hex[:12]}")
    with repo.config.edit() as sections:
        sections["remote"]["cloud"] = {"url": f"{url}/some/prefix", **s3.options()}
    again = Repo.open(repo.root)
    again.push(remote="cloud")
    storage = again.remote("cloud").storage
    key = f"files/md5/{digest('a')[:2]}/{digest('a')[2:]}"
    storage.write(key, b"spoilt")
    storage.delete([f"files/md5/{digest('bb')[:2]}/{digest('bb')[2:]}"])
    assert [p.kind for p in again.verify(options=VerifyOptions(cloud=True, remote="cloud")).problems] == [
        "damaged",
        "missing",
    ]
    assert again.verify(options=VerifyOptions(cloud=True, remote="cloud", repair=True))
    assert again.verify(options=VerifyOptions(cloud=True, remote="cloud")).problems == ()
    assert storage.read(key) == b"a"


def test_a_remote_that_keeps_versions_is_refused(repo: Repo) -> None:
    with repo.config.edit() as sections:
        sections["remote"]["store"]["version_aware"] = "true"
    with pytest.raises(RemoteError, match="keeps versions"):
        Repo.open(repo.root).verify(options=VerifyOptions(cloud=True))


def test_a_sample_reads_all_manifests_and_a_part_of_the_files(repo: Repo) -> None:
    lay(repo.root, {f"many/{number}": str(number) for number in range(20)})
    repo.add(["many"])
    repo.push()
    spoil(repo.cache.path(digest("7"), "md5"))
    whole = repo.verify(["many"])
    assert (whole.objects, len(whole.problems)) == (21, 1)
    for cloud in (False, True):
        parts = [repo.verify(["many"], VerifyOptions(sample=0.26, cloud=cloud)) for _ in range(40)]
        assert {part.objects for part in parts} == {1 + 6}
        # Each run reads others: 40 runs miss a file by chance once in a million times.
        assert {len(part.problems) for part in parts} == ({0} if cloud else {0, 1})
    for wrong in (0.0, -1.0, 1.5):
        with pytest.raises(ConfigError, match="is not a share of the files"):
            repo.verify(options=VerifyOptions(sample=wrong))
    with pytest.raises(ConfigError, match="a repair needs to know all objects"):
        repo.verify(options=VerifyOptions(sample=0.5, repair=True))
    assert found(repo, "--sample", "1", "many")
