"""The real `dvc` and ours on one repository: what either writes the other takes for its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from repos import make_repo

from dvkf_prefect.errors import LockedError, MissingObjectError
from dvkf_prefect.paths import is_reserved
from dvkf_prefect.repo import Repo


def dvc(root: Path, *args: str, code: int | None = 0) -> str:
    done = subprocess.run(["dvc", *args], cwd=root, capture_output=True, text=True)
    assert code is None or done.returncode == code, (
        f"dvc {args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    return done.stdout


def make(root: Path) -> Repo:
    return make_repo(root, remote=root.parent / "store")


def lay(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


FILES = {
    "data/a": b"a",
    "data/sub/b c": b"b",
    "data/sub/\u00fc": b"u",
    "data/empty": b"",
    "one.bin": b"\0\1\2",
}


def commit(repo: Repo) -> None:
    assert repo.git
    repo.git.run("add", "-A")
    repo.git.run("commit", "-q", "-m", "state")


def test_dvc_finds_nothing_to_do_after_us(tmp_path: Path) -> None:
    """Every row of the cross-check table."""
    repo = make(tmp_path / "repo")
    root = repo.root
    lay(root, FILES)
    os.chmod(root / "one.bin", 0o755)
    repo.add(["data", "one.bin"])
    repo.push()
    commit(repo)
    dvc(root, "status", "-q")
    dvc(root, "status", "-c", "-q")
    assert json.loads(dvc(root, "status", "--json")) == {}
    assert json.loads(dvc(root, "diff", "--json")) == {}
    assert json.loads(dvc(root, "data", "status", "--granular", "--not-in-remote", "--json")) == {}
    assert "up to date" in dvc(root, "push")
    assert "up to date" in dvc(root, "fetch")
    assert dvc(root, "checkout") == ""
    dvc(root, "commit", "-f")
    assert repo.git and repo.git.run("status", "--short") == ""
    assert "No unused" in dvc(root, "gc", "-w", "-c", "-f", "--dry")
    shutil.rmtree(root / ".dvc/cache")
    shutil.rmtree(root / "data")
    (root / "one.bin").unlink()
    dvc(root, "pull")
    assert not repo.status()
    assert repo.git.run("status", "--short") == ""


def test_we_find_nothing_to_do_after_dvc(tmp_path: Path) -> None:
    repo = make(tmp_path / "repo")
    root = repo.root
    lay(root, FILES)
    os.chmod(root / "one.bin", 0o755)
    dvc(root, "add", "data", "one.bin")
    dvc(root, "push")
    commit(repo)
    assert not repo.status()
    assert not repo.diff()
    assert repo.push().files == 0
    assert repo.fetch().files == 0
    assert not repo.checkout()
    assert not repo.commit()
    assert {v.path: v.digest for v in repo.add(["data", "one.bin"])} == {
        o.path: o.digest for o in repo.outputs(rev="HEAD")
    }
    assert repo.git and repo.git.run("status", "--short") == ""
    shutil.rmtree(root / ".dvc/cache")
    shutil.rmtree(root / "data")
    repo.pull()
    assert {name: (root / name).read_bytes() for name in FILES} == FILES


def test_status_and_diff_say_what_dvc_says(tmp_path: Path) -> None:
    repo = make(tmp_path / "repo")
    root = repo.root
    lay(root, FILES)
    repo.add(["data", "one.bin"])
    commit(repo)
    lay(root, {"data/a": b"changed", "data/new/file": b"new", "one.bin": b"other"})
    (root / "data/empty").unlink()
    (root / "data/sub/b c").rename(root / "data/moved")
    theirs = json.loads(dvc(root, "status", "--json"))
    assert theirs == {c.source: [{"changed outs": {c.path: c.state}}] for c in repo.status().changes}
    assert json.loads(dvc(root, "diff", "--json")) == repo.diff().as_dict()
    repo.add(["data", "one.bin"])
    commit(repo)
    assert json.loads(dvc(root, "diff", "--json", "HEAD~1", "HEAD")) == repo.diff("HEAD~1", "HEAD").as_dict()


def test_the_config_is_read_and_written_alike(tmp_path: Path) -> None:
    repo = make(tmp_path / "repo")
    root = repo.root
    with repo.config.edit() as sections:
        sections["remote"]["lake"] = {
            "url": "s3://bucket/x",
            "endpointurl": "http://127.0.0.1:1",
            "jobs": "3",
        }
        sections["cache"]["type"] = "hardlink,copy"
    with repo.config.edit("local") as sections:
        sections["remote"]["lake"] = {"secret_access_key": 'a # "b", c'}
    listed = dict(line.split("=", 1) for line in dvc(root, "config", "-l").splitlines())
    assert listed == {
        "remote.store.url": str(tmp_path / "store"),
        "remote.lake.url": "s3://bucket/x",
        "remote.lake.endpointurl": "http://127.0.0.1:1",
        "remote.lake.jobs": "3",
        "remote.lake.secret_access_key": 'a # "b", c',
        "core.remote": "store",
        "cache.type": "hardlink,copy",
    }
    dvc(root, "remote", "add", "-d", "third", "third")
    dvc(root, "remote", "modify", "--local", "lake", "profile", "p")
    again = Repo.open(root)
    assert again.config.default_remote() == "third"
    assert again.config.remote("third")[1]["url"] == str(root / "third")
    assert again.config.remote("lake")[1]["profile"] == "p"
    assert again.config.remote("lake")[1]["secret_access_key"] == 'a # "b", c'


@pytest.mark.parametrize("name", ["plain", "[x]*?", "#hash", "!bang", "back\\slash", "ü"])
def test_gitignore_lines_are_dvcs(tmp_path: Path, name: str) -> None:
    ours, theirs = make(tmp_path / "ours"), make(tmp_path / "theirs")
    lay(ours.root, {name: b"x"})
    lay(theirs.root, {name: b"x"})
    ours.add([ours.root / name])
    dvc(theirs.root, "add", name)
    assert (ours.root / ".gitignore").read_bytes() == (theirs.root / ".gitignore").read_bytes()
    assert (ours.root / f"{name}.dvc").read_bytes() == (theirs.root / f"{name}.dvc").read_bytes()


def test_a_running_dvc_blocks_us_and_we_block_it(tmp_path: Path) -> None:
    repo = make(tmp_path / "repo")
    lay(repo.root, {"a": b"a"})
    with repo.lock():
        done = subprocess.run(["dvc", "add", "a"], cwd=repo.root, capture_output=True, text=True)
        assert done.returncode != 0
        assert "lock" in done.stderr.lower()
    holding = subprocess.Popen(
        [
            "python",
            "-c",
            "import sys;from dvc.repo import Repo\nwith Repo('.').lock: print('held',flush=True);sys.stdin.read()",
        ],
        cwd=repo.root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holding.stdout and holding.stdout.readline() == "held\n"
    with pytest.raises(LockedError, match=str(holding.pid)), repo.lock(timeout=0.3):
        pass
    holding.communicate()


_NAME = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/\\"), min_size=1, max_size=12
).filter(
    # Files that describe data are read before the folder is tracked, by dvc too, and these have random bytes.
    lambda s: (
        s not in (".", "..", ".git", ".hg", ".dvcignore", ".gitignore", "dvc.yaml", "dvc.lock")
        and not s.endswith(".dvc")
        and not is_reserved(s)
        and len(s.encode()) < 100
    )
)
_TREES = st.dictionaries(
    st.lists(_NAME, min_size=1, max_size=3).map("/".join), st.binary(max_size=40), min_size=1, max_size=12
)


def _fits(files: dict[str, bytes]) -> bool:
    return not any(a != b and b.startswith(a + "/") for a in files for b in files)


@given(files=_TREES.filter(_fits))
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_manifests_of_any_directory_are_dvcs(
    files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The digest of a directory, from names and contents nobody would think of."""
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.db.local import LocalHashFileDB
    from dvc_objects.fs.local import LocalFileSystem

    repo = make(tmp_path_factory.mktemp("generated") / "repo")
    lay(repo.root / "data", files)
    (version,) = repo.add(["data"])
    local = LocalFileSystem()
    store = LocalHashFileDB(local, str(repo.root / "odb"))
    _, _, built = build(store, str(repo.root / "data"), local, "md5")
    assert version.digest == built.hash_info.value
    shutil.rmtree(repo.root / "data")
    repo.checkout()
    assert {n: (repo.root / "data" / n).read_bytes() for n in files} == files


@pytest.mark.parametrize("targets", [["data/new"], ["data/sub"], ["data/a", "data/sub/deep/file"]])
def test_a_part_is_added_to_a_tracked_directory_as_dvc_does(tmp_path: Path, targets: list[str]) -> None:
    """Also when the rest of the directory is not there."""
    written = []
    for name in ("ours", "theirs"):
        repo = make(tmp_path / name)
        lay(repo.root, FILES)
        repo.add(["data"])
        lay(
            repo.root,
            {
                "data/new": b"new",
                "data/sub/deep/file": b"deep",
                "data/a": b"another a",
                "data/other": b"not me",
            },
        )
        (repo.root / "data/sub/b c").unlink()
        if name == "ours":
            (repo.root / "data/empty").unlink()
            repo.add(targets)
        else:
            dvc(repo.root, "add", *targets)
        written.append((repo.root / "data.dvc").read_bytes())
    assert written[0] == written[1]


def test_a_part_is_added_without_the_rest(tmp_path: Path) -> None:
    repo = make(tmp_path / "repo")
    lay(repo.root, FILES)
    repo.add(["data"])
    repo.push()
    manifest = repo.version("data").digest
    shutil.rmtree(repo.root / "data")
    shutil.rmtree(repo.cache.root)
    lay(repo.root, {"data/new": b"new"})
    with pytest.raises(MissingObjectError, match=manifest):
        repo.add(["data/new"])


@pytest.mark.parametrize("name", ["long name " * 20 + "x", "n" * 120])
def test_long_paths_are_folded_as_dvc_folds_them(tmp_path: Path, name: str) -> None:
    """Lines past column 80 were written whole, so each tool rewrote the other's file."""
    written = []
    for side in ("ours", "theirs"):
        repo = make(tmp_path / side)
        lay(repo.root, {name: b"x"})
        if side == "ours":
            repo.add([name])
        else:
            dvc(repo.root, "add", name)
        written.append((repo.root / f"{name}.dvc").read_bytes())
    assert written[0] == written[1]


def test_keys_that_are_new_to_a_dvc_file_come_where_dvc_puts_them(tmp_path: Path) -> None:
    """Each tool moved the keys of the other's file about."""
    written = []
    for side in ("ours", "theirs"):
        repo = make(tmp_path / side)

        def track(repo: Repo = repo, side: str = side) -> bytes:
            if side == "ours":
                repo.add(["a"])
            else:
                dvc(repo.root, "add", "a")
            return (repo.root / "a.dvc").read_bytes()

        lay(repo.root, {"a": b"1"})
        track()
        (repo.root / "a").chmod(0o755)
        executable = track()
        (repo.root / "a").unlink()
        lay(repo.root, {"a/b": b"2"})
        written.append((executable, track()))
    assert written[0] == written[1]


def test_a_repository_inside_a_tracked_directory_is_left_out(tmp_path: Path) -> None:
    """Its files were tracked, and only its `.dvc` folder left out."""
    written = []
    for side in ("ours", "theirs"):
        repo = make(tmp_path / side)
        lay(
            repo.root, {"data/a": b"a", "data/inner/b": b"b", "data/inner/.dvc/config": b"", "data/z/c": b"c"}
        )
        if side == "ours":
            repo.add(["data"])
        else:
            dvc(repo.root, "add", "data")
        written.append((repo.root / "data.dvc").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a\r\nb",
        b"\0\r\n",
        b"a" * (2**20 - 1) + b"\r\n",
        b"text\r\n" * 300_000 + b"\0" * 2**20 + b"x\r\n",
        bytes(range(256)) * 5000 + b"\r\n",
    ],
    ids=["empty", "text", "binary", "across pieces", "text, then binary", "odd"],
)
def test_the_digests_of_dvc_2_are_dvcs(tmp_path: Path, data: bytes) -> None:
    """A file was judged by its beginning, where DVC judges each piece of 1 MiB."""
    from dvc_data.hashfile.hash import fobj_md5

    from dvkf_prefect.formats.digest import digest_dos2unix

    (tmp_path / "x").write_bytes(data)
    with (tmp_path / "x").open("rb") as stream:
        assert digest_dos2unix(tmp_path / "x") == fobj_md5(stream, name="md5-dos2unix")
