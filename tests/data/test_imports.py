"""Other repositories opened, downloaded from and imported from, without dvc: what may go wrong, and what must not."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect.cli import main
from dvkf_prefect.data.imports.external import open_external
from dvkf_prefect.data.verbs.get import get, get_url, list_url
from dvkf_prefect.data.verbs.imports import ImportOptions, ImportUrlOptions, changed_sources
from dvkf_prefect.errors import (
    ConfigError,
    CorruptObjectError,
    GitError,
    MissingObjectError,
    NotARepositoryError,
    OutputChangedError,
    OutputError,
    OutputInGitError,
    OutputNotFoundError,
    OutputOverlapError,
    TransferError,
    UnsafePathError,
)
from dvkf_prefect.repo import Repo


def git(root: Path, *args: str) -> str:
    done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def lay(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def make(root: Path, remote: str | None = None) -> Repo:
    make_repo(root)
    if remote:
        # As dvc stores it, from the `.dvc` folder.
        text = f"[core]\n    remote = store\n['remote \"store\"']\n    url = ../{remote}\n"
        (root / ".dvc/config").write_text(text)
    return Repo(root)


def commit(root: Path) -> str:
    git(root, "add", "-A")
    git(root, "commit", "-q", "--allow-empty", "-m", "state")
    return git(root, "rev-parse", "HEAD")


def contents(root: Path) -> dict[str, str]:
    return {p.relative_to(root).as_posix(): p.read_text() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Repo:
    """A repository with a directory, a file and a plain file; a relative folder beside it is its remote."""
    repo = make(tmp_path / "source", "../store")
    lay(repo.root, {"data/a": "a", "data/sub/b": "b", "one": "1", "code.py": "code"})
    repo.add(["data", "one"])
    repo.push()
    commit(repo.root)
    return repo


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    made = make(tmp_path / "repo", "../kept")
    monkeypatch.chdir(made.root)
    return made


# -- opening -----------------------------------------------------------------------------------------------------------


def test_a_folder_is_opened_as_it_is(source: Repo) -> None:
    lay(source.root, {"two": "2"})
    source.add(["two"])
    for url in (str(source.root), str(source.root / "data"), source.root.as_uri()):
        with open_external(url) as opened:
            assert (opened.root, opened.at) == (source.root, None)
            assert [o.path for o in opened.outputs()] == ["data", "one", "two"]
            assert opened.cache.root == source.cache.root


def test_a_revision_is_a_clone_that_uses_the_folder_s_remotes_and_cache(source: Repo) -> None:
    first = git(source.root, "rev-parse", "HEAD")
    with source.config.edit("local") as sections:
        sections["remote"]["store"] = {"jobs": "3"}
    lay(source.root, {"two": "2"})
    source.add(["two"])
    commit(source.root)
    for rev in ("HEAD~1", first, first[:8]):
        with open_external(str(source.root), rev) as opened:
            root = opened.root
            assert opened.at == first and root != source.root
            assert [o.path for o in opened.outputs()] == ["data", "one"]
            remote = opened.remote()
            assert (remote.url, remote.jobs) == (str(source.root.parent / "store"), 3)
            assert opened.cache.read_tree(opened.outputs()[0].digest or "").relpaths == ["a", "sub/b"]
        assert not root.exists()
    with (
        pytest.raises(GitError, match="unknown git revision 'nope'"),
        open_external(str(source.root), "nope"),
    ):
        pass


def test_a_git_url_is_cloned_at_a_branch_a_tag_or_a_commit(source: Repo, tmp_path: Path) -> None:
    first = git(source.root, "rev-parse", "HEAD")
    git(source.root, "tag", "-a", "v1", "-m", "one")
    second = commit(source.root)
    git(tmp_path, "clone", "-q", "--bare", str(source.root), "bare.git")
    url = str(tmp_path / "bare.git")
    for rev, at in ((None, second), ("main", second), ("v1", first), (first, first), (first[:9], first)):
        with open_external(url, rev) as opened:
            assert opened.at == at
            assert [o.path for o in opened.outputs()] == ["data", "one"]
            with pytest.raises(MissingObjectError):
                opened.cache.read_tree(opened.outputs()[0].digest or "")


def test_settings_given_go_over_those_of_the_repository(source: Repo, tmp_path: Path) -> None:
    (tmp_path / "extra").write_text(
        "[core]\n    remote = far\n['remote \"far\"']\n    url = /far\n    jobs = 2\n"
    )
    with open_external(str(source.root), config=str(tmp_path / "extra")) as opened:
        assert opened.config.remote(None) == ("far", {"url": "/far", "jobs": "2"})
        assert opened.config.remote("store")[1]["url"] == str(tmp_path / "store")
    with open_external(str(source.root), "HEAD", remote="new", remote_config={"url": "/new"}) as opened:
        assert opened.config.remote(None) == ("new", {"url": "/new"})
    with open_external(str(source.root), remote_config={"jobs": "9"}) as opened:
        assert opened.config.remote(None)[1]["jobs"] == "9"
    with pytest.raises(ConfigError), open_external(str(source.root), config=str(tmp_path / "nothing")):
        pass


def test_what_is_no_repository_is_said_to_be_none(tmp_path: Path) -> None:
    for url in (str(tmp_path), str(tmp_path / "nothing")):
        with pytest.raises(NotARepositoryError), open_external(url):
            pass
    with pytest.raises(GitError) as caught, open_external("https://me:secret@127.0.0.1:1/x.git"):
        pass
    assert "secret" not in str(caught.value)


def test_reading_never_changes_what_is_read_from(source: Repo, repo: Repo) -> None:
    """A damaged object in the cache of the source stays there, and the remote's is taken."""
    digest = source.version("one").digest
    damaged = source.cache.path(digest)
    damaged.chmod(0o644)
    damaged.write_text("damaged")
    before = {path: path.read_bytes() for path in source.root.rglob("*") if path.is_file()}
    repo.import_(str(source.root), "one")
    assert (repo.root / "one").read_text() == "1"
    with open_external(str(source.root), "HEAD") as opened, pytest.raises(CorruptObjectError):
        opened.cache.read_bytes(digest)
    assert {path: path.read_bytes() for path in source.root.rglob("*") if path.is_file()} == before
    shutil.rmtree(source.root.parent / "store")
    with pytest.raises(TransferError):
        get(str(source.root), "one", "got", rev="HEAD")
    assert not (repo.root / "got").exists()
    assert [name for name in os.listdir(repo.root) if name.startswith(".dvkf")] == []


# -- downloads ---------------------------------------------------------------------------------------------------------


def test_get_brings_files_of_git_and_of_dvc(source: Repo, repo: Repo) -> None:
    url = str(source.root)
    assert get(url, "data") == repo.root / "data"
    assert contents(repo.root / "data") == {"a": "a", "sub/b": "b"}
    get(url, "./data/sub/", "part")
    assert contents(repo.root / "part") == {"b": "b"}
    get(url, "code.py")
    assert (repo.root / "code.py").read_text() == "code"
    with pytest.raises(OutputError, match="--force"):
        get(url, "data", "part/b")
    get(url, "one", "data", force=False)
    assert (repo.root / "data/one").read_text() == "1"
    (repo.root / "part/b").unlink()
    for path in ("nothing", "data/nothing", "one/x"):
        with pytest.raises(OutputNotFoundError, match=path.partition("/")[0]):
            get(url, path, "new")
    for path in ("../x", "/etc/passwd"):
        with pytest.raises(UnsafePathError):
            get(url, path, "new")
    with pytest.raises(OutputError, match="DVC file"):
        get(url, "one.dvc")
    assert not (repo.root / "new").exists()


def test_a_clone_hands_out_no_file_of_this_machine(source: Repo, repo: Repo, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (source.root / "link").symlink_to(tmp_path / "secret")
    lay(source.root, {"folder/x": "x"})
    (source.root / "folder/link").symlink_to(tmp_path / "secret")
    commit(source.root)
    for path in ("link", "folder"):
        with pytest.raises(UnsafePathError):
            get(str(source.root), path, "got", rev="HEAD")


def test_a_repository_inside_a_repository(source: Repo, repo: Repo) -> None:
    inner = source.root / "team/inner"
    inner.mkdir(parents=True)
    made = Repo.init(inner, subdir=True)
    with made.config.edit() as sections:
        sections["remote"]["own"] = {"url": str(source.root / "../own-store")}
        sections["core"]["remote"] = "own"
    lay(inner, {"d/x": "x"})
    made = Repo(inner)
    made.add(["d"])
    made.push()
    shutil.rmtree(made.cache.root)
    commit(source.root)
    for rev in (None, "HEAD"):
        get(str(source.root), "team/inner/d", f"d-{rev}", rev=rev)
        assert contents(repo.root / f"d-{rev}") == {"x": "x"}
    repo.import_(str(source.root), "team/inner/d")
    assert contents(repo.root / "d") == {"x": "x"}


def test_urls_are_listed_and_downloaded(
    repo: Repo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay(tmp_path, {"out/x": "x", "out/s/y": "yy"})
    url = str(tmp_path / "out")
    assert list_url(url) == [("s/y", 2), ("x", 1)]
    assert list_url(f"{url}/x") == [("x", 1)]
    get_url(url)
    assert contents(repo.root / "out") == {"x": "x", "s/y": "yy"}
    assert main(["list-url", url]) == 0
    assert capsys.readouterr().out == "s/\nx\n"
    assert main(["get-url", url, "out"]) == 0
    assert (repo.root / "out/out/x").read_text() == "x"
    assert main(["get-url", f"{url}/x", "out/x"]) == 1
    assert main(["get-url", f"{url}/nothing"]) == 1


# -- imports -----------------------------------------------------------------------------------------------------------


def test_an_import_replaces_nothing_unasked(source: Repo, repo: Repo) -> None:
    url = str(source.root)
    lay(repo.root, {"one": "mine", "data/x": "mine", "tracked": "t", "there": "t"})
    with pytest.raises(OutputError, match="--force"):
        repo.import_(url, "one")
    repo.add(["data", "there"])
    with pytest.raises(OutputOverlapError):
        repo.import_(url, "one", "data/inner")
    (repo.root / "there").unlink()
    with pytest.raises(OutputError, match="is not an import"):
        repo.import_(url, "one", "there")
    commit(repo.root)
    (repo.root / "tracked").unlink()
    with pytest.raises(OutputInGitError):
        repo.import_(url, "one", "tracked")
    with pytest.raises(OutputNotFoundError):
        repo.import_(url, "nothing")
    with pytest.raises(OutputNotFoundError):
        repo.import_(url, "nothing", options=ImportOptions(no_download=True))
    with pytest.raises(UnsafePathError):
        repo.import_(url, "one", "../outside")
    assert not [name for name in os.listdir(repo.root) if name in ("one.dvc", "nothing.dvc")]
    repo.import_(url, "data", options=ImportOptions(force=True))
    assert contents(repo.root / "data") == {"a": "a", "sub/b": "b"}


def test_an_update_keeps_what_was_changed_by_hand(source: Repo, repo: Repo) -> None:
    repo.import_(str(source.root), "data")
    lay(source.root, {"data/a": "new"})
    source.add(["data"])
    commit(source.root)
    assert changed_sources(repo, repo.outputs()) == {
        "data.dvc": {f"data ({source.root})": "update available"}
    }
    before = (repo.root / "data.dvc").read_bytes()
    lay(repo.root, {"data/a": "by hand"})
    for options in ({}, {"no_download": True}):
        with pytest.raises(OutputChangedError, match="data/a"):
            repo.update(["data.dvc"], **options)
    assert (repo.root / "data.dvc").read_bytes() == before
    assert (repo.root / "data/a").read_text() == "by hand"
    repo.checkout(force=True)
    (done,) = repo.update(["data"])
    assert done.changed and (repo.root / "data/a").read_text() == "new"
    (done,) = repo.update(["data"])
    assert not done.changed
    lay(repo.root, {"mine": "m"})
    repo.add(["mine"])
    with pytest.raises(OutputError, match="not an import"):
        repo.update(["mine"])
    with pytest.raises(OutputNotFoundError):
        repo.update(["nothing.dvc"])


def test_an_import_whose_path_kept_its_content_is_up_to_date(
    source: Repo, repo: Repo, capsys: pytest.CaptureFixture[str]
) -> None:
    lay(source.root, {"mixed/code.py": "m", "mixed/part/x": "x", "old": "1"})
    source.add(["mixed/part"])
    old = "c4ca4238a0b923820dcc509a6f75849b"
    legacy = source.cache.path(old, "md5-dos2unix")
    legacy.parent.mkdir(parents=True)
    legacy.write_text("1")
    lay(source.root, {"old.dvc": f"outs:\n- md5: {old}\n  size: 1\n  path: old\n", ".gitignore": "/old\n"})
    first = commit(source.root)
    url = str(source.root)
    paths = ("data", "data/sub", "data/a", "one", "code.py", "mixed", "old")
    for number, path in enumerate(paths):
        repo.import_(url, path, f"i{number}")
    repo.import_(url, "one", "later", options=ImportOptions(no_download=True))
    repo.import_(url, "code.py", "at-branch", options=ImportOptions(rev="main"))
    commit(repo.root)
    names = {f"i{number}.dvc": path for number, path in enumerate(paths)}
    names |= {"later.dvc": "one", "at-branch.dvc": "code.py"}
    # What changes in the source, and the imports that it concerns.
    table: list[tuple[dict[str, str], list[str], set[str]]] = [
        ({"other.txt": "o", "other.dvc.md": "o"}, [], set()),
        ({"code.py": "code2", "mixed/part/y": "y"}, ["mixed/part"], {"code.py", "mixed"}),
        ({"data/a": "a2", "one": "2"}, ["data", "one"], {"data", "data/a", "one"}),
    ]
    for files, tracked, concerned in table:
        git(source.root, "reset", "-q", "--hard", first)
        source.checkout(force=True)
        lay(source.root, files)
        source.add(tracked) if tracked else None
        commit(source.root)
        said = changed_sources(repo, repo.outputs())
        assert said == {
            name: {f"{path} ({url})": "update available"} for name, path in names.items() if path in concerned
        }
    unchanged = sorted(name for name, path in names.items() if path not in ("data", "data/a", "one"))
    assert not [done for done in repo.update(unchanged) if done.changed]
    assert not git(repo.root, "status", "--porcelain")
    # What is gone here comes back; its commit stays.
    (repo.root / "i4").unlink()
    (done,) = repo.update(["i4.dvc"])
    assert done.changed and (repo.root / "i4").read_text() == "code"
    assert not git(repo.root, "status", "--porcelain")
    # Another branch is the user's word.
    git(source.root, "branch", "next")
    (done,) = repo.update(["i4.dvc"], rev="next")
    assert done.changed and "rev: next" in (repo.root / "i4.dvc").read_text()
    # A commit that is gone is replaced, since nothing could be fetched from it any more.
    last = git(source.root, "rev-parse", "HEAD")
    for command in (
        ["checkout", "-q", "--orphan", "anew"],
        ["branch", "-qD", "main", "next"],
        ["commit", "-qm", "n"],
    ):
        git(source.root, *command)
    git(source.root, "reflog", "expire", "--expire=now", "--all")
    git(source.root, "gc", "-q", "--prune=now")
    assert not changed_sources(repo, [o for o in repo.outputs() if o.path == "i1"])
    (done,) = repo.update(["i1.dvc"])
    assert done.changed and git(source.root, "rev-parse", "HEAD") in (repo.root / "i1.dvc").read_text()
    assert last not in (repo.root / "i1.dvc").read_text()
    capsys.readouterr()
    assert main(["status", "--json", "i1.dvc"]) == 0 and capsys.readouterr().out == "{}\n"


def test_an_update_without_data_and_a_pull_of_it(source: Repo, repo: Repo) -> None:
    repo.import_(str(source.root), "data")
    lay(source.root, {"data/a": "new"})
    source.add(["data"])
    commit(source.root)
    repo.update(["data.dvc"], no_download=True)
    assert not (repo.root / "data").exists()
    assert repo.outputs()[0].digest is None
    assert repo.pull().checkout.added == ("data/",)
    assert (repo.root / "data/a").read_text() == "new"
    # What was changed since is not overwritten, nor is the content asked for again.
    lay(repo.root, {"data/a": "by hand"})
    shutil.rmtree(source.root)
    with pytest.raises(OutputChangedError):
        repo.pull()
    repo.pull(force=True)
    assert (repo.root / "data/a").read_text() == "new"


def test_an_import_of_an_import_and_of_a_folder_of_both(source: Repo, repo: Repo, tmp_path: Path) -> None:
    middle = make(tmp_path / "middle")
    (middle.root / "all").mkdir()
    middle.import_(str(source.root), "data", "all/data")
    lay(middle.root, {"all/plain": "p"})
    commit(middle.root)
    shutil.rmtree(middle.cache.root)
    repo.import_(str(middle.root), "all")
    assert {n: t for n, t in contents(repo.root / "all").items() if n != ".gitignore"} == {
        "data/a": "a",
        "data/sub/b": "b",
        "plain": "p",
    }


def test_one_source_that_is_gone_keeps_no_other_from_arriving(
    source: Repo, repo: Repo, tmp_path: Path
) -> None:
    lay(tmp_path, {"out/f": "f"})
    lay(repo.root, {"mine": "m"})
    repo.add(["mine"])
    repo.push()
    repo.import_url(str(tmp_path / "out/f"), options=ImportUrlOptions(no_download=True))
    repo.import_(str(source.root), "one")
    shutil.rmtree(source.root)
    shutil.rmtree(repo.cache.root)
    (repo.root / "mine").unlink()
    (repo.root / "one").unlink()
    with pytest.raises(TransferError) as caught:
        repo.pull()
    assert set(caught.value.failures) == {"one"}
    assert (repo.root / "mine").read_text() == "m"
    assert (repo.root / "f").read_text() == "f"


def test_an_import_of_data_that_was_replaced_at_its_source_is_refused(source: Repo, repo: Repo) -> None:
    """The commit says what it was; a `.dvc` file that says otherwise was edited."""
    repo.import_(str(source.root), "one")
    file = repo.root / "one.dvc"
    file.write_text(file.read_text().replace(repo.version("one").digest, "a" * 32))
    with pytest.raises(TransferError, match=r"not the imported a{32}"):
        repo.fetch()


def test_a_relative_source_is_found_from_any_folder(
    source: Repo, repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repo.root / "deep/er").mkdir(parents=True)
    monkeypatch.chdir(repo.root / "deep/er")
    assert main(["import", "-q", "../../../source", "one"]) == 0
    assert repo.outputs()[0].origin.repo["url"] == "../source"  # type: ignore[union-attr, index]
    shutil.rmtree(repo.cache.root)
    assert repo.fetch().files == 1
    lay(repo.root.parent, {"out/f": "f"})
    assert main(["import-url", "-q", "../../../out/f"]) == 0
    assert main(["update", "-q", "f.dvc", "one.dvc"]) == 0
    assert main(["update", "-q", "-R", "."]) == 0


def test_annotations_are_written(repo: Repo, tmp_path: Path) -> None:
    lay(tmp_path, {"out/f": "f"})
    words = ["--desc", "what", "--type", "model", "--label", "a", "--label", "b", "--meta", "k=v"]
    assert main(["import-url", "-q", str(tmp_path / "out/f"), *words]) == 0
    assert (
        (repo.root / "f.dvc")
        .read_text()
        .endswith("  path: f\n  desc: what\n  type: model\n  labels:\n  - a\n  - b\n  meta:\n    k: v\n")
    )
