"""Lineage: from data to services and back, from the record in a version's tag."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dvkf_prefect.cli import main
from dvkf_prefect.errors import GitError, ModelNotFoundError
from dvkf_prefect.models.facts import read_facts
from dvkf_prefect.models.lineage import TRAILER, Lineage, draw_lineage
from dvkf_prefect.models.trace import trace_data, trace_version
from dvkf_prefect.repo import Repo

from .conftest import IDENTITY, Project

PIPELINE = """\
stages:
  prepare:
    cmd: cat data/*.txt > clean.txt
    deps: [data]
    outs: [clean.txt]
  train:
    cmd: cp clean.txt model.bin && echo '{"accuracy":0.9}' > metrics.json
    deps: [train.sh, clean.txt]
    params: [lr]
    outs: [model.bin]
    metrics: [{metrics.json: {cache: false}}]
artifacts:
  classifier: {path: model.bin, type: model}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two versions; the second learned from another b.txt and from a new file."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in IDENTITY.items():
            patch.setenv(name, value)
        return make_project(tmp_path_factory)


def make_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("lineage") / "project")
    root = project.root
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "params.yaml").write_text("lr: 0.1\n")
    (root / "train.sh").write_text("one\n")
    (root / "data").mkdir()
    for number in (1, 2):
        (root / "data" / "a.txt").write_text("a\n")
        (root / "data" / "b.txt").write_text(f"b{number}\n")
        if number == 2:
            (root / "data" / "new.txt").write_text("new\n")
        project.repo.add([root / "data"])
        Repo.open(root).repro()
        project.git("add", "-A")
        project.git("commit", "-q", "-m", f"Train {number}\n\nPrefect-Flow-Run: train-{number}")
        project.git("tag", f"data-{number}")
        project.registry.register("classifier", trailers={"Prefect-Flow-Run": "register"})
    return project


def names(found: list[Lineage]) -> list[str]:
    return [lineage.version.version for lineage in found]


def test_the_record_in_the_tag_is_what_the_commit_says(project: Project) -> None:
    version = project.registry.show("classifier", "v0.0.2")
    lineage = trace_version(project.registry, version)
    assert [stage.name for stage in lineage.stages] == ["train", "prepare"]
    assert all(len(stage.signature) == 64 for stage in lineage.stages)
    data = project.repo.version("data", rev=version.rev)
    assert [(item.path, item.kind) for item in lineage.inputs] == [("train.sh", "code"), ("data", "data")]
    assert lineage.inputs[1].digest == data.digest
    assert (lineage.params, lineage.metrics) == ({"params.yaml:lr": 0.1}, {"metrics.json:accuracy": 0.9})
    assert lineage.runs == {"Prefect-Flow-Run": "register", "Prefect-Flow-Run of the commit": "train-2"}

    # A tag of gto has no record; the same comes from its commit.
    event = project.registry.check_ref("classifier@v0.0.2")
    assert event is not None and TRAILER in event.trailers
    project.git("tag", "-a", "-m", "by gto", "other@v1.0.0", version.rev)
    project.git("tag", "-a", "-m", "by gto", "classifier@v9.0.0", version.rev)
    traced = trace_version(project.registry, project.registry.show("classifier", "v9.0.0"))
    assert (traced.stages, traced.metrics) == (lineage.stages, lineage.metrics)
    assert trace_version(project.registry, project.registry.show("other")).stages == ()
    project.git("tag", "-d", "classifier@v9.0.0", "other@v1.0.0")


def test_gto_and_git_read_the_tag(project: Project) -> None:
    body = project.git("for-each-ref", "--format=%(contents)", "refs/tags/classifier@v0.0.1")
    parsed = project.git(
        "for-each-ref", "--format=%(contents:trailers:key=Dvkf-Lineage,valueonly)", "refs/tags"
    )
    assert json.loads(parsed.splitlines()[0])["path"] == "model.bin"
    assert body.splitlines()[-1] == "Prefect-Flow-Run: register"
    assert "Dvkf-Lineage" not in project.registry.show("classifier").trailers


@pytest.mark.parametrize(
    ("path", "rev", "found"),
    [
        ("data", None, ["v0.0.2", "v0.0.1"]),
        ("data", "data-1", ["v0.0.1"]),
        ("data/a.txt", None, ["v0.0.2", "v0.0.1"]),
        ("data/a.txt", "data-1", ["v0.0.2", "v0.0.1"]),
        ("data/b.txt", "data-1", ["v0.0.1"]),
        ("data/new.txt", None, ["v0.0.2"]),
        ("train.sh", "data-1", ["v0.0.2", "v0.0.1"]),
        ("clean.txt", None, []),  # made by a stage, so not a source
        ("dvc.yaml", "data-1", []),
    ],
)
def test_versions_that_learned_from_data(
    project: Project, path: str, rev: str | None, found: list[str]
) -> None:
    assert names(trace_data(project.registry, path, rev)) == found


def test_data_that_is_nowhere(project: Project) -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"'data/new.txt' is neither tracked by DVC nor a file in git at"
    ):
        trace_data(project.registry, "data/new.txt", "data-1")
    with pytest.raises(GitError):
        trace_data(project.registry, "data", "nowhere")


def test_facts_are_noted_once(project: Project) -> None:
    version = project.registry.show("classifier", "v0.0.1")
    assert project.registry.note(version, "registry", {"where": "http://one", "model": "1"})
    assert not project.registry.note(version, "registry", {"where": "http://one", "model": "1"})
    assert project.registry.note(version, "registry", {"where": "http://two", "model": "5"})
    assert project.registry.note(version, "registry", {"where": "http://one", "model": "2"})
    facts = read_facts(project.registry.git, "classifier@v0.0.1")
    assert [(fact["where"], fact["model"]) for fact in facts] == [("http://two", "5"), ("http://one", "2")]
    assert trace_version(project.registry, version).facts == facts
    assert project.gto("history", "classifier", "--json")[0]["ref"] == "classifier@v0.0.2"
    project.git("update-ref", "-d", "refs/notes/dvkf")


def test_the_graph_goes_from_data_to_the_service(project: Project) -> None:
    from dataclasses import replace

    from dvkf_prefect.models.lineage import Service

    lineage = trace_version(project.registry, project.registry.show("classifier"))
    service = Service("classifier", "http://127.0.0.1:9")
    published = {"kind": "published", "where": "s3://bucket/classifier/"}
    drawing = draw_lineage([replace(lineage, services=(service,), facts=(published,))])
    needs = {
        node.split(" (")[0]: [n.split(" (")[0] for n in needed] for node, needed in drawing.needs.items()
    }
    assert needs == {
        "data": [],
        "stage prepare": ["data"],
        "clean.txt": ["stage prepare"],
        "train.sh": [],
        "stage train": ["clean.txt", "train.sh"],
        "metrics.json": ["stage train"],
        "model.bin": ["stage train"],
        "classifier v0.0.2": ["model.bin"],
        "published s3://bucket/classifier/": ["classifier v0.0.2"],
        "service http://127.0.0.1:9": ["classifier v0.0.2"],
    }
    assert drawing.mermaid().startswith("flowchart TD")


def test_the_command(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*words: str) -> str:
        capsys.readouterr()
        assert main(["lineage", *words]) == 0
        return capsys.readouterr().out

    monkeypatch.chdir(project.root / "data")
    assert [row["version"]["version"] for row in read(run("--data", "b.txt@data-1", "--json"))] == ["v0.0.1"]
    monkeypatch.chdir(project.root)
    assert [row["version"]["version"] for row in read(run("classifier@v0.0.1", "--json"))] == ["v0.0.1"]
    project.registry.assign("classifier", "v0.0.1", "prod")
    text = run("classifier#prod")
    assert (
        "model:         classifier v0.0.1 #prod" in text
        and "metric:        metrics.json:accuracy = 0.9" in text
    )
    assert run("classifier", "--mermaid").startswith("flowchart TD\n")
    assert run("--tree").splitlines()[0].startswith(("data (", "train.sh ("))
    assert run("--service", "classifier") == "No version runs in the service 'classifier'.\n"
    assert main(["lineage", "nothing"]) == 255


def read(text: str) -> Any:
    return json.loads(text)


def test_a_model_that_was_added_by_hand(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    project.train("weights")
    lineage = trace_version(project.registry, project.registry.register("classifier"))
    assert (lineage.stages, lineage.inputs) == ((), ())
    assert [node.split(" (")[0] for node in draw_lineage([lineage]).needs] == [
        "classifier v0.0.1",
        "model.bin",
    ]
