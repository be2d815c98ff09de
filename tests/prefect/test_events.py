"""Events of new data and models, and the triggers that wait for them, on a real server."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.events.worker import EventsWorker
from processes import wait_until
from servers import PrefectServer

from dvkf_prefect import (
    DvcRemote,
    DvcRepository,
    commit_results,
    data_trigger,
    promote_model,
    push_data,
    register_model,
    repro_pipeline,
    rollback_model,
)
from dvkf_prefect.blocks import KubeflowPipelines
from dvkf_prefect.errors import StageNotFoundError
from dvkf_prefect.flows import watch
from dvkf_prefect.repo import Repo

from .conftest import git, write_rows


def new_rows(project: Repo, shift: float) -> None:
    """Add a file to the data that the pipeline reads."""
    write_rows(project.root / "data/train", f"more-{shift:g}", shift=shift)
    project.add(["data/train"])


def events(repository: str, at_least: int) -> list[dict[str, Any]]:
    """The events about one repository, the oldest first."""
    EventsWorker.instance().wait_until_empty()
    found: list[dict[str, Any]] = []

    def read() -> bool:
        wanted = {"filter": {"event": {"prefix": ["dvkf."]}, "order": "DESC"}, "limit": 50}
        with get_client(sync_client=True) as client:
            every = client._client.post("/events/filter", json=wanted).json()["events"]
        found[:] = [each for each in reversed(every) if each["resource"].get("dvkf.repository") == repository]
        return len(found) >= at_least

    wait_until(read)
    return found


def test_a_version_is_announced_when_it_arrives(prefect_server: None, repo: Repo, tmp_path: Path) -> None:
    """Once, and not by a push that sends nothing, or nothing of it."""
    block = DvcRepository(path=str(repo.root), label="announced")

    @flow
    def push() -> None:
        push_data(block)

    push()
    push()
    other = repo.root / "other.txt"
    other.write_text("other\n")
    (added,) = repo.add([other])
    push()
    first, second = events("announced", 2)
    assert first["event"] == second["event"] == "dvkf.dataset.pushed"
    (train,) = (output for output in repo.outputs() if output.path == "data/train")
    assert first["resource"]["prefect.resource.id"] == "dvkf.dataset.announced/data/train"
    assert first["payload"] == {
        "path": "data/train",
        "digest": train.digest,
        "size": 24,
        "nfiles": 3,
        "remote": "store",
    }
    assert (second["resource"]["dvkf.path"], second["resource"]["dvkf.digest"]) == ("other.txt", added.digest)
    assert {each["prefect.resource.role"] for each in first["related"]} >= {"flow-run", "task-run", "flow"}


def test_a_models_way_is_announced(prefect_server: None, project: Repo) -> None:
    block = DvcRepository(path=str(project.root), label="way")
    pipelines = KubeflowPipelines(backend="local")

    @flow
    def release() -> str:
        repro_pipeline(block, pipelines)
        commit_results(block, "Train")
        version = register_model(block, "signs")
        # The same version again is no new one.
        register_model(block, "signs")
        promote_model(block, "signs", version.version, "prod")
        promote_model(block, "signs", version.version, "prod")
        return version.version

    first = release()
    new_rows(project, 5)
    second = release()

    @flow
    def back() -> None:
        rollback_model(block, "signs", "prod")

    back()
    found = [
        (each["event"], each["resource"]["dvkf.version"], each["resource"].get("dvkf.stage"))
        for each in events("way", 5)
    ]
    assert found == [
        ("dvkf.model.registered", first, None),
        ("dvkf.model.promoted", first, "prod"),
        ("dvkf.model.registered", second, None),
        ("dvkf.model.promoted", second, "prod"),
        ("dvkf.model.rolled-back", first, "prod"),
    ]


def test_a_trigger_waits_for_the_data_that_its_stages_read(project: Repo, tmp_path: Path) -> None:
    block = DvcRepository(path=str(project.root), label="signs")
    (project.root / "spare.csv").write_text("1\n")
    project.add(["spare.csv"])
    trigger = data_trigger(block, "train", name="new rows")
    assert trigger.expect == {"dvkf.dataset.pushed"}
    # Through the stage before it; what no stage reads is not waited for.
    assert trigger.match.root == {"prefect.resource.id": ["dvkf.dataset.signs/data/train"]}
    with pytest.raises(StageNotFoundError, match="nothing"):
        data_trigger(block, "nothing")
    (project.root / "dvc.yaml").write_text("stages:\n  alone:\n    cmd: date > now\n    outs: [now]\n")
    with pytest.raises(StageNotFoundError, match="read no tracked data"):
        data_trigger(block)


SERVED = """
from prefect import flow
from dvkf_prefect import DvcRepository, data_trigger

@flow(name="retrain")
def retrain():
    pass

if __name__ == "__main__":
    block = DvcRepository(path={root!r}, label="signs")
    retrain.serve(name="retrain", triggers=[data_trigger(block, "train")])
"""

PUSH = """
from prefect import flow
from dvkf_prefect import DvcRepository, push_data

@flow(name="push")
def push():
    push_data(DvcRepository(path={root!r}, label="signs"))

push()
"""


@pytest.mark.long
def test_new_data_starts_its_deployment_once(project: Repo, tmp_path: Path) -> None:
    """A push of other data, and one of nothing, start none."""
    server = PrefectServer(tmp_path)
    (tmp_path / "tree").mkdir()
    for name, text in (("served", SERVED), ("push", PUSH)):
        (tmp_path / f"tree/{name}.py").write_text(text.format(root=str(project.root)))

    def pushes() -> int:
        wanted = {"filter": {"event": {"name": ["dvkf.dataset.pushed"]}}, "limit": 50}
        return len(server.post("/events/filter", wanted)["events"])

    def started() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = server.post(
            "/flow_runs/filter", {"flows": {"name": {"any_": ["retrain"]}}}
        )
        return found

    with ExitStack() as running:
        running.enter_context(server.serving())
        running.enter_context(server.running("python", "served.py"))
        wait_until(lambda: bool(server.post("/automations/filter", {})))
        # An automation counts from the moment that the server's consumer has read it.
        time.sleep(5)
        (project.root / "spare.csv").write_text("1\n")
        project.add(["spare.csv"])
        project.push(["data/train"])
        server.run("python", "push.py")
        wait_until(lambda: pushes() == 1)
        server.run("python", "push.py")
        new_rows(project, 7)
        server.run("python", "push.py")
        wait_until(lambda: pushes() == 2 and bool(started()))
        wait_until(lambda: started()[0]["state_type"] == "COMPLETED")
        assert len(started()) == 1


def test_versions_that_others_push_are_announced_once(
    prefect_server: None, repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a plain push: when the data is whole, by one of two watchers, and after a kill before the seen were kept."""
    block = DvcRepository(path=str(repo.root), label="watched")
    block.save("watched", overwrite=True)
    repo.push()
    assert watch("watched") == []

    def change(text: str) -> None:
        (repo.root / "data/train/0.txt").write_text(text)
        repo.add(["data/train"])
        git(repo.root, "commit", "-qam", text)

    change("another image\n")
    # In git, and not on the remote.
    assert watch("watched") == []
    repo.push()

    def die(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr("dvkf_prefect.tasks.watching.create_artifact", die)
        # The other watcher asked the server before the first one's event was there.
        killed.setattr("dvkf_prefect.tasks.watching._last_events", lambda *arguments: {})
        with pytest.raises(BaseException):  # noqa: B017 (Prefect wraps it)
            watch("watched")
        killed.undo()
    with monkeypatch.context() as late:
        late.setattr("dvkf_prefect.tasks.watching._last_events", lambda *arguments: {})
        (found,) = watch("watched")
    assert watch("watched") == []
    (first,) = events("watched", 1)
    assert first["resource"]["prefect.resource.id"] == "dvkf.dataset.watched/data/train"
    assert first["payload"]["digest"] == found["digest"] and first["payload"]["revision"] == found["rev"]
    # What a task announced is not announced again; an older version that comes back is.
    change("image 7\n")

    @flow
    def push() -> None:
        push_data(block)

    push()
    assert len(events("watched", 2)) == 2
    assert watch("watched") == []
    change("another image\n")
    assert [each["digest"] for each in watch("watched")] == [found["digest"]]
    assert len(events("watched", 3)) == 3


def test_a_branch_of_a_git_url_is_watched(
    prefect_server: None, repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clone has the last commit alone, and the data stays on the remote."""
    origin = tmp_path / "origin.git"
    git(tmp_path, "clone", "-q", "--bare", str(repo.root), str(origin))
    git(repo.root, "remote", "add", "origin", str(origin))
    repo.push()
    monkeypatch.setenv("PREFECT_INTEGRATIONS_DVKF_HOME", str(tmp_path / "home"))
    store = DvcRemote(url=repo.remote().url)
    DvcRepository(path=origin.as_uri(), label="branch", remote=store).save("branch", overwrite=True)
    assert watch("branch") == []
    other = repo.root / "other.txt"
    other.write_text("other\n")
    (added,) = repo.add([other])
    git(repo.root, "add", "--all")
    git(repo.root, "commit", "-qm", "Another output")
    repo.push()
    # The data is there, and the commit is not.
    assert watch("branch") == []
    git(repo.root, "push", "-q", "origin", "HEAD")
    (found,) = watch("branch")
    assert (found["path"], found["digest"]) == ("other.txt", added.digest)
    assert found["rev"] == git(repo.root, "rev-parse", "HEAD")
    assert watch("branch") == []
    assert len(events("branch", 1)) == 1
