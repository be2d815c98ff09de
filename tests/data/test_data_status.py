"""The state of the data, what is asked of remotes for it, and what it leaves alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect.data.remotes.remote import Remote
from dvkf_prefect.data.upkeep.doctor import Check, check_health
from dvkf_prefect.data.verbs.data_status import Changes, DataStatus
from dvkf_prefect.errors import DvkfError, OutputError, RemoteNotFoundError
from dvkf_prefect.repo import Repo


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    root = tmp_path / "repo"
    made = make_repo(root)
    with made.config.edit() as sections:
        sections["remote"]["store"] = {"url": str(tmp_path / "store")}
        sections["remote"]["other"] = {"url": str(tmp_path / "elsewhere")}
        sections["core"]["remote"] = "store"
    made = Repo(root)
    write(root, {"data/a": "a", "data/s/b": "b", "one": "o"})
    made.add(["data", "one"])
    commit(made)
    return made


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def commit(repo: Repo) -> None:
    assert repo.git
    repo.git.run("add", "-A")
    repo.git.run("commit", "-q", "-m", "state")


def snapshot(folder: Path) -> dict[str, tuple[int, bytes | str]]:
    """Every file below a folder, but what git keeps and what may be lost at any time."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for place, folders, names in os.walk(os.fsencode(folder)):
        folders[:] = [name for name in folders if name not in (b".git", b"tmp", b"tmp-dvkf")]
        for name in names:
            path = os.path.join(place, name)
            content: bytes | str
            if not os.path.isfile(path) or os.path.islink(path):
                content = os.fsdecode(os.readlink(path)) if os.path.islink(path) else ""
            else:
                with open(path, "rb") as stream:
                    content = stream.read()
            found[os.fsdecode(path)] = (os.lstat(path).st_mode, content)
    return found


def test_a_clean_repository_is_false_and_empty(repo: Repo) -> None:
    found = repo.data_status()
    assert not found
    assert found == DataStatus(unchanged=("data/", "one"))
    assert found.as_dict(unchanged=False) == {}


def test_each_state_is_told_apart(repo: Repo) -> None:
    (repo.root / "one").rename(repo.root / "moved")
    (repo.root / "one.dvc").unlink()
    repo.add(["moved"])
    write(repo.root, {"data/a": "changed", "data/new": "n", "loose": "l"})
    found = repo.data_status(granular=True, untracked=True)
    assert found.committed == Changes(renamed=(("one", "moved"),))
    assert found.uncommitted == Changes(added=("data/new",), modified=("data/", "data/a"))
    assert found.untracked == ("loose", "moved.dvc")
    assert found.unchanged == ("data/s/b",)
    assert found.git_dirty
    assert repo.data_status(["data/s"], granular=True).unchanged == ("data/s/b",)
    assert not repo.data_status(["data/s"], granular=True)
    assert repo.data_status(["moved.dvc"]).committed.added == ("moved",)


def test_a_remote_is_asked_once_for_all_that_are_on_it(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    write(repo.root, {f"many/{n}": str(n) for n in range(300)})
    repo.add(["many"])
    repo.push()
    asked: list[int] = []
    missing = Remote.missing

    def counted(remote: Remote, digests: Iterable[str], *args: str, **options: int) -> set[str]:
        asked.append(len(set(digests)))
        return missing(remote, digests, *args, **options)

    monkeypatch.setattr(Remote, "missing", counted)
    assert repo.data_status(granular=True, not_in_remote=True).not_in_remote == ()
    assert asked == [305]


def test_without_a_refresh_it_goes_by_the_last_look(repo: Repo, tmp_path: Path) -> None:
    def lost(*, refresh: bool = True, remote: str | None = None) -> tuple[str, ...]:
        return repo.data_status(not_in_remote=True, remote_refresh=refresh, remote=remote).not_in_remote

    assert lost(refresh=False) == ("data/", "one")
    repo.push()
    assert lost(refresh=False) == ("data/", "one")
    assert lost() == ()
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").mkdir()
    assert lost(refresh=False) == ()
    assert lost(remote="other", refresh=False) == ("data/", "one")
    assert lost() == lost(refresh=False) == ("data/", "one")


def test_without_any_remote_nothing_is_on_one(repo: Repo) -> None:
    with repo.config.edit() as sections:
        sections["core"].pop("remote")
    plain = Repo(repo.root)
    assert plain.data_status(not_in_remote=True).not_in_remote == ("data/", "one")
    with pytest.raises(RemoteNotFoundError, match="nope"):
        plain.data_status(not_in_remote=True, remote="nope")


# -- what cannot be tracked --------------------------------------------------------------------------------------------


def _ignore_file(folder: Path) -> None:
    (folder / "s/.dvcignore").write_text("x\n")


def _broken_link(folder: Path) -> None:
    (folder / "s/gone").symlink_to("nowhere")


def _folder_link(folder: Path) -> None:
    (folder / "s/dir").symlink_to(folder.parent)


def _odd_name(folder: Path) -> None:
    with open(os.fsencode(folder) + b"/s/\xff\xfe", "wb"):
        pass


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "s/pipe")


@pytest.mark.parametrize(
    ("spoil", "names", "next_step"),
    [
        (_ignore_file, r"data/s/\.dvcignore", "Move its patterns to a .dvcignore above it"),
        (_broken_link, r"data/s/gone", "Remove it, or leave it out with .dvcignore"),
        (_folder_link, r"data/s/dir", "Replace it by the directory, or leave it out with .dvcignore"),
        (_odd_name, r"data/s/\\xff\\xfe", "Rename the file"),
        (_pipe, r"data/s/pipe", "not a regular file"),
    ],
)
@pytest.mark.parametrize("verb", ["add", "commit", "status", "data_status", "diff", "checkout"])
def test_what_cannot_be_tracked_stops_a_verb_before_it_touches_anything(
    repo: Repo, verb: str, spoil: Callable[[Path], None], names: str, next_step: str
) -> None:
    """The error names the file and the next step; the cache, the workspace and the .dvc files are as they were."""
    write(repo.root, {"data/a": "changed", "data/z": "after it in the order of names"})
    spoil(repo.root / "data")
    before = snapshot(repo.root)
    if (verb, spoil) == ("status", _folder_link):
        # As with DVC: what else there is to say is said.
        assert [change.path for change in repo.status().changes] == ["data"]
        assert snapshot(repo.root) == before
        return
    with pytest.raises(OutputError, match=names) as raised:
        repo.add(["data"]) if verb == "add" else getattr(repo, verb)()
    assert next_step in str(raised.value)
    assert snapshot(repo.root) == before


@pytest.mark.parametrize("spoil", [_ignore_file, _broken_link, _folder_link, _odd_name])
def test_a_new_directory_that_cannot_be_tracked_leaves_no_trace(
    repo: Repo, spoil: Callable[[Path], None]
) -> None:
    write(repo.root, {"new/a": "content that is nowhere else", "new/s/b": "b"})
    spoil(repo.root / "new")
    before = snapshot(repo.root)
    with pytest.raises(OutputError):
        repo.add(["new"])
    assert snapshot(repo.root) == before


# -- health ------------------------------------------------------------------------------------------------------------


def states(repo: Repo) -> dict[str, str]:
    return {check.name: check.state for check in check_health(Repo(repo.root))}


def test_a_repository_in_order_has_nothing_to_tell(repo: Repo) -> None:
    repo.push()
    assert set(states(repo).values()) == {"ok"}
    before = snapshot(repo.root)
    check_health(repo)
    assert snapshot(repo.root) == before


def test_each_trouble_is_found_and_has_a_next_step(repo: Repo, tmp_path: Path) -> None:
    repo.push()
    (repo.root / ".gitignore").write_text("/data\n")
    next(p for p in (repo.root / ".dvc/cache/files").rglob("*") if p.name.endswith(".dir")).unlink()
    damaged = repo.cache.temporary("corrupt-" + "0" * 32)
    damaged.write_bytes(b"")
    (tmp_path / "store").rename(tmp_path / "gone")
    assert repo.git
    repo.git.run("add", "-f", "data/a")
    with repo.lock():
        found = {check.name: check for check in check_health(Repo(repo.root))}
    assert {name: check.state for name, check in found.items() if check.state != "ok"} == {
        "lock": "warn",
        "temporary files": "warn",
        "tracked data": "warn",
        "git ignores the data": "fail",
        "remote": "warn",
    }
    assert f"process {os.getpid()} holds" in found["lock"].found
    assert all(check.next_step for check in found.values() if check.state != "ok")
    repo.git.run("rm", "-q", "--cached", "data/a")
    loose = next(check for check in check_health(repo) if check.name == "git ignores the data")
    assert loose == Check(
        "git ignores the data", "warn", "one not ignored by git", "add it to the .gitignore beside it"
    )


def test_a_remote_that_does_not_answer_and_a_file_that_does_not_parse_fail(repo: Repo) -> None:
    with repo.config.edit() as sections:
        sections["remote"]["store"] = {
            "url": "s3://bucket/x",
            "endpointurl": "http://127.0.0.1:9",
            "access_key_id": "k",
            "secret_access_key": "not-to-be-seen",
            "region": "r",
        }
    (repo.root / "bad.dvc").write_text("outs: 1\n")
    found = {check.name: check for check in check_health(Repo(repo.root))}
    assert found["remote"].state == found["tracked data"].state == "fail"
    assert "bad.dvc" in str(found["tracked data"])
    assert "not-to-be-seen" not in str(found["remote"])
    assert "remote" not in {check.name for check in check_health(Repo(repo.root), remote=False)}
    with pytest.raises(DvkfError):
        repo.outputs()
