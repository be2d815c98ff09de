"""Promotion and rollback as one act: order, refusal, and kills at each step with a server under load."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from promotion_world import Load, run_act, start_act, write_version
from repos import commit_all, git, make_repo

from dvkf_prefect.blocks import ModelServer
from dvkf_prefect.cli import main
from dvkf_prefect.errors import LockedError, ModelError, ModelNotFoundError, PromotionError, RegistryError
from dvkf_prefect.models.gates import MetricGate, PrometheusGate, SmokeGate
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.version import ModelVersion
from dvkf_prefect.promotion.act import Acting, RunState
from dvkf_prefect.promotion.journal import Holder, Journal, Record
from dvkf_prefect.promotion.places import ServingState
from dvkf_prefect.promotion.promote import Approval, Promotion, plan, promote
from dvkf_prefect.promotion.rollback import Rollback, plan_rollback, roll_back
from dvkf_prefect.promotion.status import model_status
from dvkf_prefect.repo import Repo
from dvkf_prefect.serving.endpoint import Endpoint


def make_models(root: Path, count: int = 2) -> ModelRegistry:
    """Return the registry of a repository with versions v1.0.0, v2.0.0, ... of the model ``m``."""
    make_repo(root, {"dvc.yaml": "artifacts:\n  m:\n    path: model\n    type: model\n"})
    repo = Repo.open(root)
    registry = ModelRegistry(repo)
    for number in range(1, count + 1):
        write_version(root / "model", number)
        repo.add([root / "model"])
        commit_all(root)
        registry.register("m", version=f"v{number}.0.0")
    return registry


@dataclass
class Place:
    """A serving place in memory; it notes its calls, and raises an error instead of some."""

    served: ServingState | None = None
    where: str = "memory"

    def __post_init__(self) -> None:
        self.calls: list[str] = []
        self.errors: dict[str, Exception] = {}

    def _called(self, call: str) -> None:
        self.calls.append(call)
        if (error := self.errors.get(call.partition(" ")[0])) is not None:
            raise error

    @property
    def url(self) -> str:
        return "http://memory"

    def state(self, model: str) -> ServingState | None:
        return self.served

    def candidate(self, model: str, version: str) -> None:
        self._called(f"candidate {version}")

    def start_preview(self, registry: ModelRegistry, version: ModelVersion) -> Endpoint:
        self._called(f"preview {version.version}")
        return Endpoint("http://preview", version.name, version.version, "", 0, "", False)

    def end_preview(self, model: str) -> None:
        self._called("end preview")

    def deploy(self, registry: ModelRegistry, version: ModelVersion) -> Place:
        self._called(f"deploy {version.version}")
        self.served = ServingState(version.version, url=self.url)
        return self

    def undeploy(self, model: str) -> bool:
        self._called("undeploy")
        self.served = None
        return True

    def start_canary(self, registry: ModelRegistry, version: ModelVersion, percent: int) -> Place:
        self._called(f"canary {version.version} {percent}")
        assert self.served is not None
        self.served = replace(self.served, canary=version.version, percent=percent)
        return self

    def promote_canary(self, model: str) -> Place:
        assert self.served is not None
        self._called(f"promote {self.served.canary}")
        self.served = ServingState(self.served.canary, url=self.url)
        return self

    def abort_canary(self, model: str) -> Place:
        assert self.served is not None
        self._called(f"abort {self.served.canary}")
        self.served = replace(self.served, canary="", percent=0)
        return self


@pytest.fixture
def models(tmp_path: Path) -> ModelRegistry:
    return make_models(tmp_path / "repo")


@pytest.fixture
def three(tmp_path: Path) -> ModelRegistry:
    """A model with three versions, each promoted."""
    registry = make_models(tmp_path / "repo", 3)
    for version in ("v1.0.0", "v2.0.0", "v3.0.0"):
        promote(registry, "m", version, "prod", Promotion())
    return registry


def stage_of(registry: ModelRegistry, stage: str = "prod") -> str | None:
    return registry.overview()["m"]["stage"].get(stage)


def last(registry: ModelRegistry) -> Record:
    found = Journal(registry.git, "m", "prod").read()
    assert found is not None
    return found


# -- the act ---------------------------------------------------------------------------------------------------------


def test_a_promotion_and_a_rollback_record_each_step(models: ModelRegistry) -> None:
    place, mirrored = Place(), []
    acting = Acting(place, mirror=lambda: mirrored.append(stage_of(models)) or "mirrored", why="First")
    first = promote(models, "m", "v1.0.0", "prod", Promotion(acting, percent=10))
    assert [step.name for step in first.steps] == [
        "gate", "approval", "assign", "publish", "canary", "serve", "alias",
    ]  # fmt: skip
    assert (first.state, first.was, first.served, place.calls) == ("done", "", "", ["deploy v1.0.0"])
    second = promote(models, "m", "latest", "prod", Promotion(replace(acting, why="Better"), percent=10))
    assert place.calls[1:] == ["canary v2.0.0 10", "promote v2.0.0"]
    assert (second.was, second.served, stage_of(models)) == ("v1.0.0", "v1.0.0", "v2.0.0")
    tag = models.history("m")[0]
    assert tag.message == "Better"
    assert tag.trailers["Dvkf-Promotion"] == second.id and tag.trailers["Previous-Version"] == "v1.0.0"
    assert tag.trailers["Approved-By"] == f"approved by {second.who}"
    # The same command again changes nothing.
    assert promote(models, "m", "v2.0.0", "prod", Promotion(acting, percent=10)) == second
    back = roll_back(models, "m", "prod", Rollback(replace(acting, why="Wrong sevens")))
    assert [step.name for step in back.steps] == ["serve", "assign", "data", "alias"]
    assert place.calls[3:] == ["deploy v1.0.0"] and stage_of(models) == "v1.0.0"
    tag = models.history("m")[0]
    assert "Wrong sevens" in tag.message and tag.trailers["Rolled-Back-From"] == "v2.0.0"
    assert mirrored == ["v1.0.0", "v2.0.0", "v1.0.0"]
    subjects = git(models.git.root, "log", "--format=%s", Journal(models.git, "m", "prod").ref).splitlines()
    assert subjects[0] == "rollback of m prod to v1.0.0: done" and len(subjects) == 24
    status = model_status(models, "m", [place])
    assert [record.kind for record in status.records] == ["rollback", "promote", "promote"]
    assert status.stages == {"prod": "v1.0.0"} and "v1.0.0 #prod" in str(status)
    assert status.serving == {"memory": ServingState("v1.0.0", url="http://memory")}
    with pytest.raises(ModelNotFoundError, match=r"held stage 'prod' before v1.0.0"):
        roll_back(models, "m", "prod", Rollback(acting))


def test_a_failed_gate_and_a_refusal_change_nothing(models: ModelRegistry) -> None:
    place = Place(ServingState("v1.0.0"))
    tags = git(models.git.root, "tag")
    with pytest.raises(PromotionError, match=r"nothing was changed. metric:accuracy"):
        promote(
            models, "m", "latest", "prod", Promotion(Acting(place), gates=[MetricGate("accuracy", bound=0.9)])
        )
    assert last(models).state == "refused"
    refuse = Promotion(Acting(place), approve=lambda _: Approval(False, "Ann", "Not today"))
    with pytest.raises(PromotionError, match="refused by Ann: Not today"):
        promote(models, "m", "latest", "prod", refuse)
    assert place.calls == [] and git(models.git.root, "tag") == tags


def test_a_promotion_waits_for_its_approval(models: ModelRegistry) -> None:
    place = Place(ServingState("v1.0.0"))
    waits = promote(models, "m", "v2.0.0", "prod", Promotion(Acting(place), approve=lambda _: None))
    assert (waits.state, [step.name for step in waits.steps], place.calls) == ("running", ["gate"], [])
    with pytest.raises(
        ModelError, match=r"promotion of m v2.0.0 to prod, by process \d+ on .* has not ended"
    ):
        promote(models, "m", "v1.0.0", "prod", Promotion(Acting(place)))
    with pytest.raises(ModelError, match="at memory, not at none"):
        promote(models, "m", "v2.0.0", "prod", Promotion())
    shown = plan(models, "m", "latest", "prod", Promotion(Acting(place), percent=5))
    assert [step.done for step in shown] == [True, *[False] * 6]
    done = promote(
        models, "m", "latest", "prod", Promotion(Acting(place), approve=lambda _: Approval(True, "Ann"))
    )
    assert (done.id, done.state, place.calls) == (waits.id, "done", ["deploy v2.0.0"])


def test_a_rollback_ends_a_promotion_that_got_no_answer(models: ModelRegistry) -> None:
    place = Place(ServingState("v1.0.0"))
    tags = git(models.git.root, "tag")
    promote(models, "m", "v2.0.0", "prod", Promotion(Acting(place), approve=lambda _: None))
    assert roll_back(models, "m", "prod", Rollback(Acting(place))).version == ""
    assert place.served is not None and place.served.version == "v1.0.0"
    assert git(models.git.root, "tag") == tags
    assert promote(models, "m", "v1.0.0", "prod", Promotion(Acting(place))).state == "done"


@pytest.mark.parametrize("fails", ["canary", "promote"])
def test_a_version_that_does_not_serve_leaves_the_one_before(models: ModelRegistry, fails: str) -> None:
    from dvkf_prefect.errors import ServingError

    place = Place()
    promote(models, "m", "v1.0.0", "prod", Promotion(Acting(place)))
    place.errors[fails] = ServingError("it does not serve")
    with pytest.raises(PromotionError, match=r"v1.0.0 is prod again. it does not serve"):
        promote(models, "m", "v2.0.0", "prod", Promotion(Acting(place), percent=10))
    assert place.served is not None and (place.served.version, place.served.canary) == ("v1.0.0", "")
    assert stage_of(models) == "v1.0.0" and last(models).state == "aborted"
    # It was rolled back from, so a rollback does not return to it.
    with pytest.raises(ModelNotFoundError):
        roll_back(models, "m", "prod", Rollback(Acting(place)))


def test_a_gate_that_refuses_the_canary_ends_it(models: ModelRegistry) -> None:
    """The smoke gate cannot judge here, as no endpoint answers for the canary alone, and so it refuses."""
    place = Place()
    promote(models, "m", "v1.0.0", "prod", Promotion(Acting(place)))
    with pytest.raises(
        PromotionError, match=r"v1.0.0 is prod again. smoke not judged: m v2.0.0 declares no smoke"
    ):
        promote(models, "m", "v2.0.0", "prod", Promotion(Acting(place), gates=[SmokeGate()]))
    assert place.calls[1:] == ["canary v2.0.0 0", "candidate v2.0.0", "abort v2.0.0"]
    assert place.served == ServingState("v1.0.0", url="http://memory") and stage_of(models) == "v1.0.0"


def test_a_first_version_is_judged_before_it_gets_traffic(models: ModelRegistry) -> None:
    """Recorded requests are sent to a preview. A gate on traffic judged the version as it served."""
    place = Place()
    traffic = PrometheusGate(errors=0.01)
    settings = Promotion(Acting(place), gates=[SmokeGate(optional=True), traffic])
    assert plan(models, "m", "v1.0.0", "prod", settings)[4].does == (
        f"none; smoke:optional, {traffic} judge a preview without traffic"
    )
    with pytest.raises(
        PromotionError,
        match=r"no version is prod again. .*; prometheus:errors<1% not judged: a first version is judged by recorded "
        r"requests, and m v1.0.0 declares no smoke predictions",
    ):
        promote(models, "m", "v1.0.0", "prod", settings)
    # The second end is that of the restoration, which also follows a kill.
    assert place.calls == ["preview v1.0.0", "end preview", "end preview"] and stage_of(models) is None
    assert (last(models).state, last(models).steps[-2].said) == ("aborted", "no version serves")
    place.calls.clear()
    gates = [replace(traffic, optional=True)]
    done = promote(models, "m", "v1.0.0", "prod", replace(settings, gates=gates))
    assert place.calls == ["preview v1.0.0", "end preview", "deploy v1.0.0"]
    assert done.steps[4].said.startswith("without traffic: prometheus:errors<1%,optional not judged")


def test_a_rollback_ends_the_preview_of_an_interrupted_promotion(models: ModelRegistry) -> None:
    place = Place()
    place.errors["preview"] = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        promote(models, "m", "v1.0.0", "prod", Promotion(Acting(place), gates=[SmokeGate()]))
    place.calls.clear()
    assert roll_back(models, "m", "prod", Rollback(Acting(place))).version == ""
    assert place.calls == ["end preview"] and stage_of(models) is None


def test_a_first_version_that_does_not_serve_takes_its_stage_back(models: ModelRegistry) -> None:
    from dvkf_prefect.errors import ServingError

    place = Place()
    place.errors["deploy"] = ServingError("it does not serve")
    with pytest.raises(PromotionError, match="no version is prod again"):
        promote(models, "m", "v1.0.0", "prod", Promotion(Acting(place)))
    assert stage_of(models) is None and place.served is None


def test_a_failed_mirror_is_left_to_the_next_run(models: ModelRegistry) -> None:
    place, broken = Place(), [RegistryError("no answer")]

    def mirror() -> str:
        if broken:
            raise broken.pop()
        return "1 updated"

    first = promote(models, "m", "v1.0.0", "prod", Promotion(Acting(place, mirror=mirror)))
    assert first.state == "mirroring" and "no answer" in first.problem and stage_of(models) == "v1.0.0"
    again = promote(models, "m", "v1.0.0", "prod", Promotion(Acting(place, mirror=mirror)))
    assert (again.id, again.state, again.steps[-1].said) == (first.id, "done", "1 updated")
    assert place.calls == ["deploy v1.0.0"]
    # A later promotion does not wait for a mirror that failed.
    broken.append(RegistryError("no answer"))
    assert (
        promote(models, "m", "v2.0.0", "prod", Promotion(Acting(place, mirror=mirror))).state == "mirroring"
    )
    assert roll_back(models, "m", "prod", Rollback(Acting(place, mirror=mirror))).state == "done"


def test_a_rollback_undoes_an_interrupted_promotion(models: ModelRegistry) -> None:
    place = Place()
    promote(models, "m", "v1.0.0", "prod", Promotion(Acting(place)))
    place.errors["promote"] = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        promote(models, "m", "v2.0.0", "prod", Promotion(Acting(place), percent=10))
    assert stage_of(models) == "v2.0.0" and place.served == ServingState(
        "v1.0.0", "v2.0.0", 10, "http://memory"
    )
    shown = plan_rollback(models, "m", "prod", Rollback(Acting(place)))
    assert str(shown[0]) == "serve: v1.0.0 in place of v1.0.0, canary v2.0.0 with 10 % at http://memory"
    done = roll_back(models, "m", "prod", Rollback(Acting(place)))
    assert (done.version, place.calls[-1]) == ("v1.0.0", "abort v2.0.0")
    assert stage_of(models) == "v1.0.0" and place.served == ServingState("v1.0.0", url="http://memory")
    states = [(record.kind, record.state) for record in model_status(models, "m").records]
    assert states == [("rollback", "done"), ("promote", "aborted"), ("promote", "done")]


def test_a_place_that_was_emptied_by_a_kill_serves_again(three: ModelRegistry) -> None:
    """A rollback found no server there, and recorded that none was served before."""
    models, place = three, Place(ServingState("v3.0.0"))
    place.errors["deploy"] = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        roll_back(models, "m", "prod", Rollback(Acting(place)))
    place.served = None
    place.errors.clear()
    assert roll_back(models, "m", "prod", Rollback(Acting(place))).steps[0].said.startswith("v2.0.0 answers")
    # So does the version before a promotion that does not serve, or that a rollback undoes.
    place.errors["promote"] = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        promote(models, "m", "v3.0.0", "prod", Promotion(Acting(place), percent=10))
    place.served = None
    assert roll_back(models, "m", "prod", Rollback(Acting(place))).version == "v2.0.0"
    assert place.served == ServingState("v2.0.0", url="http://memory")
    with pytest.raises(PromotionError, match=r"v2.0.0 is prod again. smoke not judged"):
        place.errors["candidate"] = KeyboardInterrupt()  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            promote(models, "m", "v3.0.0", "prod", Promotion(Acting(place), gates=[SmokeGate()]))
        place.served = None
        promote(models, "m", "v3.0.0", "prod", Promotion(Acting(place), gates=[SmokeGate()]))
    assert place.served == ServingState("v2.0.0", url="http://memory")


def test_two_at_once_and_another_machine(models: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    place = Place(ServingState("v1.0.0"))

    def second(record: Record) -> Approval:
        with pytest.raises(LockedError) as caught:
            promote(models, "m", "v1.0.0", "prod", Promotion())
        said.append(str(caught.value))
        return Approval(True, "Ann")

    promote(models, "m", "v2.0.0", "prod", Promotion(Acting(place), approve=second))
    here = Holder.here()
    assert f"promotion of m v2.0.0 to prod is under way, by process {here.pid} on {here.host}, for" in said[0]
    # Another machine began it: its lock is not seen from here.
    with monkeypatch.context() as patch:
        patch.setattr(Holder, "here", classmethod(lambda cls, run="": Holder("elsewhere", 7, run)))
        promote(models, "m", "v1.0.0", "prod", Promotion(Acting(place, run="R"), approve=lambda _: None))
    with pytest.raises(LockedError, match=r"begun by process 7 on elsewhere, run R, .* --take-over"):
        promote(models, "m", "v1.0.0", "prod", Promotion(Acting(place)))
    waits = promote(models, "m", "v1.0.0", "prod", Promotion(Acting(place, run="R"), approve=lambda _: None))
    assert waits.holder.host == here.host
    assert promote(models, "m", "v1.0.0", "prod", Promotion(Acting(place, take_over=True))).state == "done"


def test_clones_share_a_promotion_by_their_origin(tmp_path: Path) -> None:
    """The second clone continues it, and the first is refused at its next step."""
    models = make_models(tmp_path / "one")
    git(tmp_path, "init", "-q", "--bare", "origin")
    git(tmp_path / "one", "remote", "add", "origin", str(tmp_path / "origin"))
    git(tmp_path / "one", "push", "-q", "origin", "HEAD", "--tags")
    git(tmp_path, "clone", "-q", str(tmp_path / "origin"), "two")
    other = ModelRegistry(Repo.open(tmp_path / "two"))

    def taken_over(record: Record) -> Approval:
        acting = Acting(shared=True, take_over=True)
        assert promote(other, "m", "v2.0.0", "prod", Promotion(acting)).id == record.id
        return Approval(True, "Ann")

    with pytest.raises(LockedError, match=r"promotion of m v2.0.0 to prod is under way, by process"):
        promote(models, "m", "v2.0.0", "prod", Promotion(Acting(shared=True), approve=taken_over))
    assert stage_of(other) == "v2.0.0"
    again = promote(models, "m", "v2.0.0", "prod", Promotion(Acting(shared=True)))
    assert again.state == "done" and stage_of(models) == "v2.0.0"
    assert again == Journal(other.git, "m", "prod").read()


def test_a_rollback_checks_out_the_data(models: ModelRegistry) -> None:
    root = models.git.root
    for version in ("v1.0.0", "v2.0.0"):
        promote(models, "m", version, "prod", Promotion())
    assert (root / "model" / "value").read_text() == "2"
    (root / "model.dvc").write_text((root / "model.dvc").read_text() + "# mine\n")
    with pytest.raises(Exception, match=r"model.dvc of .*: not committed"):
        roll_back(models, "m", "prod", Rollback(data=True))
    git(root, "checkout", "-q", "model.dvc")
    assert stage_of(models) == "v2.0.0"
    assert str(plan_rollback(models, "m", "prod", Rollback(data=True))[2]) == (
        "data: restore model.dvc, and check out their data"
    )
    done = roll_back(models, "m", "prod", Rollback(data=True))
    assert done.steps[2].said == "the data is that of v1.0.0"
    assert (root / "model" / "value").read_text() == "1"


def test_the_commands(models: ModelRegistry, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(models.git.root)
    monkeypatch.setattr(
        "dvkf_prefect.settings.DvkfSettings.folder", lambda self, name: models.git.root.parent / name
    )
    assert main(["model", "promote", "m", "v1.0.0", "prod", "--dry-run"]) == 0
    assert "serve: nothing, as no version is served\n" in capfd.readouterr().out
    assert (
        main(["model", "promote", "m", "v1.0.0", "prod", "-m", "First", "--approved-by", "Ann", "--json"])
        == 0
    )
    assert json.loads(capfd.readouterr().out)["steps"][1]["said"] == "approved by Ann: First"
    assert main(["model", "promote", "m", "prod", "--place", "none"]) == 0
    assert capfd.readouterr().out.endswith("\nm #prod is v2.0.0\n")
    assert main(["model", "rollback", "m", "prod", "--dry-run", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)[1]["does"] == "prod from v2.0.0 to v1.0.0"
    assert main(["model", "rollback", "m", "prod", "-m", "Wrong"]) == 0
    assert capfd.readouterr().out == "m #prod is v1.0.0 again\n"
    assert main(["model", "status", "m"]) == 0
    assert capfd.readouterr().out.startswith("m\n  v2.0.0\n  v1.0.0 #prod\n")
    assert main(["model", "status", "m", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["stages"] == {"prod": "v1.0.0"}
    assert main(["model", "promote", "m", "prod", "--cpu", "2"]) != 0
    assert "--cpu is for a cluster" in capfd.readouterr().err


def test_a_rollback_that_was_killed_before_its_report_goes_no_version_further(
    three: ModelRegistry, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """The journal knows the callers that were told: ``dvkf model rollback`` after a kill went one version too far."""
    monkeypatch.chdir(three.git.root)
    command = ["model", "rollback", "m", "prod", "--place", "none"]
    dies = (
        "import os; from dvkf_prefect.cli import main, promotion; "
        f"promotion._report = lambda *_: os.kill(os.getpid(), 9); main({command})"
    )
    assert subprocess.run([sys.executable, "-c", dies]).returncode == -9
    assert (stage_of(three), last(three).state) == ("v2.0.0", "unreported")
    assert main([*command, "--dry-run"]) == 0
    assert "assign: prod is v2.0.0 again (done)\n" in capfd.readouterr().out
    assert main(command) == 0
    said = capfd.readouterr()
    assert said.out == "m #prod is v2.0.0 again\n"
    assert "rollback of m prod to v2.0.0: it had ended before, and its result was not shown" in said.err
    assert (stage_of(three), last(three).state, last(three).problem) == ("v2.0.0", "done", "")
    # The rollback of another person is one of its own.
    three.git.run(
        "update-ref", Journal(three.git, "m", "prod").ref, f"{Journal(three.git, 'm', 'prod').ref}~1"
    )
    monkeypatch.setenv("GIT_AUTHOR_EMAIL", "ann@example.org")
    monkeypatch.setenv("GIT_COMMITTER_EMAIL", "ann@example.org")
    assert last(three).state == "unreported" and main(command) == 0
    assert stage_of(three) == "v1.0.0"


def test_a_rollback_of_a_run_that_did_not_complete_is_continued_by_another(three: ModelRegistry) -> None:
    """A flow run was killed after its task had reported the end: the next one went one version too far."""
    states: dict[str, RunState] = {"A": "running"}
    told: list[Record] = []

    def acting(run: str) -> Rollback:
        return Rollback(Acting(run=run, run_state=lambda run: states.get(run, "")), report=told.append)

    done = roll_back(three, "m", "prod", acting("A"))
    assert (done.state, stage_of(three)) == ("done", "v2.0.0")
    assert all(step.done for step in plan_rollback(three, "m", "prod", acting("B")))
    for run in ("B", "B"):  # and its retry
        again = roll_back(three, "m", "prod", acting(run))
        assert (again.id, again.state, again.holder.run, stage_of(three)) == (done.id, "done", "B", "v2.0.0")
    assert "run A carried it out and did not complete" in told[1].problem and not told[2].problem
    states["B"] = "ended"
    assert roll_back(three, "m", "prod", acting("C")).id == done.id
    # After one that completed, or that is not known, it is another rollback.
    states["C"] = "completed"
    assert roll_back(three, "m", "prod", acting("D")).version == stage_of(three) == "v1.0.0"


def test_a_promotion_whose_run_ended_without_an_answer_is_refused(models: ModelRegistry) -> None:
    """No other version could be promoted until a rollback ended it."""
    place = Place(ServingState("v1.0.0"))
    states: dict[str, RunState] = {}
    asked = Acting(place, run="A", run_state=lambda run: states.get(run, ""))
    promote(models, "m", "v2.0.0", "prod", Promotion(asked, approve=lambda _: None))
    other = Promotion(replace(asked, run="B"))
    for state in ("running", "completed"):  # it may leave the answer to another run
        states["A"] = state
        for act in (promote, plan):
            with pytest.raises(ModelError, match="has not ended"):
                act(models, "m", "v1.0.0", "prod", other)
    states["A"] = "ended"
    assert not any(step.done for step in plan(models, "m", "v1.0.0", "prod", other))
    assert promote(models, "m", "v1.0.0", "prod", other).state == "done" and stage_of(models) == "v1.0.0"
    records = Journal(models.git, "m", "prod").records(5)
    assert [(each.version, each.state, each.problem) for each in records] == [
        ("v1.0.0", "done", ""), ("v2.0.0", "refused", "run A ended without an approval"),
    ]  # fmt: skip


def test_a_rollback_to_a_named_version_may_be_repeated(three: ModelRegistry) -> None:
    models, place = three, Place(ServingState("v3.0.0"))
    told: list[Record] = []
    to = Rollback(Acting(place), to="v1.0.0", report=told.append)
    assert plan_rollback(models, "m", "prod", to)[1].does == "prod from v3.0.0 to v1.0.0"
    done = roll_back(models, "m", "prod", to)
    assert (done.version, place.calls[-1], stage_of(models)) == ("v1.0.0", "deploy v1.0.0", "v1.0.0")
    calls = len(place.calls)
    assert roll_back(models, "m", "prod", to) == done and len(place.calls) == calls
    assert told == [done, done] and done.state == "done"
    with pytest.raises(
        ModelNotFoundError, match=r"v3.0.0 was rolled back from or never held stage 'prod' before v1.0.0"
    ):
        roll_back(models, "m", "prod", replace(to, to="v3.0.0"))
    # What else serves now is replaced.
    place.served = ServingState("v3.0.0")
    assert roll_back(models, "m", "prod", to).id != done.id and place.calls[-1] == "deploy v1.0.0"
    # An interrupted one is not left for another target.
    promote(models, "m", "v2.0.0", "prod", Promotion(Acting(place)))
    place.errors["deploy"] = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        roll_back(models, "m", "prod", to)
    for act in (roll_back, plan_rollback):
        with pytest.raises(
            ModelError, match=r"rollback of m prod to v1.0.0, by .* has not ended. Continue it"
        ):
            act(models, "m", "prod", replace(to, to="v2.0.0"))


# -- kills -----------------------------------------------------------------------------------------------------------


@dataclass
class Served:
    """A served model under load."""

    registry: ModelRegistry
    state: Path
    load: Load

    def start(self, verb: str, which: str = "", kill_at: float = 0) -> Any:
        return start_act(self.registry.git.root, self.state, verb, which, kill_at)

    @property
    def other(self) -> str:
        return "v2.0.0" if stage_of(self.registry) == "v1.0.0" else "v1.0.0"

    def check(self, version: str) -> None:
        assert last(self.registry).state == "done" and stage_of(self.registry) == version
        state = ModelServer(state_dir=str(self.state)).state("m")
        assert state is not None and (state.version, state.canary) == (version, "")
        assert self.load.failures == []


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """v1.0.0 and then v2.0.0 were promoted; clients ask all the time."""
    folder = tmp_path_factory.mktemp("promotion")
    registry = make_models(folder / "repo")
    state = folder / "state"
    for version in ("v1.0.0", "v2.0.0"):
        run_act(str(folder / "repo"), str(state), "promote", version, 0, 50)
    server = ModelServer(state_dir=str(state))
    try:
        with Load(server.endpoint("m").url) as load:
            yield Served(registry, state, load)
    finally:
        server.undeploy("m")


def _writes(count: int, quick: set[float]) -> list[Any]:
    """Return the moments before and after each write of the journal; those not quick are of the long tier."""
    moments = [number / 2 for number in range(2, 2 * count + 2)]
    return [pytest.param(at, marks=() if at in quick else pytest.mark.long) for at in moments]


@pytest.mark.parametrize("kill_at", _writes(9, {6}))
def test_a_promotion_killed_at_any_write_is_continued(served: Served, kill_at: float) -> None:
    version = served.other
    killed = served.start("promote", version, kill_at)
    killed.join(60)
    assert killed.exitcode == -9
    again = served.start("promote", version)
    again.join(60)
    assert again.exitcode == 0
    served.check(version)


@pytest.mark.parametrize("kill_at", _writes(7, {6.5}))
def test_a_rollback_killed_at_any_write_is_continued(served: Served, kill_at: float) -> None:
    version = served.other
    start = served.start("promote", version)
    start.join(60)
    before = served.other
    killed = served.start("rollback", kill_at=kill_at)
    killed.join(60)
    assert killed.exitcode == -9
    if kill_at < 7.5:  # after the last write nothing is left to do, and the caller knows
        again = served.start("rollback")
        again.join(60)
        assert again.exitcode == 0
    served.check(before)


def _kill_at_random(served: Served, kills: int, seed: int) -> None:
    moments = random.Random(seed)
    killed = 0
    while killed < kills:
        verb, version = moments.choice([("promote", served.other), ("rollback", "")])
        if verb == "rollback":
            served.start("promote", served.other).join(60)
            version = served.other
        before = last(served.registry).id
        while killed < kills:
            process = served.start(verb, version)
            time.sleep(moments.uniform(0.02, 0.8))
            process.kill()
            process.join(60)
            newest = last(served.registry)
            if process.exitcode == 0 or (
                newest.id != before and newest.state == "done"
            ):  # and it was reported
                break
            killed += 1
        else:
            end = served.start(verb, version)
            end.join(60)
            assert end.exitcode == 0
        served.check(version)


def test_kills_at_random_moments(served: Served) -> None:
    _kill_at_random(served, 3, seed=1)


@pytest.mark.long
def test_fifty_kills_at_random_moments(served: Served) -> None:
    _kill_at_random(served, 50, seed=2)
