"""The facade `Repo`: one short method a verb, with the repository's jobs and progress."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
from pathlib import Path

import pytest

import dvkf_prefect.repo
from dvkf_prefect.data.imports.origins import open_origin
from dvkf_prefect.errors import OutputError
from dvkf_prefect.repo import Repo

SCORES = """\
stages:
  score:
    cmd: cp numbers.json scores.json
    deps: [numbers.json]
    metrics: [{scores.json: {cache: false}}]
"""


class Watch:
    """Progress that keeps its labels and counts."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.files = self.ended = 0

    def start(self, label: str, files: int, size: int) -> None:
        self.labels.append(label)

    def expect(self, files: int, size: int) -> None:
        pass

    def advance(self, files: int, size: int) -> None:
        self.files += files

    def finish(self) -> None:
        self.ended += 1


@pytest.fixture
def scored(project):
    project.write("dvc.yaml", SCORES)
    project.write("numbers.json", json.dumps({"loss": 2}))
    project.write("data/a", "a")
    project.write("data/b", "bb")
    with project.repo.config.edit() as sections:
        sections["remote"]["store"] = {"url": str(project.root.parent / "store")}
        sections["core"]["remote"] = "store"
    return project


def save(project, message: str) -> str:
    git = ["git", "-C", str(project.root)]
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", message], check=True)
    return subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_each_method_is_a_few_lines_with_few_parameters() -> None:
    (facade,) = (
        node
        for node in ast.parse(inspect.getsource(dvkf_prefect.repo)).body
        if isinstance(node, ast.ClassDef)
    )
    for method in facade.body:
        if not isinstance(method, ast.FunctionDef):
            continue
        code = [node for node in ast.walk(method) if isinstance(node, ast.stmt)][1:]
        assert len(code) - 1 <= 5, method.name  # without the docstring
        arguments = method.args
        assert len(arguments.args) + len(arguments.kwonlyargs) - 1 <= 6, method.name


def test_the_repository_has_the_jobs_and_the_progress_of_its_verbs(scored) -> None:
    watch = Watch()
    repo = Repo.open(scored.root, jobs=3, progress=watch)
    repo.add(["data"])
    repo.push()
    assert watch.labels == ["add data", "push to store"]
    assert (watch.files, watch.ended) == (2 + 3, 2)
    assert (repo.remote().jobs, repo.remote().bound) == (3, 3)
    assert Repo.open(scored.root).remote().bound is None


def test_jobs_and_progress_change_for_some_work(scored) -> None:
    watch = Watch()
    repo = Repo.open(scored.root, jobs=3)
    other = repo.using(jobs=5)
    assert (repo.jobs, other.jobs) == (3, 5)
    other.using(progress=watch).add(["data"])
    assert watch.labels == ["add data"]
    assert other.using(progress=watch).jobs == 5
    # The rest is shared, so what one of them did, the other knows.
    assert other.cache is repo.cache
    assert repo.unstaged >= {"data.dvc"}
    repo.push()
    assert watch.labels == ["add data"]


def test_progress_ends_where_a_verb_fails(scored) -> None:
    watch = Watch()
    (scored.root / "data" / "pipe").mkdir()
    (scored.root / "data" / "pipe" / "x").symlink_to("nowhere")
    with pytest.raises(OutputError):
        scored.repo.using(progress=watch).add(["data"])
    assert len(watch.labels) == watch.ended


def test_the_source_of_an_import_is_read_with_the_importers_jobs(scored, tmp_path: Path) -> None:
    scored.repo.add(["data"])
    scored.repo.push()
    save(scored, "one")
    subprocess.run(["git", "init", "-q", str(tmp_path / "mine")], check=True)
    watch = Watch()
    mine = Repo.init(tmp_path / "mine").using(jobs=2, progress=watch)
    with open_origin(mine, {"url": str(scored.root)}, None) as source:
        assert (source.jobs, source.progress) == (2, watch)
    mine.import_(str(scored.root), "data")
    assert "checkout data" in watch.labels


def test_commit_records_data_and_stages(scored) -> None:
    scored.repo.add(["data"])
    scored.repo.repro()
    assert not scored.repo.commit()
    scored.write("data/a", "new")
    scored.write("scores.json", json.dumps({"loss": 9}))
    done = scored.repo.commit()
    assert [version.path for version in done.versions] == ["data"]
    assert done.stages == ("score",)
    assert not scored.repo.status()
    assert not scored.repo.commit()
    scored.write("scores.json", json.dumps({"loss": 8}))
    scored.write("data/a", "newer")
    assert (scored.repo.commit(["score"]).versions, scored.repo.status().changes[0].path) == ((), "data")


def test_stages_run_and_their_metrics_are_compared(scored) -> None:
    assert scored.repo.repro().ran == ("score",)
    assert scored.repo.metrics() == {"scores.json": {"loss": 2}}
    first = save(scored, "one")
    scored.write("numbers.json", json.dumps({"loss": 1}))
    assert scored.repo.repro(["score"]).ran == ("score",)
    (row,) = scored.repo.diff_metrics()
    assert (row.name, row.old, row.new, row.change) == ("loss", 2, 1, -1)
    assert scored.repo.metrics(first) == {"scores.json": {"loss": 2}}


def test_content_is_listed_measured_and_copied_out_of_a_revision(scored, tmp_path: Path) -> None:
    scored.repo.add(["data"])
    first = save(scored, "one")
    scored.write("data/a", "newer")
    scored.repo.add(["data"])
    assert {item.path for item in scored.repo.ls("data")} == {"a", "b"}
    assert [(item.path, item.size) for item in scored.repo.du("data")][-1] == ("data", 7)
    assert scored.repo.get("data/a", tmp_path / "old", rev=first).read_text() == "a"
    assert scored.repo.get("data", tmp_path / "all").joinpath("a").read_text() == "newer"
    with pytest.raises(OutputError):
        scored.repo.get("data/a", tmp_path / "old")


def test_a_copy_comes_by_the_given_settings(scored, tmp_path: Path) -> None:
    scored.repo.add(["data"])
    scored.repo.push()
    first = save(scored, "one")
    (scored.root / ".dvc" / "config").write_text("")
    bare = {"core": {"remote": "lake"}, 'remote "lake"': {"url": str(tmp_path / "store")}}
    repo = Repo.open(scored.root, config={**bare, "cache": {"dir": str(tmp_path / "empty")}})
    assert repo.get("data/b", tmp_path / "b", rev=first).read_text() == "bb"


def test_the_repository_checks_its_health(scored) -> None:
    checks = scored.repo.doctor(remote=False)
    assert checks == scored.repo.doctor(remote=False)
    assert len(scored.repo.doctor()) == len(checks) + 1
