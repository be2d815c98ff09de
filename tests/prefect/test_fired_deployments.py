"""The deployments of prefect.yaml, fired by schedules and by events, on a server on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from databases import postgresql
from processes import wait_until
from ruamel.yaml import YAML
from servers import PrefectServer

from dvkf_prefect import DvcRepository, data_trigger
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.processes.leash import end
from dvkf_prefect.repo import Repo
from dvkf_prefect.serving.local import LocalServing

from .conftest import git, make_project, write_rows

# A server and some thirty flow runs by its worker, on each database.
pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]

TREE = Path(__file__).parents[2]
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
OF_DATA = ("train", "repro", "ingest", "maintain", "watch")
OF_MODELS = ("serve", "promote", "rollback")

# What a person's own script does, in a process of its own.
SCRIPT = """
import sys
from prefect import flow
from prefect.events import emit_event
from dvkf_prefect import DvcRemote, DvcRepository, push_data, register_model

@flow
def act(what, *arguments):
    if what == "push":
        push_data("local")
    elif what == "register":
        register_model("local", "signs")
    elif what == "save":
        origin, store = arguments
        remote = DvcRemote(url=store)
        remote.save("plain")
        DvcRepository(path=origin, label="plain", remote=remote).save("plain")
    else:
        emit_event(what, {"prefect.resource.id": "dvkf.model.signs/signs"})

if __name__ == "__main__":
    act(*sys.argv[1:])
"""


@dataclass(frozen=True)
class World:
    """A server with a worker, the deployments, and the repository that their blocks name."""

    server: PrefectServer
    project: Repo

    def deploy(self, triggers: dict[str, dict[str, Any]]) -> None:
        """Deploy prefect.yaml with triggers, for the model of the repository, and without its own schedules."""
        yaml = YAML(typ="safe", pure=True)
        document = yaml.load(TREE / "prefect.yaml")
        assert {each["name"] for each in document["deployments"]} == {*OF_DATA, *OF_MODELS}
        for each in document["deployments"]:
            each["schedules"] = []
            if each["name"] in OF_MODELS:
                each["parameters"]["model"] = "signs"
            if each["name"] == "promote":
                # No person is there.
                each["parameters"]["approval"] = False
            if each["name"] in triggers:
                each["triggers"] = [triggers[each["name"]]]
        yaml.dump(document, self.server.folder / "tree/prefect.yaml")
        self.server.run("prefect", "--no-prompt", "deploy", "--all")

    def runs(self, name: str, by: str) -> list[Any]:
        """The runs of a deployment that a SCHEDULE or an AUTOMATION made."""
        deployment = self.server.get(f"/deployments/name/{name}/{name}")
        found = self.server.post("/flow_runs/filter", {"deployments": {"id": {"any_": [deployment["id"]]}}})
        return [run for run in found if run["created_by"] and run["created_by"]["type"] == by]

    def completed(self, names: Iterable[str], by: str) -> None:
        """Wait until each deployment has run once, and completed."""
        for name in names:
            wait_until(lambda name=name: self.runs(name, by), 400, self.server.logs())  # type: ignore[misc]
            wait_until(
                lambda name=name: all(run["state_type"] in ENDED for run in self.runs(name, by)),  # type: ignore[misc]
                600,
                self.server.logs(),
            )
        for name in names:
            (run,) = self.runs(name, by)
            assert (run["state_type"], run["state_name"]) == ("COMPLETED", "Completed"), self.server.logs()

    def schedule(self, names: Iterable[str]) -> None:
        """Give each deployment a schedule with one date."""
        soon = datetime.now(timezone.utc) + timedelta(seconds=10)
        once = f"DTSTART:{soon:%Y%m%dT%H%M%SZ}\nRRULE:FREQ=DAILY;COUNT=1"
        for name in names:
            deployment = self.server.get(f"/deployments/name/{name}/{name}")
            rows = [{"schedule": {"rrule": once, "timezone": "UTC"}, "active": True}]
            self.server.post(f"/deployments/{deployment['id']}/schedules", rows)

    def new_file(self, name: str) -> None:
        """Bring a file into the inbox of `ingest`."""
        (self.project.root / "incoming").mkdir(exist_ok=True)
        new = self.project.root / "incoming" / name
        new.write_text("id\n1\n")
        os.utime(new, (1e9, 1e9))

    def in_production(self) -> tuple[str, str]:
        """The version of the model that the stage names, and the one that is served."""
        endpoint = LocalServing(self.server.folder / "prefect/dvkf/serving").get("signs")
        assert endpoint is not None
        return ModelRegistry(self.project).show("signs", "#prod").version or "", endpoint.version


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp(request.param)
    project = make_project(folder / "signs", folder / "store")
    (project.root / "schemas").mkdir()
    (project.root / "schemas/incoming.yaml").write_text("columns:\n  id: {dtype: int64}\nstrict: true\n")
    project.repro()
    git(project.root, "add", "--all")
    git(project.root, "commit", "--quiet", "--message", "Train")
    project.push()
    registry = ModelRegistry(project)
    registry.assign("signs", registry.register("signs").version, "prod")
    server = PrefectServer(folder)
    for name in ("flows", "blocks"):
        shutil.copytree(TREE / name, folder / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tree/script.py").write_text(SCRIPT)
    with ExitStack() as started:
        if request.param == "postgresql":
            server.environment["PREFECT_API_DATABASE_CONNECTION_URL"] = started.enter_context(postgresql())
        started.enter_context(server.serving())
        server.run("python", "blocks/local.py", str(project.root))
        server.run("prefect", "--no-prompt", "work-pool", "create", "local", "--type", "process")
        made = World(server, project)
        made.deploy({})
        worker = server.start("prefect", "worker", "start", "--pool", "local")
        started.callback(LocalServing(folder / "prefect/dvkf/serving").stop, "signs")
        started.callback(end, worker, grace=20)
        yield made


def test_a_schedule_fires_each_deployment(world: World) -> None:
    world.new_file("scheduled.csv")
    world.schedule([*OF_DATA, "serve"])
    world.completed([*OF_DATA, "serve"], "SCHEDULE")
    assert (world.project.root / "data/incoming/scheduled.csv").exists()
    assert world.in_production() == ("v0.0.1", "v0.0.1")
    assert ModelRegistry(world.project).register("signs").version == "v0.0.2"
    world.schedule(["promote"])
    world.completed(["promote"], "SCHEDULE")
    assert world.in_production() == ("v0.0.2", "v0.0.2")
    world.schedule(["rollback"])
    world.completed(["rollback"], "SCHEDULE")
    assert world.in_production() == ("v0.0.1", "v0.0.1")


def test_an_event_fires_each_deployment_once(world: World) -> None:
    """New data starts those that read it; a new model is promoted, served, and rolled back by an alert."""
    project = world.project
    trigger = data_trigger(DvcRepository(path=str(project.root)), "train")
    pushed = {"type": "event", **trigger.model_dump(mode="json", exclude_unset=True, exclude_none=True)}

    def of_model(event: str) -> dict[str, Any]:
        return {
            "type": "event",
            "expect": [event],
            "match": {"prefect.resource.id": ["dvkf.model.signs/signs"]},
        }

    names = {"promote": "dvkf.model.registered", "serve": "dvkf.model.promoted", "rollback": "alert.model"}
    world.deploy(
        {**dict.fromkeys(OF_DATA, pushed), **{name: of_model(event) for name, event in names.items()}}
    )
    assert len(world.server.post("/automations/filter", {})) == len(OF_DATA) + len(OF_MODELS)
    # An automation counts from the moment that the server's consumer has read it.
    time.sleep(5)
    world.new_file("fired.csv")
    write_rows(project.root / "data/train", "more", shift=5)
    project.add(["data/train"])
    world.server.run("python", "script.py", "push")
    world.completed(OF_DATA, "AUTOMATION")
    assert not Repo.open(project.root).status() and (project.root / "data/incoming/fired.csv").exists()
    world.server.run("python", "script.py", "register")
    world.completed(["promote", "serve"], "AUTOMATION")
    newest = ModelRegistry(project).show("signs").version
    assert world.in_production() == (newest, newest) and newest != "v0.0.1"
    world.server.run("python", "script.py", "alert.model")
    world.completed(["rollback"], "AUTOMATION")
    assert world.in_production()[0] == world.in_production()[1] != newest
    # No later event started another one.
    world.completed([*OF_DATA, *OF_MODELS], "AUTOMATION")


def test_a_plain_push_is_seen_once(world: World, tmp_path: Path) -> None:
    """By a watcher on a schedule, each run of which is a process of its own: pushed by the real dvc and git."""
    server, project = world.server, world.project
    origin, clone = tmp_path / "origin.git", tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--bare", str(project.root), str(origin))
    git(tmp_path, "clone", "-q", str(origin), str(clone))
    server.run("python", "script.py", "save", origin.as_uri(), str(project.remote().url))
    deployment = server.get("/deployments/name/watch/watch")
    every = {
        "schedule": {"interval": 5.0, "timezone": "UTC"},
        "active": True,
        "parameters": {"repository": "plain"},
    }
    (made,) = server.post(f"/deployments/{deployment['id']}/schedules", [every])

    def ends() -> int:
        found = server.post(
            "/flow_runs/filter",
            {
                "deployments": {"id": {"any_": [deployment["id"]]}},
                "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
            },
        )
        return sum(run["created_by"] is not None and run["created_by"]["id"] == made["id"] for run in found)

    def announced() -> list[Any]:
        wanted = {"filter": {"event": {"name": ["dvkf.dataset.pushed"]}}, "limit": 50}
        found = server.post("/events/filter", wanted)["events"]
        return [event for event in found if event["resource"].get("dvkf.repository") == "plain"]

    wait_until(lambda: ends() >= 1, 400, server.logs())
    assert announced() == []
    (clone / "data/train").mkdir(parents=True, exist_ok=True)
    (clone / "other.txt").write_text("other\n")
    for command in (
        ["dvc", "remote", "modify", "-q", "--local", "store", "url", str(project.remote().url)],
        ["dvc", "add", "-q", "other.txt"],
        ["dvc", "push", "-q", "other.txt.dvc"],
        ["git", "add", "other.txt.dvc", ".gitignore"],
        ["git", "commit", "-qm", "Another output"],
        ["git", "push", "-q", "origin", "HEAD"],
    ):
        subprocess.run(command, cwd=clone, check=True)
    wait_until(announced, 400, server.logs())
    before = ends()
    wait_until(lambda: ends() >= before + 2, 400, server.logs())
    server.delete(f"/deployments/{deployment['id']}/schedules/{made['id']}")
    (event,) = announced()
    assert event["resource"]["prefect.resource.id"] == "dvkf.dataset.plain/other.txt"
    assert event["payload"]["revision"] == git(clone, "rev-parse", "HEAD")
