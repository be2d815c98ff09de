"""Many flow runs on one repository and one remote, against a real server on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from databases import postgresql
from servers import PrefectServer

from dvkf_prefect.repo import Repo

from .conftest import git

# Flow runs at once, and in a row: DVKF_RUNS=1000 takes an hour, and longer beside other work.
AT_ONCE = 20
IN_A_ROW = int(os.environ.get("DVKF_RUNS", "24"))

pytestmark = [pytest.mark.long, pytest.mark.timeout(max(3600, 15 * IN_A_ROW))]

ONE_FILE = """
import json, sys
import pandas as pd
from prefect import flow
from dvkf_prefect import DvcRepository, commit_results, pull_data, push_data, write_data

@flow(name="one-file")
def one_file(number):
    data = DvcRepository(path={root!r}, label="shared")
    # The version that a run pushes is its own only in a turn.
    with data.turn():
        pull_data(data)
        version = write_data(data, pd.DataFrame({{"number": [number] * 3}}), f"tables/{{number}}.csv")
        push_data(data)
        commit_results(data, f"File {{number}}")
    return str(version.digest)

print(json.dumps(one_file(int(sys.argv[1]))))
"""

IN_ONE_PROCESS = """
import json, os, sys
import pandas as pd
from prefect import flow
from dvkf_prefect import DvcRepository, commit_results, pull_data, push_data, write_data

@flow(name="same-file")
def same_file(number):
    data = DvcRepository(path={root!r}, label="shared")
    pull_data(data)
    write_data(data, pd.DataFrame({{"number": [number % 2]}}), "table.csv")
    push_data(data)
    commit_results(data, f"Run {{number}}")

def taken():
    with open("/proc/self/status") as status:
        named = dict(line.split(":", 1) for line in status)
    return {{
        "memory": int(named["VmRSS"].split()[0]),
        "threads": int(named["Threads"]),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }}

for line in sys.stdin:
    same_file(int(line))
    print(json.dumps(taken()), flush=True)
"""


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[PrefectServer]:
    """A server on the database that the parameter names."""
    server = PrefectServer(tmp_path)
    (tmp_path / "tree").mkdir()
    with ExitStack() as started:
        if request.param == "postgresql":
            server.environment["PREFECT_API_DATABASE_CONNECTION_URL"] = started.enter_context(postgresql())
        started.enter_context(server.serving())
        yield server


@pytest.mark.parametrize("server", ["sqlite", "postgresql"], indirect=True)
def test_flow_runs_at_once_lose_no_version(server: PrefectServer, repo: Repo, tmp_path: Path) -> None:
    """Each adds a file to one directory, pushes it and commits; a clone of the real dvc has them all."""
    (repo.root / "tables").mkdir()
    (repo.root / "tables/first.csv").write_text("number\n0\n")
    repo.add(["tables"])
    repo.push()
    git(repo.root, "add", "--all")
    git(repo.root, "commit", "--quiet", "--message", "One directory")
    script = tmp_path / "tree/one_file.py"
    script.write_text(ONE_FILE.format(root=str(repo.root)))

    def run(number: int) -> str:
        said: str = json.loads(server.run(sys.executable, str(script), str(number)).splitlines()[-1])
        return said

    with ThreadPoolExecutor(AT_ONCE) as pool:
        digests = set(pool.map(run, range(AT_ONCE)))
    runs = server.post("/flow_runs/filter", {"flows": {"name": {"any_": ["one-file"]}}, "limit": 200})
    assert [each["state_type"] for each in runs] == ["COMPLETED"] * AT_ONCE
    # One version a run, each with its manifest on the remote.
    assert len(digests) == AT_ONCE
    store = tmp_path / "store/files/md5"
    assert all((store / digest[:2] / digest[2:]).is_file() for digest in digests)
    names = {"first.csv", *(f"{number}.csv" for number in range(AT_ONCE))}
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", repo.root, clone], check=True)
    subprocess.run(
        ["dvc", "remote", "modify", "-q", "--local", "store", "url", tmp_path / "store"],
        cwd=clone,
        check=True,
    )
    subprocess.run(["dvc", "pull", "-q"], cwd=clone, check=True)
    assert {path.name for path in (clone / "tables").iterdir()} == names
    assert all(len((clone / f"tables/{n}.csv").read_text().splitlines()) == 4 for n in range(AT_ONCE))
    assert int(git(repo.root, "rev-list", "--count", "HEAD")) == AT_ONCE + 2
    assert git(repo.root, "status", "--porcelain") == ""
    subprocess.run(["git", "fsck", "--strict"], cwd=repo.root, check=True, capture_output=True)


# States of task runs reach the table some time later.
TABLES = ("flow_run", "task_run", "artifact", "artifact_collection", "flow_run_state")


@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
def test_run_after_run_takes_no_more(server: PrefectServer, repo: Repo, tmp_path: Path) -> None:
    """Two versions of a table in turn: files, rows a run, memory, threads and descriptors stay."""
    repo.push()
    script = tmp_path / "tree/same_file.py"
    script.write_text(IN_ONE_PROCESS.format(root=str(repo.root)))
    database = tmp_path / "prefect/prefect.db"

    def rows() -> dict[str, int]:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as opened:
            return {name: opened.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in TABLES}

    def files() -> int:
        return sum(
            len(names) for top in (repo.root / ".dvc", tmp_path / "store") for *_, names in os.walk(top)
        )

    process = subprocess.Popen(
        [sys.executable, str(script)], env=server.environment, text=True, cwd=tmp_path / "tree",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    marks = sorted({max(2, IN_A_ROW * percent // 100) for percent in (10, 20, 50, 100)})
    found: dict[int, tuple[dict[str, int], dict[str, int]]] = {}
    with process:
        assert process.stdin and process.stdout
        for number in range(1, IN_A_ROW + 1):
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            taken = json.loads(process.stdout.readline())
            if number in marks:
                found[number] = (rows(), taken | {"files": files()})
                print(f"{number} runs: {found[number]}", flush=True)
        process.stdin.close()
    assert process.wait() == 0
    first_rows, first = found[marks[0]]
    last_rows, last = found[marks[-1]]
    # Each table grows by the same number of rows a run, from the first mark to the last.
    a_run = {name: (last_rows[name] - first_rows[name]) / (marks[-1] - marks[0]) for name in TABLES}
    assert all(
        counted[name] - first_rows[name] == (number - marks[0]) * a_run[name]
        for number, (counted, _) in found.items()
        for name in TABLES
    )
    assert a_run["artifact_collection"] == 0
    assert last["files"] == first["files"]
    # Pools of threads and of connections fill in the first runs.
    assert last["threads"] <= first["threads"] + 8
    assert last["descriptors"] <= first["descriptors"] + 16
    assert last["memory"] - first["memory"] < 60_000
