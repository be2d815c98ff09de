"""OpenLineage events: what a strict receiver gets, and what a dead one does to a run."""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lineage_receiver import Receiver, errors_of, receiving
from repos import make_repo

from dvkf_prefect.cli import main
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.openlineage import events
from dvkf_prefect.openlineage.events import LineageEvents
from dvkf_prefect.openlineage.receiver import is_configured
from dvkf_prefect.openlineage.sending import watch_stages
from dvkf_prefect.repo import Repo

STAGES = """\
stages:
  prepare:
    cmd: [cat data.csv > clean.csv, env > prepare.env]
    deps: [data.csv, code.py]
    outs: [clean.csv]
  train:
    cmd: [cp clean.csv model.bin, env > train.env]
    deps: [clean.csv]
    outs: [model.bin]
artifacts:
  digits: {path: model.bin, type: model}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    repo = make_repo(tmp_path / "project", remote=tmp_path / "store")
    (repo.root / "data.csv").write_text("width,height\n1,2\n")
    (repo.root / "code.py").write_text("pass\n")
    (repo.root / "dvc.yaml").write_text(STAGES)
    repo.add([repo.root / "data.csv"])
    git(repo, "remote", "add", "origin", "https://user:secret@git.example.org/team/digits.git")
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "Add stages")
    monkeypatch.chdir(repo.root)
    return Repo.open(repo.root)


def git(repo: Repo, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=repo.root, check=True, capture_output=True)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without variables of the client; it sets none itself."""
    events._ended.clear()
    for name in [name for name in os.environ if name.startswith("OPENLINEAGE")]:
        monkeypatch.delenv(name)
    yield
    events._ended.clear()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as found:
        monkeypatch.setenv("OPENLINEAGE_URL", found.url)
        yield found


@pytest.fixture(scope="module")
def sent() -> dict[str, Any]:
    """A valid event."""
    facet = {"_producer": "https://example.org/", "_schemaURL": ""}

    def url(name: str, version: str) -> str:
        return f"https://openlineage.io/spec/facets/{version}/{name}.json#/$defs/{name}"

    version = {**facet, "_schemaURL": url("DatasetVersionDatasetFacet", "1-0-1"), "datasetVersion": "v1"}
    kind = {
        **facet,
        "_schemaURL": url("JobTypeJobFacet", "2-0-4"),
        "processingType": "BATCH",
        "integration": "DVC",
    }
    return {
        "eventType": "START",
        "eventTime": "2026-01-01T00:00:00Z",
        "producer": "https://example.org/",
        "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent",
        "run": {"runId": "01941f29-7c00-7000-8000-000000000000"},
        "job": {"namespace": "n", "name": "j", "facets": {"jobType": kind}},
        "inputs": [{"namespace": "n", "name": "i", "facets": {"version": version}}],
    }


ORIGIN = "https://git.example.org/team/digits.git"


def test_a_pipeline_and_its_model(project: Repo, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "key")
    assert main(["repro", "-q"]) == 0
    git(project, "add", "-A")
    git(project, "commit", "-qm", "Train")
    assert main(["model", "register", "digits"]) == 0
    assert receiver.refused == []
    assert set(receiver.keys) == {"Bearer key"}
    # OpenLineage's client would set more variables, and the next stage would inherit them.
    for stage in ("prepare", "train"):
        lines = (project.root / f"{stage}.env").read_text().splitlines()
        names = {line.partition("=")[0] for line in lines if line.startswith("OPENLINEAGE")}
        assert names == {"OPENLINEAGE_URL", "OPENLINEAGE_API_KEY"}
    states = [(event["job"]["name"], event["eventType"]) for event in receiver.events]
    jobs = ("prepare", "train", "register digits")
    assert states == [(job, state) for job in jobs for state in ("START", "COMPLETE")]
    start, end = receiver.of("prepare")
    assert start["run"]["runId"] == end["run"]["runId"]
    assert (end["job"]["namespace"], end["job"]["facets"]["jobType"]["jobType"]) == (ORIGIN, "STAGE")
    store = f"file://{project.remote().url}"
    data = next(item for item in end["inputs"] if item["name"] == "data.csv")
    code = next(item for item in end["inputs"] if item["name"] == "code.py")
    digest = {output.path: output.digest for output in project.outputs()}
    assert (data["namespace"], data["facets"]["version"]["datasetVersion"]) == (store, digest["data.csv"])
    assert [field["name"] for field in data["facets"]["schema"]["fields"]] == ["width", "height"]
    assert (code["namespace"], "schema" in code["facets"]) == (ORIGIN, False)
    # The output of one job is the input of the next: equal in namespace, name and version.
    made, read = end["outputs"], receiver.of("train")[1]["inputs"]
    assert [{key: item[key] for key in ("namespace", "name", "facets")} for item in made] == [
        {key: item[key] for key in ("namespace", "name", "facets")} for item in read
    ]
    registered = receiver.of("register digits")[1]
    model = receiver.of("train")[1]["outputs"][0]
    assert registered["inputs"][0]["facets"]["version"] == model["facets"]["version"]
    version = registered["outputs"][0]
    assert (version["namespace"], version["name"]) == (ORIGIN, "models/digits")
    assert version["facets"]["version"]["datasetVersion"] == "v0.0.1"
    assert "secret" not in str(receiver.events)
    # What did not run sends nothing.
    count = len(receiver.events)
    assert main(["repro", "-q"]) == 0
    assert len(receiver.events) == count


def test_a_failed_stage(project: Repo, receiver: Receiver) -> None:
    (project.root / "dvc.yaml").write_text("stages:\n  broken:\n    cmd: exit 3\n    outs: [x]\n")
    assert main(["repro", "-q"]) != 0
    start, end = receiver.of("broken")
    assert (start["eventType"], end["eventType"], receiver.refused) == ("START", "FAIL", [])
    assert "broken" in end["run"]["facets"]["errorMessage"]["message"]


def test_a_deployment_and_its_parent(project: Repo, receiver: Receiver) -> None:
    assert main(["repro", "-q"]) == 0
    git(project, "add", "-A")
    git(project, "commit", "-qm", "Train")
    version = ModelRegistry(project).register("digits")
    run = "01941f29-7c00-7000-8000-000000000000"
    LineageEvents(project, parent=(run, "serve")).deployed(version, "kserve:/ml")
    end = receiver.of("deploy digits")[1]
    assert (end["inputs"][0]["name"], end["outputs"][0]["namespace"]) == ("models/digits", "kserve:/ml")
    parent = end["run"]["facets"]["parent"]
    assert (parent["run"]["runId"], parent["job"]["name"]) == (run, "serve")
    assert receiver.refused == []


BAD: dict[str, Callable[[dict[str, Any]], object]] = {
    "'runId' is a required property": lambda event: event["run"].pop("runId"),
    "'1' is not a 'uuid'": lambda event: event["run"].update(runId="1"),
    "'2026-01-01T00:00:00' is not a 'date-time'": lambda event: event.update(eventTime="2026-01-01T00:00:00"),
    "'here' is not a 'uri'": lambda event: event.update(producer="here"),
    "'ENDED' is not one of": lambda event: event.update(eventType="ENDED"),
    "'colour' was unexpected": lambda event: event.update(colour="red"),
    "1 is not of type 'string'": lambda event: event["inputs"][0]["facets"]["version"].update(
        datasetVersion=1
    ),
    "'size' was unexpected": lambda event: event["inputs"][0]["facets"]["version"].update(size=1),
    "facet digest: https": lambda event: event["inputs"][0]["facets"].update(
        digest=event["inputs"][0]["facets"]["version"]
    ),
    "'integration' is a required": lambda event: event["job"]["facets"]["jobType"].pop("integration"),
}


@pytest.mark.parametrize("said", BAD)
def test_the_receiver_refuses_by_the_specification(sent: dict[str, Any], said: str) -> None:
    event = copy.deepcopy(sent)
    assert errors_of(event) == []
    BAD[said](event)
    assert said in errors_of(event)[0]


@pytest.mark.parametrize("how", ["refuses", "is closed", "is silent"])
def test_a_dead_receiver_ends_no_run(
    project: Repo,
    receiver: Receiver,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(events, "_LIMIT", 0.5)
    receiver.status = 500 if how == "refuses" else 0
    receiver.silent = how == "is silent"
    if how == "is closed":
        monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING, logger="dvkf_prefect"):
        assert main(["repro", "-q"]) == 0
    assert (project.root / "model.bin").exists()
    said = [record.getMessage() for record in caplog.records if record.name.startswith("dvkf_prefect")]
    assert len(said) == 1 and said[0].startswith("OpenLineage: no more events are sent: ")
    assert receiver.requests == (0 if how == "is closed" else 1)


def test_nothing_is_imported_when_nothing_is_configured(project: Repo) -> None:
    assert not is_configured()

    def on_event(event: object) -> None:
        pass

    assert watch_stages(project, on_event) is on_event
    program = (
        "import sys; from dvkf_prefect.cli import main; code = main(sys.argv[1:]); "
        "assert not [m for m in sys.modules if m.startswith(('openlineage', 'dvkf_prefect.openlineage.events'))]; "
        "sys.exit(code)"
    )
    for command in ("repro -q", "model register digits", "model promote digits prod --place none"):
        subprocess.run([sys.executable, "-c", program, *command.split()], cwd=project.root, check=True)
        git(project, "add", "-A")
        git(project, "commit", "-qm", "Train", "--allow-empty")


@pytest.mark.parametrize(
    ("name", "value", "configured"),
    [
        ("OPENLINEAGE_CONFIG", "openlineage.yml", True),
        ("OPENLINEAGE__TRANSPORT__TYPE", "console", True),
        ("OPENLINEAGE_NAMESPACE", "team", False),
    ],
)
def test_variables_that_configure(
    name: str, value: str, configured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert is_configured() is configured
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
    assert not is_configured()
