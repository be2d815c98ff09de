"""The deployments of prefect.yaml, each run once by a real worker against a real server."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from processes import wait_until
from servers import PrefectServer

from dvkf_prefect.cards import artifact_key
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.promotion.journal import Journal, Record
from dvkf_prefect.promotion.promote import STEPS
from dvkf_prefect.repo import Repo
from dvkf_prefect.serving.local import LocalServing

from .conftest import PREPARE, git

TREE = Path(__file__).parents[2]
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
PAGE = TREE / "docs/how-to/schedules.md"


@pytest.fixture
def server(tmp_path: Path, project: Repo) -> Iterator[PrefectServer]:
    """The server, the blocks, the deployments and the worker that the page's commands make, on another port."""
    server = PrefectServer(tmp_path)
    del server.environment["PREFECT_API_URL"], server.environment["PREFECT_SERVER_UI_API_URL"]
    server.environment["PREFECT_SERVER_API_PORT"] = str(server.port)
    for name in ("flows", "blocks"):
        shutil.copytree(TREE / name, tmp_path / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(TREE / "prefect.yaml", tmp_path / "tree")
    text = PAGE.read_text().replace("4200", str(server.port)).replace(".demo/repo", str(project.root))
    (start,), (export, *prepare, work) = (
        each.splitlines() for each in re.findall(r"```sh\n(.*?)```", text, re.S)
    )
    with ExitStack() as started:
        started.enter_context(server.serving(*start.split()))
        said = server.run("bash", "-ec", "\n".join((export, *prepare)))
        assert "dvc-repository/local" in said
        server.environment["PREFECT_API_URL"] = server.api
        started.enter_context(server.running(*work.split()))
        yield server


def test_deployments_run_on_a_worker(server: PrefectServer, project: Repo) -> None:
    slugs = ["dvc-remote", "dvc-repository", "kubeflow-credentials", "kubeflow-pipelines", "model-server"]
    for slug in slugs:
        assert server.get(f"/block_types/slug/{slug}")["is_protected"] is False

    train = server.get("/deployments/name/train/train")
    assert [schedule["schedule"]["cron"] for schedule in train["schedules"]] == ["0 3 * * *"]
    described = train["parameter_openapi_schema"]["properties"]["minimum"]["description"]
    assert described == "Minimum of that metric for the registration."

    serving = LocalServing(server.folder / "prefect" / "dvkf" / "serving")
    try:
        run = server.run_deployment(
            "train/train", {"model": "signs", "stage": "prod", "metric": "accuracy", "minimum": 0.5}
        )
        assert run["state_type"] == "COMPLETED", server.logs()
        assert f"Prefect-Flow-Run: {run['id']}" in git(project.root, "log", "-1", "--format=%B")
        assert ModelRegistry(project).show("signs", "#prod").version == "v0.0.1"
        assert not Repo.open(project.root).status()
        keys = [
            "data-signs-data-train",
            artifact_key("data", "signs", "rows.csv"),
            "model-signs--signs",
            "stage-signs--train",
        ]
        keys += ["diff-signs", "metrics-signs", "pipeline-signs"]
        assert [key for key in keys if not server.artifacts(key)] == []

        run = server.run_deployment("serve/serve", {"model": "signs", "instances": [[2, 0]]})
        assert run["state_type"] == "COMPLETED", server.logs()
        endpoint = serving.get("signs")
        assert endpoint is not None
        assert (endpoint.version, endpoint.predict([[-2, 0], [2, 0]])) == ("v0.0.1", [0, 1])
        (card,) = server.artifacts("endpoint-signs--signs")
        assert endpoint.url in card["data"]

        git(project.root, "commit", "--quiet", "--allow-empty", "--message", "The same model again")
        registry = ModelRegistry(project)
        registry.assign("signs", registry.register("signs").version, "prod")
        run = server.run_deployment("rollback/rollback", {"model": "signs"})
        assert run["state_type"] == "COMPLETED", server.logs()
        assert registry.show("signs", "#prod").version == "v0.0.1"

        run = run_by_schedule(server, "train/train", {"model": "signs", "metric": "accuracy", "minimum": 2})
        assert (run["state_type"], run["state_name"]) == ("COMPLETED", "Rejected"), server.logs()
    finally:
        serving.stop("signs")


def run_by_schedule(server: PrefectServer, name: str, parameters: dict[str, Any]) -> Any:
    """Let the server's scheduler make a run of a deployment, and return it as it ended."""
    deployment = server.get(f"/deployments/name/{name}")
    schedules = f"/deployments/{deployment['id']}/schedules"
    every = {"schedule": {"interval": 5.0, "timezone": "UTC"}, "active": True, "parameters": parameters}
    (made,) = server.post(schedules, [every])
    wanted = {
        "deployments": {"id": {"any_": [deployment["id"]]}},
        "flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED"]}}},
        "sort": "EXPECTED_START_TIME_ASC",
    }

    def first() -> Any:
        found = server.post("/flow_runs/filter", wanted)
        return next(
            (run for run in found if run["created_by"] and run["created_by"]["id"] == made["id"]), None
        )

    run = wait_until(first, 400, "the schedule made no run")
    # One is enough: those that have not begun are deleted with their schedule.
    server.delete(f"{schedules}/{made['id']}")
    assert run["auto_scheduled"] and run["created_by"]["type"] == "SCHEDULE"

    def ended() -> Any:
        now = server.get(f"/flow_runs/{run['id']}")
        return now if now["state_type"] in ENDED else None

    return wait_until(ended, 400, "the scheduled run did not end")


# A worker sends SIGTERM; in `make test`, test_repro_flow.py ends flows by it.
@pytest.mark.long
def test_a_cancelled_run_leaves_no_process(server: PrefectServer, project: Repo, tmp_path: Path) -> None:
    """A person cancels the run in the UI; the worker ends its process, and the stage's command ends with it."""
    pid_file = tmp_path / "pid"
    (project.root / "prepare.py").write_text(
        "import pathlib, subprocess\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"pathlib.Path({str(pid_file)!r}).write_text(str(child.pid))\n"
        "child.wait()\n"
    )
    repro = server.get("/deployments/name/repro/repro")
    properties = repro["parameter_openapi_schema"]["properties"]
    assert [name for name, shown in properties.items() if not shown.get("description")] == []
    run = server.post(f"/deployments/{repro['id']}/create_flow_run", {"parameters": {"retries": 3}})

    wait_until(lambda: pid_file.exists() and pid_file.read_text(), 300, "the stage did not begin")
    sleeper = Path("/proc", pid_file.read_text())
    server.post(f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}, "force": False})
    wait_until(lambda: not sleeper.exists(), 300, "the stage outlived its flow")

    def ended() -> bool:
        return bool(server.get(f"/flow_runs/{run['id']}")["state_type"] == "CANCELLED")

    wait_until(ended, 300, "the flow run was not cancelled")
    found = server.post("/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    states = {task["name"]: task["state_type"] for task in found}
    assert states["prepare"] == "CANCELLED"
    assert "train" not in states
    with project.lock(timeout=1):
        pass

    # Nothing hinders the next one.
    (project.root / "prepare.py").write_text(PREPARE)
    run = server.run_deployment("repro/repro", {"message": "All of it"})
    assert run["state_type"] == "COMPLETED", server.logs()
    assert git(project.root, "log", "-1", "--format=%s") == "All of it"
    assert not Repo.open(project.root).status()


@pytest.mark.long
def test_a_suspended_promotion_leaves_the_worker_free(server: PrefectServer, project: Repo) -> None:
    """A person answers the form; a new process continues the same act, and writes nothing twice."""
    run = server.run_deployment("repro/repro", {"message": "Train"})
    assert run["state_type"] == "COMPLETED", server.logs()
    registry = ModelRegistry(project)
    registry.register("signs", version="v1.0.0")
    git(project.root, "commit", "--quiet", "--allow-empty", "--message", "The same model again")
    registry.register("signs", version="v2.0.0")
    serving = LocalServing(server.folder / "prefect" / "dvkf" / "serving")

    def journal() -> Record:
        record = Journal(registry.git, "signs", "prod").read()
        assert record is not None
        return record

    def started(parameters: dict[str, Any]) -> Any:
        """Start a promotion, and return its run once it is suspended and its process has ended."""
        deployment = server.get("/deployments/name/promote/promote")
        made = server.post(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})

        def suspended() -> Any:
            now = server.get(f"/flow_runs/{made['id']}")
            assert now["state_type"] not in ENDED, server.logs()
            return now if now["state_name"] == "Suspended" else None

        found = wait_until(suspended, 400, "the promotion was not suspended")
        process = Path("/proc", str(journal().holder.pid))
        wait_until(lambda: not process.exists(), 120, "the process of the suspended run did not end")
        return found

    def answered(run: Any, **answer: Any) -> Any:
        """Answer the form of a run, and return the run as it ended."""
        resumed = server.post(f"/flow_runs/{run['id']}/resume", {"run_input": answer})
        assert resumed["status"] == "ACCEPT", resumed

        def ended() -> Any:
            now = server.get(f"/flow_runs/{run['id']}")
            return now if now["state_type"] in ENDED else None

        return wait_until(ended, 400, "the resumed run did not end")

    try:
        run = server.run_deployment(
            "promote/promote", {"model": "signs", "which": "v1.0.0", "approval": False}
        )
        assert run["state_type"] == "COMPLETED", server.logs()

        # Refused: nothing is changed.
        tags = git(project.root, "tag")
        run = answered(started({"model": "signs"}), approve=False, person="Ann", reason="Not today")
        assert (run["state_type"], journal().state) == ("FAILED", "refused"), server.logs()
        assert "refused by Ann: Not today" in run["state"]["message"] and git(project.root, "tag") == tags

        waits = started({"model": "signs", "canary": 50, "reason": "Better"})
        before = journal()
        assert (before.state, [step.name for step in before.steps]) == ("running", ["gate"])
        assert before.holder.run == waits["id"]
        # The worker is free, and another version cannot be promoted.
        run = server.run_deployment("serve/serve", {"model": "signs", "instances": [[2, 0]]})
        assert run["state_type"] == "COMPLETED", server.logs()
        run = server.run_deployment(
            "promote/promote", {"model": "signs", "which": "v1.0.0", "approval": False}
        )
        assert run["state_type"] == "FAILED" and "has not ended" in run["state"]["message"], server.logs()
        assert journal() == before

        # Nobody answers: the server fails the run, and the next promotion does not wait for it.
        run = answered(waits, approve=False, person="Ann", reason="Not yet")
        unanswered = started({"model": "signs", "timeout": 5})
        asked = journal()

        def expired() -> Any:
            now = server.get(f"/flow_runs/{unanswered['id']}")
            return now if now["state_type"] in ENDED else None

        run = wait_until(expired, 400, "the run that nobody answered did not end")
        assert (run["state_type"], run["state"]["message"]) == (
            "FAILED", "The flow was paused and never resumed.",
        )  # fmt: skip
        endpoint = serving.get("signs")
        assert endpoint is not None and (endpoint.version, endpoint.canary) == ("v1.0.0", "")
        assert not list((serving.state_dir / "previews").glob("*.json"))
        waits = started({"model": "signs", "canary": 50, "reason": "Better"})
        before = journal()
        assert asked.id != before.id and before.state == "running"
        ended = next(
            each for each in Journal(registry.git, "signs", "prod").records(9) if each.id == asked.id
        )
        assert (ended.state, ended.problem) == (
            "refused",
            f"run {unanswered['id']} ended without an approval",
        )

        run = answered(waits, approve=True, person="Ann", reason="Better")
        assert run["state_type"] == "COMPLETED", server.logs()
        after = journal()
        assert (after.id, after.state, after.holder.run) == (before.id, "done", waits["id"])
        assert after.holder.pid != before.holder.pid and after.steps[0] == before.steps[0]
        assert [step.name for step in after.steps] == list(STEPS)
        endpoint = serving.get("signs")
        assert endpoint is not None and (endpoint.version, endpoint.canary) == ("v2.0.0", "")
        history = [event for event in registry.history("signs") if event.stage == "prod"]
        assert [event.version for event in history] == ["v2.0.0", "v1.0.0"]
        assert history[0].trailers["Approved-By"] == "approved by Ann: Better"
        assert history[0].trailers["Prefect-Flow-Run"] == waits["id"]
        wanted = {"filter": {"event": {"name": ["dvkf.model.promoted"]}}, "limit": 50}
        versions = lambda: sorted(  # noqa: E731
            event["payload"]["version"] for event in server.post("/events/filter", wanted)["events"]
        )
        wait_until(lambda: len(versions()) >= 2, 120, "the promotion was not announced")
        assert versions() == ["v1.0.0", "v2.0.0"]
    finally:
        serving.stop("signs")
