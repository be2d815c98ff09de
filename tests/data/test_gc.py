"""What garbage collection must not remove: what others use, what is on its way, what cannot be known."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import time
import uuid
from pathlib import Path

import pytest
import servers
from repos import make_repo

from dvkf_prefect.cli import main
from dvkf_prefect.data.git.history import History
from dvkf_prefect.data.remotes import open_storage
from dvkf_prefect.data.upkeep import gc
from dvkf_prefect.data.upkeep.gc import GcOptions, GcScope
from dvkf_prefect.data.upkeep.inventory import FolderInventory, ServiceInventory, inventory_of
from dvkf_prefect.errors import ConfigError, GitError, MissingObjectError, ParseError, RemoteError
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.formats.objects import keys_of
from dvkf_prefect.repo import Repo

WORKSPACE = GcScope(workspace=True)
COMMITS = GcScope(all_commits=True)


def lay(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def make(root: Path, **remote: str) -> Repo:
    made = make_repo(root)
    with made.config.edit() as sections:
        sections["remote"]["store"] = remote or {"url": str(root.parent / "store")}
        sections["core"]["remote"] = "store"
    return Repo.open(root)


def save(repo: Repo, files: dict[str, str], *, push: bool = True, commit: bool = True) -> None:
    """Track files, send them and commit."""
    lay(repo.root, files)
    repo.add(sorted({name.partition("/")[0] for name in files}))
    if push:
        repo.push()
    if commit:
        assert repo.git
        repo.git.run("add", "-A")
        repo.git.run("commit", "-q", "-m", "state")


def on_remote(repo: Repo) -> set[str]:
    return inventory_of(repo.remote().storage).keys()


def cached(repo: Repo) -> set[str]:
    return FolderInventory(repo.cache.root).keys()


def key(text: str) -> str:
    (found,) = keys_of([digest_bytes(text.encode())], "md5")
    return found


def drop(repo: Repo, digest: str | None) -> None:
    assert digest
    repo.cache.path(digest).unlink()


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    made = make(tmp_path / "repo")
    monkeypatch.chdir(made.root)
    save(made, {"data/a": "old", "data/b": "both"})
    save(made, {"data/a": "new", "one": "one"})
    return made


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hours have passed."""
    now = time.time() + 7200
    monkeypatch.setattr(gc, "_now", lambda: now)


@pytest.mark.usefixtures("later")
def test_what_is_used_is_kept_and_the_rest_is_counted(repo: Repo) -> None:
    before = on_remote(repo)
    planned = repo.gc(WORKSPACE, GcOptions(cloud=True, dry_run=True))
    assert on_remote(repo) == cached(repo) == before
    gone = {key("old"), *keys_of([repo.outputs(["data"], rev="HEAD~1")[0].digest or ""], "md5")}
    names = [name for place in planned.places for name in place.names]
    assert sorted(names) == sorted(
        str(root / name) for root in (repo.cache.root, repo.root.parent / "store") for name in gone
    )
    assert planned.size == sum(os.stat(name).st_size for name in names)
    done = repo.gc(WORKSPACE, GcOptions(cloud=True))
    assert (done.objects, done.size, done.kept) == (planned.objects, planned.size, planned.kept)
    assert (done.objects, done.kept) == (4, 2 * len(before) - 4)
    assert on_remote(repo) == cached(repo) == before - gone
    assert not repo.gc(WORKSPACE, GcOptions(cloud=True))
    shutil.rmtree(repo.cache.root)
    shutil.rmtree(repo.root / "data")
    repo.pull()
    assert (repo.root / "data/b").read_text() == "both"


# -- a remote that others use ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("later")
def test_another_repository_on_the_same_prefix_is_not_robbed(tmp_path: Path, repo: Repo) -> None:
    """DVC removes its objects."""
    other = make(tmp_path / "other")
    save(other, {"theirs/x": "x", "theirs/same": "old", "single": "single"})
    everything = on_remote(repo), cached(repo)
    with pytest.raises(
        RemoteError,
        match=r"holds 3 object\(s\), 1 of them directory manifests.*\S*other.*-p.*--assume-unshared",
    ):
        repo.gc(WORKSPACE, GcOptions(cloud=True))
    assert (on_remote(repo), cached(repo)) == everything
    assert main(["gc", "-w", "-c", "-f"]) == 255

    done = repo.gc(WORKSPACE, GcOptions(cloud=True, projects=[other.root / "theirs"]))
    # "old" is the other's as well.
    assert key("old") in on_remote(repo)
    assert done
    shutil.rmtree(other.cache.root)
    shutil.rmtree(other.root / "theirs")
    other.pull()
    assert (other.root / "theirs/same").read_text() == "old"

    # Whoever says that there is nobody else is believed.
    save(repo, {"one": "another"})
    repo.gc(WORKSPACE, GcOptions(cloud=True, assume_unshared=True))
    assert key("x") not in on_remote(repo)


@pytest.mark.usefixtures("later")
def test_commits_that_were_not_fetched_are_somebody_elses(tmp_path: Path, repo: Repo) -> None:
    """A colleague pushes data and commits; until we know the commit we cannot know that the data is used."""
    subprocess.run(["git", "clone", "-q", str(repo.root), str(tmp_path / "clone")], check=True)
    colleague = Repo.open(tmp_path / "clone")
    colleague.pull()
    save(colleague, {"data/c": "theirs", "data/a": "old"})
    with pytest.raises(RemoteError, match="git fetch"):
        repo.gc(COMMITS, GcOptions(cloud=True))
    assert repo.git
    repo.git.run("fetch", "-q", str(colleague.root), "+refs/heads/*:refs/remotes/them/*")
    assert not repo.gc(COMMITS, GcOptions(cloud=True))
    repo.gc(WORKSPACE, GcOptions(cloud=True))
    assert key("theirs") not in on_remote(repo)


@pytest.mark.usefixtures("later")
def test_what_we_never_committed_is_known_by_our_cache(repo: Repo) -> None:
    save(repo, {"data/a": "tried", "one": "tried too"}, commit=False)
    lay(repo.root, {"data/a": "new", "one": "one"})
    repo.add(["data", "one"])
    assert {key("tried"), key("tried too")} <= on_remote(repo)
    repo.gc(WORKSPACE, GcOptions(cloud=True))
    assert on_remote(repo).isdisjoint({key("tried"), key("tried too")})


@pytest.mark.usefixtures("later")
def test_a_cache_that_others_use_proves_nothing(tmp_path: Path, repo: Repo) -> None:
    other = make(tmp_path / "other")
    for each in (repo, other):
        with each.config.edit("local") as sections:
            sections["cache"]["dir"] = str(tmp_path / "cache")
    first, second = Repo.open(repo.root), Repo.open(other.root)
    first.commit(["data", "one"])
    first.fetch()
    save(second, {"theirs/x": "x"})
    # DVC leaves no mark of the repository that uses the cache too.
    shutil.rmtree(tmp_path / "cache" / "users-dvkf")
    third = make(tmp_path / "third")
    with pytest.raises(RemoteError, match="Other projects store data"):
        first.gc(WORKSPACE, GcOptions(cloud=True, projects=[third.root]))
    assert key("x") in on_remote(repo)


@pytest.mark.usefixtures("later")
def test_what_was_imported_is_not_ours(tmp_path: Path, repo: Repo) -> None:
    """It is in our history and in our cache, and all that is left of the other repository on the remote."""
    other = make(tmp_path / "other")
    save(other, {"set/x": "x"})
    (output,) = other.outputs()
    imported = (
        f"frozen: true\ndeps:\n- path: set\n  repo:\n    url: {other.root}\n    rev_lock: {'a' * 40}\n"
        f"outs:\n- md5: {output.digest}\n  size: 1\n  nfiles: 1\n  hash: md5\n  path: set\n"
    )
    lay(repo.root, {"set.dvc": imported})
    shutil.copytree(other.cache.root, repo.cache.root, dirs_exist_ok=True)
    assert repo.git
    repo.git.run("add", "set.dvc")
    repo.git.run("commit", "-q", "-m", "import")
    (repo.root / "set.dvc").unlink()
    with pytest.raises(RemoteError, match=r"holds 2 object\(s\), 1 of them"):
        repo.gc(WORKSPACE, GcOptions(cloud=True))


@pytest.mark.usefixtures("later")
def test_a_collection_that_was_cut_short_is_taken_up(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the manifest and its files, when nothing else tells any more whose the files are."""
    save(repo, {"data/a": "never committed", "data/z": "z"}, commit=False)
    lay(repo.root, {"data/a": "new"})
    (repo.root / "data/z").unlink()
    repo.add(["data"])
    repo.gc(WORKSPACE)
    real = FolderInventory.delete
    calls: list[list[str]] = []

    def delete(self: FolderInventory, keys: list[str]) -> None:
        calls.append(keys)
        if not keys[0].endswith(".dir"):
            raise OSError("the process ends")
        real(self, keys)

    # Neither the cache nor the history tells what it is any more.
    assert key("z") in on_remote(repo)
    with pytest.raises(RemoteError):
        repo.gc(WORKSPACE, GcOptions(cloud=True))
    monkeypatch.setattr(gc, "_BATCH", 1)
    monkeypatch.setattr(FolderInventory, "delete", delete)
    with pytest.raises(OSError, match="the process ends"):
        repo.gc(WORKSPACE, GcOptions(cloud=True, assume_unshared=True))
    assert calls[-1][0] in on_remote(repo)
    monkeypatch.setattr(FolderInventory, "delete", real)
    repo.gc(WORKSPACE, GcOptions(cloud=True))
    assert on_remote(repo) == cached(repo)


# -- what is on its way ------------------------------------------------------------------------------------------------


def test_young_objects_stay_on_a_remote(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    done = repo.gc(WORKSPACE, GcOptions(cloud=True))
    assert [(place.objects, place.young) for place in done.places if place.remote] == [(0, 2), (0, 0)]
    assert key("old") in on_remote(repo)
    # The cache is ours alone, and its lock is held.
    assert key("old") not in cached(repo)
    assert repo.gc(WORKSPACE, GcOptions(cloud=True, grace=0)).objects == 2


def test_a_young_manifest_keeps_its_older_files(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """For it vouches for them to whoever pushes the same directory again."""
    old = repo.outputs(rev="HEAD~1")[0].digest
    (manifest,) = keys_of([old or ""], "md5")
    changed = {name: when for name, _, when in inventory_of(repo.remote().storage).measure(on_remote(repo))}
    assert changed[manifest] is not None
    real = FolderInventory.measure

    def measure(self: FolderInventory, keys: list[str]) -> object:
        for name, size, _ in real(self, keys):
            yield name, size, 1000.0 if name == manifest else 10.0

    monkeypatch.setattr(FolderInventory, "measure", measure)
    monkeypatch.setattr(gc, "_now", lambda: 1100.0)
    repo.gc(WORKSPACE, GcOptions(cloud=True, grace=500))
    assert {manifest, key("old")} <= on_remote(repo)
    repo.gc(WORKSPACE, GcOptions(cloud=True, grace=50))
    assert on_remote(repo).isdisjoint({manifest, key("old")})


def test_what_comes_while_it_runs_stays(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    real = gc._used

    def meanwhile(*args: object) -> object:
        repo.remote().storage.write(key("just now"), b"just now")
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(gc, "_used", meanwhile)
    repo.gc(WORKSPACE, GcOptions(cloud=True, grace=0))
    assert key("just now") in on_remote(repo)


def test_a_cache_outside_has_a_grace_too(tmp_path: Path, repo: Repo) -> None:
    with repo.config.edit("local") as sections:
        sections["cache"]["dir"] = str(tmp_path / "cache")
    again = Repo.open(repo.root)
    save(again, {"one": "first"}, push=False)
    save(again, {"one": "second"}, push=False)
    again.fetch(["data"])
    assert again.gc(WORKSPACE, GcOptions(assume_unshared=True)).young == 1
    assert again.gc(WORKSPACE, GcOptions(assume_unshared=True, grace=0)).objects == 1


# -- what cannot be known ----------------------------------------------------------------------------------------------


def test_a_manifest_that_only_the_remote_has_tells_its_files(repo: Repo) -> None:
    drop(repo, repo.version("data").digest)
    repo.gc(WORKSPACE)
    assert {key("new"), key("both")} <= cached(repo)


def test_without_a_manifest_nothing_is_removed(repo: Repo, capsys: pytest.CaptureFixture[str]) -> None:
    """DVC removes its files, with -f without a question."""
    digest = repo.version("data").digest
    drop(repo, digest)
    shutil.rmtree(repo.root.parent / "store")
    before = cached(repo)
    with pytest.raises(MissingObjectError, match=r"(?s)'data'.*not in the cache.*not on.*--skip-failed"):
        repo.gc(WORKSPACE)
    assert main(["gc", "-w", "-f"]) == 255
    assert cached(repo) == before
    done = repo.gc(WORKSPACE, GcOptions(skip_failed=True))
    assert key("new") not in cached(repo)
    assert len(done.skipped) == 1 and "'data'" in done.skipped[0]
    assert key("one") in cached(repo)


def test_a_damaged_manifest_is_no_manifest(repo: Repo) -> None:
    path = repo.cache.path(repo.version("data").digest)
    path.chmod(0o644)
    path.write_text("[]")
    repo.gc(WORKSPACE)
    assert {key("new"), key("both")} <= cached(repo)
    assert path.read_text() == "[]"
    shutil.rmtree(repo.root.parent / "store")
    with pytest.raises(MissingObjectError, match="damaged"):
        repo.gc(WORKSPACE)


def test_a_file_of_an_old_commit_that_cannot_be_read(repo: Repo) -> None:
    assert repo.git
    lay(repo.root, {"broken.dvc": "outs: [}"})
    repo.git.run("add", "broken.dvc")
    repo.git.run("commit", "-q", "-m", "broken")
    broken = repo.git.head() or ""
    repo.git.run("rm", "-q", "broken.dvc")
    repo.git.run("commit", "-q", "-m", "mended")
    with pytest.raises(ParseError, match=f"broken.dvc of commit {broken[:7]}.*--skip-failed"):
        repo.gc(COMMITS)
    assert key("old") in cached(repo)
    done = repo.gc(COMMITS, GcOptions(skip_failed=True))
    assert len(done.skipped) == 1 and done.objects == 0


def test_what_only_a_lock_file_tells_is_kept(repo: Repo) -> None:
    """A dvc.yaml of an old commit that nobody can read any more."""
    text = "of a stage"
    repo.cache.add_bytes(text.encode())
    lay(
        repo.root,
        {
            "dvc.yaml": "stages:\n  s:\n    unheard_of: x\n",
            "dvc.lock": f"schema: '2.0'\nstages:\n  s:\n    cmd: x\n    outs:\n    - path: out\n      hash: md5\n"
            f"      md5: {digest_bytes(text.encode())}\n",
        },
    )
    repo.gc(WORKSPACE)
    assert key(text) in cached(repo)


def test_what_only_git_ignored_files_tell_is_kept(repo: Repo) -> None:
    """DVC does not look into folders that git ignores, and removes what the files there track."""
    lay(repo.root, {"scratch/set/x": "ignored x", "scratch/one": "ignored one", "scratch/deep/two": "two"})
    repo.add(["scratch/set", "scratch/one", "scratch/deep/two"])
    lay(repo.root, {"scratch/notes.dvc": "broken: [", "scratch/gone.dvc": "outs: []\n"})
    spelled = "spelled in a file that nobody reads"
    repo.cache.add_bytes(spelled.encode())
    lay(
        repo.root,
        {
            "scratch/deep/dvc.yaml": "stages: {s: {unheard_of: x}}\n",
            "scratch/deep/dvc.lock": f"a: {digest_bytes(spelled.encode())}\n",
            "scratch/deep/lost.dvc": f"outs:\n- md5: {'a' * 32}.dir\n  hash: md5\n  path: lost\n",
        },
    )
    shutil.rmtree(repo.root / "scratch/set")
    (repo.root / "scratch/one").unlink()
    lay(repo.root, {".gitignore": "scratch/\n*.local.dvc\n", "x": "by name"})
    again = Repo.open(repo.root)
    again.add(["x"])
    os.rename(repo.root / "x.dvc", repo.root / "x.local.dvc")
    assert {output.path for output in again.outputs()} == {"data", "one"}
    kept = {key(text) for text in ("ignored x", "ignored one", "two", "by name", spelled)}
    assert again.gc(WORKSPACE, GcOptions(cloud=True, grace=0)).objects == 4
    assert kept <= cached(again)
    assert key("old") not in cached(again)
    # Once they are tracked by a name that is read, they are restored.
    lay(repo.root, {".gitignore": ""})
    shutil.rmtree(repo.root / "scratch/deep")
    (repo.root / "scratch/notes.dvc").unlink()
    Repo.open(repo.root).checkout(["scratch/set", "scratch/one"])
    assert (repo.root / "scratch/set/x").read_text() == "ignored x"


def test_the_run_cache_is_kept_when_asked(repo: Repo) -> None:
    text = "of a run"
    repo.cache.add_bytes(text.encode())
    lay(
        repo.cache.root,
        {"runs/ab/cd/ef": f"cmd: x\nouts:\n- path: o\n  md5: {digest_bytes(text.encode())}\n"},
    )
    repo.gc(WORKSPACE, GcOptions(run_cache=True))
    assert key(text) in cached(repo)
    repo.gc(WORKSPACE)
    assert key(text) not in cached(repo)
    assert (repo.cache.root / "runs/ab/cd/ef").exists()


def test_what_is_no_object_stays(repo: Repo) -> None:
    others = [
        "packs/ab/x",
        "dvkf/y",
        "files/md5/ab/short",
        "ab/cdef",
        "files/md5/zz/" + "0" * 30,
        "runs/a/b/c",
    ]
    store = repo.root.parent / "store"
    for root in (store, repo.cache.root):
        lay(root, dict.fromkeys(others, "x"))
    repo.gc(WORKSPACE, GcOptions(cloud=True, grace=0))
    for root in (store, repo.cache.root):
        assert all((root / name).exists() for name in others)


# -- scopes and services -----------------------------------------------------------------------------------------------


def test_scopes_that_say_nothing_are_refused(repo: Repo) -> None:
    for scope in (GcScope(), GcScope(workspace=True, num=2), GcScope(date="yesterday")):
        with pytest.raises(ConfigError):
            repo.gc(scope)
    with pytest.raises(GitError, match="nowhere"):
        repo.gc(GcScope(rev="nowhere"))
    with pytest.raises(ConfigError, match="mutually exclusive"):
        repo.gc(WORKSPACE, GcOptions(cloud=True, not_in_remote=True))


def test_without_git(tmp_path: Path) -> None:
    root = tmp_path / "plain"
    root.mkdir()
    plain = Repo.init(root, no_scm=True)
    for text in ("first", "second"):
        lay(root, {"one": text})
        plain.add(["one"])
    with pytest.raises(ConfigError, match="git"):
        plain.gc(COMMITS)
    assert plain.gc(WORKSPACE).objects == 1


def test_experiments_are_kept_when_asked(repo: Repo) -> None:
    assert repo.git
    baseline = repo.git.head() or ""
    repo.git.run("checkout", "-q", "--detach")
    save(repo, {"one": "tried"}, push=False)
    repo.git.run("update-ref", f"refs/exps/{baseline[:2]}/{baseline[2:]}/quick-test", "HEAD")
    repo.git.run("checkout", "-q", baseline)
    repo.gc(GcScope(all_experiments=True))
    assert key("tried") in cached(repo)
    repo.gc(WORKSPACE)
    assert key("tried") not in cached(repo)


def test_a_file_that_many_commits_have_is_read_once(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    assert repo.git
    for number in range(5):
        lay(repo.root, {"code/notes.txt": str(number)})
        repo.git.run("add", "-A")
        repo.git.run("commit", "-q", "-m", "code only")
    commits = repo.git.run("rev-list", "HEAD").split()
    with History(repo.git) as history:
        told = [(item.path, item.rev) for item in history.walk(commits)]
        assert list(history.walk(commits)) == []
    assert sorted(told) == sorted(
        [("data.dvc", commits[0]), ("one.dvc", commits[0]), ("data.dvc", commits[-1])]
    )
    assert {
        (output.path, output.digest) for rev in commits for output in repo.outputs(rev=rev)
    } == _outputs_of(repo, commits)


def _outputs_of(repo: Repo, commits: list[str]) -> set[tuple[str, str | None]]:
    assert repo.git
    with History(repo.git, repo.git_prefix) as history:
        return {(output.path, output.digest) for item in history.walk(commits) for output in item.outputs}


def test_a_repository_below_the_top_of_its_git(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path / "top")], check=True)
    (tmp_path / "top/inner").mkdir()
    lay(tmp_path / "top", {"README": "x"})
    inner = Repo.init(tmp_path / "top/inner", subdir=True)
    assert inner.git
    inner.git.run("add", "README")
    inner.git.run("commit", "-q", "-m", "before there was a repository")
    save(inner, {"one": "first"}, push=False)
    save(inner, {"one": "second"}, push=False)
    assert inner.gc(COMMITS).objects == 0
    assert inner.gc(WORKSPACE).objects == 1


@pytest.mark.parametrize("backend", ["obstore", "fsspec"])
def test_a_service_is_listed_with_times(backend: str, s3: servers.S3Server) -> None:
    before = math.floor(time.time()) - 5
    url = s3.make_bucket(f"gc-{uuid.uuid4().hex[:12]}")
    storage = open_storage(f"{url}/some/prefix", s3.options(), backend=backend)  # type: ignore[arg-type]
    names = [key("a"), key("b"), "ab/" + "c" * 30]
    for name in [*names, "runs/ab/c", "packs/x"]:
        storage.write(name, b"text")
    listed = ServiceInventory(storage)
    assert listed.keys() == set(names)
    for name, size, changed in listed.measure(names):
        assert size == 4
        assert changed is not None and before <= changed <= time.time() + 5, name
    listed.delete([names[0], key("no longer exists")])
    assert ServiceInventory(storage).keys() == set(names[1:])


def test_a_remote_that_is_a_service(tmp_path: Path, s3: servers.S3Server) -> None:
    url = s3.make_bucket(f"gc-{uuid.uuid4().hex[:12]}")
    repo = make(tmp_path / "repo", url=f"{url}/prefix", **s3.options())
    save(repo, {"data/a": "old"})
    save(repo, {"data/a": "new"})
    assert repo.gc(WORKSPACE, GcOptions(cloud=True)).young == 2
    assert len(on_remote(repo)) == 4
    future = time.time() + 7200
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "_now", lambda: future)
        # The local copies are gone; the history's manifest is read from the remote.
        done = repo.gc(WORKSPACE, GcOptions(cloud=True))
    assert done.objects == 2
    assert len(on_remote(repo)) == 2
    other = make(tmp_path / "other", url=f"{url}/prefix", **s3.options())
    save(other, {"x": "x"})
    save(repo, {"data/a": "newest"})
    with pytest.raises(RemoteError, match="Other projects store data"):
        repo.gc(WORKSPACE, GcOptions(cloud=True, grace=0))


def test_a_place_that_tells_no_times(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a grace of nothing lets go of what may be young."""
    monkeypatch.setattr(gc, "inventory_of", lambda storage: ServiceInventory(storage))
    assert [place.young for place in repo.gc(WORKSPACE, GcOptions(cloud=True)).places if place.remote] == [
        2,
        0,
    ]
    assert [p.objects for p in repo.gc(WORKSPACE, GcOptions(cloud=True, grace=0)).places if p.remote] == [
        2,
        0,
    ]


def test_what_runs_left_on_a_remote_goes_when_it_is_old(
    repo: Repo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(repo, {"data/a": "a"})
    storage = repo.remote().storage
    left = (
        "dvkf/bundles/0123",
        "dvkf/runs/key/train/result.json",
        "dvkf/runs/unsent/claims/killed.json",
        "dvkf/uncached/files/md5/aa/bb",
    )
    for key in left:
        storage.write(key, b"left")
    repo.gc(WORKSPACE, GcOptions(cloud=True))
    assert set(storage.keys("dvkf")) == set(left)
    monkeypatch.setattr(gc, "_now", lambda: time.time() + gc.RUN_AGE + 60)
    dry = repo.gc(WORKSPACE, GcOptions(cloud=True, dry_run=True))
    assert (dry.places[-1].objects, dry.places[-1].size, dry.places[-1].names) == (4, 16, left)
    assert set(storage.keys("dvkf")) == set(left)
    assert main(["--cd", str(repo.root), "gc", "-w", "-c", "-f"]) == 0
    assert "Removed 4 files that runs on Kubeflow left on the remote." in capsys.readouterr().out
    assert not list(storage.keys("dvkf")) and on_remote(repo)


def test_the_remote_that_an_output_names_is_collected_too(tmp_path: Path, repo: Repo) -> None:
    with repo.config.edit() as sections:
        sections["remote"]["second"] = {"url": str(tmp_path / "second")}
    again = Repo.open(repo.root)
    lay(repo.root, {"one": "kept there"})
    again.add(["one"])
    dvc_file = repo.root / "one.dvc"
    dvc_file.write_text(dvc_file.read_text() + "  remote: second\n")
    again.push()
    again.push(["data"], remote="second")
    lay(repo.root, {"data/a": "newest"})
    again.add(["data"])
    again.gc(WORKSPACE, GcOptions(cloud=True, grace=0))
    left = inventory_of(again.remote("second").storage).keys()
    assert key("kept there") in left and key("new") not in left
    assert os.path.exists(tmp_path / "store")
