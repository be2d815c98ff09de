"""The comparison of two versions, path by path."""

from __future__ import annotations

from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.verbs.diff import PathFilter, State, difference
from dvkf_prefect.errors import OutputNotFoundError
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.repo import Repo

A, B, C = ("a" * 32, "b" * 32, "c" * 32)


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    root = tmp_path / "repo"
    made = make_repo(root)
    for name, text in {"data/a": "a", "data/s/b": "b", "data/s/c": "c", "one": "o"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    made.add(["data", "one"])
    commit(made)
    return made


def commit(repo: Repo) -> None:
    assert repo.git
    repo.git.run("add", "-A")
    repo.git.run("commit", "-q", "-m", "state")


def test_what_moved_is_paired_first_with_first_in_the_order_of_folders() -> None:
    """`a/x` comes before `a-b/x` for DVC, which compares name by name; by the whole text it is the other way round."""
    found = difference(State({"a-b/x": A, "a/x": A, "z": B}), State({"m": A, "n": A, "z": C}))
    assert found.moved == [("a/x", "m"), ("a-b/x", "n")]
    assert (found.added, found.deleted, found.modified) == ([], [], {"z"})


def test_content_that_came_twice_moved_once() -> None:
    found = difference(State({"old": A}), State({"new": A, "other": A}))
    assert (found.moved, found.added, found.deleted) == ([("old", "new")], ["other"], [])


def test_nothing_is_said_of_what_lies_in_a_directory_that_nobody_knows() -> None:
    old = State({"data": f"{A}.dir", "one": A}, ["data"])
    new = State({"data": f"{B}.dir", "data/x": A, "one": A})
    found = difference(old, new)
    assert (found.modified, found.unknown, found.same) == ({"data"}, {"data/x"}, {"one"})
    assert not found.added


def test_content_of_dvc_2_is_never_the_same_as_of_dvc_3() -> None:
    """The two hash text in different ways; an equal number is another content."""

    def pick(digests: set[str], name: str) -> set[str]:
        asked[name] = digests
        return digests

    asked: dict[str, set[str]] = {}
    state = State({"old": f"md5-dos2unix:{A}", "new": A})
    assert difference(state, State({"old": A, "new": A})).modified == {"old"}
    assert state.which(pick) == {f"md5-dos2unix:{A}", A}
    assert asked == {"md5": {A}, "md5-dos2unix": {A}}


@pytest.mark.parametrize(
    ("targets", "has", "lost"),
    [
        ([], ["data", "data/a", "one"], []),
        (["data"], ["data", "data/a"], []),
        (["data/s/"], ["data/s/x"], []),
        (["data.dvc", "nope"], ["data", "data/a"], ["nope"]),
        (["da"], [], ["da"]),
    ],
)
def test_targets_are_paths_parts_of_them_and_what_describes_them(
    targets: list[str], has: list[str], lost: list[str]
) -> None:
    wanted = PathFilter(targets)
    wanted.of(
        [Output("data", Content(f"{A}.dir"), source="data.dvc"), Output("one", Content(B), source="one.dvc")]
    )
    assert [path for path in ("data", "data/a", "data/s/x", "one") if wanted.has(path)] == sorted(
        {*has, *(["data/s/x"] if "data" in has else [])}
    )
    assert wanted.lost() == lost


def test_a_part_of_a_directory_is_compared_alone(repo: Repo) -> None:
    (repo.root / "data/s/b").write_text("changed")
    (repo.root / "data/a").rename(repo.root / "data/s/a")
    found = repo.diff("HEAD", None, ["data/s"])
    assert [entry.path for entry in found.modified] == ["data/s/b"]
    assert [entry.path for entry in found.added] == ["data/s/a"]
    assert not found.renamed
    with pytest.raises(OutputNotFoundError, match=r"^nope: not an output at HEAD nor at the workspace\.$"):
        repo.diff("HEAD", None, ["data", "nope"])


def test_of_two_revisions_only_what_differs_is_read(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory with the same digest on both sides cannot differ inside."""
    (repo.root / "one").write_text("other")
    repo.add(["one"])
    commit(repo)
    read: list[str] = []
    path = Cache.path

    def counted(cache: Cache, digest: str, hash_name: str = "md5") -> Path:
        read.append(digest)
        return path(cache, digest, hash_name)

    monkeypatch.setattr(Cache, "path", counted)
    assert [entry.path for entry in repo.diff("HEAD~1", "HEAD").modified] == ["one"]
    assert not [digest for digest in read if digest.endswith(".dir")]


def test_a_file_in_place_of_a_folder_is_told_of_by_what_was_in_it(repo: Repo) -> None:
    (repo.root / "data/s/b").unlink()
    (repo.root / "data/s/c").unlink()
    (repo.root / "data/s").rmdir()
    (repo.root / "data/s").write_text("s")
    found = repo.diff()
    assert [entry.path for entry in found.deleted] == ["data/s/b", "data/s/c"]
    assert not found.added
