"""What a repository is said to hold."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect import cli
from dvkf_prefect.cli.tables import markdown_table, natural_size, plain_table
from dvkf_prefect.data.verbs.ls import Listed, Usage, disk_usage, file_tree, list_files
from dvkf_prefect.errors import MissingObjectError, OutputNotFoundError
from dvkf_prefect.repo import Repo


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    root = tmp_path / "repo"
    made = make_repo(root)
    for name, text in {"data/a": "a", "data/s/b": "bb", "sub/one": "one", "plain.py": "p" * 10}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    made.add(["data", "sub/one"])
    return Repo(root)


def paths(entries: list[Listed]) -> list[str]:
    return [entry.path for entry in entries]


def test_tracked_data_is_listed_whether_or_not_it_is_there(repo: Repo) -> None:
    here = [entry for entry in list_files(repo, recursive=True) if entry.isout]
    shutil.rmtree(repo.root / "data")
    (repo.root / "sub/one").unlink()
    away = list_files(repo, recursive=True, tracked_only=True)
    assert paths(here) == paths(away) == ["data/a", "data/s/b", "sub/one"]
    assert [e.digest for e in here] == [e.digest for e in away]
    # How long a file in a directory is, a manifest does not say.
    assert [e.size for e in here] == [1, 2, 3]
    assert [e.size for e in away] == [None, None, 3]


def test_what_lies_in_the_place_of_data_is_what_is_listed(repo: Repo) -> None:
    shutil.rmtree(repo.root / "data")
    (repo.root / "data").write_text("a file now")
    listed = next(entry for entry in list_files(repo) if entry.path == "data")
    assert (listed.isdir, listed.size) == (False, 10)
    with pytest.raises(OutputNotFoundError, match="data/a"):
        list_files(repo, "data/a")


def test_a_directory_that_nobody_knows_is_listed_by_what_is_there_of_it(repo: Repo) -> None:
    shutil.rmtree(repo.root / ".dvc/cache")
    assert paths(list_files(repo, "data", recursive=True)) == ["a", "s/b"]
    shutil.rmtree(repo.root / "data")
    with pytest.raises(MissingObjectError, match=r"the files of 'data' are unknown.*dvkf push"):
        list_files(repo, "data")
    assert "data" in paths(list_files(repo))


def test_depth_and_trees(repo: Repo) -> None:
    assert paths(list_files(repo, "data", recursive=True, depth=1)) == ["a", "s"]
    assert paths(list_files(repo, "data", recursive=True, depth=0)) == ["data"]
    assert paths(list_files(repo, "data/s/b")) == ["b"]
    top = file_tree(repo, "data")
    assert [(node.listed.path, [child.listed.path for child in node.nodes]) for node in top.nodes] == [
        ("a", []),
        ("s", ["b"]),
    ]
    assert file_tree(repo, "data", depth=1).nodes[1].nodes == ()


def test_usage_counts_what_is_recorded_where_it_is_not_there(repo: Repo) -> None:
    shutil.rmtree(repo.root / "data")
    found = disk_usage(repo)
    # Files that only describe data are not data.
    size = (repo.root / ".gitignore").stat().st_size
    inside = (repo.root / "sub/.gitignore").stat().st_size
    assert found == [
        Usage(".gitignore", size),
        Usage("data", 3),
        Usage("plain.py", 10),
        Usage("sub", inside + 3),
        Usage("", size + 3 + 10 + inside + 3),
    ]
    assert disk_usage(repo, summarize=True) == found[-1:]
    assert disk_usage(repo, "data", depth=2) == [
        Usage("data/a", 1),
        Usage("data/s/b", 2),
        Usage("data/s", 2),
        Usage("data", 3),
    ]


def test_no_path_leaves_the_repository(repo: Repo, capsys: pytest.CaptureFixture[str]) -> None:
    (repo.root.parent / "secret").write_text("s")
    for path in ("../secret", "/etc", "data/../../secret"):
        assert cli.main(["list", str(repo.root), path]) == 1
        assert cli.main(["du", str(repo.root), path]) == 255
    said = capsys.readouterr()
    assert "secret\n" not in said.out
    assert said.err.count("lies outside the repository") == 6


def test_version_and_doctor(
    repo: Repo, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(repo.root)
    assert cli.main(["version"]) == 0
    said = capsys.readouterr().out
    for line in (
        "dvkf version: ",
        "Cache types: ",
        "Caches: local",
        "Remotes: None",
        "Repo: dvc, git",
        "\ts3 (obstore = ",
    ):
        assert line in said
    assert cli.main(["doctor"]) == 0
    checked = capsys.readouterr().out
    assert checked.startswith(said)
    assert "warn remote: no default remote is set; add one with `dvkf remote add -d NAME URL`" in checked
    (repo.root / "bad.dvc").write_text("outs: 1\n")
    assert cli.main(["doctor", "-q"]) == 1
    (repo.root / ".dvc/config").write_text("[core]\n    surprise = 1\n")
    capsys.readouterr()
    assert cli.main(["doctor"]) == 1
    assert "fail settings: " in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert cli.main(["version"]) == 0
    assert "Repo: " not in capsys.readouterr().out


def test_tables() -> None:
    assert plain_table([["1", None, "a"], ["1000", "xy", ""]], right=True) == "   1  -   a\n1000  xy"
    assert plain_table([["日本", "a"], ["x", "b"]]) == "日本  a\nx     b"
    assert markdown_table(("Status", "Path"), [("added", "a-long-path")]) == (
        "| Status   | Path        |\n|----------|-------------|\n| added    | a-long-path |\n"
    )


@pytest.mark.parametrize(
    "size", [0, 1, 1023, 1024, 1500, 10_239, 10_240, 102_350, 999_999, 1_048_576, 5 * 10**9, 10**15]
)
def test_sizes_read_as_dvcs(size: int) -> None:
    from dvc.utils.humanize import naturalsize

    assert natural_size(size) == naturalsize(size)
