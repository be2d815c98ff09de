"""Imports next to the real `dvc`: the same `.dvc` files, and either works on after the other."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from repos import make_repo
from servers import S3Server, serving

from dvkf_prefect.cli import main
from dvkf_prefect.data.verbs.imports import changed_sources
from dvkf_prefect.errors import RemoteError, TransferError
from dvkf_prefect.repo import Repo


def run(root: Path, *args: str, code: int = 0) -> str:
    done = subprocess.run(args, cwd=root, capture_output=True, text=True)
    assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def dvkf(root: Path, *args: str, code: int = 0) -> None:
    assert main(["--cd", str(root), *args]) == code


def lay(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def make(root: Path, remote: str | None = None) -> Repo:
    return make_repo(root, remote=root / remote if remote else None)


def commit(root: Path) -> str:
    run(root, "git", "add", "-A")
    run(root, "git", "commit", "-q", "--allow-empty", "-m", "state")
    return run(root, "git", "rev-parse", "HEAD").strip()


def tree(root: Path) -> dict[str, str]:
    """The files below a folder, but those of the repositories themselves."""
    return {
        path.relative_to(root).as_posix(): path.read_text()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not {".git", ".dvc"} & set(path.relative_to(root).parts)
    }


@pytest.fixture
def source(tmp_path: Path) -> Repo:
    """A repository with a directory, a file, plain files, and a folder that mixes them, pushed."""
    repo = make(tmp_path / "source", "../store")
    lay(repo.root, {"data/a": "a", "data/sub/b": "b", "data/sub/deep/c": "c", "one": "1", "mix/d": "d"})
    lay(repo.root, {"code.py": "code", "mix/plain": "p"})
    repo.add(["data", "one", "mix/d"])
    repo.push()
    commit(repo.root)
    return repo


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two empty repositories side by side: one for dvc, one for us."""
    monkeypatch.chdir(tmp_path)
    return make(tmp_path / "theirs", "../kept").root, make(tmp_path / "ours", "../kept-ours").root


def both(pair: tuple[Path, Path], *args: str, code: int = 0) -> None:
    """Run the same command by dvc and by us."""
    theirs, ours = pair
    run(theirs, "dvc", *args, code=code)
    os.chdir(ours.parent)
    dvkf(ours, *args, code=code)


def without_times(files: dict[str, str]) -> dict[str, str]:
    return {
        name: "\n".join(sorted(text.splitlines())) if name == ".gitignore" else text
        for name, text in files.items()
    }


def test_imports_write_what_dvc_writes(source: Repo, pair: tuple[Path, Path]) -> None:
    both(pair, "import", "../source", "data")
    both(pair, "import", "../source", "data/sub", "-o", "part", "--rev", "main")
    both(pair, "import", "../source", "data/sub/b", "-o", "b")
    both(pair, "import", "../source", "mix")
    both(pair, "import", "../source", "code.py")
    both(pair, "import", "../source", "one", "--no-download")
    both(pair, "import", "../source", "one", "-o", "later", "--no-exec", "--remote", "other")
    theirs, ours = pair
    assert without_times(tree(ours)) == without_times(tree(theirs))
    # Each reads the other's, now and after the data is gone.
    assert (
        run(ours, "dvc", "status", "data.dvc", "part.dvc", "b.dvc", "mix.dvc", "code.py.dvc", "--json")
        == "{}\n"
    )
    for root, pull in (
        (ours, lambda t: run(ours, "dvc", "pull", *t)),
        (theirs, lambda t: Repo(theirs).pull(t)),
    ):
        want = tree(root)
        shutil.rmtree(root / ".dvc/cache")
        for name in ("data", "part", "mix"):
            shutil.rmtree(root / name)
        for name in ("b", "code.py"):
            (root / name).unlink()
        pull(["data.dvc", "part.dvc", "b.dvc", "mix.dvc", "code.py.dvc"])
        assert tree(root) == want
    assert Repo(ours).push().files == 0
    assert not (ours.parent / "kept-ours").exists()


def test_import_urls_write_what_dvc_writes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    lay(tmp_path, {"out/f": "f", "out/d/x": "x", "out/d/s/y": "y", "ours/in/i": "i", "theirs/in/i": "i"})
    (tmp_path / "out/f").chmod(0o755)
    for root in pair:
        with Repo(root).config.edit() as sections:
            sections["remote"]["out"] = {"url": str(tmp_path / "out")}
    both(pair, "import-url", "../out/f")
    both(pair, "import-url", str(tmp_path / "out/d"))
    both(pair, "import-url", "in/i", "copy")
    both(pair, "import-url", "remote://out/d", "dr")
    both(pair, "import-url", str(tmp_path / "out/d"), "later", "--no-download")
    both(pair, "import-url", str(tmp_path / "out/f"), "never", "--no-exec")
    both(pair, "import-url", str(tmp_path / "out/d"), "far", "--to-remote")
    both(pair, "import-url", str(tmp_path / "out/nothing"), code=1)
    both(pair, "import-url", "../out/f", code=1)
    theirs, ours = pair
    assert without_times(tree(ours)) == without_times(tree(theirs))
    assert not (ours / ".dvc/tmp/dvkf/to-remote").exists()
    assert run(ours, "dvc", "status", "f.dvc", "d.dvc", "copy.dvc", "dr.dvc", "--json") == "{}\n"
    assert run(ours, "dvc", "pull", "far.dvc")
    assert tree(ours / "far") == {"x": "x", "s/y": "y"}
    # An import from a url is pushed, and pulled again from the remote.
    assert Repo(ours).push().files == 2
    (tmp_path / "out/d/x").write_text("new")
    both(pair, "update", "d.dvc", "later.dvc", "f.dvc")
    assert (ours / "later/x").read_text() == "new"
    assert (ours / "d.dvc").read_text() == (theirs / "d.dvc").read_text()
    assert (ours / "later.dvc").read_text() == (theirs / "later.dvc").read_text()
    # DVC leaves the md5 of the old content, and then calls the file changed.
    both(pair, "update", "far.dvc", "--to-remote")
    assert (ours / "far.dvc").read_text().split("frozen")[1] == (theirs / "far.dvc").read_text().split(
        "frozen"
    )[1]
    assert "changed checksum" in run(theirs, "dvc", "status", "far.dvc")
    assert "changed checksum" not in run(ours, "dvc", "status", "far.dvc")


def test_update_follows_the_source_as_dvc_does(source: Repo, pair: tuple[Path, Path]) -> None:
    both(pair, "import", "../source", "data")
    both(pair, "import", "../source", "one", "--rev", "main")
    both(pair, "import", "../source", "one", "-o", "later", "--no-download")
    for root in pair:
        (root / "one.dvc").write_text("# kept\n" + (root / "one.dvc").read_text() + "meta:\n  note: mine\n")
    theirs, ours = pair
    lay(source.root, {"data/a": "a2", "one": "2"})
    source.add(["data", "one"])
    source.push()
    commit(source.root)
    status = json.loads(run(theirs, "dvc", "status", "--json"))
    said = {
        file: entry["changed deps"]
        for file, entries in status.items()
        for entry in entries
        if "changed deps" in entry
    }
    repo = Repo(ours)
    assert (
        changed_sources(repo, repo.outputs())
        == said
        == {
            name: {f"{path} (../source)": "update available"}
            for name, path in (("data.dvc", "data"), ("one.dvc", "one"), ("later.dvc", "one"))
        }
    )
    both(pair, "update", "data.dvc", "one.dvc", "later.dvc")
    assert tree(ours) == tree(theirs)
    assert (ours / "data/a").read_text() == "a2"
    assert (ours / "one.dvc").read_text().startswith("# kept\n")
    assert not changed_sources(repo, repo.outputs())
    both(pair, "update", "data.dvc")
    assert tree(ours) == tree(theirs)


def test_get_brings_what_dvc_gets(
    source: Repo, pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, ours = pair
    bare = source.root.parent / "bare.git"
    run(source.root, "git", "clone", "-q", "--bare", str(source.root), str(bare))
    store = str(source.root.parent / "store")
    both(pair, "get", "../source", "data")
    both(pair, "get", "../source", "data/sub", "-o", "part", "--rev", "main")
    both(pair, "get", "../source", "mix/plain")
    both(pair, "get", "../source", "mix", "-o", "mixed", "--rev", "HEAD")
    both(pair, "get", bare.as_uri(), "one", "--remote", "other", "--remote-config", f"url={store}")
    dvkf(ours, "get", "../source", "nothing", code=1)
    both(pair, "get", "../source", "one", code=1)
    both(pair, "get", "../source", "one", "-f")
    assert tree(ours) == tree(theirs)
    assert sorted(os.listdir(ours)) == sorted(os.listdir(theirs))
    capsys.readouterr()
    for path in ("data", "data/sub/b", "one"):
        expected = run(theirs, "dvc", "get", "../source", path, "--show-url")
        dvkf(ours, "get", "../source", path, "--show-url")
        assert capsys.readouterr().out == expected


def test_an_import_comes_from_a_cache_that_was_never_pushed(source: Repo, pair: tuple[Path, Path]) -> None:
    """DVC reads only the remote of the source as soon as one is configured, and fails."""
    shutil.rmtree(source.root.parent / "store")
    dvkf(pair[1], "import", "../source", "data")
    assert tree(pair[1] / "data") == {"a": "a", "sub/b": "b", "sub/deep/c": "c"}


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as port:
        yield f"http://127.0.0.1:{port}"


def test_import_over_http(pair: tuple[Path, Path], tmp_path: Path) -> None:
    lay(tmp_path, {"www/f": "f"})
    with served(tmp_path / "www") as url:
        both(pair, "import-url", f"{url}/f")
        both(pair, "import-url", f"{url}/f", "later", "--no-download")
        both(pair, "get-url", f"{url}/f", "got")
        both(pair, "import-url", f"{url}/nothing", code=1)
        assert without_times(tree(pair[1])) == without_times(tree(pair[0]))
        repo = Repo(pair[1])
        assert repo.pull(["later.dvc"]).checkout.added == ("later",)
        assert (pair[1] / "later").read_text() == "f"
    (pair[1] / "later").unlink()
    shutil.rmtree(repo.cache.root)
    with pytest.raises(TransferError, match="does not answer"):
        repo.fetch(["later.dvc"])


@pytest.fixture
def buckets(s3: S3Server, pair: tuple[Path, Path]) -> str:
    """A bucket that keeps versions, as the remotes `kept` (a folder of it) and `bucket` of both repositories."""
    name = f"versions-{uuid.uuid4().hex[:12]}"
    url = s3.make_bucket(name)
    with s3.client() as client:
        client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        for key, data in {"d/x": b"x", "d/s/y": b"y", "f": b"f"}.items():
            client.put_object(Bucket=name, Key=key, Body=data)
    for root in pair:
        with Repo(root).config.edit() as sections:
            sections["remote"]["bucket"] = {"url": url, **s3.options()}
            sections["remote"]["kept"] = {"url": f"{url}/kept", "version_aware": "true", **s3.options()}
    return url


def put(root: Path, key: str, text: str) -> None:
    from dvkf_prefect.data.remotes import open_storage

    _, options = Repo(root).config.remote("bucket")
    open_storage(options.pop("url"), options).write(key, text.encode())


@pytest.mark.long
def test_import_from_s3_and_by_version(buckets: str, pair: tuple[Path, Path]) -> None:
    theirs, ours = pair
    both(pair, "import-url", "remote://bucket/f")
    both(pair, "import-url", "remote://bucket/d")
    both(pair, "import-url", "remote://bucket/d", "later", "--no-download")
    both(pair, "import-url", "remote://bucket/f", "vf", "--version-aware")
    both(pair, "import-url", "remote://bucket/d", "vd", "--version-aware")
    assert without_times(tree(ours)) == without_times(tree(theirs))
    put(ours, "d/x", "x2")
    repo = Repo(ours)
    status = json.loads(run(ours, "dvc", "status", "--json"))
    said = {
        file: entry["changed deps"]
        for file, entries in status.items()
        for entry in entries
        if "changed deps" in entry
    }
    assert changed_sources(repo, repo.outputs()) == said == {"vd.dvc": {"remote://bucket/d": "modified"}}
    # The version that was imported is still to be had.
    shutil.rmtree(repo.cache.root)
    shutil.rmtree(ours / "vd")
    repo.pull(["vd.dvc"])
    assert tree(ours / "vd") == {"x": "x", "s/y": "y"}
    both(pair, "update", "vd.dvc", "d.dvc")
    assert tree(ours) == tree(theirs)
    assert (ours / "vd/x").read_text() == "x2"
    assert repo.push(["vd.dvc"]).files == 0


def test_stages_that_read_from_s3(buckets: str, pair: tuple[Path, Path], capsys, monkeypatch) -> None:
    """Both record what the service says of a file, and of a folder, unread."""
    theirs, ours = pair
    for root in pair:
        (root / "dvc.yaml").write_text(
            "stages:\n  a: {cmd: echo > a, deps: ['remote://bucket/f', 'remote://bucket/d'], outs: [a]}\n"
        )
    run(theirs, "dvc", "repro", "-q")
    monkeypatch.chdir(ours)
    assert main(["repro", "-q"]) == 0
    assert (ours / "dvc.lock").read_bytes() == (theirs / "dvc.lock").read_bytes()
    assert run(ours, "dvc", "status", "--json").strip() == "{}"
    put(ours, "d/x", "x2")
    capsys.readouterr()
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(run(ours, "dvc", "status", "--json"))


def test_what_dvc_pushed_by_version_is_fetched_and_never_written(
    buckets: str, pair: tuple[Path, Path]
) -> None:
    root = pair[1]
    lay(root, {"data/1": "1", "data/s/2": "2", "one": "one"})
    run(root, "dvc", "add", "-q", "data", "one")
    run(root, "dvc", "push", "-q", "-r", "kept")
    first = (root / "data.dvc").read_bytes()
    assert b"version_id" in first
    repo = Repo(root)
    want = tree(root)
    assert not repo.status()
    shutil.rmtree(repo.cache.root)
    # What lies at the plain key now is not what is recorded.
    put(root, "kept/data/1", "not this")
    for name in ("data", "one"):
        shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()
    assert repo.pull(remote="kept").transfer.files == 3
    assert tree(root) == want
    assert not repo.status()
    assert json.loads(run(root, "dvc", "status", "--json")) == {}
    assert repo.fetch(remote="kept").files == 0
    with pytest.raises(RemoteError, match="dvc push -r kept"):
        repo.push(remote="kept")
    assert (root / "data.dvc").read_bytes() == first
    # The same content again leaves the versions; other content does not keep those of the old.
    repo.add(["data", "one"])
    assert (root / "data.dvc").read_bytes() == first
    lay(root, {"data/1": "other", "one": "other"})
    repo.add(["data", "one"])
    assert b"version_id" not in (root / "data.dvc").read_bytes() + (root / "one.dvc").read_bytes()
    assert json.loads(run(root, "dvc", "status", "--json")) == {}
    with pytest.raises(TransferError, match="no version is recorded"):
        shutil.rmtree(repo.cache.root)
        repo.fetch(remote="kept")
