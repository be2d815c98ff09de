"""Files on their way into a dataset: checked once, added whole, put aside, and never lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from repos import git, make_repo
from servers import S3Server

from dvkf_prefect.data.quality import incoming as module
from dvkf_prefect.data.quality.incoming import Incoming, add_incoming, check_incoming, clear_incoming
from dvkf_prefect.data.quality.reports import QualityReport, quality_reports
from dvkf_prefect.data.quality.schemas import load_schema
from dvkf_prefect.errors import ConfigError, OutputChangedError, OutputError, OutputNotFoundError
from dvkf_prefect.files import temporary_name
from dvkf_prefect.repo import Repo

YAML = """\
columns:
  id: {dtype: int64, unique: true, checks: {greater_than: 0}}
  zip: {dtype: str, checks: {str_matches: '^[0-9]{5}$'}}
strict: true
"""
MODEL = """\
from __future__ import annotations

import pandera.pandas as pa
from pandera.typing import Series


class Users(pa.DataFrameModel):
    id: Series[int] = pa.Field(gt=0, unique=True)
    zip: Series[str] = pa.Field(str_matches="^[0-9]{5}$")

    class Config:
        strict = True
"""


@pytest.fixture
def users(tmp_path: Path) -> Repo:
    (tmp_path / "in").mkdir()
    files = {"schemas/users.yaml": YAML, "schemas/users.py": MODEL}
    return make_repo(tmp_path / "users", files, remote=tmp_path / "store", commit="Schemas")


def put(repo: Repo, name: str, *rows: str, head: str = "id,zip") -> Path:
    file = repo.root.parent / "in" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([head, *rows, ""]))
    return file


def check(repo: Repo, **options: Any) -> Incoming:
    given: dict[str, Any] = {"schema": "schemas/users.yaml", "settle": 0, **options}
    return check_incoming(repo, repo.root.parent / "in", "data/users", **given)


def verdicts(found: Incoming) -> dict[str, str]:
    return {file.path: file.verdict for file in found.files}


def take(repo: Repo, **options: Any) -> Incoming:
    """Check, add, commit and clear, as the flow does."""
    found = check(repo, **options)
    add_incoming(repo, found)
    git(repo.root, "add", "--all")
    git(repo.root, "commit", "--quiet", "--allow-empty", "--message", "Take")
    clear_incoming(repo, found)
    return found


def test_a_report_tells_checks_rows_values_and_columns(users: Repo) -> None:
    put(users, "a.csv", "1,01234", "-2,01234", "1,x", head="id,zip")
    put(users, "b.csv", "1,01234,9", head="id,zip,more")
    put(users, "c.csv", "1", head="id")
    found = check(users)
    assert set(verdicts(found).values()) == {"failed"}
    a, b, c = (file.report for file in found.files)
    assert a is not None and b is not None and c is not None
    assert [(each.column, each.check, each.count, each.rows, each.values) for each in a.failed] == [
        ("id", "field_uniqueness", 2, (0, 2), ("1",)),
        ("id", "greater_than(0)", 1, (1,), ("-2",)),
        ("zip", "str_matches('^[0-9]{5}$')", 1, (2,), ("x",)),
    ]
    assert (a.rows, a.columns, a.failed_rows) == (3, ("id", "zip"), 3)
    assert a.sample == (("0", "1", "01234"), ("1", "-2", "01234"), ("2", "1", "x"))
    assert str(b.failed[0]) == "column_in_schema, 1 failed: more" and b.failed_rows == 0
    assert str(c.failed[0]) == "column_in_dataframe, 1 failed: zip"
    assert QualityReport.from_bytes(a.to_bytes()) == a


@pytest.mark.parametrize("schema", ["schemas/users.py:Users", "schemas/users.json"])
def test_schemas_as_pandera_users_write_them(schema: str, users: Repo) -> None:
    from pandera.io.pandas_io import from_yaml

    (users.root / "schemas/users.json").write_text(from_yaml(YAML).to_json())
    put(users, "a.csv", "1,01234")
    put(users, "b.csv", "-1,01234")
    pd.DataFrame({"id": [5], "zip": ["00001"]}).to_parquet(users.root.parent / "in/c.parquet")
    put(users, "d.csv.gz", "1,01234")  # not compressed
    assert verdicts(check(users, schema=schema)) == {
        "a.csv": "passed",
        "b.csv": "failed",
        "c.parquet": "passed",
        "d.csv.gz": "failed",
    }


@pytest.mark.parametrize(
    ("schema", "error", "message"),
    [
        ("schemas/none.yaml", OutputNotFoundError, "is not in"),
        ("schemas/users.py", ConfigError, "Give FILE.yaml, FILE.json or FILE.py:NAME"),
        ("schemas/users.py:None_", ConfigError, "the module has no 'None_'"),
        ("schemas/users.py:Seires", ConfigError, "Did you mean 'Series'"),
        ("schemas/users.py:Series", ConfigError, "Series is no schema"),
        ("schemas/broken.yaml", ConfigError, "Correct the schema"),
        ("../outside.yaml", OutputError, "outside"),
    ],
)
def test_wrong_schemas_name_the_next_step(
    schema: str, error: type[Exception], message: str, users: Repo
) -> None:
    (users.root / "schemas/broken.yaml").write_text("columns: {id: {dtype: nothing}}")
    with pytest.raises(error, match=message):
        load_schema(users, schema)


def test_checks_cannot_be_switched_off(users: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by a variable of the environment, nor by a schema that drops the rows it refuses."""
    monkeypatch.setenv("PANDERA_VALIDATION_ENABLED", "false")
    (users.root / "schemas/lax.yaml").write_text(YAML + "drop_invalid_rows: true\n")
    put(users, "a.csv", "-1,01234")
    code = (
        "import sys; from dvkf_prefect import Repo; from dvkf_prefect.data.quality.incoming import check_incoming\n"
        "for schema in ('users', 'lax'):\n"
        "    found = check_incoming(Repo.open('.'), '../in', 'd', f'schemas/{schema}.yaml', settle=0, dry_run=True)\n"
        "    print(found.files[0].verdict)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=users.root, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["failed", "failed"]


def test_equal_bytes_are_checked_once_in_every_clone(users: Repo, tmp_path: Path) -> None:
    put(users, "a.csv", "1,01234")
    put(users, "b.csv", "-1,01234")
    first = take(users)
    assert [file.checked for file in first.files] == [True, True]
    users.push()
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(users.root), str(clone))
    other = Repo.open(clone)
    put(other, "again.csv", "1,01234")
    put(other, "bad.csv", "-1,01234")
    put(other, "new.csv", "2,01234")
    put(other, "new.tsv", "2,01234")  # the same bytes as another format are another table
    found = take(other)
    assert {file.path: (file.verdict, file.checked) for file in found.files} == {
        "again.csv": ("passed", False),
        "bad.csv": ("failed", False),
        "new.csv": ("passed", True),
        "new.tsv": ("failed", True),
    }
    # The clone had no data of the dataset, and got no more than the new files.
    assert sorted(path.name for path in (clone / "data/users").iterdir()) == ["again.csv", "new.csv"]
    assert list(quality_reports(other, "data/users", rev="HEAD")) == [
        "data/users/a.csv",
        "data/users/again.csv",
        "data/users/new.csv",
    ]
    other.push()
    assert all(len(reports) == 1 for reports in quality_reports(other, "data/users", rev="HEAD").values())
    # Another schema is another question.
    put(other, "again2.csv", "1,01234")
    assert [file.checked for file in check(other, schema="schemas/users.py:Users", dry_run=True).files] == [
        True
    ]


def test_only_what_passed_reaches_the_dataset(users: Repo) -> None:
    inbox = users.root.parent / "in"
    put(users, "a.csv", "1,01234")
    take(users)
    (users.root / "data/users/mine.csv").write_text("not checked\n")
    put(users, "sub/b.csv", "2,01234")
    put(users, "_hidden.csv", "2,01234")
    put(users, ".part/c.csv", "2,01234")
    put(users, "ignored.csv", "2,01234")
    (users.root / ".dvcignore").write_text("ignored.csv\n")
    users = Repo.open(users.root)
    (inbox / "link.csv").symlink_to("/etc/passwd")
    found = take(users)
    assert (verdicts(found), found.skipped) == ({"sub/b.csv": "passed"}, ("ignored.csv", "link.csv"))
    assert list(quality_reports(users, "data/users", rev="HEAD")) == [
        "data/users/a.csv",
        "data/users/sub/b.csv",
    ]
    assert sorted(path.name for path in inbox.rglob("*.csv")) == [
        "_hidden.csv",
        "c.csv",
        "ignored.csv",
        "link.csv",
    ]


def test_another_content_of_a_path_is_refused_or_replaces_it(users: Repo) -> None:
    put(users, "a.csv", "1,01234")
    take(users)
    put(users, "a.csv", "1,01234")
    assert verdicts(take(users)) == {"a.csv": "known"}
    put(users, "a.csv", "2,01234")
    found = take(users)
    assert verdicts(found) == {"a.csv": "taken"}
    aside = Path(found.files[0].place)
    assert aside.read_text() == "id,zip\n2,01234\n"
    os.rename(aside, users.root.parent / "in/a.csv")
    assert verdicts(take(users, existing="replace")) == {"a.csv": "passed"}
    assert (users.root / "data/users/a.csv").read_text() == "id,zip\n2,01234\n"
    # Content that is nowhere else is not replaced.
    (users.root / "data/users/a.csv").unlink()
    (users.root / "data/users/a.csv").write_text("mine\n")
    put(users, "a.csv", "3,01234")
    with pytest.raises(OutputChangedError):
        take(users, existing="replace")
    assert (users.root / "data/users/a.csv").read_text() == "mine\n"


def test_quarantine_keeps_each_content_of_a_name(users: Repo) -> None:
    for row in ("-1,x", "-2,x", "-1,x"):
        put(users, "a.csv", row)
        check(users)
    aside = users.root.parent / "in-quarantine"
    texts = sorted(path.read_text() for path in aside.glob("*.csv"))
    assert texts == ["id,zip\n-1,x\n", "id,zip\n-2,x\n"]
    assert len(list(aside.glob("*.report.json"))) == 2
    (existing,) = [path for path in aside.glob("*.csv") if "-1" in path.read_text()]
    existing.write_text("edited\n")
    file = put(users, "a.csv", "-1,x")
    with pytest.raises(OutputError, match="has other content than"):
        check(users)
    assert file.exists() and existing.read_text() == "edited\n"


def test_files_that_still_change_wait(users: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    file = put(users, "a.csv", "1,01234")
    assert check(users, settle=60).waiting == ("a.csv",)
    found = check(users)
    put(users, "a.csv", "1,01234", "2,01234")
    with pytest.raises(OutputError, match="changed after its check"):
        add_incoming(users, found)
    assert users.outputs() == [] and file.exists()
    found = check(users)
    add_incoming(users, found)
    put(users, "a.csv", "1,01234", "3,01234")
    assert clear_incoming(users, found) == () and file.exists()

    def slow(*args: Any) -> Any:
        put(users, "b.csv", "1,01234", "2,01234")
        return real(*args)

    real = module.check_table
    file.unlink()
    put(users, "b.csv", "7,01234")
    monkeypatch.setattr(module, "check_table", slow)
    assert check(users, dry_run=True).waiting == ("b.csv",)


def test_a_dry_run_changes_nothing(users: Repo) -> None:
    put(users, "a.csv", "1,01234")
    put(users, "b.csv", "x")
    found = check(users, dry_run=True)
    assert verdicts(found) == {"a.csv": "passed", "b.csv": "failed"}
    assert sorted(path.name for path in users.root.parent.iterdir()) == ["in", "users"]
    assert git(users.root, "status", "--porcelain") == ""
    for verb in (add_incoming, clear_incoming):
        with pytest.raises(OutputError, match="dry run"):
            verb(users, found)


def test_places_that_cannot_work_are_refused(users: Repo, tmp_path: Path) -> None:
    inbox = tmp_path / "in"

    def refused(message: str, **options: Any) -> None:
        given: dict[str, Any] = {"inbox": inbox, "dataset": "data/users", **options}
        with pytest.raises(OutputError, match=message):
            check_incoming(users, schema="schemas/users.yaml", settle=0, **given)

    refused("overlap", quarantine=inbox / "bad")
    refused("overlap", inbox=users.root / "data")
    refused("overlap", reports="data/users/reports")
    refused("is no directory", inbox=tmp_path / "none")
    refused("the repository itself", dataset=".")
    (users.root / "one.csv").write_text("id\n")
    users.add(["one.csv"])
    refused("is a file", dataset="one.csv")
    (users.root / "data/users").mkdir(parents=True)
    (users.root / "data/users/mine.csv").write_text("id\n")
    put(users, "a.csv", "1,01234")
    with pytest.raises(OutputError, match=r"has other files: mine.csv. Track it by `dvkf add data/users`"):
        add_incoming(users, check(users))
    assert (inbox / "a.csv").exists()


def test_temporary_files_of_a_killed_run_are_no_files_of_a_new_folder(users: Repo) -> None:
    put(users, "a.csv", "1,01234")
    found = check(users)
    for folder in ("data/users", "quality-reports"):
        (users.root / folder).mkdir(parents=True, exist_ok=True)
        (users.root / folder / temporary_name()).write_bytes(b"id")
    add_incoming(users, found)
    assert users.version("data/users").nfiles == 1 and users.version("quality-reports").nfiles == 1


def test_many_files_make_one_version(users: Repo) -> None:
    for number in range(30):
        put(users, f"{number}.csv", f"{number + 1},01234")
    take(users)
    for number in range(30, 60):
        put(users, f"{number}.csv", f"{number + 1},01234")
    before = len(list(users.cache.root.rglob("*.dir")))
    found = check(users)
    (dataset, reports) = add_incoming(users, found)
    assert (dataset.nfiles, reports.nfiles) == (60, 60)
    # One manifest each of the dataset and of the reports.
    assert len(list(users.cache.root.rglob("*.dir"))) == before + 2


KILLED = """
import os, signal, sys, threading
from dvkf_prefect.data.quality.incoming import add_incoming, check_incoming, clear_incoming
from dvkf_prefect.repo import Repo
import pandera.io.pandas_io

delay = float(sys.argv[1])
if delay:
    threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
repo = Repo.open(".")
found = check_incoming(repo, "../in", "data/users", "schemas/users.yaml", settle=0)
add_incoming(repo, found)
clear_incoming(repo, found)
os._exit(0)
"""


@pytest.mark.long
def test_a_kill_at_any_time_loses_nothing(users: Repo) -> None:
    """The same run is killed again and again, a little later each time, and then ends."""
    inbox = users.root.parent / "in"
    good = {f"good-{number}.csv": f"{number + 1},01234" for number in range(40)}
    bad = {f"bad-{number}.csv": f"{-number - 1},01234" for number in range(20)}
    for name, row in {**good, **bad}.items():
        put(users, name, row)
    ends = set()
    for step in range(1, 13):
        command = [sys.executable, "-c", KILLED, str(step * 0.06)]
        ends.add(subprocess.run(command, cwd=users.root, capture_output=True).returncode)
    assert -9 in ends
    subprocess.run([sys.executable, "-c", KILLED, "0"], cwd=users.root, check=True)
    assert list(inbox.iterdir()) == []
    again = Repo.open(users.root)
    reports = quality_reports(again, "data/users")
    assert {path.removeprefix("data/users/") for path in reports} == good.keys()
    assert all(report.passed for (report,) in reports.values())
    assert again.verify() and again.version("data/users").nfiles == 40
    aside = [path for path in (inbox.parent / "in-quarantine").iterdir() if path.suffix == ".csv"]
    assert sorted(path.read_text().split("\n")[1] for path in aside) == sorted(bad.values())
    # One report for each file that was ever checked, and each is tracked.
    assert again.version("quality-reports").nfiles == 60


def users_on(s3: S3Server, tmp_path: Path, name: str) -> tuple[Repo, str]:
    """A repository with its remote, and an inbox, in one bucket."""
    bucket = s3.make_bucket(name)
    repo = make_repo(tmp_path / "users", {"schemas/users.yaml": YAML}, commit="Schema")
    options = {"url": f"{bucket}/data", **s3.options()}
    lines = "\n".join(f"    {key} = {value}" for key, value in options.items())
    (repo.root / ".dvc/config").write_text(f"[core]\n    remote = store\n['remote \"store\"']\n{lines}\n")
    git(repo.root, "commit", "--quiet", "--all", "--message", "Remote")
    return Repo.open(repo.root), f"{bucket}/new/in"


def keys(s3: S3Server, bucket: str, prefix: str) -> dict[str, bytes]:
    with s3.client() as client:
        found = client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", ())
        return {
            each["Key"].removeprefix(prefix): client.get_object(Bucket=bucket, Key=each["Key"])["Body"].read()
            for each in found
        }


def send(s3: S3Server, bucket: str, name: str, *rows: str) -> None:
    with s3.client() as client:
        client.put_object(Bucket=bucket, Key=f"new/in/{name}", Body="\n".join(["id,zip", *rows, ""]).encode())


def test_an_inbox_at_a_url(s3: S3Server, tmp_path: Path) -> None:
    """Files of a bucket are checked, added and removed as those of a folder; quarantine is beside the inbox."""
    users, inbox = users_on(s3, tmp_path, "inbox-url")
    for name, row in {"a/b.csv": "1,01234", "bad.csv": "-1,0", ".part": "x", "_tmp/x.csv": "1,01234"}.items():
        send(s3, "inbox-url", name, row)
    options: dict[str, Any] = {"dataset": "data/users", "schema": "schemas/users.yaml", "settle": 0}
    assert check_incoming(users, inbox, **{**options, "settle": 3600}).waiting == ("a/b.csv", "bad.csv")
    before = keys(s3, "inbox-url", "new/")
    shown = check_incoming(users, inbox, dry_run=True, **options)
    assert verdicts(shown) == {"a/b.csv": "passed", "bad.csv": "failed"}
    assert keys(s3, "inbox-url", "new/") == before and not (users.root / "quality-reports").exists()

    found = check_incoming(users, inbox, **options)
    assert found.quarantine == f"{inbox}-quarantine"
    bad = found.refused[0]
    aside = keys(s3, "inbox-url", "new/in-quarantine/")
    assert aside[f"bad-{bad.digest[:12]}.csv"] == before["in/bad.csv"]
    assert b'"verdict": "failed"' in aside[f"bad-{bad.digest[:12]}.csv.report.json"]
    assert bad.place == f"{inbox}-quarantine/bad-{bad.digest[:12]}.csv"
    # What changes after its check stays for the next run, and so does what the dataset does not have.
    assert clear_incoming(users, found) == ()
    add_incoming(users, found)
    send(s3, "inbox-url", "a/b.csv", "1,01234", "2,01234")
    assert clear_incoming(users, found) == ()
    send(s3, "inbox-url", "a/b.csv", "1,01234")
    again = check_incoming(users, inbox, **options)
    assert verdicts(again) == {"a/b.csv": "known"}
    assert clear_incoming(users, again) == ("a/b.csv",)
    assert set(keys(s3, "inbox-url", "new/in/")) == {".part", "_tmp/x.csv"}
    assert (users.root / "data/users/a/b.csv").read_text() == "id,zip\n1,01234\n"
    with pytest.raises(OutputError, match="overlap"):
        check_incoming(users, inbox, quarantine=f"{inbox}/bad", **options)
    with pytest.raises(OutputError, match="overlap"):
        check_incoming(users, "s3://inbox-url", **options)


def test_a_worker_with_another_cache_downloads_again(s3: S3Server, tmp_path: Path) -> None:
    users, inbox = users_on(s3, tmp_path, "inbox-cache")
    send(s3, "inbox-cache", "a.csv", "1,01234")
    options: dict[str, Any] = {"dataset": "data/users", "schema": "schemas/users.yaml", "settle": 0}
    found = check_incoming(users, inbox, quarantine="../aside", **options)
    users.cache.path(found.files[0].digest).unlink()
    add_incoming(users, found)
    assert (users.root / "data/users/a.csv").read_text() == "id,zip\n1,01234\n"
    send(s3, "inbox-cache", "b.csv", "x")
    refused = check_incoming(users, inbox, quarantine="../aside", **options).refused
    assert Path(refused[0].place).read_text() == "id,zip\nx\n" and "b.csv" not in keys(
        s3, "inbox-cache", "new/in/"
    )


@pytest.mark.long
def test_a_kill_at_any_time_loses_nothing_of_a_url(s3: S3Server, tmp_path: Path) -> None:
    users, inbox = users_on(s3, tmp_path, "inbox-kill")
    good = {f"good-{number}.csv": f"{number + 1},01234" for number in range(15)}
    bad = {f"bad-{number}.csv": f"{-number - 1},01234" for number in range(10)}
    for name, row in {**good, **bad}.items():
        send(s3, "inbox-kill", name, row)
    killed = KILLED.replace('"../in"', repr(inbox))
    assert inbox in killed
    ends = set()
    for step in range(1, 13):
        command = [sys.executable, "-c", killed, str(step * 0.25)]
        ends.add(subprocess.run(command, cwd=users.root, capture_output=True).returncode)
    assert -9 in ends
    subprocess.run([sys.executable, "-c", killed, "0"], cwd=users.root, check=True)
    assert keys(s3, "inbox-kill", "new/in/") == {}
    again = Repo.open(users.root)
    assert again.verify() and again.version("data/users").nfiles == 15
    aside = keys(s3, "inbox-kill", "new/in-quarantine/")
    rows = sorted(data.decode().split("\n")[1] for name, data in aside.items() if name.endswith(".csv"))
    assert rows == sorted(bad.values())
