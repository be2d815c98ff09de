"""The flow `ingest`: what passes reaches the dataset, once; what fails is put aside, with a report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from repos import git, make_repo

from dvkf_prefect import quality_reports
from dvkf_prefect.blocks import DvcRemote, DvcRepository
from dvkf_prefect.cards import artifact_key
from dvkf_prefect.flows import ingest, ingestion
from dvkf_prefect.repo import Repo

from .test_events import events

Artifacts = Callable[[str], list[Any]]

SCHEMA = """\
columns:
  id: {dtype: int64, unique: true, checks: {greater_than: 0}}
  zip: {dtype: str, checks: {str_matches: '^[0-9]{5}$'}}
strict: true
"""
OPTIONS: dict[str, Any] = {
    "dataset": "data/users",
    "table_schema": "schemas/users.yaml",
    "settle_seconds": 0,
}


@pytest.fixture
def users(tmp_path: Path) -> Repo:
    """A repository with a schema and no data, and an inbox outside of it."""
    (tmp_path / "inbox").mkdir()
    made = make_repo(
        tmp_path / "users", {"schemas/users.yaml": SCHEMA}, remote=tmp_path / "store", commit="One"
    )
    return Repo.open(made.root)


def put(inbox: Path, name: str, *rows: str) -> None:
    (inbox / name).write_text("\n".join(["id,zip", *rows, ""]))


def test_new_files_are_checked_added_pushed_committed_and_announced(
    users: Repo, tmp_path: Path, prefect_server: None, artifacts: Artifacts
) -> None:
    inbox = tmp_path / "inbox"
    block = DvcRepository(path=str(users.root), label="ingested")
    put(inbox, "a.csv", "1,01234")
    put(inbox, "bad.csv", "1,01234", "-2,5", "3,6")
    block.save("ingested", overwrite=True)
    shown = ingest("ingested", str(inbox), dry_run=True, return_state=True, **OPTIONS)
    assert (shown.name, sorted(path.name for path in inbox.iterdir())) == (
        "Quarantined",
        ["a.csv", "bad.csv"],
    )
    assert not (users.root / "quality-reports").exists()

    state = ingest("ingested", str(inbox), return_state=True, **OPTIONS)
    assert state.name == "Quarantined" and state.is_completed()
    assert "column 'id' greater_than(0), 1 failed: -2" in str(state.message)
    done = state.result()
    assert (done["passed"], list(done["refused"]), list(inbox.iterdir())) == (["a.csv"], ["bad.csv"], [])
    assert git(users.root, "log", "-1", "--format=%s", done["commit"]) == "Ingest 1 file into data/users"
    assert git(users.root, "status", "--porcelain") == ""
    # The report of the version, found by the commit; and that of the refused file, beside it.
    (report,) = quality_reports(users, "data/users", rev=done["commit"])["data/users/a.csv"]
    assert report.passed and report.rows == 1
    (aside,) = [path for path in (tmp_path / "inbox-quarantine").iterdir() if path.suffix == ".csv"]
    assert aside.read_text().count("\n") == 4
    found = json.loads(aside.with_name(f"{aside.name}.report.json").read_text())
    assert (found["path"], found["report"]["failed_rows"], found["report"]["sample"][0]) == (
        "bad.csv",
        2,
        ["1", "-2", "5"],
    )
    assert users.verify() and users.cloud_status() == {}
    pushed = [each for each in events("ingested", 2) if each["resource"]["dvkf.path"] == "data/users"]
    assert [each["payload"]["revision"] for each in pushed] == [done["commit"]]
    first, second = artifacts(artifact_key("incoming", "ingested", "data/users"))
    assert "1 to move to quarantine" in first.description and "1 in quarantine" in second.description
    assert "greater\\_than" in second.data or "greater_than" in second.data


STEPS = ("add_incoming", "push_data", "commit_results", "push_commits", "announce_data", "clear_incoming")


@pytest.mark.parametrize(
    "before",
    [each if each == "commit_results" else pytest.param(each, marks=pytest.mark.long) for each in STEPS],
)
def test_a_killed_run_is_continued(
    before: str, users: Repo, tmp_path: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = tmp_path / "inbox"
    block = DvcRepository(path=str(users.root), label=f"killed-{STEPS.index(before)}")
    put(inbox, "a.csv", "1,01234")
    put(inbox, "bad.csv", "-1,01234")

    def killed(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ingestion, before, killed)
        with pytest.raises(BaseException):  # noqa: B017
            ingest(block, str(inbox), **OPTIONS)
    assert (inbox / "a.csv").exists()
    ingest(block, str(inbox), **OPTIONS)
    assert list(inbox.iterdir()) == []
    assert git(users.root, "status", "--porcelain") == ""
    assert quality_reports(users, "data/users", rev="HEAD")["data/users/a.csv"]
    assert len({*quality_reports(users, "quality-reports", rev="HEAD")}) == 2
    pushed = [each for each in events(block.name, 2) if each["resource"]["dvkf.path"] == "data/users"]
    assert len(pushed) == 1


@pytest.mark.long
def test_a_worker_without_the_data_ingests_by_a_git_url(
    users: Repo, tmp_path: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh clone adds to the dataset, whose files it does not have, and pushes data and commit."""
    inbox = tmp_path / "inbox"
    put(inbox, "a.csv", "1,01234")
    ingest(DvcRepository(path=str(users.root), label="first"), str(inbox), **OPTIONS)
    origin = tmp_path / "origin.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(users.root), str(origin))
    monkeypatch.setenv("PREFECT_INTEGRATIONS_DVKF_HOME", str(tmp_path / "home"))
    store = DvcRemote(url=str(tmp_path / "store"))
    block = DvcRepository(path=f"file://{origin}", label="second", remote=store)
    put(inbox, "again.csv", "1,01234")
    put(inbox, "b.csv", "2,01234")
    done = ingest(block, str(inbox), **OPTIONS)
    assert (done["passed"], list(inbox.iterdir())) == (["again.csv", "b.csv"], [])
    assert git(origin, "log", "-1", "--format=%H") == done["commit"]
    git(tmp_path, "clone", "--quiet", str(origin), str(tmp_path / "third"))
    third = Repo.open(tmp_path / "third", config=store.as_config())
    third.pull()
    names = sorted(path.name for path in (third.root / "data/users").iterdir())
    assert names == ["a.csv", "again.csv", "b.csv"]
    assert all(len(reports) == 1 for reports in quality_reports(third, "data/users", rev="HEAD").values())
